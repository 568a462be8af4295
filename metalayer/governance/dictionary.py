"""The dictionary: what each table and column means, where it comes from, and who reads it.

A value made from the catalog alone, without a database. Whoever shows it (pages, exported
contracts) takes it from here. Belongs here: facts and the graph of columns. Does not belong here:
words in a page (`dictionary_pages.py`) or pictures (`dictionary_graph.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import sqlglot
from sqlglot import exp

from metalayer.catalog import Catalog
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.contracts.promises import Promise, checks_of, column_rules, column_tags, row_rules
from metalayer.lineage.columns import Origin, column_lineage, view_lineage

_T = TypeVar("_T")


@dataclass(frozen=True)
class ColumnEntry:
    """One column.

    Attributes:
        rules: What its values must be, in words.
        tags: What it is marked as, see `column_tags`.
        upstream, downstream: The columns it is made from, and those made from it, one step away.
            A column of a landed file is of a "table" named by the pattern of the files.
    """

    spec: ColumnSpec
    rules: tuple[str, ...]
    tags: Mapping[str, str]
    upstream: tuple[Origin, ...]
    downstream: tuple[Origin, ...]


@dataclass(frozen=True)
class TableEntry:
    """One table.

    Attributes:
        sources: Tables, or the pattern of landed files, that it is made from.
        consumers: Tables and views that read it.
        views: Views that its contract has beside it.
        rules: Rules across columns, in words.
        select: The text of its SELECT; None in bronze.
    """

    spec: TableSpec
    columns: tuple[ColumnEntry, ...]
    sources: tuple[str, ...]
    consumers: tuple[str, ...]
    views: tuple[str, ...]
    rules: tuple[str, ...]
    checks: tuple[Promise, ...]
    select: str | None


@dataclass(frozen=True)
class Dictionary:
    """All tables, upstream first, and the graph of their columns.

    Attributes:
        reads: Table, or view -> what it reads, one step away.
        made_from: Column -> the columns its values are made from, one step away.
        ranks: Table, view or pattern -> how far right of the landed files it is drawn.
    """

    tables: Mapping[str, TableEntry]
    reads: Mapping[str, tuple[str, ...]]
    made_from: Mapping[Origin, tuple[Origin, ...]]
    ranks: Mapping[str, int]

    @cached_property
    def made_into(self) -> Mapping[Origin, tuple[Origin, ...]]:
        """Column -> the columns made from it."""
        return _turned(self.made_from)

    def lineage(self, column: Origin) -> frozenset[tuple[Origin, Origin]]:
        """Every step (from, to) on a way from a landed column to `column`, and from it onwards."""
        back = {(up, down) for down, up in _steps(column, self.made_from)}
        return frozenset(back | _steps(column, self.made_into))


def dictionary(tables: Catalog) -> Dictionary:
    """The dictionary of all tables."""
    reads: dict[str, tuple[str, ...]] = {}
    made_from: dict[Origin, tuple[Origin, ...]] = {}
    for name, spec in tables.specs.items():
        reads[name] = _sources(spec, tables)
        made_from |= {Origin(name, c): o for c, o in _origins(spec, tables).items()}
        for view, body in spec.views.items():
            view_name = f"{spec.layer}.{view}"
            origins = view_lineage(body, tables.specs)
            reads[view_name] = tuple(sorted({o.table for found in origins.values() for o in found}))
            made_from |= {Origin(view_name, c): o for c, o in origins.items()}
    read_by = _turned(reads)
    made_into = _turned(made_from)
    entries = {
        name: TableEntry(
            spec=spec,
            columns=tuple(
                _column(spec, c, made_from, made_into) for c in spec.columns
            ),
            sources=reads[name],
            consumers=read_by.get(name, ()),
            views=tuple(f"{spec.layer}.{view}" for view in spec.views),
            rules=tuple(row_rules(spec)),
            checks=tuple(checks_of(spec)),
            select=tables.selects[name].text.strip() if name in tables.selects else None,
        )
        for name, spec in tables.specs.items()
    }  # fmt: skip
    return Dictionary(entries, reads, made_from, _ranks(reads, tables))


def _column(
    spec: TableSpec,
    column: ColumnSpec,
    made_from: Mapping[Origin, tuple[Origin, ...]],
    made_into: Mapping[Origin, tuple[Origin, ...]],
) -> ColumnEntry:
    place = Origin(spec.full_name, column.name)
    return ColumnEntry(
        column,
        tuple(column_rules(spec, column)),
        column_tags(column),
        made_from.get(place, ()),
        made_into.get(place, ()),
    )


def _sources(spec: TableSpec, tables: Catalog) -> tuple[str, ...]:
    if spec.layer == "bronze":
        assert spec.source is not None
        return (spec.source.pattern,)
    return tuple(tables.inputs(spec.full_name))


def _origins(spec: TableSpec, tables: Catalog) -> dict[str, tuple[Origin, ...]]:
    """Column -> the columns that its values are made from."""
    if spec.layer == "bronze":
        assert spec.source is not None
        silver = tables.sources[spec.source.name]
        landed: dict[str, tuple[Origin, ...]] = {
            c.name: (Origin(spec.source.pattern, c.name),) for c in silver.landed
        }
        if spec.source.month_from is not None:
            landed[spec.month_column] = (Origin(spec.source.pattern, spec.source.month_from),)
        return landed
    found = column_lineage(tables.selects[spec.full_name], tables.specs)
    for c in spec.columns:
        if c.derived is not None:
            read = {
                e.name for e in sqlglot.parse_one(c.derived, read="postgres").find_all(exp.Column)
            }
            found[c.name] = tuple(Origin(spec.full_name, name) for name in sorted(read))
    return found


def _ranks(reads: Mapping[str, tuple[str, ...]], tables: Catalog) -> dict[str, int]:
    """Landed files 0, bronze 1, silver 2, gold from 3: each behind all that it reads."""
    ranks: dict[str, int] = {}

    def rank(name: str) -> int:
        if name not in ranks:
            layer = tables.specs[name].layer if name in tables.specs else "gold"
            least = {"bronze": 1, "silver": 2, "gold": 3}[layer] if name in reads else 0
            ranks[name] = max([least, *(rank(source) + 1 for source in reads.get(name, ()))])
        return ranks[name]

    for name in reads:
        rank(name)
    return ranks


def _steps(start: _T, graph: Mapping[_T, tuple[_T, ...]]) -> set[tuple[_T, _T]]:
    """Every edge that is reached from `start`."""
    found: set[tuple[_T, _T]] = set()
    seen, left = {start}, [start]
    while left:
        place = left.pop()
        for target in graph.get(place, ()):
            found.add((place, target))
            if target not in seen:
                seen.add(target)
                left.append(target)
    return found


def _turned(graph: Mapping[_T, Iterable[_T]]) -> dict[_T, tuple[_T, ...]]:
    """The graph with every edge the other way round; what has many keeps the order of the first."""
    turned: dict[_T, list[_T]] = {}
    for target, sources in graph.items():
        for source in sources:
            turned.setdefault(source, []).append(target)
    return {source: tuple(targets) for source, targets in turned.items()}
