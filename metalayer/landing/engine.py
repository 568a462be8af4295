"""DuckDB, by which landed files are read: how every database of it is opened.

What is asked of it does not belong here.
"""

from __future__ import annotations

import duckdb

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
