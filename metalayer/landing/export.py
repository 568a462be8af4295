"""Quarantined rows as a CSV that a person mends and lands again (`repair.py` takes it back).

Does not belong here: what of a quarantined row is known (`quarantined.py`), or printing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from psycopg2 import sql

from metalayer.errors import UsageError
from metalayer.landing.copy import quoted
from metalayer.landing.engine import open_memory
from metalayer.landing.judge import identifier
from metalayer.landing.quarantined import field, landed_columns, load_quarantined
from metalayer.settings import Settings
from metalayer.spreadsheets import defused, defused_sql

#: Columns before and behind those of the rows; `repair.py` reads the first two.
FIRST = ("_source", "_repairs", "_file", "_line", "_problem")
LAST = ("_raw",)
# Spreadsheets take a file without it for something else than UTF-8.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Exported:
    """What an export holds, and what it does not.

    Attributes:
        rows: Rows in it.
        unsplit: Those of them whose columns are empty: which field is which cannot be told.
        outdated: Quarantined rows that count no longer; the next build takes them out.
        made: Quarantined rows that came from no file, but from a SELECT.
    """

    rows: int
    unsplit: int
    outdated: int
    made: int


def export_quarantined(
    connection: Any, settings: Settings, condition: sql.Composable, path: Path
) -> Exported:
    """Write the quarantined rows that can be mended, with what is wrong and what was delivered.

    What a spreadsheet would run as a formula is made text; `repair.py` takes that back. Only the
    owner may read the file: rows may hold personal values.

    Args:
        condition: Which rows; SQL over `meta.quarantine as q` and `meta.deliveries as d`.
        path: Must not be there yet; made only if there are rows.

    Raises:
        UsageError: when it is there, or cannot be written.
    """
    refuse_to_overwrite(path)
    with open_memory() as memory, connection.cursor() as cursor:
        load_quarantined(connection, settings, memory, condition)
        cursor.execute(
            sql.SQL(
                "select count(q.delivery_id), count(*) - count(q.delivery_id) "
                "from meta.quarantine as q left join meta.deliveries as d using (delivery_id) "
                "where {}"
            ).format(condition)
        )
        from_files, made = cursor.fetchone()
        ((found,),) = memory.execute("select count(*) from found where ref <> ''").fetchall()
        ((rows, split),) = memory.execute(
            "select count(*), count(fields) from quarantined"
        ).fetchall()
        if rows:
            _write(memory, _columns(cursor, memory), path)
    return Exported(rows, rows - split, from_files - found, made)


def refuse_to_overwrite(path: Path) -> None:
    """Raise `UsageError` if something is there."""
    if path.exists() or path.is_symlink():
        raise UsageError(
            f"{path} is there already", "Name another file, or move it away if it is done with"
        )


def _columns(cursor: Any, memory: duckdb.DuckDBPyConnection) -> list[str]:
    """The columns of the files concerned, then those that no contract knows."""
    tables = memory.execute("select distinct table_name from quarantined order by 1").fetchall()
    landed = [name for (table,) in tables for name in landed_columns(cursor, table)]
    found = memory.execute(
        "select distinct unnest(json_keys(fields)) as name from quarantined order by 1"
    ).fetchall()
    # Another spelling of a column that is there could not be told from it.
    taken = {*landed, *FIRST, *LAST}
    extra = [name for (name,) in found if name.lower().replace(" ", "_") not in taken]
    return list(dict.fromkeys((*landed, *extra)))


def _write(memory: duckdb.DuckDBPyConnection, columns: list[str], path: Path) -> None:
    selected = ", ".join(
        [
            f"source as _source, ref as _repairs, {defused_sql('file')} as _file, line as _line",
            f"{defused_sql('problem')} as _problem",
            *(f"{defused_sql(field(name))} as {identifier(defused(name))}" for name in columns),
            # What is in the columns need not be said twice.
            f"case when fields is null then {defused_sql('raw')} end as {identifier(LAST[0])}",
        ]
    )
    with tempfile.TemporaryDirectory(prefix="metalayer-") as folder:
        rows = Path(folder) / "rows.csv"
        memory.execute(
            f"copy (select {selected} from quarantined order by source, file, line) "
            f"to '{quoted(rows)}' (format csv, header true)"
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error.strerror}", "Name a file in a folder of yours"
            ) from None
        with rows.open("rb") as source, os.fdopen(descriptor, "wb") as out:
            out.write(_BYTE_ORDER_MARK)
            shutil.copyfileobj(source, out)
