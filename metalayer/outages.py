"""What befalls a command from outside: a full disk, a connection that broke, told as errors.

And what PostgreSQL refuses, told without the values of the row that it quotes.

PostgreSQL, DuckDB, SQLAlchemy, Dagster and the operating system each have exceptions of their own
for these, and wrap each other's. They are recognised here, once, with the class they are of; an
exception that is none of them is left to the caller (`failure.py`). Handling them (trying again,
rolling back) does not belong here.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from psycopg2 import errorcodes

from metalayer.errors import CapacityError, DiskFullError, Kind, MetaLayerError, WarehouseError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXT = re.compile(r"(?i)no space left|disk quota exceeded|not enough space on the disk")
# DuckDB's own limit for what it spills is nine tenths of the free space.
_SPILL_TEXT = re.compile(r"max_temp_directory_size|failed to offload")
# What one of its threads met it hands on as JSON.
_DUCKDB_CAUSE = re.compile(r'"exception_message":"((?:[^"\\]|\\.)*)"')
_DATA_EXCEPTION = "22"
#: What a code, or the class that its first two characters are, says of an error of PostgreSQL's.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_KINDS: dict[str, Kind] = {
    "08": "transient",  # connection exceptions
    "40": "transient",  # serialization failures and deadlocks
    "57": "transient",  # shut down, not up yet, cancelled
    errorcodes.LOCK_NOT_AVAILABLE: "transient",
    errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT: "transient",
    "53": "capacity",  # disk, memory, connections
    "22": "data",  # values that a statement cannot take
    "23": "data",  # rows that break a constraint
    "28": "configuration",  # who may log in
    "3D": "configuration",  # no such database
    "3F": "configuration",  # no such schema
    "42": "configuration",  # rights, and statements that do not fit the tables
}
_NEXT_STEPS: dict[Kind, str] = {
    "transient": "What is published stands; build again to do the rest.",
    "capacity": "Free what ran out, or allow PostgreSQL more of it; what is published stands.",
    "data": "Let the SELECT use try_cast, so that such rows go to quarantine, or mend the rows. "
    "PostgreSQL's own log has the details; what is published stands.",
    "configuration": "Compare the SELECT with the tables that it reads, and look at the rights of "
    "MetaLayer's role. PostgreSQL's own log has the details; what is published stands.",
}
_REFUSED = "PostgreSQL's own log has the details; what is published stands."
_CONNECTIONS_TEXT = re.compile(r"(?i)too many clients|connection slots are reserved|too many conn")
#: What libpq passes on of a server, or finds out, that no second try mends.
_NO_ENTRY_TEXT = re.compile(
    r"(?i)authentication failed|no password|does not exist|pg_hba\.conf|permission denied|"
    r"certificate|SSL|name or service not known|invalid"
)
_QUOTED = re.compile(r'"[^"]*"')
_ENDED = {
    errorcodes.ADMIN_SHUTDOWN,
    errorcodes.CRASH_SHUTDOWN,
    errorcodes.CANNOT_CONNECT_NOW,
    errorcodes.IDLE_SESSION_TIMEOUT,
}
#: With less than a few segments of its log left, PostgreSQL stops without a word to its clients.
_LEAST_FREE_BYTES = 64 * 1024 * 1024


def outage(error: BaseException, home: Path | None = None) -> MetaLayerError | None:
    """The outage behind an exception as an error for the user; None if there is none.

    Args:
        error: Looked at with everything it was raised from.
        home: Where the embedded PostgreSQL lives, whose connections break when its disk is full.
    """
    chain = list(_chain(error))
    for link in chain:
        if is_full_disk(link):
            return disk_full(_first_line(link), home)
        if is_out_of_memory(link):
            return CapacityError(
                f"Memory ran out: {_first_line(link)}",
                "Build fewer months side by side with METALAYER_WORKERS, or on a machine with more "
                "memory; what is published stands.",
            )
    lost = next((link for link in chain if _is_lost_connection(link)), None)
    if lost is None:
        return None
    if home is not None and is_nearly_full(home):
        return disk_full(f"PostgreSQL ended, and {home} has no room left", home)
    return lost_connection(_first_line(lost))


def lost_connection(said: str) -> WarehouseError:
    """A connection that broke, as an error; `said` is the driver's own first line."""
    return WarehouseError(
        f"The connection to PostgreSQL was lost: {said}",
        "What is published stands; build again to do the rest. `metalayer doctor` shows whether "
        "the server answers.",
        kind="transient",
    )


def refusal(error: psycopg2.Error) -> WarehouseError:
    """What PostgreSQL refuses, without the row that it quotes: that may be somebody's data.

    The detail of a message ("Key (email)=(...) is duplicated") and what stands in quotes in one
    about a value are left out.
    """
    said = error.diag.message_primary or type(error).__name__
    if (error.pgcode or "").startswith(_DATA_EXCEPTION):
        said = _QUOTED.sub('"***"', said)
    kind = kind_of_code(error.pgcode)
    return WarehouseError(
        f"PostgreSQL refuses: {said} ({type(error).__name__})",
        _NEXT_STEPS.get(kind, _REFUSED),
        kind=kind,
    )


def kind_of_code(code: str | None) -> Kind:
    """Of what class an error of PostgreSQL's is, by its five characters (SQLSTATE)."""
    code = code or ""
    return _KINDS.get(code) or _KINDS.get(code[:2], "bug")


def kind_of_connecting(error: BaseException) -> Kind:
    """The same of a failed try to connect, of which libpq gives only words."""
    said = str(getattr(error, "orig", None) or error)
    if _CONNECTIONS_TEXT.search(said) or type(error).__name__ == "TimeoutError":
        return "capacity"  # the latter is SQLAlchemy's, of a pool with no connection left
    return "configuration" if _NO_ENTRY_TEXT.search(said) else "transient"


def disk_full(what: str, home: Path | None = None) -> DiskFullError:
    """A full disk, as an error.

    Args:
        what: What could not be written, in the words of who tried.
        home: Named as the place to make room at, where it is known.
    """
    where = str(home) if home is not None else "METALAYER_HOME, or PostgreSQL's data folder,"
    return DiskFullError(
        f"The disk is full: {what}",
        f"Free space on the disk that holds {where} and build again; what is published stands.",
    )


def is_full_disk(error: BaseException) -> bool:
    """Whether this very exception says that a disk is full."""
    if isinstance(error, psycopg2.Error):
        return error.pgcode == errorcodes.DISK_FULL or bool(_FULL_TEXT.search(str(error)))
    if isinstance(error, OSError):
        return error.errno in _FULL
    # DuckDB's are told by their module: commands that only ask do without importing it.
    if type(error).__module__.partition(".")[0] in ("duckdb", "_duckdb"):
        return bool(_FULL_TEXT.search(str(error)) or _SPILL_TEXT.search(str(error)))
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this very exception says that there is no memory left."""
    if isinstance(error, psycopg2.Error):
        return bool(error.pgcode == errorcodes.OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or (
        type(error).__module__.partition(".")[0] in ("duckdb", "_duckdb")
        and type(error).__name__ == "OutOfMemoryException"
    )


def is_nearly_full(folder: Path) -> bool:
    """Whether a folder's disk has no room for PostgreSQL to go on."""
    try:
        return shutil.disk_usage(folder).free < _LEAST_FREE_BYTES
    except OSError:
        return False


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, psycopg2.DatabaseError) and type(error) is psycopg2.DatabaseError:
        # So psycopg2 has it where the server goes in the middle of an answer.
        return error.pgcode is None and "connection" in str(error)
    if not isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return False
    if error.pgcode is not None:
        return error.pgcode in _ENDED or error.pgcode.startswith("08")
    # libpq speaks for itself, without a code, when the other side is gone; psycopg2 does so when
    # it has noticed before.
    return isinstance(error, psycopg2.OperationalError) or "connection" in str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and all it was raised from or while handling, each once, nearest first."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        causes = (link.__cause__, link.__context__, getattr(link, "orig", None))
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    within = _DUCKDB_CAUSE.search(text)
    if within is not None:
        text = within[1].replace('\\"', '"')
    return next(iter(text.strip().splitlines()), type(error).__name__)
