"""One hand-written script for psql: copy, create table as, a key and statistics for each table.

Nothing is validated, and one bad value ends it. Each table is filled in the transaction that makes
it, as PostgreSQL's manual advises for bulk loads.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contender import Contender, Run, Step, postgres_program
from benchmarks.selects import (
    Months,
    bronze_columns,
    built_tables,
    months_of_snapshots,
    select,
    sources,
)
from benchmarks.totals import postgres_totals


def copy_script(run: Run) -> str:
    """The statements that load the exports into the schema `bronze`."""
    lines = ["\\echo phase bronze", "create schema bronze;"]
    for table in sources():
        columns = ", ".join(
            f"{name} {'date' if name == 'month' else 'text'}" for name in bronze_columns(table)
        )
        lines += ["begin;", f"create table bronze.{table.name} ({columns});"]
        landed = ", ".join(column.name for column in table.landed)
        snapshots = months_of_snapshots(table, run.exports.of(table))
        for file in run.exports.of(table):
            if file in snapshots:
                month = f"alter column month set default '{snapshots[file]}'"
                lines.append(f"alter table bronze.{table.name} {month};")
            target = f"bronze.{table.name} ({landed})"
            lines.append(f"\\copy {target} from '{file}' with (format csv, header)")
        lines += ["commit;", f"analyze bronze.{table.name};"]
    return "\n".join(lines) + "\n"


def psql(run: Run, script: str, text: str) -> Step:
    """The step that runs a script in one session, ending at the first error."""
    path = run.write(script, text)
    options = ["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"]
    return Step([postgres_program("psql"), *options, "--file", str(path), run.url])


def _transformations(months: Months) -> Iterator[str]:
    layer = ""
    for table in built_tables():
        if table.layer != layer:
            layer = table.layer
            yield f"\\echo phase {layer}"
            yield f"create schema {layer};"
        name = table.full_name
        yield f"begin;\ncreate table {name} as\n{select(table, months, 'postgres')};"
        yield f"alter table {name} add primary key ({', '.join(table.key)});\ncommit;"
        yield f"analyze {name};"


def _prepare(run: Run) -> list[Step]:
    script = copy_script(run) + "\n".join(_transformations(run.exports.months)) + "\n"
    return [psql(run, "load.sql", script)]


CONTENDER = Contender("psql", "psql script", _prepare, postgres_totals)
