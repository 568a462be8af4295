"""Schema drift: what changed in a file's columns since the delivery before, in sentences.

Sentences name columns and numbers, never values. Drift is said, not mended: what a column that the
contract does not know does is the contract's (`Source.on_new_column`), and a file that lacks a
required column is refused by its header.

Does not belong here: reading headers (`header.py`), comparing columns (`renames.py`), or adding a
column to a bronze table (`metalayer.warehouse`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalayer.contracts.contract import bronze_spec
from metalayer.errors import LandingError
from metalayer.landing.engine import open_memory
from metalayer.landing.header import MissingColumns, canonical
from metalayer.landing.renames import (
    Rename,
    compared,
    likely_renames,
    values_in_extra,
    values_in_sample,
)
from metalayer.landing.shape import REPAIRS_COLUMN, Terms, parsed_paths
from metalayer.settings import Settings
from metalayer.warehouse.evolve import columns_of


@dataclass(frozen=True)
class Columns:
    """Which columns a delivery has.

    Attributes:
        extra: Those that the contract does not know.
        missing: Landed columns that it lacks.
        rows: Its parsed rows, which may not be kept any more.
    """

    extra: tuple[str, ...]
    missing: tuple[str, ...]
    rows: Path


def columns_before(cursor: Any, settings: Settings, terms: Terms, delivery: int) -> Columns | None:
    """The columns of the newest live delivery of the source before `delivery`; repairs aside."""
    cursor.execute(
        "select sha256, fallback_month, extra_columns, missing_columns from meta.deliveries "
        "where source = %s and status = 'loaded' and not is_repair and delivery_id < %s "
        "order by delivery_id desc limit 1",
        (terms.source.name, delivery),
    )
    found = cursor.fetchone()
    if found is None:
        return None
    sha256, month, extra, missing = found
    rows, _ = parsed_paths(settings.parsed_dir, terms.shape, sha256, month)
    return Columns(tuple(extra), tuple(missing), rows)


@dataclass(frozen=True)
class Drift:
    """What changed in the columns, in sentences: what is new, what has gone, what was renamed."""

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it."""
        return (*self.new, *self.gone, *self.renamed)


def drift(terms: Terms, now: Columns, before: Columns | None) -> Drift:
    """What changed from `before` to `now`; where there is nothing before, which columns are new."""
    if REPAIRS_COLUMN in now.extra:
        return Drift()
    known = set(map(canonical, before.extra)) if before else set()
    new = [name for name in now.extra if canonical(name) not in known]
    kept = _kept(terms, now.extra, new)
    if before is None:
        return Drift(kept)
    vanished = [name for name in now.missing if name not in before.missing]
    there = set(map(canonical, now.extra))
    gone = [name for name in before.extra if canonical(name) not in there]
    return Drift(
        kept,
        tuple(f"column {n} has vanished: the delivery before had it" for n in (*vanished, *gone)),
        tuple(map(str, _renamed(new, vanished, now.rows, before.rows))) if new and vanished else (),
    )


def explained(refusal: MissingColumns, before: Columns | None) -> LandingError:
    """The refusal of a file without a required column, naming the column it likely is now."""
    with open_memory() as memory:
        likely = likely_renames(
            compared(
                new,
                old,
                values_in_sample(memory, refusal.values.get(new, []), old, before.rows)
                if before
                else None,
            )
            for old in refusal.missing
            for new, _ in refusal.extra
        )
    if not likely:
        return refusal
    return LandingError(
        f"{refusal.message}; {'; '.join(map(str, likely))}",
        "Rename it in the export, or rename the column in the contract.",
    )


def _kept(terms: Terms, extra: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    """Where each new column is found from now on."""
    added: dict[str, str] = {}
    if terms.source.on_new_column == "evolve":
        declared = [column.name for column in bronze_spec(terms.spec).columns]
        added = {header: name for name, header in columns_of(extra, declared).items()}
    return tuple(
        f"new column {added[name]} was added to {terms.bronze}"
        if name in added
        else f"new column {name} is kept in _extra"
        for name in new
    )


def _renamed(
    new: Iterable[str], vanished: Iterable[str], rows: Path, rows_before: Path
) -> list[Rename]:
    with open_memory() as memory:
        return likely_renames(
            compared(name, old, values_in_extra(memory, name, rows, old, rows_before))
            for old in vanished
            for name in new
        )
