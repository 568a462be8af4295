"""Which row of a key counts: settled across months when deliveries are registered.

Of a delta source the newest delivery's last row of a key counts, whatever months the others lie
in. Of a snapshot source only the newest delivery of a month counts, and in it the last row of a
key. Keys are looked up in the parsed deliveries (DuckDB reads just that column), and only the keys
that the changed deliveries brought or took away.

Does not belong here: recording deliveries (`ledger.py`) or what a row says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from metalayer.landing.copy import copy_from_duckdb


@dataclass(frozen=True)
class Settlement:
    """Live deliveries of one source and those whose rows came or went since it was last settled.

    Attributes:
        source: "erp/orders".
        is_snapshot: Whether a delivery replaces the earlier ones of its months.
        live: Delivery -> its parsed rows.
        changed: Deliveries that came or went, with their parsed rows.
    """

    source: str
    is_snapshot: bool
    live: Mapping[int, Path]
    changed: Mapping[int, Path]


def settle(cursor: Any, settlement: Settlement) -> None:
    """Bring `meta.superseded_rows` and the counts in `meta.delivery_months` up to date."""
    gone = [d for d in settlement.changed if d not in settlement.live]
    cursor.execute("delete from meta.superseded_rows where delivery_id = any(%s)", (gone,))
    if settlement.is_snapshot:
        _replace_older_snapshots(cursor, settlement.source)
    if settlement.live and settlement.changed:
        _settle_keys(cursor, settlement)
    _count(cursor, settlement.source)


def _replace_older_snapshots(cursor: Any, source: str) -> None:
    cursor.execute(
        "with live as (select m.delivery_id, m.month, max(m.delivery_id) over "
        "(partition by m.month) as newest from meta.delivery_months as m "
        "join meta.deliveries as d using (delivery_id) "
        "where d.source = %s and d.status = 'loaded') "
        "update meta.delivery_months as m set is_replaced = (live.newest <> m.delivery_id) "
        "from live where live.delivery_id = m.delivery_id and live.month = m.month",
        (source,),
    )


def _settle_keys(cursor: Any, settlement: Settlement) -> None:
    """Rank the rows of every key that changed, and record those that do not come last."""
    with duckdb.connect() as memory:
        memory.execute("create temp table live (delivery_id bigint, path varchar)")
        memory.executemany(
            "insert into live values (?, ?)",
            [(d, str(p)) for d, p in settlement.live.items()],
        )
        memory.execute("create temp table touched (_key varchar)")
        changed = list(settlement.changed.values())
        # What a delivery took away cannot be told without its rows: then every key is looked at.
        if not all(path.exists() for path in changed):
            changed = list(settlement.live.values())
        memory.execute(
            "insert into touched select distinct _key from read_parquet(?) where _key is not null",
            [[str(path) for path in changed]],
        )
        # A snapshot's rows only compete with those of the same delivery.
        competitors = "_key, r.delivery_id" if settlement.is_snapshot else "_key"
        memory.execute(
            "create temp table ranked as select delivery_id, _line as line, month, "
            f"row_number() over (partition by {competitors} "
            "order by r.delivery_id desc, _line desc) as place from ("
            "select l.delivery_id, p._key, p._line, p.month "
            "from read_parquet(?, filename = true, hive_partitioning = false) as p "
            "join live as l on l.path = p.filename "
            "where p._key in (select _key from touched)) as r",
            [sorted({str(path) for path in settlement.live.values()})],
        )
        cursor.execute(
            "create temporary table settled (delivery_id bigint, line bigint, month date, "
            "counts boolean) on commit drop"
        )
        stored = _has_superseded(cursor, settlement.source)
        copy_from_duckdb(
            memory,
            "select delivery_id, line, month, place = 1 from ranked"
            + ("" if stored else " where place > 1"),
            cursor,
            "copy settled from stdin (format csv)",
        )
    cursor.execute(
        "delete from meta.superseded_rows as s using settled as n "
        "where n.counts and n.delivery_id = s.delivery_id and n.line = s.line"
    )
    cursor.execute(
        "insert into meta.superseded_rows (delivery_id, line, month) "
        "select delivery_id, line, month from settled where not counts on conflict do nothing"
    )
    cursor.execute("drop table settled")


def _has_superseded(cursor: Any, source: str) -> bool:
    cursor.execute(
        "select exists (select from meta.superseded_rows as s join meta.deliveries as d "
        "using (delivery_id) where d.source = %s)",
        (source,),
    )
    return bool(cursor.fetchone()[0])


def _count(cursor: Any, source: str) -> None:
    cursor.execute(
        "with counted as (select m.delivery_id, m.month, count(s.line) as rows, "
        "coalesce(bit_xor(hashint8extended(s.line, 0)), 0) as fingerprint "
        "from meta.delivery_months as m join meta.deliveries as d using (delivery_id) "
        "left join meta.superseded_rows as s using (delivery_id, month) "
        "where d.source = %s and d.status = 'loaded' group by m.delivery_id, m.month) "
        "update meta.delivery_months as m set "
        "rows_superseded = case when m.is_replaced then m.rows else c.rows end, "
        "superseded_fingerprint = c.fingerprint from counted as c "
        "where c.delivery_id = m.delivery_id and c.month = m.month and "
        "(m.rows_superseded, m.superseded_fingerprint) is distinct from "
        "(case when m.is_replaced then m.rows else c.rows end, c.fingerprint)",
        (source,),
    )
