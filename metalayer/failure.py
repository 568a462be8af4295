"""Of what class an exception is, whoever raised it: the one place that says so.

    the exception --> outages.py, errors.py --> class, message, next step --> Dagster, logs, alerts

What PostgreSQL, DuckDB and the operating system raise is recognised in `outages.py`; errors of our
own say it themselves. Whatever nobody foresaw is a bug. Neither message nor next step has a value
of a row in it: an exception that nobody foresaw is told by its type and its place.

Does not belong here: trying again, or telling anybody.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from metalayer.errors import Kind, MetaLayerError
from metalayer.outages import outage, refusal

#: What a class means to whoever reads of it.
MEANING: dict[Kind, str] = {
    "transient": "It failed for something outside that may pass, and trying again was not enough.",
    "data": "Files or rows break their contract: it fails again until they change.",
    "configuration": "A setting, a right, a contract or a SELECT does not fit.",
    "capacity": "Room, memory or connections ran out.",
    "bug": "Nobody foresaw it: it is a defect of MetaLayer.",
}
#: Under which names they stand in Dagster's events and in logs.
CLASS, NEXT_STEP = "error_class", "next_step"
_PACKAGE = Path(__file__).resolve().parent
_REPORT = (
    "This is a defect of MetaLayer: please report it with its traceback, which the run shows in "
    "the web interface."
)


@dataclass(frozen=True)
class Failure:
    """Why something broke off.

    Attributes:
        kind: Its class, on which it depends whether trying again can help.
        message: The thing and the cause, as a sentence.
        next_step: What to do about it.
    """

    kind: Kind
    message: str
    next_step: str

    @property
    def line(self) -> str:
        """The first line of the message."""
        return self.message.strip().partition("\n")[0]

    @property
    def fields(self) -> dict[str, str]:
        """Class and next step, as events and logs have them."""
        return {CLASS: self.kind, NEXT_STEP: self.next_step}


def broken_contract(table: str, problem: str) -> Failure:
    """A month that failed its audit: rows break the contract, and do so until they change."""
    return Failure(
        "data",
        problem,
        f"`metalayer rejects {table}` shows rows that are in quarantine; mend the file and land it "
        "again, or change the contract.",
    )


def failure_of(error: BaseException, home: Path | None = None) -> Failure:
    """The class of an exception, and what can be said of it.

    Args:
        home: Where the embedded PostgreSQL lives, whose connections break when its disk is full.
    """
    known = as_ours(error, home)
    if known is not None:
        return Failure(known.kind, known.message, known.next_step)
    if isinstance(error, PermissionError):
        return Failure(
            "configuration",
            f"{error.filename or 'A file'}: {error.strerror or 'permission denied'}",
            "Give the account that runs MetaLayer the right to it.",
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return Failure("transient", type(error).__name__, "Try again in a moment.")
    return Failure("bug", f"{type(error).__name__} at {_place(error)}", _REPORT)


def as_ours(error: BaseException, home: Path | None = None) -> MetaLayerError | None:
    """An exception as one of MetaLayer's own, if it can be told as one."""
    if isinstance(error, MetaLayerError):
        return error
    known = outage(error, home)
    if known is None and isinstance(error, psycopg2.Error):
        known = refusal(error)
    return known


def _place(error: BaseException) -> str:
    """Where our code was when it happened: "metalayer/warehouse/stage.py:88"."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if _PACKAGE in Path(f.filename).parents]
    for frame in [*reversed(ours), *reversed(frames)][:1]:
        path = Path(frame.filename)
        shown = path.relative_to(_PACKAGE.parent) if ours else path.name
        return f"{shown}:{frame.lineno}"
    return "a place unknown"
