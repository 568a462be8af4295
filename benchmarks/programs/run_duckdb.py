"""Run a script of DuckDB statements: `run_duckdb.py SCRIPT DATABASE`.

Statements stand between lines of four dashes; "phase NAME" in place of one is told on the output.
"""

import sys
from pathlib import Path

import duckdb


def main(script: str, database: str) -> None:
    """Run the statements one after the other and write the database out."""
    with duckdb.connect(database) as connection:
        for statement in Path(script).read_text(encoding="utf-8").split("\n----\n"):
            if statement.startswith("phase "):
                print(statement, flush=True)
            else:
                connection.execute(statement)
        connection.execute("checkpoint")


if __name__ == "__main__":
    main(*sys.argv[1:])
