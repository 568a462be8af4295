"""Quarantined rows as they were delivered, column by column: what a person can mend.

A row that a typed table refused is in the quarantine as bronze had it. A record that could not be
read is there as a line of text; it is split again with the header of its file, by the reader
itself, where that can be trusted. A row that had been mended before, and still is bad, goes by the
row it stands for, so that no repair mends a repair.

Belongs here: reading. Does not belong here: the CSV a person edits (`export.py`), or what becomes
of it (`repair.py`). Neither contracts nor Dagster are imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
from psycopg2 import sql

from metalayer.errors import LandingError
from metalayer.landing.copy import copy_to_duckdb
from metalayer.landing.header import Header, read_header
from metalayer.landing.judge import MAX_RAW_CHARACTERS, identifier, literal
from metalayer.landing.normalise import clean_lines, normalise
from metalayer.landing.raw import RawBytes, fingerprint, opened, unpacked
from metalayer.landing.reader import LandedColumn, Parsed, SourceShape, parse
from metalayer.landing.seal import let_open, opened_sql
from metalayer.settings import Settings
from metalayer.warehouse.keys import opener

_MACHINERY = ("_extra", "_delivery_id", "_line", "_is_latest", "month")
#: Headers end within this much of a file; it may be packed.
_HEAD_BYTES = 1 << 20
_ANY_MONTH = date(2000, 1, 1)


def load_quarantined(
    connection: Any,
    settings: Settings,
    memory: duckdb.DuckDBPyConnection,
    condition: sql.Composable,
) -> None:
    """Make the table `quarantined` of the rows that can be mended, each once.

    Its columns: `source` ("erp/orders"), `table_name` ("orders"), `ref` (what its `_repairs` is to
    say), `file`, `line`, `problem` (the rules it breaks), `raw`, and `fields`: a JSON object of its
    columns as delivered, those that no contract knows included; NULL where it cannot be told which
    field is which.

    Rows that count no longer are left out: the next build takes them out of the quarantine. So are
    those of tables that are not fed from files.

    Args:
        condition: SQL over `meta.quarantine as q` and `meta.deliveries as d`: which are wanted.

    Raises:
        ConfigurationError: when values are encrypted, and the key is not at hand.
    """
    memory.execute(
        "create temp table found (number bigint, delivery_id bigint, source varchar, "
        "table_name varchar, ref varchar, is_repair boolean, file varchar, line bigint, "
        "problem varchar, raw varchar, fields varchar, is_splittable boolean)"
    )
    query = sql.SQL(_FOUND).format(condition=condition)
    with connection.cursor() as cursor:
        copy_to_duckdb(cursor, memory, query, "found")
        let_open(memory, opener(cursor, settings))
        memory.execute(_OPENED)
        _split_records(cursor, settings, memory)
    memory.execute(
        "create temp table quarantined as select source, table_name, ref, file, line, problem, "
        "raw, fields "
        "from found where ref <> '' qualify row_number() over (partition by source, ref "
        "order by is_repair desc, delivery_id desc, line desc) = 1"
    )


# What is encrypted is opened here, not in PostgreSQL. In a record of a repair that cannot be read
# what it stands for comes first.
_OPENED = f"""
update found set raw = {opened_sql("raw")}, fields = {opened_sql("fields", is_json=True)};
update found set ref = regexp_extract(raw, '^"?([0-9a-f]{{16}}:[0-9]+)', 1) where ref is null;
update found set is_splittable = false where length(raw) >= {MAX_RAW_CHARACTERS}
"""

# Of a repair the rows name what they stand for.
_FOUND = """
select row_number() over (), q.delivery_id, d.source, split_part(q.table_name, '.', 2),
    case
        when not d.is_repair then left(d.sha256, 16) || ':' || q.line
        when q.table_name like 'silver.%' then q.raw::jsonb -> '_extra' ->> '_repairs'
    end,
    d.is_repair, d.file, q.line,
    (
        select string_agg(concat_ws(' ', coalesce(v ->> 'column', 'row'), v ->> 'rule'), '; ')
        from jsonb_array_elements(q.violations) as v
    ),
    q.raw,
    case when q.table_name like 'silver.%' then (
        (q.raw::jsonb - '_extra') || coalesce(q.raw::jsonb -> '_extra', '{{}}') - '_repairs'
    ) end,
    q.table_name like 'bronze.%'
        -- By these rules the record has as many fields as it should.
        and (q.column_name is not null or q.rule = 'NUL byte')
from meta.quarantine as q
join meta.deliveries as d using (delivery_id)
left join meta.superseded_rows as s on s.delivery_id = q.delivery_id and s.line = q.line
left join meta.delivery_months as m on m.delivery_id = q.delivery_id and m.month = q.month
    and m.is_replaced and q.table_name like 'silver.%'
where {condition} and d.status = 'loaded' and s.line is null and m.month is null
"""


def landed_columns(cursor: Any, table: str) -> list[str]:
    """Columns that files bring to a bronze table ("orders"), in its order."""
    cursor.execute(
        "select attname from pg_attribute "
        "where attrelid = to_regclass('bronze.' || quote_ident(%s)) "
        "and attnum > 0 and not attisdropped and attname <> all(%s) order by attnum",
        (table, list(_MACHINERY)),
    )
    return [name for (name,) in cursor.fetchall()]


# --- records that could not be read ------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How the fields of a file's records are named and parted.

    Attributes:
        columns: Those of the contract.
        names: The header's, in order; the contract's spelling where it knows them.
        delimiter: One character.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    delimiter: str

    @property
    def header(self) -> str:
        """A header line that says the same."""
        return self.delimiter.join('"' + name.replace('"', '""') + '"' for name in self.names)


def _split_records(cursor: Any, settings: Settings, memory: duckdb.DuckDBPyConnection) -> None:
    """Tell the fields of the records that have as many as they should."""
    tables = dict(
        memory.execute(
            "select distinct delivery_id, table_name from found where is_splittable"
        ).fetchall()
    )
    if not tables:
        return
    columns = {name: landed_columns(cursor, name) for name in set(tables.values())}
    cursor.execute(
        "select delivery_id, file, sha256, size, mtime_ns from meta.deliveries "
        "where delivery_id = any(%s) order by delivery_id",
        (list(tables),),
    )
    alike: dict[_Layout, list[int]] = {}
    for delivery, file, sha256, size, mtime_ns in cursor.fetchall():
        path = settings.landing / file
        known = columns[tables[delivery]]
        try:
            if not _is_still(path, sha256, size, mtime_ns):
                continue
            layout = _layout(_header_of(path, known), known)
        except (LandingError, OSError):
            continue  # without its header a record is shown as it is
        alike.setdefault(layout, []).append(delivery)
    for layout, deliveries in alike.items():
        _split(memory, layout, deliveries)


def _is_still(path: Path, sha256: str, size: int, mtime_ns: int) -> bool:
    """Whether a landed file is what it was when it was registered."""
    facts = path.stat()
    if (facts.st_size, facts.st_mtime_ns) == (size, mtime_ns):
        return True
    return facts.st_size == size and fingerprint(path).sha256 == sha256


def _header_of(path: Path, columns: Sequence[str]) -> Header:
    with tempfile.TemporaryDirectory(prefix="metalayer-") as folder:
        head, lines = Path(folder) / path.name, Path(folder) / ".lines"
        with opened(path) as file, head.open("wb") as out:
            for chunk in unpacked(path, RawBytes(file).chunks()):
                out.write(chunk)
                if out.tell() >= _HEAD_BYTES:
                    break
        normalise(head, lines)
        return read_header(path.name, clean_lines(lines), columns, ())


def _layout(header: Header, columns: Sequence[str]) -> _Layout:
    named = {position: name for name, position in (*header.position.items(), *header.extra)}
    return _Layout(
        tuple(columns),
        # Behind the last that is named, a field may be lacking.
        tuple(named[n] if n <= header.fewest else "" for n in range(1, header.most + 1)),
        header.delimiter,
    )


def _split(memory: duckdb.DuckDBPyConnection, layout: _Layout, deliveries: Sequence[int]) -> None:
    """Have the reader read the records of some deliveries as one file, below their header."""
    memory.execute(
        "create or replace temp table record as select number, raw, 2 + coalesce(sum("
        "1 + length(raw) - length(replace(raw, chr(10), ''))) over (order by number "
        "rows between unbounded preceding and 1 preceding), 0) as first_line "
        "from found where is_splittable and list_contains(?, delivery_id)",
        [list(deliveries)],
    )
    ((text,),) = memory.execute(
        "select string_agg(raw, chr(10) order by number) from record"
    ).fetchall()
    with tempfile.TemporaryDirectory(prefix="metalayer-") as folder:
        path, rows = Path(folder) / "records.csv", Path(folder) / "rows.parquet"
        path.write_text(f"{layout.header}\n{text}\n", encoding="utf-8", newline="\n")
        try:
            parse_text(path, layout.columns, rows, Path(folder) / "rest.parquet")
        except LandingError:
            return
        fields = fields_json(layout.columns)
        memory.execute(
            f"update found set fields = p.fields from (select r.number, {fields} as fields "
            "from read_parquet(?) join record as r on r.first_line = _line) as p "
            "where p.number = found.number",
            [str(rows)],
        )


def parse_text(path: Path, columns: Sequence[str], rows: Path, rejects: Path) -> Parsed:
    """Read a CSV of these columns, each of them text; see `reader.parse`."""
    texts = tuple(LandedColumn(name, "text", required=False) for name in columns)
    shape = SourceShape("rows", texts, (), None, _ANY_MONTH, _ANY_MONTH)
    return parse(path, shape, _ANY_MONTH, rows, rejects)


def field(name: str, of: str = "fields") -> str:
    """In DuckDB: the text of one column in such an object."""
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    return f"json_extract_string({of}, {literal(pointer)})"


def fields_json(columns: Sequence[str]) -> str:
    """In DuckDB: the columns of a parsed row, and those that no contract knows, as one object."""
    entries = ", ".join(f"{literal(name)}: {identifier(name)}" for name in columns)
    return f"json_merge_patch(to_json({{{entries}}}), coalesce(_extra, '{{}}'))"
