"""Rows from DuckDB into PostgreSQL as a stream, and small results back: none passes through Python.

DuckDB writes CSV into a named pipe, psycopg2 copies from it; memory is the pipe's buffer.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import duckdb
from psycopg2 import sql

_BUFFER_BYTES = 1 << 20
_LONGEST_ROW_BYTES = 32 << 20


def copy_from_duckdb(
    memory: duckdb.DuckDBPyConnection, query: str, cursor: Any, copy: str | sql.Composable
) -> int:
    """Run a `copy ... from stdin (format csv)` over what `query` returns.

    NULL travels as an empty field, so a query must not return empty strings where they matter.

    Returns:
        The number of rows.

    Raises:
        duckdb.Error, psycopg2.Error: what either side refuses.
    """
    with tempfile.TemporaryDirectory(prefix="metalayer-") as folder:
        pipe = Path(folder) / "rows.csv"
        os.mkfifo(pipe, 0o600)
        failure: list[BaseException] = []
        reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        # Held until DuckDB has ended, so that the reader sees the end of the rows only then.
        held = os.open(pipe, os.O_WRONLY)
        os.set_blocking(reading, True)

        def write() -> None:
            try:
                memory.execute(f"copy ({query}) to '{quoted(pipe)}' (format csv, header false)")
            except BaseException as error:  # handed on to the thread that waits
                failure.append(error)
            finally:
                os.close(held)

        writer = threading.Thread(target=write, name="duckdb-to-postgresql")
        writer.start()
        try:
            with os.fdopen(reading, "rb") as stream:
                try:
                    cursor.copy_expert(copy, stream, size=_BUFFER_BYTES)
                except BaseException:
                    # Without a reader DuckDB would wait for one for ever, were it to open the pipe
                    # only now.
                    memory.interrupt()
                    while stream.read(_BUFFER_BYTES):
                        memory.interrupt()
                    raise
        finally:
            writer.join()
        if failure:
            raise failure[0]
        return int(cursor.rowcount)


def copy_to_duckdb(
    cursor: Any, memory: duckdb.DuckDBPyConnection, query: sql.Composable, table: str
) -> None:
    """Append what a query of PostgreSQL returns to a table of DuckDB with as many columns."""
    with tempfile.TemporaryDirectory(prefix="metalayer-") as folder:
        path = Path(folder) / "rows.csv"
        with path.open("wb") as out:
            cursor.copy_expert(sql.SQL("copy ({}) to stdout (format csv)").format(query), out)
        if path.stat().st_size:
            memory.execute(
                f"copy {table} from '{quoted(path)}' (format csv, header false, auto_detect false, "
                "delimiter ',', quote '\"', escape '\"', parallel false, "
                f"max_line_size {_LONGEST_ROW_BYTES}, buffer_size {2 * _LONGEST_ROW_BYTES})"
            )


def quoted(path: Path) -> str:
    """A path as it stands between the quotes of a SQL string."""
    return str(path).replace("'", "''")
