"""What those who only look have in common: connections that write nothing.

Does not belong here: what is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2

from metalayer.inspection import libpq_url
from metalayer.warehouse.server import SESSION

_CONNECT_SECONDS = 2
_MOST_CHARACTERS = 400


def is_there(cursor: Any, name: str) -> bool:
    """Whether there is a table or view of that name."""
    cursor.execute("select to_regclass(%s) is not null", (name,))
    return bool(cursor.fetchone()[0])


@contextlib.contextmanager
def looking(url: str, name: str, patience: float) -> Iterator[Any]:
    """A connection for as long as the block lasts; each statement is a transaction of its own.

    Args:
        url: SQLAlchemy's.
        name: Who looks, as it stands in `pg_stat_activity`.
        patience: Seconds after which a question is given up: what watches must not be what weighs.
    """
    connection = psycopg2.connect(
        libpq_url(url), application_name=f"metalayer {name}", connect_timeout=_CONNECT_SECONDS
    )
    with contextlib.closing(connection):
        connection.set_session(readonly=True, autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute(SESSION)
            cursor.execute(
                "select set_config('statement_timeout', %s, false)", (f"{patience * 1000:.0f}",)
            )
        yield connection


def shortened(text: str) -> str:
    """The first line of what was said, and not all of a long one."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."
