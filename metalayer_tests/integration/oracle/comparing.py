"""Two tables cell by cell, and what differs in words.

Belongs here: the comparison of one expected with one actual frame.
Does not belong here: where the frames come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

MOST_SHOWN = 10


def compare(expected: pl.DataFrame, actual: pl.DataFrame, key: Sequence[str]) -> str | None:
    """What differs between two tables with the same `key`, or `None` where every cell is equal.

    Exact: no tolerance, null equals null. The order of rows and columns and the width of integers
    and decimals do not matter; another kind of type does (text is no date, a float is no decimal).
    Columns named `_...` (provenance) are compared only where both tables have them.
    """
    columns = _columns(expected, actual, key)
    if isinstance(columns, str):
        return columns
    for side, frame in (("expected", expected), ("actual", actual)):
        if twice := _shown_keys(frame, frame.select(key).is_duplicated(), key):
            return f"the {side} rows repeat keys: {twice}"
    kinds = {c: (_kind(expected.schema[c]), _kind(actual.schema[c])) for c in columns}
    if wrong := [
        f"{column} is {actual.schema[column]}, expected {expected.schema[column]}"
        for column, (left, right) in kinds.items()
        if left != right and "nothing" not in (left, right)
    ]:
        return "types differ: " + "; ".join(wrong)
    return _difference(expected.select(columns), actual.select(columns), key)


def _columns(expected: pl.DataFrame, actual: pl.DataFrame, key: Sequence[str]) -> list[str] | str:
    missing = [c for c in expected.columns if c not in actual.columns and c[:1] != "_"]
    surplus = [c for c in actual.columns if c not in expected.columns and c[:1] != "_"]
    if missing or surplus:
        return f"columns differ: missing {missing}, surplus {surplus}"
    if unknown := [column for column in key if column not in expected.columns]:
        return f"the key names columns that are not there: {unknown}"
    return [column for column in expected.columns if column in actual.columns]


def _difference(expected: pl.DataFrame, actual: pl.DataFrame, key: Sequence[str]) -> str | None:
    for column in expected.columns:
        shared = _shared_type(expected.schema[column], actual.schema[column])
        expected = expected.with_columns(pl.col(column).cast(shared))
        actual = actual.with_columns(pl.col(column).cast(shared))
    parts: list[str] = []
    for word, frame, other in (("missing", expected, actual), ("surplus", actual, expected)):
        lone = frame.join(other, on=list(key), how="anti", nulls_equal=True)
        if lone.height:
            shown = _shown_keys(lone, pl.repeat(True, lone.height, eager=True), key)
            parts.append(f"{lone.height} {word} rows: {shown}")
    both = expected.join(actual, on=list(key), how="inner", nulls_equal=True, suffix="\x1f")
    both = both.sort(list(key))
    cells: list[str] = []
    count = 0
    for column in [column for column in expected.columns if column not in key]:
        differing = both.filter(pl.col(column).ne_missing(pl.col(column + "\x1f")))
        count += differing.height
        for row in differing.head(MOST_SHOWN).iter_rows(named=True):
            cells.append(
                f"{_key_text(row, key)}: {column} expected {row[column]!r}, "
                f"actual {row[column + chr(31)]!r}"
            )
    if count:
        parts.append(f"{count} differing cells:\n  " + "\n  ".join(cells[: 2 * MOST_SHOWN]))
    if not parts:
        return None
    return f"expected {expected.height} rows, actual {actual.height}\n" + "\n".join(parts)


def _kind(dtype: pl.DataType) -> str:
    if dtype == pl.Null:
        return "nothing"
    if dtype.is_integer() or dtype.is_decimal():
        return "exact number"
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return f"instant in {dtype.time_zone}"
    return str(dtype.base_type().__name__)


def _shared_type(left: pl.DataType, right: pl.DataType) -> pl.DataType:
    """The type in which both sides are compared, without rounding either."""
    if pl.Null in (left, right):
        return right if left == pl.Null else left
    scales = [dtype.scale for dtype in (left, right) if isinstance(dtype, pl.Decimal)]
    if scales:
        return pl.Decimal(38, max(scales))
    if left.is_integer():
        return pl.Int128()
    if isinstance(left, pl.Datetime) and isinstance(right, pl.Datetime):
        return pl.Datetime("ns" if "ns" in (left.time_unit, right.time_unit) else "us")
    return left


def _key_text(row: dict[str, object], key: Sequence[str]) -> str:
    return ", ".join(f"{column}={row[column]}" for column in key)


def _shown_keys(frame: pl.DataFrame, which: pl.Series, key: Sequence[str]) -> str:
    rows = frame.filter(which).select(key).unique().sort(list(key))
    shown = "; ".join(_key_text(row, key) for row in rows.head(MOST_SHOWN).iter_rows(named=True))
    return shown + ("; ..." if rows.height > MOST_SHOWN else "")
