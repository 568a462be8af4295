"""A bronze month's rows: from the parsed deliveries that touch it into the stage.

Does not belong here: which deliveries count (`ledger.py`, `settle.py`), or publishing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import duckdb
from psycopg2 import sql

from metalayer.landing.copy import copy_from_duckdb, quoted
from metalayer.landing.engine import Configuration, open_memory
from metalayer.landing.parsed import parsed_deliveries
from metalayer.landing.reader import SourceShape
from metalayer.landing.records import open_with_grammar
from metalayer.landing.seal import let_seal, sealed_columns
from metalayer.settings import Settings
from metalayer.warehouse.ddl import identifiers
from metalayer.warehouse.evolve import headers_of
from metalayer.warehouse.keys import sealer
from metalayer.warehouse.stage import Stage

#: Columns of a bronze table that no file has.
_MACHINERY = ("_extra", "_delivery_id", "_line", "_is_latest", "month")
_ONE_THREAD: Configuration = {"threads": 1}


def fill_bronze(
    cursor: Any, stage: Stage, shape: SourceShape, settings: Settings, start: date, end: date
) -> None:
    """Copy the rows of `[start, end)` into the stage, each marked whether it counts.

    Encrypted columns are sealed on the way.
    """
    deliveries = parsed_deliveries(cursor, shape, settings, since=start, until=end)
    if not deliveries:
        return
    sealed = sealed_columns(stage.spec.columns, "p")
    with open_with_grammar(_ONE_THREAD) if sealed else open_memory(_ONE_THREAD) as memory:
        if sealed:
            let_seal(memory, sealer(cursor, settings))
        # The files' rows stream past what is joined to them. Taking that for small in error, DuckDB
        # would swap sides, and hold every row of the window in memory.
        memory.execute("set disabled_optimizers = 'build_side_probe_side'")
        memory.execute("create temp table live (delivery_id bigint, path varchar)")
        memory.executemany(
            "insert into live values (?, ?)", [(d, str(p)) for d, p in deliveries.items()]
        )
        memory.execute("create temp table superseded (delivery_id bigint, line bigint)")
        memory.execute("create temp table replaced (delivery_id bigint, month date)")
        _fetch(
            cursor,
            memory,
            "superseded",
            "select delivery_id, line from meta.superseded_rows "
            "where delivery_id = any(%s) and month >= %s and month < %s",
            (list(deliveries), start, end),
        )
        _fetch(
            cursor,
            memory,
            "replaced",
            "select delivery_id, month from meta.delivery_months "
            "where is_replaced and delivery_id = any(%s) and month >= %s and month < %s",
            (list(deliveries), start, end),
        )
        values = {
            "_delivery_id": "l.delivery_id",
            "_is_latest": "s.line is null and r.month is null",
            **sealed,
            **_evolved(cursor, memory, stage, shape, list(deliveries)),
        }
        columns = ", ".join(values.get(name, f'p."{name}"') for name in stage.columns)
        paths = ", ".join(f"'{quoted(p)}'" for p in sorted(set(deliveries.values())))
        copy_from_duckdb(
            memory,
            f"select {columns} "
            f"from read_parquet([{paths}], filename = true, hive_partitioning = false) as p "
            "join live as l on l.path = p.filename "
            "left join superseded as s on s.delivery_id = l.delivery_id and s.line = p._line "
            "left join replaced as r on r.delivery_id = l.delivery_id and r.month = p.month "
            f"where p.month >= date '{start}' and p.month < date '{end}'",
            cursor,
            sql.SQL("copy {} ({}) from stdin (format csv)").format(
                stage.parent, identifiers(stage.columns)
            ),
        )


def _evolved(
    cursor: Any,
    memory: duckdb.DuckDBPyConnection,
    stage: Stage,
    shape: SourceShape,
    deliveries: Sequence[int],
) -> dict[str, str]:
    """How the columns that came with a file, and `_extra` without them, are read from a parse.

    The headers under which each delivery has them become a column of the table `live`.
    """
    declared = [*(c.name for c in shape.columns), *_MACHINERY]
    names = [name for name in stage.columns if name not in declared]
    if not names:
        return {}
    headers = headers_of(cursor, declared, names, deliveries)
    memory.execute("alter table live add column headers map(varchar, varchar)")
    memory.executemany(
        "update live set headers = map(?::varchar[], ?::varchar[]) where delivery_id = ?",
        [(list(found), list(found.values()), delivery) for delivery, found in headers.items()],
    )
    # Keys may be anything, so none is ever written into a path.
    entries = "cast(cast(p._extra as json) as map(varchar, varchar))"
    values = {
        name: f"{entries}[l.headers['{name.replace(chr(39), chr(39) * 2)}']]" for name in names
    }
    rest = (
        f"list_filter(map_entries({entries}), "
        "lambda e: not list_contains(map_values(l.headers), e.key))"
    )
    left_over = f"nullif(cast(to_json(map_from_entries({rest})) as varchar), '{{}}')"
    return {**values, "_extra": f"case when p._extra is not null then {left_over} end"}


def _fetch(
    cursor: Any, memory: duckdb.DuckDBPyConnection, table: str, query: str, values: tuple[Any, ...]
) -> None:
    """Copy a small result of PostgreSQL into a table of DuckDB."""
    cursor.execute(query, values)
    rows = cursor.fetchall()
    if rows:
        first, second = zip(*rows, strict=True)
        memory.execute(f"insert into {table} select unnest(?), unnest(?)", [first, second])
