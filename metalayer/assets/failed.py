"""Why a step failed, as Dagster's events have it.

Does not belong here: what a step raises (`breaking.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg

from metalayer.errors import MetaLayerError
from metalayer.failure import CLASS, NEXT_STEP, Failure, broken_contract
from metalayer.outages import lost_connection

#: Failures of a step that are verdicts on rows.
VERDICTS = ("DagsterTypeCheckDidNotPass", "DagsterAssetCheckFailedError")
#: What psycopg2 raises when a connection breaks.
_OF_A_CONNECTION = ("OperationalError", "InterfaceError")


def name_of(event: dg.DagsterEvent) -> str:
    """The step of an event, which is called after its table: "silver.orders"."""
    return (event.step_key or "").replace("__", ".", 1)


def failure_in(event: dg.DagsterEvent) -> Failure | None:
    """Why a step failed, as its failure event has it; None where nobody said so.

    The message of what nobody foresaw ends with that of the exception itself.
    """
    data = event.step_failure_data
    error, said = data.error, data.user_failure_data
    if said is not None and CLASS in said.metadata:
        kind: Any = said.metadata[CLASS].value
        message = said.description or ""
        if kind == "bug" and error is not None and error.cause is not None:
            message = f"{error.cause.message.strip()} ({message})"
        return Failure(kind, message, str(said.metadata[NEXT_STEP].value))
    if error is not None and error.cls_name in VERDICTS:
        # What a type check says stands behind Dagster's own words.
        text = error.message.partition(": ")[2].rpartition(" Description: ")[2]
        table = name_of(event)
        if error.cls_name == "DagsterTypeCheckDidNotPass":
            return broken_contract(table, text.strip())
        return Failure(
            "data", text.strip(), f"Open {table} in the web interface: the check says which rows."
        )
    # What an error of ours was raised from is in its words already.
    while error is not None and error.cause is not None and not _is_ours(error.message):
        error = error.cause
    if error is None:
        return None
    text = error.message.strip()
    if _is_ours(text):
        kinds = {known.__name__: known.usual_kind for known in _descended(MetaLayerError)}
        return Failure(kinds.get(error.cls_name or "", "bug"), text.partition(": ")[2], "")
    if error.cls_name in _OF_A_CONNECTION:
        # Dagster's own storage has lost it: what it keeps of that is text.
        lost = lost_connection(text.partition(": ")[2].partition("\n")[0])
        return Failure(lost.kind, lost.message, lost.next_step)
    return Failure("bug", text, "")


def _is_ours(message: str) -> bool:
    """Whether an error, as Dagster keeps it in text, is one of MetaLayer's own."""
    return message.startswith("metalayer.")


def _descended(known: type[MetaLayerError]) -> Iterator[type[MetaLayerError]]:
    """A type of error, and all below it."""
    yield known
    for child in known.__subclasses__():
        yield from _descended(child)
