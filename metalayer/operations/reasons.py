"""Why runs failed: class, message and next step, out of Dagster's events of their steps.

Its table `event_logs` is read as it is, as Dagster takes seconds to import. Does not belong here:
which runs there are, and who is told (`conditions.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from metalayer.failure import CLASS, MEANING, NEXT_STEP, Failure
from metalayer.operations.looking import is_there, shortened


def reasons(cursor: Any, runs: Sequence[str]) -> dict[str, tuple[str, Failure]]:
    """Run -> its first step that failed and why, where the step's failure event says so."""
    if not runs or not is_there(cursor, "event_logs"):
        return {}
    cursor.execute(
        "select distinct on (run_id) run_id, step_key, event from event_logs "
        "where run_id = any(%s) and dagster_event_type = 'STEP_FAILURE' order by run_id, id",
        (list(runs),),
    )
    found = {}
    for run, step, event in cursor.fetchall():
        # As Dagster writes it. Of another release, or of a type check, the event says less.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(event)["dagster_event"]["event_specific_data"]["user_failure_data"]
            facts = {e["label"]: e["entry_data"]["text"] for e in said["metadata_entries"]}
            failure = Failure(facts[CLASS], said["description"], facts[NEXT_STEP])
            found[run] = (step.replace("__", ".", 1), failure)
    return found


def said_of(reason: tuple[str, Failure] | None) -> str:
    """The step, what it said and what that means, behind a sentence; "" if nothing is known."""
    if reason is None:
        return ""
    step, failure = reason
    said = shortened(failure.message)
    return f" {step}: {said}{'' if said.endswith('.') else '.'} {MEANING.get(failure.kind, '')}"


def next_step_of(run: str, reason: tuple[str, Failure] | None) -> str:
    """What to do about a run that failed."""
    if reason is None:
        return f"Open run {run[:8]} in the web interface: its failed step says why."
    return f"{reason[1].next_step} `metalayer logs --run {run[:8]}` shows what it did."
