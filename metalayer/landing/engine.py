"""DuckDB, by which landed files are read: how every database of it is opened.

What is asked of it does not belong here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

#: What is kept of a file in memory at most; the rest spills. Some files are read at once.
MEMORY_BYTES = 320 * 1024 * 1024

Configuration = dict[str, str | bool | int | float | list[str]]


def open_memory(configuration: Configuration | None = None) -> duckdb.DuckDBPyConnection:
    """A database in memory that loads nothing from elsewhere, and draws nothing on the terminal."""
    database = duckdb.connect(
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            **(configuration or {}),
        }
    )
    # Of a session: it is not taken as configuration.
    database.execute("set enable_progress_bar = false")
    return database


@contextmanager
def open_spilling() -> Iterator[duckdb.DuckDBPyConnection]:
    """One for work that grows with the rows of a source: past `MEMORY_BYTES` it is on disk."""
    with (
        tempfile.TemporaryDirectory(prefix="metalayer-") as folder,
        open_memory({"memory_limit": f"{MEMORY_BYTES} bytes", "temp_directory": folder}) as memory,
    ):
        yield memory
