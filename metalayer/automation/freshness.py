"""Late tables in Dagster: the check "the month that is due is there", and the sensor that tells it.

Dagster's own freshness policy (`metalayer.assets.showing`) looks at the last materialization of any
month, so an old month that lands again turns it green. This asks for the newest month that the
contract says is due. Nothing has to be materialized for the answer to be seen: the sensor reports
it as an event, without a run, whenever it changes. The same check can be executed by hand.

Does not belong here: what makes a table late (`metalayer.lateness`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from metalayer.assets.breaking import step
from metalayer.assets.checks import DUE_CHECK
from metalayer.assets.keys import asset_key, table_of
from metalayer.catalog import Catalog
from metalayer.errors import MetaLayerError
from metalayer.inspection import reading
from metalayer.lateness import Punctuality, punctuality
from metalayer.settings import Settings
from metalayer.warehouse.pool import transaction

_INTERVAL_SECONDS = 60

Clock = Callable[[], datetime]


def _utc_now() -> datetime:
    return datetime.now(UTC)


def due_checks(tables: Catalog, now: Clock = _utc_now) -> list[dg.AssetChecksDefinition]:
    """One step that asks every table for the month that is due; it only warns.

    Args:
        now: The moment to ask for, with a time zone.
    """
    names = _due_tables(tables)
    if not names:
        return []

    @dg.multi_asset_check(
        name="months_that_are_due",
        specs=[
            dg.AssetCheckSpec(
                DUE_CHECK,
                asset=asset_key(name),
                description=f"The newest month that is due is there. A month is due on "
                f"{tables.specs[name].due}.",
            )
            for name in names
        ],
        required_resource_keys={"warehouse"},
        can_subset=True,
    )
    def months_that_are_due(
        context: dg.AssetCheckExecutionContext,
    ) -> Iterator[dg.AssetCheckResult]:
        selected = {key.asset_key for key in context.selected_asset_check_keys}
        warehouse = context.resources.warehouse
        with (
            step(context),
            transaction(warehouse.pool) as connection,
            connection.cursor() as cursor,
        ):
            found = punctuality(cursor, warehouse.settings.start_month, now())
        for name in names:
            if asset_key(name) in selected:
                yield dg.AssetCheckResult(**_answer(found[name]))

    return [months_that_are_due]


def lateness_sensor(tables: Catalog, now: Clock = _utc_now) -> dg.SensorDefinition:
    """Tells which tables are late, at its first tick and whenever that changes; it starts no run.

    Args:
        now: The moment at which tables are late or not, with a time zone.
    """

    @dg.sensor(
        name="late_tables",
        description="Reports for each table whether the month that is due is there "
        f"(check {DUE_CHECK}), whenever that changes.",
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def late_tables(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        settings = Settings.load()
        try:
            with reading(settings) as connection:
                if connection is None:
                    return dg.SkipReason("There is no warehouse yet: nothing was ever built.")
                with connection.cursor() as cursor:
                    found = punctuality(cursor, settings.start_month, now())
        except MetaLayerError as error:
            # It comes back: a failed tick would only hide the reason in a traceback.
            return dg.SkipReason(str(error))
        due = {name: found[name] for name in _due_tables(tables) if name in found}
        return _told(context.cursor, due, _materialized(context.instance, list(due)))

    return late_tables


def _materialized(instance: dg.DagsterInstance, names: Sequence[str]) -> dict[str, int | None]:
    """Table -> the event of its last materialization, as the storage numbers it."""
    records = instance.get_asset_records([asset_key(name) for name in names])
    return {
        table_of(entry.asset_key): entry.last_materialization_storage_id
        for entry in (record.asset_entry for record in records)
    }


def _told(
    cursor: str | None, found: Mapping[str, Punctuality], materialized: Mapping[str, int | None]
) -> dg.SensorResult | dg.SkipReason:
    """What has changed since the last tick, as events, and the verdicts to compare with next.

    The UI shows no result from before the last materialization, whatever month that was. So a
    verdict is told again after one.
    """
    before = json.loads(cursor) if cursor else {}
    verdicts = {
        name: [f"{p.verdict} {p.next_step}", materialized.get(name)] for name, p in found.items()
    }
    changed = [name for name in verdicts if verdicts[name] != before.get(name)]
    late = sum(p.is_late for p in found.values())
    if not changed:
        return dg.SkipReason(f"Nothing has changed: {late} of {len(found)} tables are late.")
    return dg.SensorResult(
        asset_events=[dg.AssetCheckEvaluation(**_answer(found[name])) for name in changed],
        cursor=json.dumps(verdicts),
        skip_reason=f"Told of {len(changed)} tables: {late} of {len(found)} are late.",
    )


def _answer(table: Punctuality) -> dict[str, Any]:
    """The check's result, as an evaluation or as the result of a step."""
    metadata: dict[str, Any] = {}
    if table.due_month is not None:
        metadata["due_month"] = f"{table.due_month:%Y-%m}"
    if table.due is not None:
        metadata["due"] = str(table.due)
    if table.newest_month is not None:
        metadata["newest_month"] = f"{table.newest_month:%Y-%m}"
    if table.late_since is not None:
        metadata["late_since"] = dg.MetadataValue.timestamp(table.late_since)
        metadata["waits_for"] = ", ".join(table.waits_for)
        metadata["what_to_do_next"] = table.next_step
    return {
        "asset_key": asset_key(table.table),
        "check_name": DUE_CHECK,
        "passed": not table.is_late,
        "severity": dg.AssetCheckSeverity.WARN,
        "description": " ".join(filter(None, (table.verdict, table.next_step))),
        "metadata": metadata,
    }


def _due_tables(tables: Catalog) -> list[str]:
    """The tables of which a month is ever due."""
    return [name for name, spec in tables.specs.items() if spec.due is not None]
