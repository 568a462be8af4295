"""SQLMesh: psql's COPY loads the exports, models of the kind FULL build silver and gold.

Two tasks side by side. SQLMesh has no keys for PostgreSQL, so its tables have none; statistics come
from an ANALYZE at the end of each model. Its rewriting of queries is off: with it gold.dim_customer
comes out with fewer rows. The project is written anew for each run.
"""

from __future__ import annotations

import json

from benchmarks.contender import Contender, Run, Step
from benchmarks.contenders.psql import copy_script, psql
from benchmarks.environments import environment
from benchmarks.selects import bronze_columns, built_tables, select, sources
from benchmarks.totals import postgres_totals

_ANALYZE = "ANALYZE @this_model"


def _prepare(run: Run) -> list[Step]:
    programs = environment("sqlmesh")
    _write_project(run)
    command = [str(programs / "sqlmesh"), "plan", "--auto-apply", "--no-prompts", "--skip-tests"]
    settings = {"SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true", "HOME": str(run.folder)}
    loading = psql(run, "bronze.sql", copy_script(run))
    return [loading, Step(command, "silver and gold", settings, run.folder / "sqlmesh")]


def _write_project(run: Run) -> None:
    connection = {
        "type": "postgres", "host": run.socket, "port": 5432, "user": run.user, "password": "none",
        "database": run.database, "concurrent_tasks": run.cores,
    }  # fmt: skip
    config = {
        "gateways": {"run": {"connection": connection}},
        "default_gateway": "run",
        "model_defaults": {"dialect": "postgres", "start": str(run.exports.months.start)},
    }
    run.write("sqlmesh/config.yaml", json.dumps(config))  # JSON is YAML too
    external = [
        {
            "name": f"bronze.{table.name}",
            "columns": {
                name: "date" if name == "month" else "text" for name in bronze_columns(table)
            },
        }
        for table in sources()
    ]
    run.write("sqlmesh/external_models.yaml", json.dumps(external))
    for table in built_tables():
        key = f"({', '.join(table.key)})"
        head = f"MODEL (name {table.full_name}, kind FULL, grain {key}, optimize_query false);"
        text = select(table, run.exports.months, "postgres")
        name = f"sqlmesh/models/{table.layer}/{table.name}.sql"
        run.write(name, f"{head}\n\n{text};\n\n{_ANALYZE};\n")


CONTENDER = Contender("sqlmesh", "SQLMesh", _prepare, postgres_totals)
