"""dlt loads the exports, dbt builds silver and gold: two threads each, materialized as tables.

dlt is set up as its pages on performance advise: Arrow tables read by DuckDB, CSV files for
PostgreSQL's COPY, rotated so that several are loaded side by side. The dbt project is written anew
for each run, from the project's SELECTs.
"""

from __future__ import annotations

import json

from benchmarks.contender import PROGRAMS, Contender, Run, Step
from benchmarks.environments import environment
from benchmarks.selects import built_tables, months_of_snapshots, select, sources
from benchmarks.totals import postgres_totals

#: Schemas are named as the models ask for, without the target's in front.
_SCHEMA_NAMES = """{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ custom_schema_name or target.schema }}
{%- endmacro %}
"""


def _prepare(run: Run) -> list[Step]:
    programs = environment("dlt_dbt")
    project = run.folder / "dbt"
    _write_project(run)
    load = {
        "DESTINATION__POSTGRES__CREDENTIALS": (
            f"postgresql://{run.user}:none@localhost/{run.database}?host={run.socket}"
        ),
        "EXTRACT__WORKERS": str(run.cores),
        "NORMALIZE__WORKERS": str(run.cores),
        "LOAD__WORKERS": str(run.cores),
        "DATA_WRITER__FILE_MAX_ITEMS": "250000",
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "RUNTIME__LOG_LEVEL": "WARNING",
        "DLT_DATA_DIR": str(run.folder / "dlt"),
    }
    build = {
        "DBT_PROFILES_DIR": str(project),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DBT_USE_COLORS": "false",
    }
    listed = run.write("exports.json", json.dumps(_listed(run)))
    loading = [str(programs / "python"), str(PROGRAMS / "load_dlt.py"), str(listed)]
    return [
        Step(loading, "bronze", load, run.folder),
        Step([str(programs / "dbt"), "run"], "silver and gold", build, project),
    ]


def _listed(run: Run) -> dict[str, list[dict[str, str | None]]]:
    """Table -> its files, each with the month of the snapshot it is."""
    listed: dict[str, list[dict[str, str | None]]] = {}
    for table in sources():
        files = run.exports.of(table)
        months = months_of_snapshots(table, files)
        listed[table.name] = [
            {"file": str(file), "month": str(months[file]) if file in months else None}
            for file in files
        ]
    return listed


def _write_project(run: Run) -> None:
    profile = {
        "type": "postgres", "host": run.socket, "port": 5432, "user": run.user, "password": "none",
        "dbname": run.database, "schema": "public", "threads": run.cores,
    }  # fmt: skip
    files = {
        "dbt_project.yml": {
            "name": "benchmark",
            "profile": "benchmark",
            "models": {"benchmark": {"+materialized": "table"}},
        },
        "profiles.yml": {"benchmark": {"target": "run", "outputs": {"run": profile}}},
        "models/sources.yml": {
            "sources": [{"name": "bronze", "tables": [{"name": t.name} for t in sources()]}]
        },
    }
    for name, content in files.items():
        run.write(f"dbt/{name}", json.dumps(content))  # JSON is YAML too
    run.write("dbt/macros/generate_schema_name.sql", _SCHEMA_NAMES)
    for table in built_tables():
        key = f"alter table {{{{ this }}}} add primary key ({', '.join(table.key)})"
        hooks = json.dumps([key, "analyze {{ this }}"])
        config = f"schema='{table.layer}', alias='{table.name}', post_hook={hooks}"
        text = select(table, run.exports.months, "postgres", _reference)
        path = f"dbt/models/{table.layer}/{_model(table.full_name)}.sql"
        run.write(path, f"{{{{ config({config}) }}}}\n{text}\n")


def _reference(table: str) -> str:
    layer, _, name = table.partition(".")
    if layer == "bronze":
        return f"{{{{ source('bronze', '{name}') }}}}"
    return f"{{{{ ref('{_model(table)}') }}}}"


def _model(table: str) -> str:
    """Name of a model: those of dbt are one name space, whatever their schema."""
    return table.replace(".", "_")


CONTENDER = Contender("dlt_dbt", "dlt + dbt", _prepare, postgres_totals)
