"""Which row of a key counts: settled across months when deliveries are registered.

Of a delta source the newest delivery's last row of a key counts, whatever months the others lie
in. Of a snapshot source only the newest delivery of a month counts, and in it the last row of a
key. A row of a repair has the place of the row it stands for (`repaired.py`). Keys are looked up in
the parsed deliveries (DuckDB reads just that column), and only the keys that the changed deliveries
brought or took away, or that repairs concern.

Does not belong here: recording deliveries (`ledger.py`) or what a row says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from metalayer.contracts.contract import SourceSpec, TableSpec
from metalayer.governance.sealing import Sealer
from metalayer.landing.copy import copy_from_duckdb
from metalayer.landing.engine import open_spilling
from metalayer.landing.repaired import CONTENT_CHARACTERS, Repairs, resolve
from metalayer.landing.shape import rejects_path

#: Every part reads the keys of all rows once more; more keys at once need more than is granted.
_KEYS_AT_ONCE = 10_000_000


@dataclass(frozen=True)
class Settlement:
    """Live deliveries of one source and those whose rows came or went since it was last settled.

    Attributes:
        spec: The silver table that the source feeds.
        live: Delivery -> its parsed rows.
        changed: Deliveries that came or went, with their parsed rows.
        sealer: Of a source that has encrypted columns.
    """

    spec: TableSpec
    live: Mapping[int, Path]
    changed: Mapping[int, Path]
    sealer: Sealer | None = None

    @property
    def source(self) -> SourceSpec:
        """The source, whose kind says how deliveries replace each other."""
        assert self.spec.source is not None
        return self.spec.source


def settle(cursor: Any, settlement: Settlement) -> None:
    """Bring up to date which rows and records count.

    That is `meta.superseded_rows`, the counts in `meta.delivery_months`, and all of what repairs
    change (see `repaired.py`).
    """
    source = settlement.source
    gone = [d for d in settlement.changed if d not in settlement.live]
    cursor.execute("delete from meta.superseded_rows where delivery_id = any(%s)", (gone,))
    with open_spilling() as memory:
        _load_live(cursor, memory, settlement)
        table = f"bronze.{settlement.spec.name}"
        repairs = resolve(cursor, memory, source, table, settlement.changed, settlement.sealer)
        if source.kind == "snapshot":
            newest = _newest_snapshots(cursor, source.name, repairs)
            _replace_older_snapshots(cursor, source.name, newest)
            if repairs:
                _leave_out_repairs_of_older(memory, newest)
        if settlement.live and settlement.changed:
            _settle_keys(cursor, memory, settlement, has_repairs=repairs is not None)
    _count(cursor, source.name)


def _load_live(cursor: Any, memory: duckdb.DuckDBPyConnection, settlement: Settlement) -> None:
    """Make the table `live`; `of_month` tells equal contents apart whose rows carry no date."""
    memory.execute(
        "create temp table live (delivery_id bigint, path varchar, rejects varchar, "
        "sha16 varchar, of_month date, is_repair boolean)"
    )
    cursor.execute(
        "select delivery_id, left(sha256, %s), fallback_month, is_repair "
        "from meta.deliveries where delivery_id = any(%s)",
        (CONTENT_CHARACTERS, list(settlement.live)),
    )
    facts = cursor.fetchall()
    if not facts:
        return
    deliveries, contents, months, repairing = zip(*facts, strict=True)
    if settlement.source.month_from is not None:
        months = (date.min,) * len(months)
    paths = [settlement.live[delivery] for delivery in deliveries]
    memory.execute(
        "insert into live select unnest(?), unnest(?), unnest(?), unnest(?), unnest(?), unnest(?)",
        [
            deliveries,
            [str(path) for path in paths],
            [str(rejects_path(path)) for path in paths],
            contents,
            months,
            repairing,
        ],
    )


def _newest_snapshots(cursor: Any, source: str, repairs: Repairs | None) -> list[tuple[date, int]]:
    """(month, delivery) of the snapshots that count; what repairs mend is part of a snapshot."""
    brought, taken = (repairs.brought, repairs.taken) if repairs else ([], [])
    cursor.execute(
        "with brought as (select * from unnest(%s::bigint[], %s::date[]) as t (delivery_id, "
        "month)), taken as (select * from unnest(%s::bigint[], %s::date[], %s::bigint[]) "
        "as t (delivery_id, month, rows)), having_rows as (select m.delivery_id, m.month "
        "from meta.delivery_months as m join meta.deliveries as d using (delivery_id) "
        "left join taken as t using (delivery_id, month) where d.source = %s "
        "and d.status = 'loaded' and not d.is_repair and m.rows > coalesce(t.rows, 0) "
        "union select * from brought) "
        "select month, max(delivery_id) from having_rows group by month",
        (
            [delivery for delivery, _ in brought],
            [month for _, month in brought],
            [delivery for delivery, _, _ in taken],
            [month for _, month, _ in taken],
            [rows for _, _, rows in taken],
            source,
        ),
    )
    return list(cursor.fetchall())


def _replace_older_snapshots(cursor: Any, source: str, newest: Sequence[tuple[date, int]]) -> None:
    cursor.execute(
        "with newest as (select * from unnest(%s::date[], %s::bigint[]) as t (month, delivery_id)) "
        "update meta.delivery_months as m set is_replaced = (n.delivery_id <> m.delivery_id) "
        "from meta.deliveries as d, newest as n where d.delivery_id = m.delivery_id "
        "and d.source = %s and d.status = 'loaded' and not d.is_repair and n.month = m.month "
        "and m.is_replaced <> (n.delivery_id <> m.delivery_id)",
        ([month for month, _ in newest], [delivery for _, delivery in newest], source),
    )


def _leave_out_repairs_of_older(
    memory: duckdb.DuckDBPyConnection, newest: Sequence[tuple[date, int]]
) -> None:
    """A row that stands in a snapshot counts only while that snapshot does."""
    memory.execute("create temp table newest (month date, delivery_id bigint)")
    if newest:
        memory.execute(
            "insert into newest select unnest(?), unnest(?)", list(zip(*newest, strict=True))
        )
    memory.execute(
        "insert into outside select m.delivery_id, m.line from mended as m "
        "join newest as n on n.month = m.month and n.delivery_id <> m.at_delivery"
    )


def _settle_keys(
    cursor: Any, memory: duckdb.DuckDBPyConnection, settlement: Settlement, *, has_repairs: bool
) -> None:
    """Rank the rows of every key that changed, and record those that do not come last."""
    changed = list(settlement.changed.values())
    # What a delivery took away cannot be told without its rows: then every key is looked at.
    if not all(path.exists() for path in changed):
        changed = list(settlement.live.values())
    looked_at = [str(path) for path in changed]
    live = sorted({str(path) for path in settlement.live.values()})
    ranked = _ranked(is_snapshot=settlement.source.kind == "snapshot", has_repairs=has_repairs)
    cursor.execute(
        "create temporary table settled (delivery_id bigint, line bigint, month date, "
        "counts boolean) on commit drop"
    )
    stored = _has_superseded(cursor, settlement.source.name)
    for part in _parts_of_keys(memory, looked_at):
        memory.execute(
            "create or replace temp table touched as select distinct _key from read_parquet(?) "
            f"where _key is not null and {part} "
            f"union select _key from special where _key is not null and {part}",
            [looked_at],
        )
        memory.execute(f"create or replace temp table ranked as {ranked}", [live])
        if has_repairs:
            # Rows without a key are placed once.
            memory.execute("delete from special where _key is null")
        copy_from_duckdb(
            memory,
            "select delivery_id, line, month, counts from ranked"
            + ("" if stored else " where not counts"),
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


def _parts_of_keys(memory: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> list[str]:
    """Conditions that divide the keys of these rows into parts that fit in memory."""
    ((rows,),) = memory.execute(
        "select coalesce(sum(num_rows), 0) from parquet_file_metadata(?)", [paths]
    ).fetchall()
    parts = int(rows) // _KEYS_AT_ONCE + 1
    if parts == 1:
        return ["true"]
    return [f"hash(_key) % {parts} = {part}" for part in range(parts)]


def _ranked(*, is_snapshot: bool, has_repairs: bool) -> str:
    """The SELECT that says of each row with a touched key whether it counts."""
    competing = (
        "select l.delivery_id, p._line as line, p.month, p._key "
        "from read_parquet(?, filename = true, hive_partitioning = false) as p "
        "join live as l on l.path = p.filename where p._key in (select _key from touched)"
    )
    # A snapshot's rows only compete with those of the same delivery.
    if not has_repairs:
        competitors = "_key, delivery_id" if is_snapshot else "_key"
        return (
            "select delivery_id, line, month, row_number() over (partition by "
            f"{competitors} order by delivery_id desc, line desc) = 1 as counts from ({competing})"
        )
    competitors = "_key, at_delivery" if is_snapshot else "_key"
    # Without a key a row competes with none, but a repair may stand for it.
    return (
        "with placed as (select c.*, coalesce(m.at_delivery, c.delivery_id) as at_delivery, "
        "coalesce(m.at_line, c.line) as at_line, o.line is not null as is_outside "
        f"from ({competing} union all select * from special where _key is null) as c "
        "left join mended as m using (delivery_id, line) "
        "left join outside as o using (delivery_id, line)) "
        "select delivery_id, line, month, not is_outside and (_key is null or row_number() over ("
        f"partition by {competitors} order by is_outside, at_delivery desc, at_line desc, "
        "delivery_id desc, line desc) = 1) as counts from placed"
    )


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
