"""A mended export of quarantined rows taken back in: `export.py`'s CSV -> repairs that land.

A repair is a file like any other of the source whose rows it mends, with the source's columns and
`_repairs`, which names the row that each of its rows stands for. Only rows that were changed go
into it. Its name tells its content, so that the same corrections land once.

Belongs here: reading, checking and parting the CSV. Which row stands for which is settled when the
file is registered (`repaired.py`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
from psycopg2 import sql

from metalayer.contracts.contract import SourceSpec, TableSpec, bronze_spec
from metalayer.errors import LandingError, UsageError
from metalayer.landing.copy import copy_to_duckdb, quoted
from metalayer.landing.engine import open_memory
from metalayer.landing.export import FIRST, LAST
from metalayer.landing.files import land, match_source
from metalayer.landing.judge import identifier
from metalayer.landing.quarantined import (
    field,
    fields_json,
    landed_columns,
    load_quarantined,
    parse_text,
)
from metalayer.landing.reader import Parsed
from metalayer.landing.seal import opened_sql
from metalayer.landing.shape import REPAIRS_COLUMN
from metalayer.settings import Settings
from metalayer.spreadsheets import restored, restored_sql
from metalayer.warehouse.ddl import stored_name

_SHOWN = 10


@dataclass(frozen=True)
class Landed:
    """What became of a mended export.

    Attributes:
        names: Repairs that are in the landing zone now, e.g. "erp/orders_repair_1a2b3c4d.csv".
        rows: Rows in them.
        unchanged: Rows left out, as they are what they were.
    """

    names: tuple[str, ...]
    rows: int
    unchanged: int


def land_repair(
    connection: Any, settings: Settings, sources: Mapping[str, TableSpec], path: Path
) -> Landed:
    """Land the rows of a mended export that were changed; all of them or, on an error, none.

    Args:
        connection: For reading the warehouse.
        sources: Source name -> the silver table it feeds.
        path: The CSV that `rejects --export` wrote, mended.

    Raises:
        UsageError: naming the lines that cannot be taken, and why.
        LandingError: when it cannot be read as CSV at all, or not be landed.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file", "Write one with `metalayer rejects --export FILE`")
    with (
        open_memory() as memory,
        connection.cursor() as cursor,
        tempfile.TemporaryDirectory(prefix="metalayer-") as folder,
    ):
        parsed = _read(memory, sources, path, Path(folder))
        concerned = _sources_in(memory, sources, path)
        known = {name: _known_columns(cursor, sources[name]) for name in concerned}
        _check_columns(path, parsed, known)
        _load_live(cursor, memory, concerned)
        _check_rows(memory, path)
        _load_current(connection, settings, memory, {n: sources[n] for n in concerned}, path)
        unchanged = _leave_out_unchanged(memory, known)
        repairs = [
            repair
            for name in concerned
            for repair in _write(memory, sources, name, known[name], Path(folder))
        ]
        names = [_land(repair, source, settings, sources) for repair, source in repairs]
        return Landed(tuple(names), _count(memory), unchanged)


def _read(
    memory: duckdb.DuckDBPyConnection, sources: Mapping[str, TableSpec], path: Path, folder: Path
) -> Parsed:
    """Make the table `mending`: line, source, ref and fields of each row of the CSV."""
    landed = dict.fromkeys(c.name for spec in sources.values() for c in spec.landed)
    rows, rejects = folder / "rows.parquet", folder / "rejects.parquet"
    # A link to it is the user's own.
    parsed = parse_text(path.resolve(), ["_source", REPAIRS_COLUMN, *landed], rows, rejects)
    missing = {"_source", REPAIRS_COLUMN}.intersection(parsed.missing_columns)
    if missing:
        raise UsageError(
            f"{path.name} has no column {', '.join(sorted(missing))}",
            "Mend a file that `metalayer rejects --export` wrote, and keep its columns",
        )
    _refuse(
        path,
        memory.execute(
            "select _line, rule from read_parquet(?) order by _line", [str(rejects)]
        ).fetchall(),
    )
    memory.execute(
        f"create temp table mending as select _line as line, trim(_source) as source, "
        f"trim({REPAIRS_COLUMN}) as ref, {fields_json(list(landed))} as fields "
        "from read_parquet(?)",
        [str(rows)],
    )
    # What the export has made harmless for spreadsheets is what it was again.
    value = restored_sql("(e.value ->> '$')")
    memory.execute(
        "update mending set fields = r.fields from (select m.line, json_group_object("
        f"{restored_sql('e.key')}, {value}) as fields "
        "from mending as m, json_each(m.fields) as e group by m.line) as r "
        "where r.line = mending.line and contains(mending.fields::varchar, chr(39))"
    )
    return parsed


def _refuse(path: Path, problems: Sequence[tuple[int, str]]) -> None:
    """Raise if there are any problems, each a line and what is wrong with it."""
    if not problems:
        return
    told = "; ".join(f"line {line}: {what}" for line, what in problems[:_SHOWN])
    more = len(problems) - _SHOWN
    raise UsageError(
        f"{path.name} cannot be taken: {told}{f'; and {more:,} lines more' if more > 0 else ''}",
        "Nothing was landed. Mend these lines, or take them out",
    )


def _sources_in(
    memory: duckdb.DuckDBPyConnection, sources: Mapping[str, TableSpec], path: Path
) -> list[str]:
    """The sources that the rows are of, in the catalog's order."""
    _refuse(
        path,
        memory.execute(
            "select line, '_source is ' || coalesce('''' || source || '''', 'empty') "
            "|| ', which is no source' from mending where source is null "
            "or not list_contains(?, source) order by line",
            [list(sources)],
        ).fetchall(),
    )
    found = {name for (name,) in memory.execute("select distinct source from mending").fetchall()}
    return [name for name in sources if name in found]


def _known_columns(cursor: Any, spec: TableSpec) -> list[str]:
    """Columns that the files of a source may have: the contract's, and others that came."""
    assert spec.source is not None
    cursor.execute(
        "select distinct unnest(extra_columns) from meta.deliveries "
        "where source = %s and status = 'loaded' order by 1",
        (spec.source.name,),
    )
    extra = [name for (name,) in cursor.fetchall()]
    landed = [c.name for c in spec.landed]
    return list(dict.fromkeys((*landed, *landed_columns(cursor, spec.name), *extra)))


def _check_columns(path: Path, parsed: Parsed, known: Mapping[str, Sequence[str]]) -> None:
    """Refuse columns that no source concerned knows, and the lack of one that it has."""
    every = {name for columns in known.values() for name in columns}
    brought = [restored(n) for n in parsed.extra_columns]
    unknown = [n for n in brought if n not in {*every, *FIRST, *LAST}]
    missing = [n for n in parsed.missing_columns if n in every]
    for names, what in ((unknown, "a column that nobody knows:"), (missing, "no column")):
        if names:
            raise UsageError(
                f"{path.name} has {what} {', '.join(names)}",
                "Nothing was landed. Keep the columns as `metalayer rejects --export` wrote them",
            )


def _load_live(cursor: Any, memory: duckdb.DuckDBPyConnection, concerned: Sequence[str]) -> None:
    """Make the table `live` of the contents that rows can be mended of."""
    memory.execute("create temp table live (source varchar, sha16 varchar, month date)")
    query = sql.SQL(
        "select distinct source, left(sha256, 16), fallback_month from meta.deliveries "
        "where source = any({}::text[]) and status = 'loaded' and not is_repair"
    ).format(sql.Literal(list(concerned)))
    copy_to_duckdb(cursor, memory, query, "live")


def _check_rows(memory: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Refuse rows of which it cannot be told what they stand for."""
    _refuse(
        path,
        memory.execute(
            f"select r.line, case when r.ref is null then '{REPAIRS_COLUMN} is empty' "
            "when not regexp_full_match(r.ref, '[0-9a-f]{16}:[0-9]{1,15}') "
            f"then '{REPAIRS_COLUMN} is ''' || r.ref || ''', which names no row' "
            "when first < r.line then 'it mends the same row as line ' || first "
            "else 'the file whose row it mends counts no longer' end as problem "
            "from (select *, min(line) over (partition by source, ref) as first from mending) as r "
            "left join (select distinct source, sha16 from live) as l "
            "on l.source = r.source and l.sha16 = split_part(r.ref, ':', 1) "
            "where l.sha16 is null or first < r.line "
            "or not regexp_full_match(r.ref, '[0-9a-f]{16}:[0-9]{1,15}') order by r.line"
        ).fetchall(),
    )


def _load_current(
    connection: Any,
    settings: Settings,
    memory: duckdb.DuckDBPyConnection,
    concerned: Mapping[str, TableSpec],
    path: Path,
) -> None:
    """Make the table `current`: what each row to be mended says now.

    That is what is quarantined of it, or else what bronze has: the row, or the repair that stands
    for it already.
    """
    tables = [f"{layer}.{s.name}" for s in concerned.values() for layer in ("bronze", "silver")]
    condition = sql.SQL("q.table_name = any({}::text[])").format(sql.Literal(tables))
    load_quarantined(connection, settings, memory, condition)
    memory.execute("create temp table current as select source, ref, fields from quarantined")
    for name, spec in concerned.items():
        others = memory.execute(
            "select split_part(ref, ':', 1), split_part(ref, ':', 2)::bigint from mending "
            "anti join current using (source, ref) where source = ?",
            [name],
        ).fetchall()
        if others:
            contents, lines = zip(*others, strict=True)
            query = sql.SQL(_IN_BRONZE).format(
                contents=sql.Literal(list(contents)),
                lines=sql.Literal(list(lines)),
                source=sql.Literal(name),
                bronze=stored_name(bronze_spec(spec)),
            )
            with connection.cursor() as cursor:
                copy_to_duckdb(cursor, memory, query, "current")
    memory.execute(f"update current set fields = {opened_sql('fields', is_json=True)}")
    _refuse(
        path,
        memory.execute(
            "select line, 'the file it names has no such row' from mending "
            "anti join current using (source, ref) order by line"
        ).fetchall(),
    )


_IN_BRONZE = """
select distinct on (w.content, w.line) {source}, w.content || ':' || w.line,
    (to_jsonb(b) - '{{_extra,_delivery_id,_line,_is_latest,month}}'::text[])
        || coalesce(b._extra, '{{}}') - '_repairs'
from unnest({contents}::text[], {lines}::bigint[]) as w (content, line)
join meta.deliveries as d
    on d.source = {source} and left(d.sha256, 16) = w.content
    and d.status = 'loaded' and not d.is_repair
left join meta.repaired_rows as r on r.delivery_id = d.delivery_id and r.line = w.line
join {bronze} as b on b._delivery_id = coalesce(r.by_delivery_id, d.delivery_id)
    and b._line = coalesce(r.by_line, w.line)
order by w.content, w.line, d.delivery_id desc
"""


def _leave_out_unchanged(
    memory: duckdb.DuckDBPyConnection, known: Mapping[str, Sequence[str]]
) -> int:
    """Take rows out that say what they said before; how many."""
    before = _count(memory)
    for source, columns in known.items():
        told = [(field(name, "mending.fields"), field(name, "c.fields")) for name in columns]
        changed = " or ".join(f"coalesce({new}, '') <> coalesce({old}, '')" for new, old in told)
        memory.execute(
            "delete from mending using current as c where mending.source = ? "
            f"and c.source = mending.source and c.ref = mending.ref and not ({changed})",
            [source],
        )
    return before - _count(memory)


def _count(memory: duckdb.DuckDBPyConnection) -> int:
    ((rows,),) = memory.execute("select count(*) from mending").fetchall()
    return int(rows)


def _write(
    memory: duckdb.DuckDBPyConnection,
    sources: Mapping[str, TableSpec],
    name: str,
    columns: Sequence[str],
    folder: Path,
) -> list[tuple[Path, SourceSpec]]:
    """Write the repairs of a source: one, or one a month where rows carry no date."""
    source = sources[name].source
    assert source is not None
    months: list[date | None] = [None]
    if source.month_from is None:
        # Equal content in two months is wrong in both.
        found = memory.execute(
            "select distinct l.month from mending join live as l on l.source = mending.source "
            "and l.sha16 = split_part(mending.ref, ':', 1) where mending.source = ? order by 1",
            [name],
        ).fetchall()
        months = [month for (month,) in found]
    present = _present(memory, sources[name], name, columns)
    written = []
    for month in months:
        memory.execute(
            f"create or replace temp table part as select ref as {REPAIRS_COLUMN}, {present} "
            "from mending where source = $source and exists (select 1 from live as l "
            "where l.source = mending.source and l.sha16 = split_part(mending.ref, ':', 1) "
            "and l.month = coalesce($month, l.month)) order by ref",
            {"source": name, "month": month},
        )
        ((rows,),) = memory.execute("select count(*) from part").fetchall()
        if rows:
            path = folder / f"{len(list(folder.iterdir()))}.csv"
            memory.execute(f"copy part to '{quoted(path)}' (format csv, header true)")
            written.append((_named(path, source, month, sources), source))
    return written


def _present(
    memory: duckdb.DuckDBPyConnection, spec: TableSpec, source: str, columns: Sequence[str]
) -> str:
    """The columns to write, as a select list: a repair brings no column that none of it needs."""
    has = ", ".join(f"count({field(name)}) > 0" for name in columns)
    (used,) = memory.execute(f"select {has} from mending where source = ?", [source]).fetchall()
    landed = {c.name for c in spec.landed}
    return ", ".join(
        f"{field(name)} as {identifier(name)}"
        for name, is_used in zip(columns, used, strict=True)
        if is_used or name in landed
    )


def _named(
    path: Path, source: SourceSpec, month: date | None, sources: Mapping[str, TableSpec]
) -> Path:
    """Give a repair a name by which it belongs to its source, and which tells its content."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    told = f"_repair_{content}" + (f"_{month:%Y-%m}" if month else "")
    name = source.pattern.replace("*", told, 1).replace("*", "")
    if match_source(name, [s.source for s in sources.values() if s.source]) != source:
        raise LandingError(
            f"A repair of {source.name} would be named {name}, which does not match its pattern "
            f"{source.pattern}, or another source's better",
            "Give the pattern in `class Source:` a * that takes any text",
        )
    return path.rename(path.with_name(name.rpartition("/")[2]))


def _land(
    path: Path, source: SourceSpec, settings: Settings, sources: Mapping[str, TableSpec]
) -> str:
    """Put a repair into the landing zone, unless it is there; its name in it."""
    name = f"{source.pattern.rpartition('/')[0]}/{path.name}"
    there = settings.landing / name
    if not there.is_file() or there.read_bytes() != path.read_bytes():
        land(
            [path], settings.landing, [s.source for s in sources.values() if s.source], source.name
        )
    return name
