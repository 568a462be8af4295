"""What the log says of a run: that it begins, and how it ended.

Does not belong here: what its steps log, or where logs go (`metalayer.logs`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

import dagster as dg

from metalayer.assets.failed import failure_in, name_of
from metalayer.assets.keys import range_of, tables_of
from metalayer.failure import Failure
from metalayer.logs.writing import telling

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def logged_run(run: dg.DagsterRun, instance: dg.DagsterInstance) -> Iterator[None]:
    """Log the beginning and the end of a run, and let what is logged between name it."""
    ends, tables, began = range_of(run.tags), sorted(tables_of(run)), time.monotonic()
    facts = {"job": run.job_name, "tables": len(tables)}
    if ends is not None:
        facts["months"] = f"{ends[0]}..{ends[1]}"
    with telling(run=run.run_id):
        _log.info("run begins", extra=facts)
        try:
            yield
        finally:
            facts |= {"seconds": round(time.monotonic() - began, 1)}
            _log_end(run, instance, facts)


def _log_end(run: dg.DagsterRun, instance: dg.DagsterInstance, facts: dict[str, object]) -> None:
    try:
        failures = list(_failures(run, instance))
    except Exception as error:  # whatever keeps Dagster from answering, the run is over
        _log.error("run ends, and Dagster does not say how: %s", type(error).__name__, extra=facts)
        return
    if not failures:
        _log.info("run succeeded", extra=facts)
        return
    step, failure = failures[0]
    said = {"failed_steps": len(failures), "step": step, **facts, **failure.fields}
    _log.error("run failed", extra=said)


def _failures(run: dg.DagsterRun, instance: dg.DagsterInstance) -> Iterator[tuple[str, Failure]]:
    """The steps that failed, the first one first."""
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    for record in records.records:
        event = record.event_log_entry.dagster_event
        if event is not None:
            failure = failure_in(event) or Failure("bug", "", "")
            yield name_of(event), failure
