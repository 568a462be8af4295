"""How tags follow values: what is made from personal data is personal, unless its contract says no.

The rule is held edge by edge, over every SELECT, every derived column and every view of a
contract. Only values count: what a query filters or joins by is no part of what it returns. A
condition inside a value (`case when email is null ...`) is. Whether a verdict is already known is
`verdict.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from metalayer.contracts.classification import covers, is_lower
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import ContractError
from metalayer.lineage.columns import Origin, query_lineage
from metalayer.lineage.select import Select

#: Column -> the columns that its values are made from.
Edges = Mapping[Origin, tuple[Origin, ...]]


def refuse_unprotected_columns(
    specs: Mapping[str, TableSpec], selects: Mapping[str, Select]
) -> None:
    """Follow every value to its origins and hold the tags of both against each other.

    Raises:
        ContractError: naming the column, the whole path by which it came, and how to mend it.
    """
    edges = _edges(specs, selects)
    for column, origins in edges.items():
        _judge(_Step(column, specs[column.table].column(column.column)), origins, edges, specs)
    for view, name, origins, spec in _view_columns(specs):
        declared = next((c for c in spec.columns if c.name == name), None)
        _judge(_Step(Origin(view, name), declared, spec), origins, edges, specs)


@dataclass(frozen=True)
class _Step:
    """A column that is judged; `declared` is None in a view that renames, which has no contract."""

    place: Origin
    declared: ColumnSpec | None
    view_of: TableSpec | None = None


def _edges(
    specs: Mapping[str, TableSpec], selects: Mapping[str, Select]
) -> dict[Origin, tuple[Origin, ...]]:
    found: dict[Origin, tuple[Origin, ...]] = {}
    for name, spec in specs.items():
        known = {c.name for c in spec.columns}
        if name in selects:
            for column, origins in query_lineage(
                selects[name].tree, specs, is_strict=False
            ).items():
                if column in known:
                    found[Origin(name, column)] = _declared(origins, specs)
        for c in spec.columns:
            if c.derived is not None:
                tree = sqlglot.parse_one(c.derived, read="postgres")
                read = sorted({e.name for e in tree.find_all(exp.Column)} & known)
                found[Origin(name, c.name)] = tuple(Origin(name, column) for column in read)
    return found


def _view_columns(
    specs: Mapping[str, TableSpec],
) -> Iterator[tuple[str, str, tuple[Origin, ...], TableSpec]]:
    for spec in specs.values():
        for view, body in spec.views.items():
            tree = sqlglot.parse_one(body, read="postgres")
            if not isinstance(tree, exp.Query):
                raise ContractError(
                    f"contracts/{spec.layer}/{spec.name}.py: the view '{view}' is not one SELECT",
                    "Write it as a single SELECT",
                )
            # What reads a column that no contract has is told by `migrate`, not here.
            for column, origins in query_lineage(tree, specs, is_strict=False).items():
                yield f"{spec.layer}.{view}", column, _declared(origins, specs), spec


def _declared(origins: Iterable[Origin], specs: Mapping[str, TableSpec]) -> tuple[Origin, ...]:
    return tuple(o for o in origins if o.table in specs and _find(o, specs) is not None)


def _find(place: Origin, specs: Mapping[str, TableSpec]) -> ColumnSpec | None:
    return next((c for c in specs[place.table].columns if c.name == place.column), None)


def _judge(
    step: _Step, origins: Iterable[Origin], edges: Edges, specs: Mapping[str, TableSpec]
) -> None:
    own = step.declared
    # In a view a reason given for the column of that name in the table says nothing of this one.
    if own is not None and own.declassified is not None and step.view_of is None:
        return
    for place in origins:
        origin = specs[place.table].column(place.column)
        if origin.pii is not None and not covers(own.pii if own else None, origin.pii):
            what, mend = f"{origin.pii} data", f'pii="{origin.pii}" (or "free_text")'
        elif is_lower(own.sensitivity if own else "internal", origin.sensitivity):
            what, mend = f"{origin.sensitivity} values", f'sensitivity="{origin.sensitivity}"'
        elif origin.sealed_type is not None and (own is None or own.sealed_type is None):
            what, mend = "encrypted values", "encrypted=True"
        else:
            continue
        path = " <- ".join([_name(step.place), *_path(place, edges, specs)])
        raise ContractError(
            f"{_file(step, specs)}: '{step.place.column}' is made from {what} and does not say so: "
            f"{path}",
            _next_step(step, mend),
        )


def _next_step(step: _Step, mend: str) -> str:
    if step.view_of is not None:
        return (
            f"Name it in the view {step.place.table} as a column of {step.view_of.full_name} that "
            f"has {mend}, or leave it out"
        )
    return f'Give the column {mend}, or declassified="why it is not"'


def _path(place: Origin, edges: Edges, specs: Mapping[str, TableSpec]) -> Iterator[str]:
    """From a tagged column back to the landed file, by what gave it its tag."""
    seen: set[Origin] = set()
    here: Origin | None = place
    while here is not None and here not in seen:
        seen.add(here)
        yield _name(here)
        spec, column = specs[here.table], specs[here.table].column(here.column)
        if spec.layer == "bronze" and spec.source is not None:
            yield f"{spec.source.pattern} column {here.column}"
        here = _origin_of_the_tag(column, edges.get(here, ()), specs)


def _origin_of_the_tag(
    column: ColumnSpec, origins: Iterable[Origin], specs: Mapping[str, TableSpec]
) -> Origin | None:
    tagged = [(o, specs[o.table].column(o.column)) for o in origins]
    for place, origin in tagged:
        if column.pii is not None and origin.pii == column.pii:
            return place
    for place, origin in tagged:
        if origin.pii is not None or origin.sensitivity == column.sensitivity:
            return place
    return None


def _name(place: Origin) -> str:
    return f"{place.table}.{place.column}"


def _file(step: _Step, specs: Mapping[str, TableSpec]) -> str:
    spec = step.view_of or specs[step.place.table]
    return f"contracts/{spec.layer}/{spec.name}.py"
