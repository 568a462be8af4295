"""Contracts in the Open Data Contract Standard (Bitol, version 3.1.0), one YAML file a table.

Everything comes from the dictionary. What the standard has no word for is a custom property, or a
quality rule in words. Numbers and lists of allowed values are rules that a program can check.

Source: https://bitol-io.github.io/open-data-contract-standard/v3.1.0/
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from metalayer.contracts.contract import Reference, TableSpec, pandera_schema
from metalayer.governance.dictionary import ColumnEntry, Dictionary, TableEntry
from metalayer.lineage.columns import Origin

VERSION = "v3.1.0"
_LOGICAL = {
    "bigint": "integer", "text": "string", "boolean": "boolean", "double precision": "number",
    "numeric": "number", "date": "date", "timestamp": "timestamp", "jsonb": "object",
}  # fmt: skip
#: Pandera's rules that are options of a logical type in the standard.
_LIMITS = {
    "greater_than": ("exclusiveMinimum", "min_value"),
    "greater_than_or_equal_to": ("minimum", "min_value"),
    "less_than": ("exclusiveMaximum", "max_value"),
    "less_than_or_equal_to": ("maximum", "max_value"),
}


def write_contracts(entries: Dictionary, out: Path) -> list[Path]:
    """Write `<layer>.<table>.odcs.yaml` for each table into `out`; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, entry in entries.tables.items():
        path = out / _file(name)
        path.write_text(_as_yaml(odcs(entry)), encoding="utf-8")
        written.append(path)
    return written


def odcs(entry: TableEntry) -> dict[str, Any]:
    """The contract of one table as the standard has it."""
    spec = entry.spec
    contract = {
        "apiVersion": VERSION,
        "kind": "DataContract",
        "id": f"metalayer.{spec.full_name}",
        "name": spec.full_name,
        "status": "active",
        "domain": spec.owner.removeprefix("team:"),
        "dataProduct": "MetaLayer",
        "tags": [spec.layer],
        "description": {"purpose": spec.description},
        "team": {"name": spec.owner},
        "schema": [_table(entry)],
        "slaProperties": _service_levels(spec),
        "customProperties": _custom(
            maxRejectRate=spec.max_reject_rate,
            maxRejects=spec.max_rejects,
            rowsFrom=spec.rows_from,
            landedFiles=spec.source.pattern if spec.source else None,
            landedKind=spec.source.kind if spec.source else None,
            consumers=list(entry.consumers) or None,
        ),
    }
    # A consumer wants to know that a contract changed, and nothing else changes this.
    digest = hashlib.sha256(_as_yaml(contract).encode()).hexdigest()
    return {"version": f"1.0.0+{digest[:12]}"} | contract


# --- the table ----------------------------------------------------------------------------------


def _table(entry: TableEntry) -> dict[str, Any]:
    spec = entry.spec
    table: dict[str, Any] = {
        "id": spec.name,
        "name": spec.full_name,
        "physicalName": spec.full_name,
        "physicalType": "view" if spec.stored_name != spec.name else "table",
        "logicalType": "object",
        "description": spec.description,
        "dataGranularityDescription": f"One row per {', '.join(spec.key)}",
        "tags": [spec.layer],
        "properties": [_column(entry, column) for column in entry.columns],
        "quality": [_unique_key(spec), *_row_rules(entry), *_checks(entry)],
        "customProperties": _custom(
            sources=list(entry.sources) or None, views=list(entry.views) or None
        ),
    }
    if entry.select is not None:
        table["authoritativeDefinitions"] = [
            {
                "url": f"sql/{spec.layer}/{spec.name}.sql",
                "type": "transformationImplementation",
                "description": "The SELECT that fills the table",
            }
        ]
    return {name: value for name, value in table.items() if value not in ([], None)}


def _unique_key(spec: TableSpec) -> dict[str, Any]:
    return {
        "name": "key_is_unique",
        "description": f"({', '.join(spec.key)}) identifies a row",
        "type": "library",
        "metric": "duplicateValues",
        "arguments": {"properties": list(spec.key)},
        "mustBe": 0,
        "dimension": "uniqueness",
        "severity": "error",
    }


def _row_rules(entry: TableEntry) -> list[dict[str, Any]]:
    return [_in_words(rule, "consistency") for rule in entry.rules]


def _checks(entry: TableEntry) -> list[dict[str, Any]]:
    return [
        {
            "name": check.name,
            "type": "text",
            "description": check.meaning,
            "severity": "error" if check.is_blocking else "warning",
        }
        for check in entry.checks
    ]


def _service_levels(spec: TableSpec) -> list[dict[str, Any]]:
    month = f"{spec.full_name}.{spec.month_column}"
    days = spec.fresh_within / timedelta(days=1)
    levels: list[dict[str, Any]] = [
        {
            "property": "latency",
            "value": int(days) if days.is_integer() else days,
            "unit": "d",
            "element": month,
            "description": "The newest publish of the table is no older",
        },
        {
            "property": "frequency",
            "value": 1,
            "unit": "m",
            "element": month,
            "description": "Data comes by the month",
        },
    ]
    if spec.retention_months is not None:
        levels.append(
            {
                "property": "retention",
                "value": spec.retention_months,
                "unit": "m",
                "element": month,
                "description": "Rows are kept so long besides the present month",
            }
        )
    if spec.due is not None:
        levels.append(
            {
                "property": "timeOfAvailability",
                "value": f"{spec.due.hour:02}:00 UTC",
                "element": month,
                "scheduler": "cron",
                "schedule": f"0 {spec.due.hour} {spec.due.day} * *",
                "description": f"A month is due on {spec.due}",
            }
        )
    return levels


# --- a column -----------------------------------------------------------------------------------


def _column(entry: TableEntry, column: ColumnEntry) -> dict[str, Any]:
    spec, c = entry.spec, column.spec
    rules, options, quality = _rules_of(spec, column)
    found: dict[str, Any] = {
        "id": c.name,
        "name": c.name,
        "physicalName": c.name,
        "logicalType": _LOGICAL[c.type.partition("(")[0]],
        "physicalType": c.type,
        "logicalTypeOptions": options,
        "description": c.meaning,
        "required": not c.nullable,
        "unique": True if spec.key == (c.name,) else None,
        "primaryKey": True if c.is_key else None,
        "primaryKeyPosition": spec.key.index(c.name) + 1 if c.is_key else None,
        "partitioned": True if c.name == spec.month_column else None,
        "partitionKeyPosition": 1 if c.name == spec.month_column else None,
        # `sensitivity` is said outright where a contract says it; personal data is never open.
        "classification": column.tags.get("sensitivity")
        or ("confidential" if "pii" in column.tags else None),
        "tags": [f"{name}:{value}" if value else name for name, value in column.tags.items()],
        "transformSourceObjects": [_place(origin) for origin in column.upstream],
        "transformLogic": c.derived,
        "relationships": [{"type": "foreignKey", "to": _reference(c.references)}]
        if c.references
        else None,
        "quality": [*quality, *rules],
        "customProperties": _custom(
            emptyTexts=list(c.null_tokens) or None, encryptedType=c.sealed_type
        ),
    }
    return {name: value for name, value in found.items() if value not in ([], {}, None)}


def _rules_of(
    spec: TableSpec, column: ColumnEntry
) -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]]]:
    """A column's rules: those in words, options of its type, and lists of values."""
    c = column.spec
    options: dict[str, Any] = {}
    values: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    schema = pandera_schema(spec).columns.get(c.name)
    for check in (schema.checks if schema is not None else None) or ():
        facts: Mapping[str, Any] = check.statistics or {}
        if check.name in _LIMITS:
            option, fact = _LIMITS[check.name]
            options[option] = _number(facts[fact])
        elif check.name == "str_matches":
            options["pattern"] = str(getattr(facts["pattern"], "pattern", facts["pattern"]))
        elif check.name == "isin":
            allowed = sorted(facts["allowed_values"], key=str)
            values.append(_valid_values(allowed))
        else:
            words.append(_in_words(str(check.error or check.name), "conformity"))
    return words, options, values


def _valid_values(allowed: list[Any]) -> dict[str, Any]:
    return {
        "name": "allowed_values",
        "type": "library",
        "metric": "invalidValues",
        "arguments": {"validValues": allowed},
        "mustBe": 0,
        "dimension": "conformity",
        "severity": "error",
    }


def _in_words(rule: str, dimension: str) -> dict[str, Any]:
    return {"type": "text", "description": rule, "dimension": dimension, "severity": "error"}


def _place(origin: Origin) -> str:
    return f"{origin.table}.{origin.column}"


def _reference(reference: Reference) -> str:
    """A column in the file of another table, by the ids that lead to it."""
    name = reference.table.partition(".")[2]
    return f"{_file(reference.table)}#/schema/{name}/properties/{reference.column}"


def _file(table: str) -> str:
    return f"{table}.odcs.yaml"


# --- YAML ---------------------------------------------------------------------------------------


def _custom(**facts: Any) -> list[dict[str, Any]]:
    return [{"property": n, "value": v} for n, v in facts.items() if v is not None]


def _number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat() if isinstance(value, date | datetime) else value


def _as_yaml(contract: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        dict(contract), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=100
    )
    return text


class _Readable(yaml.SafeDumper):  # type: ignore[misc]
    """Texts of several lines stay so, and values that are the same are written out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Readable.add_representer(str, _text)
