"""What a table promises, in words: the rules of its columns, of its rows, and the checks it gets.

One list for whoever shows it: Dagster's UI, the dictionary, exported contracts, messages. Belongs
here: words and names, read off a `TableSpec`. Does not belong here: how a rule is held against rows
(`warehouse/violations.py`) or a check is asked (`warehouse/checks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from metalayer.contracts.contract import ColumnSpec, TableSpec, pandera_schema

#: The check that a build reports itself: whether every month kept its contract.
AUDIT_CHECK = "contract_satisfied"
#: The check of lateness: what time brings, not what a build did.
DUE_CHECK = "due_month_present"
#: The check that warns of what is unusual in what was published.
USUAL_CHECK = "looks_usual"
#: Check -> what it says when it passes.
CHECKS: Mapping[str, str] = MappingProxyType(
    {
        AUDIT_CHECK: "Every month that was built kept its contract and is published.",
        "keys_unique": "No key stands in two months.",
        "references_resolve": "Every key points at a row that exists.",
        "rows_conserved": "Rows that came in = published + quarantined + superseded, "
        "month by month.",
        "money_conserved": "Monthly sums equal those of the table the rows come from, to the cent.",
        USUAL_CHECK: "Rows, missing values, frequent values and the newest day are as usual.",
        DUE_CHECK: "The newest month that is due by now is there.",
    }
)


@dataclass(frozen=True)
class Promise:
    """A check of a table: its name, what it says, and whether it stops what is downstream."""

    name: str
    meaning: str
    is_blocking: bool


def blocking_checks(spec: TableSpec) -> list[str]:
    """Names of the checks that stop what is downstream."""
    names = [AUDIT_CHECK, "keys_unique", "rows_conserved"]
    if spec.layer == "gold" and any(c.references for c in spec.columns):
        names.append("references_resolve")
    if spec.sums_from:
        names.append("money_conserved")
    return names


def checks_of(spec: TableSpec) -> list[Promise]:
    """Every check of a table, those that only warn last."""
    blocking = blocking_checks(spec)
    warning = [DUE_CHECK] if spec.layer == "bronze" else [USUAL_CHECK, DUE_CHECK]
    if "references_resolve" not in blocking and any(c.references for c in spec.columns):
        warning.insert(0, "references_resolve")
    return [Promise(n, CHECKS[n], n in blocking) for n in (*blocking, *warning)]


def row_rules(spec: TableSpec) -> list[str]:
    """The rules across columns, in words."""
    return _rules(pandera_schema(spec))


def column_rules(spec: TableSpec, column: ColumnSpec) -> list[str]:
    """What a column's values must be, in words, apart from its type and whether they may lack."""
    found = []
    if column.is_key and len(spec.key) > 1:
        found.append(f"part of the key ({', '.join(spec.key)})")
    if column.name == spec.month_column:
        found.append("its month is the partition")
    if column.sealed_type is not None:
        found.append(f"encrypted; in plain, {column.sealed_type}")
    else:
        found += _rules(pandera_schema(spec).columns.get(column.name))
    if column.references is not None:
        found.append(f"references {column.references.table}.{column.references.column}")
    if column.derived is not None:
        found.append("computed on reading")
    return found


def column_tags(column: ColumnSpec) -> dict[str, str]:
    """What a column is marked as; a mark without a value has an empty one."""
    tags = {"pii": column.pii} if column.pii else {}
    if column.sensitivity != "internal":
        tags["sensitivity"] = column.sensitivity
    if column.sealed_type is not None:
        tags["encrypted"] = column.sealed_type
    return tags | ({"free_text": ""} if column.is_free_text else {})


def readable_rule(check: str) -> str:
    """A Pandera check's name as a rule a person reads: "greater_than(0)" is "must be > 0"."""
    operators = {
        "greater_than_or_equal_to": ">=",
        "greater_than": ">",
        "less_than_or_equal_to": "<=",
        "less_than": "<",
    }
    name, _, operand = check.partition("(")
    operand = operand.removesuffix(")")
    if name == "not_nullable":
        return "is required"
    if name in operators:
        return f"must be {operators[name]} {operand}"
    if name == "isin":
        return f"must be one of {operand.strip('[]')}".replace("'", "")
    if name == "str_matches":
        return f"must match {operand}"
    return check


def _rules(schema: Any) -> list[str]:
    """The rules of a Pandera schema or column, in words."""
    found = schema.checks if schema is not None else ()
    return [readable_rule(str(check.error or check.name)) for check in found or ()]
