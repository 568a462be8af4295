"""Which row stands for which: repairs resolved whenever the deliveries of a source are settled.

A row of a repair names the row it mends by the content and the line that brought it
(`_repairs` = "<first 16 of the sha256>:<line>"). It takes that row's place among the rows of its
key, so that it never overrides what was delivered later. Of several repairs of one row the newest
that could be read counts. What it mends may be a row of the table or a record that could not be
read; the latter leaves the quarantine here, and comes back when the repair leaves.

Everything is derived anew from the live deliveries, in bulk. Does not belong here: which row of a
key counts (`settle.py`), or how a repair comes to be (`repair.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb

from metalayer.contracts.contract import SourceSpec
from metalayer.governance.sealing import Sealer
from metalayer.landing.copy import copy_from_duckdb
from metalayer.landing.seal import let_seal, unfit_sql
from metalayer.landing.shape import REPAIRS_COLUMN

#: How much of a content's fingerprint names it.
CONTENT_CHARACTERS = 16
_NAME = f"([0-9a-f]{{{CONTENT_CHARACTERS}}}):([0-9]{{1,15}})"
# `repair.py` writes the column first, so that it can be told in a record that cannot be read.
_NAME_IN_RECORD = f'^"?{_NAME}"?([^0-9]|$)'


@dataclass(frozen=True)
class Repairs:
    """What repairs change for the deliveries that they mend.

    Attributes:
        brought: (delivery, month) in which a repair has rows that stand in the delivery.
        taken: (delivery, month, rows) of rows of a delivery that a repair stands for.
    """

    brought: list[tuple[int, date]]
    taken: list[tuple[int, date, int]]


def resolve(
    cursor: Any,
    memory: duckdb.DuckDBPyConnection,
    source: SourceSpec,
    table: str,
    changed: Collection[int],
    sealer: Sealer | None = None,
) -> Repairs | None:
    """Find which repair stands for which row, and bring `meta` up to date with it.

    Args:
        memory: Has the table `live` of the source's live deliveries; it gets the tables `mended`
            (a row that stands for another, and its place), `outside` (rows that count for nothing
            because of repairs) and `special` (rows whose verdict may have changed by repairs).
        table: "bronze.orders"; records it could not read are filed under this name.
        changed: Deliveries that came, went, or were filed anew.
        sealer: Of a source that has encrypted columns.

    Returns:
        None if there are no repairs and were none.
    """
    memory.execute(_TABLES)
    cursor.execute(
        "select r.delivery_id, r.line, r.by_delivery_id, r.by_line from meta.repaired_rows as r "
        "join meta.deliveries as d using (delivery_id) where d.source = %s",
        (source.name,),
    )
    former = cursor.fetchall()
    if former:
        memory.execute(
            "insert into former select unnest(?), unnest(?), unnest(?), unnest(?)",
            list(zip(*former, strict=True)),
        )
    if not former and not _paths(memory, "path", "is_repair"):
        return None
    _find_attempts(memory)
    _find_originals(memory)
    for step in (_MENDED, _MAPPED, _OUTSIDE):
        memory.execute(step)
    memory.execute(_DIFFERING, [list(changed)])
    _find_special(memory, changed, is_snapshot=source.kind == "snapshot")
    _record(cursor, memory, source.name, table, sealer)
    brought = memory.execute("select distinct at_delivery, month from mended").fetchall()
    taken = memory.execute(
        "select delivery_id, month, count(*) from mapped where not is_rejected group by all"
    ).fetchall()
    return Repairs(brought, taken)


_TABLES = """
create temp table former (delivery_id bigint, line bigint, by_delivery bigint, by_line bigint);
create temp table attempt (delivery_id bigint, line bigint, month date, sha16 varchar,
    of_month date, of_line bigint, is_rejected boolean);
create temp table original (delivery_id bigint, line bigint, month date, sha16 varchar,
    of_month date, is_rejected boolean);
create temp table mended (delivery_id bigint, line bigint, month date, at_delivery bigint,
    at_line bigint);
create temp table mapped (delivery_id bigint, line bigint, month date, by_delivery bigint,
    by_line bigint, is_rejected boolean);
create temp table outside (delivery_id bigint, line bigint);
create temp table special (delivery_id bigint, line bigint, month date, _key varchar)
"""

# The newest attempt at a row that is there, and the row's place; equal content may be in several
# deliveries, of which the last counts.
_MENDED = """
insert into mended
with newest as (
    select * from attempt where not is_rejected
    qualify row_number() over (
        partition by sha16, of_month, of_line order by delivery_id desc, line desc
    ) = 1
),
place as (
    select sha16, of_month, line, max(delivery_id) as delivery_id from original group by all
)
select n.delivery_id, n.line, n.month, p.delivery_id, p.line
from newest as n
join place as p on p.sha16 = n.sha16 and p.of_month = n.of_month and p.line = n.of_line
"""

# The originals, and the attempts before the newest.
_MAPPED = """
insert into mapped
with standing as (
    select a.sha16, a.of_month, a.of_line, m.delivery_id, m.line
    from mended as m join attempt as a
        on a.delivery_id = m.delivery_id and a.line = m.line and not a.is_rejected
)
select o.delivery_id, o.line, o.month, s.delivery_id, s.line, o.is_rejected
from original as o
join standing as s on s.sha16 = o.sha16 and s.of_month = o.of_month and s.of_line = o.line
union all
select a.delivery_id, a.line, a.month, s.delivery_id, s.line, a.is_rejected
from attempt as a
join standing as s on s.sha16 = a.sha16 and s.of_month = a.of_month and s.of_line = a.of_line
where a.delivery_id < s.delivery_id or (a.delivery_id = s.delivery_id and a.line < s.line)
"""

# A row of a repair that stands for no row that is there counts for nothing either.
_OUTSIDE = """
insert into outside
select delivery_id, line from mapped where not is_rejected
union
select a.delivery_id, a.line from attempt as a
anti join mended as m on m.delivery_id = a.delivery_id and m.line = a.line
where not a.is_rejected
"""


# What stands for what otherwise than before, or has to be filed anew with its delivery.
_DIFFERING = """
create temp table differing as
with now as (select delivery_id, line, by_delivery, by_line from mapped)
(select * from former except select * from now)
union (select * from now except select * from former)
union (select now.* from now, (select ? as changed) as c
    where list_contains(changed, delivery_id) or list_contains(changed, by_delivery))
"""


def _find_attempts(memory: duckdb.DuckDBPyConnection) -> None:
    """Every row and every unreadable record of the live repairs, and what it stands for."""
    for column, name, names, is_rejected in (
        ("path", f"p._extra ->> '$.{REPAIRS_COLUMN}'", f"^{_NAME}$", "false"),
        ("rejects", "p.raw", _NAME_IN_RECORD, "true"),
    ):
        paths = _paths(memory, column, "is_repair")
        if paths:
            memory.execute(
                f"insert into attempt select l.delivery_id, p._line, p.month, "
                f"nullif(regexp_extract({name}, $names, 1), ''), l.of_month, "
                f"try_cast(regexp_extract({name}, $names, 2) as bigint), {is_rejected} "
                "from read_parquet($paths, filename = true, hive_partitioning = false) as p "
                f"join live as l on l.{column} = p.filename and l.is_repair",
                {"paths": paths, "names": names},
            )


def _find_originals(memory: duckdb.DuckDBPyConnection) -> None:
    """The rows and records that attempts name, as far as their deliveries are live."""
    named = "not is_repair and (sha16, of_month) in (select (sha16, of_month) from attempt)"
    for column, is_rejected in (("path", "false"), ("rejects", "true")):
        paths = _paths(memory, column, named)
        if paths:
            memory.execute(
                f"insert into original "
                f"select l.delivery_id, p._line, p.month, l.sha16, l.of_month, {is_rejected} "
                "from read_parquet(?, filename = true, hive_partitioning = false) as p "
                f"join live as l on l.{column} = p.filename and not l.is_repair "
                "semi join attempt as a "
                "on a.sha16 = l.sha16 and a.of_month = l.of_month and a.of_line = p._line",
                [paths],
            )


def _find_special(
    memory: duckdb.DuckDBPyConnection, changed: Collection[int], *, is_snapshot: bool
) -> None:
    """Rows, with their keys, whose verdict repairs may have changed."""
    # Whether a repair's row of a snapshot counts depends on other snapshots as well.
    memory.execute(
        "create temp table concerned as select delivery_id, line from differing "
        "union select by_delivery, by_line from differing "
        "union select delivery_id, line from attempt where ? or list_contains(?, delivery_id)",
        [is_snapshot, list(changed)],
    )
    paths = _paths(memory, "path", "delivery_id in (select delivery_id from concerned)")
    if paths:
        memory.execute(
            "insert into special select l.delivery_id, p._line, p.month, p._key "
            "from read_parquet(?, filename = true, hive_partitioning = false) as p "
            "join live as l on l.path = p.filename "
            "semi join concerned as c on c.delivery_id = l.delivery_id and c.line = p._line",
            [paths],
        )


def _record(
    cursor: Any,
    memory: duckdb.DuckDBPyConnection,
    source: str,
    table: str,
    sealer: Sealer | None,
) -> None:
    """Bring `meta.repaired_rows`, the quarantine and `rows_repaired` up to date."""
    cursor.execute(
        "create temporary table differing (delivery_id bigint, line bigint, "
        "by_delivery_id bigint, by_line bigint) on commit drop"
    )
    copy_from_duckdb(
        memory,
        "select d.delivery_id, d.line, m.by_delivery, m.by_line "
        "from (select distinct delivery_id, line from differing) as d "
        "left join mapped as m using (delivery_id, line)",
        cursor,
        "copy differing from stdin (format csv)",
    )
    cursor.execute("analyze differing")
    cursor.execute(
        "delete from meta.quarantine as q using differing as r "
        "where q.table_name = %s and q.delivery_id = r.delivery_id and q.line = r.line",
        (table,),
    )
    _file_released(cursor, memory, table, sealer)
    cursor.execute(
        "delete from meta.repaired_rows as r using differing as d "
        "where d.delivery_id = r.delivery_id and d.line = r.line"
    )
    cursor.execute(
        "insert into meta.repaired_rows (delivery_id, line, by_delivery_id, by_line) "
        "select * from differing where by_line is not null"
    )
    cursor.execute("drop table differing")
    counted = memory.execute(
        "select delivery_id, count(*) from mapped where is_rejected group by delivery_id"
    ).fetchall()
    cursor.execute(
        "update meta.deliveries as d set rows_repaired = c.rows from (select e.delivery_id, "
        "coalesce(n.rows, 0) as rows from meta.deliveries as e left join unnest(%s::bigint[], "
        "%s::bigint[]) as n (delivery_id, rows) using (delivery_id) where e.source = %s) as c "
        "where c.delivery_id = d.delivery_id and d.rows_repaired <> c.rows",
        ([delivery for delivery, _ in counted], [rows for _, rows in counted], source),
    )


def _file_released(
    cursor: Any, memory: duckdb.DuckDBPyConnection, table: str, sealer: Sealer | None
) -> None:
    """Quarantine the unreadable records again that no repair stands for any more."""
    memory.execute(
        "create temp table released as select f.delivery_id, f.line from former as f "
        "anti join mapped as m on m.delivery_id = f.delivery_id and m.line = f.line"
    )
    paths = _paths(memory, "rejects", "delivery_id in (select delivery_id from released)")
    if paths:
        memory.execute(
            "create temp table unreadable as select l.delivery_id, p.* exclude (filename) "
            "from read_parquet(?, filename = true, hive_partitioning = false) as p "
            "join live as l on l.rejects = p.filename "
            "semi join released as r on r.delivery_id = l.delivery_id and r.line = p._line",
            [paths],
        )
        file_rejects(cursor, memory, table, "unreadable", sealer)


def file_rejects(
    cursor: Any,
    memory: duckdb.DuckDBPyConnection,
    table: str,
    relation: str,
    sealer: Sealer | None,
) -> None:
    """Quarantine unreadable records.

    Args:
        table: "bronze.orders".
        relation: In DuckDB: `delivery_id`, and the columns of a parse's rejects (`reader.parse`).
        sealer: Of a source that has encrypted columns: which field of such a record is which
            cannot be told, so it is sealed whole.
    """
    value, raw = "value", "raw"
    if sealer is not None:
        let_seal(memory, sealer)
        value, raw = unfit_sql("value"), unfit_sql("raw")
    copy_from_duckdb(
        memory,
        f"select '{table}', month, delivery_id, _line, \"column\", rule, {value}, {raw}, "
        f"json_array(json_object('column', \"column\", 'rule', rule, 'value', {value})) "
        f"from {relation}",
        cursor,
        "copy meta.quarantine (table_name, month, delivery_id, line, column_name, rule, value, "
        "raw, violations) from stdin (format csv)",
    )


def _paths(memory: duckdb.DuckDBPyConnection, column: str, condition: str) -> list[str]:
    return [
        path
        for (path,) in memory.execute(
            f"select distinct {column} from live where {condition} order by 1"
        ).fetchall()
    ]
