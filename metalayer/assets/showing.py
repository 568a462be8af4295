"""What a click on an asset shows: metadata of its definition, of a step, of a month, of a check.

All of it is derived from the contract, the SELECT and what a build reports. No value of a row is
shown but in samples, which come masked from the warehouse (`metalayer.warehouse.sampling`).

Does not belong here: which assets and checks there are (`tables.py`, `checks.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import dagster as dg

from metalayer.assets.keys import to_key
from metalayer.assets.types import BuildReport
from metalayer.catalog import Catalog
from metalayer.contracts.contract import TableSpec
from metalayer.contracts.promises import column_rules, column_tags, row_rules
from metalayer.lineage.select import render
from metalayer.settings import PROJECT_ROOT
from metalayer.warehouse.build import MonthResult
from metalayer.warehouse.ddl import describe, month_bounds
from metalayer.warehouse.phases import Phase, in_order

#: So many months a check's table lists at most, those that failed before the others.
MOST_MONTHS = 60
#: Share of `fresh_within` after which Dagster warns.
_WARN_AFTER = 0.8


def freshness(spec: TableSpec) -> dg.FreshnessPolicy:
    """Dagster's own freshness: when any month was materialized last (see `freshness.py`)."""
    return dg.FreshnessPolicy.time_window(
        fail_window=spec.fresh_within, warn_window=spec.fresh_within * _WARN_AFTER
    )


# --- definitions -------------------------------------------------------------------------------


def description(spec: TableSpec, tables: Catalog) -> str:
    """What the table is, and its SELECT as written."""
    if spec.full_name not in tables.selects:
        return describe(spec)
    return f"{describe(spec)}\n\n```sql\n{tables.selects[spec.full_name].text.strip()}\n```"


def table_metadata(spec: TableSpec, tables: Catalog, month: date) -> dict[str, Any]:
    """Facts of the table.

    Args:
        month: The window that the SELECT is rendered for.
    """
    facts: dict[str, Any] = {
        "dagster/column_schema": dg.MetadataValue.table_schema(column_schema(spec)),
        "dagster/table_name": spec.full_name,
        "grain": ", ".join(spec.key),
        "month_column": spec.month_column,
        "due": str(spec.due) if spec.due is not None else "no month needs to come",
        "fresh_within_days": spec.fresh_within.total_seconds() / 86400,
        "max_reject_rate": spec.max_reject_rate,
    }
    if spec.retention_months is not None:
        facts["retention_months"] = spec.retention_months
    if spec.max_rejects is not None:
        facts["max_rejects"] = spec.max_rejects
    references = []
    if spec.path is not None:
        facts["contract"] = f"metalayer/contracts/{spec.path.parent.name}/{spec.path.name}"
        references.append(dg.LocalFileCodeReference(file_path=str(spec.path), label="contract"))
    if spec.full_name in tables.selects:
        select = tables.selects[spec.full_name]
        facts["select"] = f"sql/{spec.layer}/{select.path.name}"
        path = PROJECT_ROOT / facts["select"]
        references.insert(0, dg.LocalFileCodeReference(file_path=str(path), label="SELECT"))
        text = render(select, spec, tables.specs, *month_bounds(month))
        facts["select_as_run"] = dg.MetadataValue.md(
            f"As PostgreSQL runs it for {to_key(month)}:\n\n```sql\n{text.strip()}\n```"
        )
    if references:
        facts["dagster/code_references"] = dg.CodeReferencesMetadataValue(
            code_references=references
        )
    return facts


def column_schema(spec: TableSpec) -> dg.TableSchema:
    """The columns with type, meaning, constraints, and tags for what is personal."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                c.name,
                c.type,
                c.meaning,
                dg.TableColumnConstraints(
                    nullable=c.nullable,
                    unique=spec.key == (c.name,),
                    other=column_rules(spec, c),
                ),
                tags=column_tags(c),
            )
            for c in spec.columns
        ],
        constraints=dg.TableConstraints(
            [f"({', '.join(spec.key)}) is unique", *row_rules(spec)]
            if len(spec.key) > 1
            else row_rules(spec)
        ),
    )


# --- builds ------------------------------------------------------------------------------------


def step_metadata(
    report: BuildReport, spent: Mapping[Phase, float], lineage: dg.TableColumnLineage | None
) -> dict[str, Any]:
    """What one step did, over all of its months, and the seconds it spent in each phase."""
    facts: dict[str, Any] = {
        "dagster/row_count": sum(r.rows + r.rows_superseded for r in report.months),
        "rows_quarantined_of_step": sum(r.rows_quarantined for r in report.months),
        "months_published": sum(r.outcome == "published" for r in report.months),
        "months_unchanged": sum(r.outcome in ("confirmed", "current") for r in report.months),
        **{
            f"seconds_{phase.replace(' ', '_')}": round(seconds, 3)
            for phase, seconds in in_order(spent).items()
        },
    }
    if lineage is not None:
        facts["dagster/column_lineage"] = lineage
    return facts


def month_metadata(result: MonthResult) -> dict[str, Any]:
    """What became of one month; the numbers are what Dagster plots over the months."""
    return {
        "dagster/partition_row_count": result.rows + result.rows_superseded,
        "outcome": result.outcome,
        "rows_read": result.rows_read,
        "rows_published": result.rows,
        "rows_quarantined": result.rows_quarantined,
        "rows_superseded": result.rows_superseded,
        "data_version": result.data_version,
        "seconds": round(result.seconds, 3),
    }


def sample_metadata(rows: Sequence[Mapping[str, str | None]]) -> dict[str, Any]:
    """Rows as a table; nothing where there are none."""
    return {"sample": _table(rows)} if rows else {}


# --- checks ------------------------------------------------------------------------------------


def by_month(months: Mapping[date, Mapping[str, Any]]) -> dict[str, Any]:
    """A check's months as a table: those that failed first, then the newest; a bounded number.

    Args:
        months: Month -> "passed", and the numbers that were looked at.
    """
    if not months:
        return {}
    failed = [month for month in sorted(months) if not months[month]["passed"]]
    passed = [month for month in sorted(months, reverse=True) if months[month]["passed"]]
    shown = [*failed, *passed][:MOST_MONTHS]
    # A column that some months lack is empty there: every record has all of them.
    names = dict.fromkeys(["passed", *(name for month in shown for name in months[month])])
    facts: dict[str, Any] = {
        "months_looked_at": len(months),
        "months_that_failed": len(failed),
        "by_month": _table(
            [
                {"month": to_key(month)} | {name: _shown(months[month].get(name)) for name in names}
                for month in shown
            ]
        ),
    }
    if len(months) > len(shown):
        facts["months_not_listed"] = len(months) - len(shown)
    return facts


def _shown(value: Any) -> str | int | bool | None:
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    kinds = {bool: "bool", int: "int"}
    columns = []
    for name in rows[0]:
        known = next((row[name] for row in rows if row[name] is not None), "")
        columns.append(dg.TableColumn(name, kinds.get(type(known), "string")))
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(row)) for row in rows], dg.TableSchema(columns=columns)
    )
