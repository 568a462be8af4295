"""The sensor that takes in what lands, and says in the UI what became of each file.

A tick looks at names, sizes and times; only what is new is read. A little is read in the tick
itself, which is fastest; much is left to a run of the job `take_in`, which no time limit ends.
What is taken in makes bronze months out of date, and `following.py` has them built.

Does not belong here: reading files and judging them (`metalayer.landing`).
"""

import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import psycopg2
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from metalayer.assets.breaking import step
from metalayer.assets.resources import Warehouse, standing_warehouse
from metalayer.automation.arrivals import Told, landing_events, said_of
from metalayer.automation.retries import EARLIER_SECONDS, Asked, fingerprint
from metalayer.catalog import catalog
from metalayer.failure import as_ours, failure_of
from metalayer.landing.awaiting import awaiting
from metalayer.landing.entries import Candidate
from metalayer.landing.files import FileState, LandedFile, Skipped, discover
from metalayer.landing.ledger import LedgerBusyError, Registration, register
from metalayer.landing.outdated import outdated_deliveries
from metalayer.landing.shape import terms_of, unpacking_of
from metalayer.settings import Settings
from metalayer.warehouse.pool import transaction
from metalayer.wording import named

TAKE_IN = "take_in"
_log = logging.getLogger(__name__)
#: What a tick reads itself; a tick may take a minute, and this takes a few seconds.
_MOST_BYTES, _MOST_FILES = 16 * 1024 * 1024, 100
#: An export is this many times as large once it is unpacked, and more than that is rare.
_UNPACKED = 20


@dataclass(frozen=True)
class Waiting:
    """What there is to take in.

    Attributes:
        names: Every file of a source in the landing zone.
        candidates: Files that the ledger does not know as they are now.
        rereads: Deliveries that have to be read again under another contract.
        left: Files that are left alone, with the reason.
    """

    names: Set[str]
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
            and sum(_unpacked(c.landed) for c in self.candidates) <= _MOST_BYTES
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
        return fingerprint((sorted(files), self.rereads))


def look(warehouse: Warehouse) -> Waiting:
    """Compare the landing zone with the ledger; reads no file."""
    settings = warehouse.settings
    today = datetime.now(UTC).date()
    unpacking, sources = unpacking_of(settings), catalog().sources
    terms = {n: terms_of(s, settings.start_month, today, unpacking) for n, s in sources.items()}
    files, skipped = discover(settings.landing, [t.source for t in terms.values()])
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        candidates, withdrawn = awaiting(cursor, terms, files)
        rereads = len(outdated_deliveries(cursor, terms))
    return Waiting({f.name for f in files}, candidates, rereads, [*skipped, *withdrawn])


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
            try:
                return _tick(context, warehouse)
            except Exception as error:
                found = failure_of(error, settings.embedded_home)
                _log.error("look at the landing zone failed: %s", found.line, extra=found.fields)
                raise

    return landing


def _tick(
    context: dg.SensorEvaluationContext, warehouse: Warehouse
) -> dg.SensorResult | dg.SkipReason:
    told = Told.read(context.cursor)
    waiting = look(warehouse)
    told = told.left_alone(waiting.left, context.log.info)
    lines: list[str] = []
    requests: list[dg.RunRequest] = []
    unfinished = None if waiting.is_empty else _unfinished_run(context.instance)
    if waiting.is_empty:
        pass
    elif unfinished is not None:
        lines.append(f"{waiting.text}; run {unfinished[:8]} is taking files in")
    elif waiting.is_little:
        # No more than was judged to be little, and no longer than a tick may take.
        judged = {candidate.landed.state for candidate in waiting.candidates}
        try:
            registration = take_in_files(warehouse, only=judged, waits=False)
        except LedgerBusyError:
            lines.append(f"{waiting.text}; another process is taking files in")
        else:
            news = [skipped for skipped in registration.skipped if skipped not in waiting.left]
            for line in said_of(replace(registration, skipped=news)):
                context.log.info(line)
    else:
        line, told, requests = _ask_for_run(told, waiting)
        context.log.info(line)
        lines.append(line)
    # From the ledger: whoever took a file in, and whatever became of the tick that did.
    events, told, counts = landing_events(warehouse, told, waiting.names)
    lines = [*lines, *counts] or ["Nothing new has landed"]
    return dg.SensorResult(
        run_requests=requests,
        asset_events=events,
        skip_reason=None if requests else dg.SkipReason("; ".join([*lines, *_left(waiting.left)])),
        cursor=told.written(),
    )


def _ask_for_run(told: Told, waiting: Waiting) -> tuple[str, Told, list[dg.RunRequest]]:
    """Leave it to a run; one that ended without doing it is asked for again, later and later."""
    asked, now = Asked(told.asked), datetime.now(UTC).timestamp()
    if not asked.is_due(TAKE_IN, waiting.fingerprint, now):
        return f"{waiting.text}; the run for them failed, see the runs of {TAKE_IN}", told, []
    after = asked.after({TAKE_IN}, {TAKE_IN: waiting.fingerprint}, now)
    line = f"{waiting.text}: more than a tick should read, so a run takes them in"
    return line, replace(told, asked=dict(after.times)), [dg.RunRequest(job_name=TAKE_IN)]


def _unfinished_run(instance: dg.DagsterInstance) -> str | None:
    runs = instance.get_runs(
        dg.RunsFilter(job_name=TAKE_IN, statuses=NOT_FINISHED_STATUSES), limit=1
    )
    return runs[0].run_id if runs else None


def take_in_files(
    warehouse: Warehouse,
    tell: Any = None,
    *,
    only: Set[FileState] | None = None,
    waits: bool = True,
) -> Registration:
    """Bring the ledger up to date with the landing zone; see `register`."""
    try:
        return register(
            warehouse.pool,
            warehouse.settings,
            catalog().sources,
            progress=tell,
            only=only,
            waits=waits,
        )
    except psycopg2.Error as error:
        # PostgreSQL's own words may quote a row.
        raise as_ours(error) or error from None


@dg.op(
    name="take_in_files",
    required_resource_keys={"warehouse"},
    description="Reads new and changed exports into the ledger, however large they are.",
    out=dg.Out(dg.Nothing),
)
def take_in_op(context: dg.OpExecutionContext) -> Iterator[Any]:
    """Take in everything that waits."""
    warehouse: Warehouse = context.resources.warehouse
    with step(context):
        with warehouse.profile.spending("read"):
            registration = take_in_files(warehouse, context.log.info)
        for line in said_of(registration):
            context.log.info(line)
        yield dg.Output(None)


@dg.job(
    name=TAKE_IN,
    description="Takes in what has landed. The sensor `landing` starts it when there is much.",
)
def take_in() -> None:
    """One step: what waits in the landing zone is read into the ledger."""
    take_in_op()


def _unpacked(file: LandedFile) -> int:
    return file.size * _UNPACKED if file.name.endswith(".gz") else file.size


def _left(skipped: Sequence[Skipped]) -> list[str]:
    if not skipped:
        return []
    return [f"left alone: {named([f'{s.name} ({s.reason})' for s in skipped], 3)}"]
