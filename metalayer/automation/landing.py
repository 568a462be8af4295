"""The sensor that takes in what lands, and says in the UI what became of each file.

A tick looks at names, sizes and times; only what is new is read. A little is read in the tick
itself, which is fastest; much is left to a run of the job `take_in`, which no time limit ends.
What is taken in makes bronze months out of date, and `following.py` has them built.

Does not belong here: reading files and judging them (`metalayer.landing`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg

from metalayer.assets.partitions import to_key
from metalayer.assets.resources import Warehouse, standing_warehouse
from metalayer.assets.tables import landing_key
from metalayer.automation.retries import EARLIER_SECONDS, UNFINISHED, Asked
from metalayer.catalog import Catalog, catalog
from metalayer.landing.awaiting import awaiting
from metalayer.landing.entries import Candidate, Delivery
from metalayer.landing.files import Skipped, discover
from metalayer.landing.ledger import Registration, register
from metalayer.landing.outdated import outdated_deliveries
from metalayer.landing.shape import terms_of
from metalayer.settings import Settings
from metalayer.warehouse.pool import transaction

TAKE_IN = "take_in"
#: What a tick reads itself; a tick may take a minute, and this takes a few seconds.
_MOST_BYTES, _MOST_FILES = 64 * 1024 * 1024, 100
_SHOWN = 50
ACCEPTED = "files_accepted"


@dataclass(frozen=True)
class Waiting:
    """What there is to take in.

    Attributes:
        candidates: Files that the ledger does not know as they are now.
        rereads: Deliveries that have to be read again under another contract.
        left: Files that are left alone, with the reason.
    """

    candidates: Sequence[Candidate]
    rereads: int
    left: Sequence[Skipped]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.candidates and not self.rereads

    @property
    def is_little(self) -> bool:
        """Whether a tick can do it."""
        return (
            not self.rereads
            and len(self.candidates) <= _MOST_FILES
            and sum(c.landed.size for c in self.candidates) <= _MOST_BYTES
        )

    @property
    def text(self) -> str:
        """How much it is."""
        size = sum(c.landed.size for c in self.candidates) / 1e6
        again = f", {self.rereads} files to be read again" if self.rereads else ""
        return f"{len(self.candidates)} new or changed files ({size:,.1f} MB){again}"

    @property
    def fingerprint(self) -> str:
        """Differs when something else waits."""
        files = [(c.landed.name, c.landed.size, c.landed.mtime_ns) for c in self.candidates]
        text = repr((sorted(files), self.rereads))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def look(warehouse: Warehouse) -> Waiting:
    """Compare the landing zone with the ledger; reads no file."""
    settings = warehouse.settings
    today = datetime.now(UTC).date()
    terms = {n: terms_of(s, settings.start_month, today) for n, s in catalog().sources.items()}
    files, skipped = discover(settings.landing, [t.source for t in terms.values()])
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        candidates, withdrawn = awaiting(cursor, terms, files)
        rereads = len(outdated_deliveries(cursor, terms))
    return Waiting(candidates, rereads, [*skipped, *withdrawn])


def landing_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor, on unless somebody turned it off."""

    @dg.sensor(
        name="landing",
        job=take_in,
        minimum_interval_seconds=max(1, settings.landing_interval_seconds - EARLIER_SECONDS),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Takes in new and changed exports of the landing zone once they stand still.",
    )
    def landing(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        with standing_warehouse() as warehouse:
            return _tick(context, warehouse)

    return landing


def _tick(
    context: dg.SensorEvaluationContext, warehouse: Warehouse
) -> dg.SensorResult | dg.SkipReason:
    waiting = look(warehouse)
    for skipped in waiting.left:
        context.log.info(f"left alone: {skipped.name}: {skipped.reason}")
    if waiting.is_empty:
        return dg.SkipReason("; ".join(["Nothing new has landed", *_left(waiting.left)]))
    unfinished = _unfinished_run(context.instance)
    if unfinished is not None:
        return dg.SkipReason(f"{waiting.text}; run {unfinished[:8]} is taking files in")
    if not waiting.is_little:
        return _ask_for_run(context, waiting)
    registration = take_in_files(warehouse)
    for line in told(registration):
        context.log.info(line)
    events = list(landing_events(warehouse, registration))
    lines = [*_summary(registration), *_left(waiting.left)]
    return dg.SensorResult(asset_events=events, skip_reason=dg.SkipReason("; ".join(lines)))


def _ask_for_run(
    context: dg.SensorEvaluationContext, waiting: Waiting
) -> dg.SensorResult | dg.SkipReason:
    """Leave it to a run; one that ended without doing it is asked for again, later and later."""
    asked, now = Asked.read(context.cursor), datetime.now(UTC).timestamp()
    if not asked.is_due(TAKE_IN, waiting.fingerprint, now):
        return dg.SkipReason(f"{waiting.text}; the run for them failed, see the runs of {TAKE_IN}")
    cursor = asked.after({TAKE_IN}, {TAKE_IN: waiting.fingerprint}, now).written()
    context.log.info(f"{waiting.text}: more than a tick should read, so a run takes them in")
    return dg.SensorResult(run_requests=[dg.RunRequest(job_name=TAKE_IN)], cursor=cursor)


def _unfinished_run(instance: dg.DagsterInstance) -> str | None:
    runs = instance.get_runs(dg.RunsFilter(job_name=TAKE_IN, statuses=list(UNFINISHED)), limit=1)
    return runs[0].run_id if runs else None


def take_in_files(warehouse: Warehouse, tell: Any = None) -> Registration:
    """Bring the ledger up to date with the landing zone."""
    return register(warehouse.pool, warehouse.settings, catalog().sources, progress=tell)


@dg.op(
    name="take_in_files",
    required_resource_keys={"warehouse"},
    description="Reads new and changed exports into the ledger, however large they are.",
    out=dg.Out(dg.Nothing),
)
def take_in_op(context: dg.OpExecutionContext) -> Iterator[Any]:
    """Take in everything that waits."""
    warehouse: Warehouse = context.resources.warehouse
    registration = take_in_files(warehouse, context.log.info)
    for line in told(registration):
        context.log.info(line)
    for event in landing_events(warehouse, registration):
        # Not yielded: Dagster stores them as of the run all the same, checks included.
        context.instance.report_runless_asset_event(event)
    yield dg.Output(None)


@dg.job(
    name=TAKE_IN,
    description="Takes in what has landed. The sensor `landing` starts it when there is much.",
)
def take_in() -> None:
    """One step: what waits in the landing zone is read into the ledger."""
    take_in_op()


# --- what is said about it ----------------------------------------------------------------------


def told(registration: Registration) -> Iterator[str]:
    """What became of each file, a line each."""
    for delivery in registration.deliveries:
        yield _became(delivery)
        yield from (f"{delivery.file}: {said}" for said in delivery.drift)
    for skipped in registration.skipped:
        yield f"left alone: {skipped.name}: {skipped.reason}"


def _became(delivery: Delivery) -> str:
    if delivery.status != "loaded":
        return f"{delivery.status}: {delivery.file}: {delivery.reason}"
    unreadable = f", {delivery.rows_rejected:,} unreadable" if delivery.rows_rejected else ""
    line = f"taken in: {delivery.file}: {delivery.rows_read:,} rows{unreadable}"
    if not delivery.months:
        return line
    return f"{line}, {to_key(min(delivery.months))} to {to_key(max(delivery.months))}"


def _summary(registration: Registration) -> list[str]:
    counts: dict[str, int] = {}
    for delivery in registration.deliveries:
        word = "taken in" if delivery.status == "loaded" else delivery.status
        counts[word] = counts.get(word, 0) + 1
    return [f"{n} {word}" for word, n in counts.items()] or ["Nothing could be taken in"]


def _left(skipped: Sequence[Skipped]) -> list[str]:
    if not skipped:
        return []
    shown = ", ".join(f"{s.name} ({s.reason})" for s in skipped[:3])
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return [f"left alone: {shown}{more}"]


def landing_events(
    warehouse: Warehouse, registration: Registration
) -> Iterator[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation]:
    """What the assets that stand for the exports have to show for it."""
    by_source: dict[str, list[Delivery]] = {}
    for delivery in registration.deliveries:
        by_source.setdefault(delivery.source, []).append(delivery)
    for source, deliveries in by_source.items():
        yield from _arrivals(source, deliveries)
        yield _acceptance(source, refused_files(warehouse, source))


def _arrivals(source: str, deliveries: Sequence[Delivery]) -> Iterator[Any]:
    months: dict[date, list[Delivery]] = {}
    for delivery in deliveries:
        if delivery.status == "loaded":
            for month in delivery.months:
                months.setdefault(month, []).append(delivery)
        else:
            yield dg.AssetObservation(
                landing_key(source),
                description=_became(delivery),
                metadata={"file": delivery.file, "status": delivery.status},
            )
    for month, brought in months.items():
        yield dg.AssetMaterialization(
            landing_key(source),
            partition=to_key(month),
            metadata={
                "files": dg.MetadataValue.md(_listed(d.file for d in brought)),
                "files_landed": len(brought),
            },
        )


def refused_files(warehouse: Warehouse, source: str) -> list[tuple[str, str]]:
    """The files of a source whose newest version is refused, and why; the newest first."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select file, reason from (select distinct on (file) file, status, reason, delivery_id "
            "from meta.ledger where source = %s order by file, delivery_id desc) as newest "
            "where status = 'rejected' order by delivery_id desc",
            (source,),
        )
        return list(cursor.fetchall())


def _acceptance(source: str, refused: Sequence[tuple[str, str]]) -> dg.AssetCheckEvaluation:
    """Whether the newest version of every file could be taken in."""
    metadata: Mapping[str, Any] = {
        "files_refused": len(refused),
        **(
            {
                "refused": dg.MetadataValue.md(_listed(f"{f}: {why}" for f, why in refused)),
                "next_step": "Land each file corrected, under the same name; or take it out with "
                "`metalayer land --withdraw FILE`",
            }
            if refused
            else {}
        ),
    }
    first = f"{refused[0][0]}: {refused[0][1]}" if refused else None
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return dg.AssetCheckEvaluation(
        asset_key=landing_key(source),
        check_name=ACCEPTED,
        passed=not refused,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{first}{more}" if first else "The newest version of every file is taken in",
        metadata=metadata,
    )


def _listed(lines: Iterable[str]) -> str:
    every = list(lines)
    shown = [f"- {line}" for line in every[:_SHOWN]]
    if len(every) > _SHOWN:
        shown.append(f"- and {len(every) - _SHOWN} more")
    return "\n".join(shown)


def acceptance_checks(tables: Catalog) -> list[dg.AssetChecksDefinition]:
    """The check of each source that the sensor reports, to be asked by a click as well."""
    return [_acceptance_check(source) for source in tables.sources]


def _acceptance_check(source: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=landing_key(source),
        name=ACCEPTED,
        description="The newest version of every landed file could be taken in.",
        required_resource_keys={"warehouse"},
    )
    def files_accepted(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        said = _acceptance(source, refused_files(context.resources.warehouse, source))
        return dg.AssetCheckResult(
            passed=said.passed,
            severity=said.severity,
            description=said.description,
            metadata=said.metadata,
        )

    return files_accepted
