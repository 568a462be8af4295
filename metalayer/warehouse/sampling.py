"""A few rows of one month for people to look at, with what they must not see masked.

What is masked never leaves PostgreSQL. Does not belong here: where the rows are shown.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.governance.masks import is_open, may_be_shifted
from metalayer.warehouse.ddl import month_bounds, stored_name

MASK = "***"
_ROWS = 5
_SHOWN_OF_A_VALUE = 40


def masked_columns(spec: TableSpec) -> frozenset[str]:
    """The columns of which a sample shows no value.

    Those with personal data, what people type freely, and columns that no contract knows. Where
    files hold personal data, all landed text is: a shifted row has a name in any column.
    """
    hides_texts = spec.layer == "bronze" and may_be_shifted(spec)
    return frozenset(
        c.name for c in spec.columns if not is_open(c) or (hides_texts and c.type == "text")
    )


def sample_rows(cursor: Any, spec: TableSpec, month: date) -> list[dict[str, str | None]]:
    """Some published rows of `month`: stored column -> value as text, masked or cut where needed.

    They are the first that PostgreSQL comes across: nothing is sorted, and derived columns, which
    take the whole table, are left out.
    """
    masked = masked_columns(spec)
    names = [c.name for c in spec.stored]
    values = [
        sql.SQL("case when {} is not null then {} end").format(
            sql.Identifier(name), sql.Literal(MASK)
        )
        if name in masked
        else sql.SQL("left({}::text, {})").format(
            sql.Identifier(name), sql.Literal(_SHOWN_OF_A_VALUE)
        )
        for name in names
    ]
    start, end = month_bounds(month)
    cursor.execute(
        sql.SQL("select {} from {} where {c} >= %s and {c} < %s limit %s").format(
            sql.SQL(", ").join(values), stored_name(spec), c=sql.Identifier(spec.month_column)
        ),
        (start, end, _ROWS),
    )
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
