"""What PostgreSQL knows of the tables in `months`, each the rows of one version of one month.

Does not belong here: making, filling or moving them (`stage.py`, `publish.py`), or the contracts:
whoever only asks does without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg2 import sql

#: Schema of these tables.
LEAVES = "months"
_SOME_VALUES = 20
#: Stands in the names of columns that hold masks, and in no name of a contract.
MASK_MARK = "~"


def is_mask_name(name: str) -> bool:
    """Whether a column of a stored table is a mask, of this making or an earlier one."""
    return MASK_MARK in name


def columns_of(cursor: Any, leaves: Sequence[str]) -> dict[str, dict[str, str]]:
    """Leaf -> column -> type, columns in their order; none for a leaf that is not there."""
    cursor.execute(
        "select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) "
        "from pg_class as c join pg_attribute as a on a.attrelid = c.oid "
        "where c.relnamespace = %s::regnamespace and c.relname = any(%s) "
        "and a.attnum > 0 and not a.attisdropped order by c.relname, a.attnum",
        (LEAVES, list(leaves)),
    )
    found: dict[str, dict[str, str]] = {leaf: {} for leaf in leaves}
    for leaf, column, kind in cursor.fetchall():
        found[leaf][column] = kind
    return found


def some_values(cursor: Any, leaf: str, column: str) -> list[str]:
    """The first few values of a column, as text: what they look like, all of them do."""
    cursor.execute(
        sql.SQL("select {c}::text from {t} where {c} is not null limit {most}").format(
            c=sql.Identifier(column),
            t=sql.Identifier(LEAVES, leaf),
            most=sql.Literal(_SOME_VALUES),
        )
    )
    return [value for (value,) in cursor.fetchall()]


def required_columns_of(cursor: Any, leaf: str) -> set[str]:
    """The columns of a leaf that PostgreSQL keeps from lacking a value."""
    cursor.execute(
        "select attname from pg_attribute where attrelid = to_regclass(%s) and attnum > 0 "
        "and not attisdropped and attnotnull",
        (f"{LEAVES}.{leaf}",),
    )
    return {name for (name,) in cursor.fetchall()}


def has_key(cursor: Any, leaf: str, key: Sequence[str]) -> bool:
    """Whether PostgreSQL keeps the rows of a leaf unique by exactly these columns."""
    cursor.execute(
        "select exists (select from pg_index as i where i.indrelid = to_regclass(%s) "
        "and i.indisunique and (select array_agg(a.attname::text order by a.attname::text "
        'collate "C") from pg_attribute as a where a.attrelid = i.indrelid '
        "and a.attnum = any(i.indkey)) = %s)",
        (f"{LEAVES}.{leaf}", sorted(key)),
    )
    return bool(cursor.fetchone()[0])
