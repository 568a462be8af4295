"""Bad rows moved out of the stage, into the session's quarantine table `staged_quarantine`.

`publish.py` files them from there with their month. A row is first noted by its place in the stage,
then completed (month, file and line, the row as it was delivered) and deleted from the stage.

Does not belong here: which rows are bad (`violations.py`), or whether there are too many
(`audit.py`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from datetime import date
from typing import Any

import polars as pl
from psycopg2 import sql

from metalayer.contracts.contract import bronze_spec
from metalayer.warehouse.ddl import identifiers, stored_name
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.stage import Stage
from metalayer.warehouse.violations import LEAF, ROW


def open_quarantine(cursor: Any) -> None:
    """Make the session's quarantine, or empty it."""
    cursor.execute(
        "create temporary table if not exists staged_quarantine (leaf text, place tid, "
        "month date, delivery_id bigint, line bigint, violations jsonb, raw text); "
        "truncate staged_quarantine"
    )


def note(cursor: Any, bad: pl.DataFrame) -> None:
    """Note bad rows, as `violations.BadRows` gives them."""
    listed = pl.col("violations").list.eval(pl.element().struct.json_encode()).list.join(",")
    lines = bad.select(LEAF, ROW, pl.concat_str(pl.lit("["), listed, pl.lit("]")))
    buffer = io.BytesIO()
    lines.write_csv(buffer, include_header=False)
    buffer.seek(0)
    cursor.copy_expert(
        "copy staged_quarantine (leaf, place, violations) from stdin (format csv)", buffer
    )


def quarantine_outside(cursor: Any, stage: Stage) -> int:
    """Rows whose month is not the window's cannot be placed; they are counted, never dropped."""
    cursor.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(LEAVES, stage.outside)))
    (count,) = cursor.fetchone()
    if not count:
        return 0
    rule = {
        "column": stage.spec.month_column,
        "rule": "must lie in the month the row was read for",
        "value": None,
    }
    cursor.execute(
        sql.SQL(
            "insert into staged_quarantine (leaf, place, violations) "
            "select %s, ctid, %s::jsonb from {} as s where not exists (select from "
            "staged_quarantine as q where q.leaf = %s and q.place = s.ctid)"
        ).format(sql.Identifier(LEAVES, stage.outside)),
        (stage.outside, json.dumps([rule]), stage.outside),
    )
    return int(count)


def take_out(cursor: Any, stage: Stage, emptied: Collection[str] = ()) -> None:
    """Complete the session's quarantine from the staged rows, and delete these from the stage.

    Args:
        emptied: Leaves of which nothing stays, be it noted or not.
    """
    cursor.execute("select distinct leaf from staged_quarantine where raw is null")
    leaves = {leaf for (leaf,) in cursor.fetchall()}
    if not leaves:
        return
    months = {leaf: month for month, leaf in stage.leaves.items()}
    for leaf in sorted(leaves):
        _complete(cursor, stage, leaf, months.get(leaf))
        if leaf in emptied:
            cursor.execute(sql.SQL("truncate {}").format(sql.Identifier(LEAVES, leaf)))
            continue
        cursor.execute(
            sql.SQL(
                "delete from {} as s using staged_quarantine as q where q.leaf = %s "
                "and q.place = s.ctid"
            ).format(sql.Identifier(LEAVES, leaf)),
            (leaf,),
        )
    # Places are reused by later versions of a leaf's rows: from here on the leaf alone counts.
    cursor.execute("update staged_quarantine set place = null where place is not null")


def _complete(cursor: Any, stage: Stage, leaf: str, month: date | None) -> None:
    """Fill in month, provenance and the raw row of the quarantined rows of one leaf."""
    spec = stage.spec
    provenance = spec.has_provenance
    if provenance and spec.layer == "silver":
        raw = sql.SQL(
            "(to_jsonb(b) - '_delivery_id' - '_line' - '_is_latest' - 'month' "
            "- case when b._extra is null then '_extra' else '' end)::text"
        )
        bronze = sql.SQL(
            "left join {} as b on b._delivery_id = s._delivery_id and b._line = s._line {}"
        ).format(
            stored_name(bronze_spec(spec)),
            sql.SQL("and b.month = {}").format(sql.Literal(month.isoformat()))
            if month
            else sql.SQL(""),
        )
        found_month = sql.SQL("b.month")
    else:
        raw, bronze = sql.SQL("to_jsonb(s)::text"), sql.SQL("")
        found_month = sql.Literal(month.isoformat() if month else None)
    cursor.execute(
        sql.SQL(
            "update staged_quarantine as q set month = f.month::date, delivery_id = f.delivery_id, "
            "line = f.line, raw = f.raw from (select s.ctid, {month} as month, "
            "{delivery} as delivery_id, {line} as line, {raw} as raw from {leaf} as s {bronze}) "
            "as f where q.leaf = %s and q.place = f.ctid"
        ).format(
            month=found_month,
            delivery=sql.SQL("s._delivery_id" if provenance else "null::bigint"),
            line=sql.SQL("s._line" if provenance else "null::bigint"),
            raw=raw,
            leaf=sql.Identifier(LEAVES, leaf),
            bronze=bronze,
        ),
        (leaf,),
    )


def quarantine_duplicates(cursor: Any, stage: Stage, month: date) -> int:
    """Where keys repeat in a month, take all but the last row out; how many those are."""
    name = ", ".join(stage.spec.key)
    newest = "_delivery_id desc, _line desc" if stage.spec.has_provenance else "ctid desc"
    cursor.execute(
        sql.SQL(
            "insert into staged_quarantine (leaf, place, violations) "
            "select {leaf_name}, place, jsonb_build_array(jsonb_build_object("
            "'column', {name}, 'rule', 'must be unique', 'value', value)) from ("
            "select ctid as place, concat_ws(', ', {key}) as value, row_number() over "
            "(partition by {key} order by {newest}) as occurrence from {leaf}) as ranked "
            "where occurrence > 1"
        ).format(
            leaf_name=sql.Literal(stage.leaves[month]),
            name=sql.Literal(name),
            key=identifiers(stage.spec.key),
            newest=sql.SQL(newest),
            leaf=stage.leaf(month),
        )
    )
    repeated = int(cursor.rowcount)
    take_out(cursor, stage)
    return repeated
