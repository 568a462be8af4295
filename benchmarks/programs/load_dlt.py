"""Load exports into the schema `bronze` with dlt: `load_dlt.py LIST`.

The list is a JSON object: table -> [{"file": path, "month": first day of the snapshot or null}].
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pyarrow as pa

_ROWS_OF_A_BATCH = 100_000


def batches(files: list[dict[str, str | None]]) -> Iterator[Any]:
    """The rows of a table's files as Arrow tables, every column as text."""
    for each in files:
        month = "" if each["month"] is None else f", cast('{each['month']}' as date) as month"
        query = f"select *{month} from read_csv('{each['file']}', all_varchar = true)"
        with duckdb.connect() as connection:
            reader: Any = connection.execute(query).to_arrow_reader(_ROWS_OF_A_BATCH)
            for batch in reader:
                yield pa.Table.from_batches([batch])


def main(listed: str) -> None:
    """Load all tables in one run of a pipeline."""
    tables = json.loads(Path(listed).read_text(encoding="utf-8"))
    pipeline = dlt.pipeline("benchmark", destination="postgres", dataset_name="bronze")
    resources = [
        dlt.resource(
            batches, name=name, write_disposition="replace", file_format="csv", parallelized=True
        )(files)
        for name, files in tables.items()
    ]
    pipeline.run(resources).raise_on_failed_jobs()


if __name__ == "__main__":
    main(*sys.argv[1:])
