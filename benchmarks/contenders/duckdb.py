"""DuckDB alone, into a database file: no server, no readers beside the load, all cores."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import duckdb

from benchmarks.contender import PROGRAMS, Contender, Run, Step, Totals
from benchmarks.selects import built_tables, select, sources
from benchmarks.totals import totals_query

_FILE = "warehouse.duckdb"
#: Each word with a capital; DuckDB lacks what PostgreSQL calls initcap.
_INITCAP = """create macro initcap(words) as list_reduce(
    list_transform(string_split(words, ' '), lambda w: upper(left(w, 1)) || lower(substring(w, 2))),
    lambda a, b: a || ' ' || b
)"""


def _statements(run: Run) -> Iterator[str]:
    yield _INITCAP
    yield "phase bronze"
    yield "create schema bronze"
    for table in sources():
        assert table.source is not None
        files = ", ".join(f"'{file}'" for file in run.exports.of(table))
        month = (
            ", cast(regexp_extract(filename, '[0-9]{4}-[0-9]{2}') || '-01' as date) as month"
            if table.source.kind == "snapshot"
            else ""
        )
        read = f"read_csv([{files}], all_varchar = true, header = true, filename = true)"
        yield (
            f"create table bronze.{table.name} as select * exclude (filename){month} from {read}"
        )
    layer = ""
    for spec in built_tables():
        if spec.layer != layer:
            layer = spec.layer
            yield f"phase {layer}"
            yield f"create schema {layer}"
        text = select(spec, run.exports.months, "duckdb")
        yield f"create table {spec.full_name} as\n{text}"
        yield f"alter table {spec.full_name} add primary key ({', '.join(spec.key)})"


def _prepare(run: Run) -> list[Step]:
    # A line of its own between the statements, as some hold semicolons.
    script = run.write("load.sql", "\n----\n".join(_statements(run)))
    program = str(PROGRAMS / "run_duckdb.py")
    return [Step([sys.executable, program, str(script), str(run.folder / _FILE)])]


def _totals(run: Run) -> Totals:
    with duckdb.connect(str(run.folder / _FILE), read_only=True) as connection:
        return dict(connection.execute(totals_query()).fetchall())


CONTENDER = Contender("duckdb", "DuckDB, no server", _prepare, _totals)
