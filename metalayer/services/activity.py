"""What goes on in a running platform, as lines for a terminal: files, runs, and why one failed.

It is read from the ledger and from Dagster's runs, so that it tells what happened whoever caused
it: a sensor, a click, another command. Full logs are in files and in the UI.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.storage.tags import BACKFILL_ID_TAG, SENSOR_NAME_TAG
from sqlalchemy import Engine

from metalayer.assets.failed import failure_in, name_of
from metalayer.assets.headless import PROCESS_TAG
from metalayer.assets.keys import range_of, tables_of
from metalayer.errors import MetaLayerError
from metalayer.warehouse.pool import transaction
from metalayer.wording import counted

_Status = dg.DagsterRunStatus
_TOLD = {
    _Status.STARTED: "started",
    _Status.SUCCESS: "finished",
    _Status.FAILURE: "failed",
    _Status.CANCELED: "was cancelled",
}
#: A change is looked for this far back, as clocks and commits differ a little.
_OVERLAP = timedelta(seconds=30)
_MOST_CHARACTERS = 600


class Activity:
    """Looks again and again for what is new since it began.

    Args:
        pool: The warehouse.
        instance: The Dagster instance.
    """

    def __init__(self, pool: Engine, instance: dg.DagsterInstance) -> None:
        self._pool = pool
        self._instance = instance
        self._since = datetime.now(UTC)
        self._told: dict[str, _Status] = {}
        ((self._delivery,),) = self._ask(
            "select coalesce(max(delivery_id), 0) from meta.deliveries"
        )

    def news(self) -> Iterator[str]:
        """What has happened since the last call, a line each."""
        yield from self._deliveries()
        yield from self._runs()

    def _deliveries(self) -> Iterator[str]:
        for number, file, status, rows, rejected, reason, drift in self._ask(
            "select delivery_id, file, status, rows_read, rows_rejected, reason, drift "
            "from meta.deliveries where delivery_id > %s order by delivery_id",
            self._delivery,
        ):
            self._delivery = number
            if status == "loaded":
                refused = f", {rejected:,} of them unreadable" if rejected else ""
                yield f"{file} taken in: {counted(rows, 'row')}{refused}"
            else:
                yield f"{file} {status}: {reason}" if reason else f"{file} {status}"
            yield from (f"{file}: {said}" for said in drift or ())

    def _runs(self) -> Iterator[str]:
        asked_at = datetime.now(UTC)
        filters = dg.RunsFilter(updated_after=self._since - _OVERLAP)
        for record in reversed(self._instance.get_run_records(filters=filters, limit=200)):
            run = record.dagster_run
            if run.status in _TOLD and self._told.get(run.run_id) is not run.status:
                is_over = run.is_finished
                # What was over before this began is no news.
                if not is_over or (record.end_time or 0) >= self._since.timestamp() - 30:
                    yield self._line(record)
                self._told[run.run_id] = run.status
        self._since = max(self._since, asked_at - _OVERLAP)
        if len(self._told) > 2000:
            self._told = dict(list(self._told.items())[-1000:])

    def _line(self, record: dg.RunRecord) -> str:
        run = record.dagster_run
        text = f"run {run.run_id[:8]} {_TOLD[run.status]}: {_months(run)}{_tables(run)}"
        if run.is_finished and record.start_time and record.end_time:
            text += f", {record.end_time - record.start_time:.1f} s"
        if run.status is _Status.STARTED:
            text += _asked_by(run)
        if run.status is _Status.FAILURE:
            text += _why(self._instance, run.run_id)
        return text

    def _ask(self, query: str, *values: object) -> list[Any]:
        with transaction(self._pool) as connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return list(cursor.fetchall())


def _months(run: dg.DagsterRun) -> str:
    ends = range_of(run.tags)
    if ends is None:
        return ""
    first, last = ends
    return f"{first}, " if first == last else f"{first} to {last}, "


def _tables(run: dg.DagsterRun) -> str:
    tables = sorted(tables_of(run))
    if not tables and PROCESS_TAG in run.tags:
        return "a build by another command"
    if not tables:
        return run.job_name if not run.job_name.startswith("__") else "all tables"
    return tables[0] if len(tables) == 1 else f"{len(tables)} tables"


def _asked_by(run: dg.DagsterRun) -> str:
    if BACKFILL_ID_TAG in run.tags:
        return " (backfill)"
    sensor = run.tags.get(SENSOR_NAME_TAG)
    return f" ({sensor})" if sensor else ""


def _why(instance: dg.DagsterInstance, run_id: str) -> str:
    """What the first step that failed said; the UI has the rest."""
    events = instance.get_records_for_run(
        run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1
    ).records
    for event in events:
        failed = event.event_log_entry.dagster_event
        failure = failure_in(failed) if failed is not None else None
        if failed is not None and failure is not None:
            said = " ".join(str(MetaLayerError(failure.message, failure.next_step)).split())
            return f". {name_of(failed)} ({failure.kind}): {_shortened(said)}"
    return ""


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
