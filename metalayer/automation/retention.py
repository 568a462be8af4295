"""What has expired, taken out by a job, which a schedule may start.

Does not belong here: what expires, and what becomes of it (`governance/retention.py`).
"""

import dagster as dg

from metalayer.assets.breaking import step
from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog

RETAIN = "retain"


@dg.op(
    required_resource_keys={"warehouse"},
    description="Takes months whose retention has ended out of files and tables.",
)
def take_out_expired(context: dg.OpExecutionContext) -> None:
    """Have what has expired leave; what looks back over it follows by itself."""
    # Imports what builds do; the definitions load without it.
    from metalayer.governance.retention import expire, let_versions_go

    warehouse: Warehouse = context.resources.warehouse
    with step(context):
        found = expire(warehouse, catalog(), context.log.info)
        let_versions_go(warehouse, catalog(), found)
    for month, tables in sorted(found.held.items()):
        context.log.warning(f"{month:%Y-%m} stays: legal hold, {', '.join(tables)}")
    for file in found.left:
        context.log.warning(f"{file} was refused: what is in it is not known, and it stays")
    months = {t: [f"{m:%Y-%m}" for m in found.months[t]] for t in found.months}
    context.add_output_metadata({"months": months, "files": dict(found.files)})


@dg.job(
    name=RETAIN,
    description="Takes months out whose rows have been kept as long as their contracts say.",
)
def retain() -> None:
    """The one step."""
    take_out_expired()


#: On the second day of a month. Off by default: nothing is to go before somebody has said so.
retention_schedule = dg.ScheduleDefinition(
    name="retention",
    job=retain,
    cron_schedule="0 5 2 * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="On the second of a month at 05:00 UTC: months whose retention has ended go.",
)
