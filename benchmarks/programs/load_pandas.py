"""Load the first rows of exports with pandas: `load_pandas.py LIST URL ROWS`.

The list is a JSON object: table -> its files. ROWS is how many of each table are loaded. Multi-row
statements (`method="multi"`) are not asked for: pandas documents them as slower on PostgreSQL for
tables of many columns.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import sqlalchemy as sa

_ROWS_OF_A_CHUNK = 10_000


def main(listed: str, url: str, rows: str) -> None:
    """Load the tables one after the other, every column as text."""
    tables = json.loads(Path(listed).read_text(encoding="utf-8"))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("create schema bronze"))
    print("phase bronze", flush=True)
    for table, files in tables.items():
        left = int(rows)
        for file in files:
            for chunk in pd.read_csv(file, dtype=str, chunksize=_ROWS_OF_A_CHUNK, nrows=left):
                chunk.to_sql(table, engine, schema="bronze", if_exists="append", index=False)
                left -= len(chunk)
            if left <= 0:
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
