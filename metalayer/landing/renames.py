"""Which column is likely the new name of one that has gone: by its name, and by its values.

It is said to a person, never acted on. What is compared is bounded, whatever a file's size.

Does not belong here: which columns came and went (`drift.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import duckdb

from metalayer.landing.header import MissingColumns, canonical, plain
from metalayer.landing.judge import identifier
from metalayer.landing.quotes import Ending, fields_of

_SAMPLED_ROWS = 20_000
_SAMPLED_LINES = 2_000
_SAMPLED_VALUES = 1_000
_TELLING_VALUES = 5
"""Values alone say something from so many different ones."""


@dataclass(frozen=True)
class Rename:
    """A column that may be another one under a new name.

    Attributes:
        new, old: The names.
        alike: How alike they are, 0 to 1.
        known: Share of the new column's different values that the old one had; None: not known.
        values: How many different values were compared.
    """

    new: str
    old: str
    alike: float
    known: float | None = None
    values: int = 0

    @property
    def is_likely(self) -> bool:
        """Whether name and values together, or one of them alone, speak for it."""
        known = self.known or 0.0
        return (
            self.alike >= 0.85
            or (self.alike >= 0.6 and known >= 0.3)
            or (known >= 0.8 and self.values >= _TELLING_VALUES)
        )

    def __str__(self) -> str:
        told = f"names {self.alike:.0%} alike"
        if self.known is not None:
            told += f", {self.known:.0%} of its values known from there"
        return f"{self.new} is likely the new name of {self.old} ({told})"


def likely_renames(candidates: Iterable[Rename]) -> list[Rename]:
    """Of each old column the likeliest new name, if any is likely."""
    best: dict[str, Rename] = {}
    for rename in candidates:
        rival = best.get(rename.old)
        if rename.is_likely and (rival is None or _weight(rename) > _weight(rival)):
            best[rename.old] = rename
    return list(best.values())


def compared(new: str, old: str, counts: tuple[int, int] | None = None) -> Rename:
    """Compare two columns, given how many values the new one has and how many of them the old."""
    alike = SequenceMatcher(None, canonical(new), canonical(old)).ratio()
    if counts is None or not counts[0]:
        return Rename(new, old, alike)
    return Rename(new, old, alike, counts[1] / counts[0], counts[0])


def values_in_extra(
    memory: duckdb.DuckDBPyConnection, name: str, rows: Path, old: str, old_rows: Path
) -> tuple[int, int] | None:
    """How many different values an extra column has, and how many of them `old` had.

    Args:
        rows: The parse whose `_extra` holds it; its first rows are looked at.
        old_rows: The parse that has the column `old`.

    Returns:
        The counts; None where a parse is not kept any more, or is from before there was `old`.
    """
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    sample = (
        "select json_extract_string(_extra, ?) as value from "
        f"(select _extra from read_parquet(?) limit {_SAMPLED_ROWS})"
    )
    return _known(memory, sample, [pointer, [str(rows)]], old, old_rows)


def values_in_sample(
    memory: duckdb.DuckDBPyConnection, values: Sequence[str], old: str, old_rows: Path
) -> tuple[int, int] | None:
    """The same for a column of which these values are known."""
    return _known(memory, "select unnest(?::varchar[]) as value", [list(values)], old, old_rows)


def _known(
    memory: duckdb.DuckDBPyConnection, sample: str, given: list[Any], old: str, old_rows: Path
) -> tuple[int, int] | None:
    column = identifier(old)
    query = (
        f"with sample as (select distinct trim(value) as value from ({sample}) "
        f"where trim(value) <> '' limit {_SAMPLED_VALUES}) "
        "select count(*), count(*) filter (where value in "
        f"(select trim({column}) from read_parquet(?) where {column} is not null)) from sample"
    )
    try:
        counts = memory.execute(query, [*given, [str(old_rows)]]).fetchone()
    except (duckdb.BinderException, duckdb.IOException):
        return None
    assert counts is not None
    return int(counts[0]), int(counts[1])


def first_values(lines: Iterable[str], refusal: MissingColumns) -> dict[str, list[str]]:
    """Distinct values of a refused file's extra columns, from its first clean lines."""
    values: dict[str, dict[str, None]] = {name: {} for name, _ in refusal.extra}
    for line in itertools.islice(lines, refusal.last_line, refusal.last_line + _SAMPLED_LINES):
        ending, fields = fields_of(line, refusal.delimiter)
        if ending is not Ending.CLOSED:
            continue
        for name, position in refusal.extra:
            value = plain(fields[position - 1]) if position <= len(fields) else ""
            if value and len(values[name]) < _SAMPLED_VALUES:
                values[name][value] = None
    return {name: list(found) for name, found in values.items()}


def _weight(rename: Rename) -> float:
    return rename.alike + (rename.known or 0.0)
