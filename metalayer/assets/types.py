"""The Dagster type of each table: its contract, through dagster-pandera.

The rows themselves stay in PostgreSQL. What an asset puts out is a `BuildReport`, and its type
check is the audit's verdict: one failed month turns the step red and says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dagster as dg
import pandera.polars as pa
from dagster_pandera import pandera_schema_to_dagster_type

from metalayer.contracts.contract import TableSpec, pandera_schema
from metalayer.failure import CLASS, NEXT_STEP, broken_contract
from metalayer.warehouse.build import MonthResult

_SHOWN_FAILURES = 5


@dataclass(frozen=True)
class BuildReport:
    """What a step did: one result for each month of its partition range."""

    table: str
    months: tuple[MonthResult, ...]

    @property
    def failed(self) -> tuple[MonthResult, ...]:
        """The months that were not published."""
        return tuple(result for result in self.months if result.outcome == "failed")

    @property
    def verdict(self) -> str:
        """Why the report fails its type, or "" when every month passed."""
        shown = self.failed[:_SHOWN_FAILURES]
        problems = [
            f"{self.table} {result.month:%Y-%m} was not published: {result.problem}"
            for result in shown
        ]
        # Examples of the first will do.
        lines = [*problems[:1], *(problem.partition("\n")[0] for problem in problems[1:])]
        more = len(self.failed) - len(shown)
        if more > 0:
            lines.append(f"and {more} more months of {self.table}")
        if lines:
            kept = len(self.months) - len(self.failed)
            lines.append(
                f"The other {kept} months are published. Land the export corrected, or mend the "
                "contract or the SELECT, and build again. (Error class: data. It is not tried "
                "again until one of them changes.)"
            )
        return "\n".join(lines)


def table_type(spec: TableSpec) -> dg.DagsterType:
    """The contract of `spec` as the type of its asset's output."""
    columns = pandera_schema_to_dagster_type(_readable(spec))

    def check(_context: dg.TypeCheckContext, value: Any) -> dg.TypeCheck:
        if not isinstance(value, BuildReport):
            return dg.TypeCheck(False, f"{spec.full_name} puts out a BuildReport, not {value!r}")
        facts: dict[str, Any] = {"failed_months": len(value.failed)}
        if value.failed:
            told = broken_contract(value.table, value.verdict)
            facts |= {CLASS: told.kind, NEXT_STEP: told.next_step}
        return dg.TypeCheck(not value.failed, value.verdict or None, facts)

    return dg.DagsterType(
        type_check_fn=check,
        name=spec.full_name.replace(".", "_"),
        description=spec.description,
        metadata=columns.metadata,
        typing_type=BuildReport,
    )


def _readable(spec: TableSpec) -> pa.DataFrameSchema:
    """The contract as people read the table: derived columns included, in order."""
    stored = pandera_schema(spec)
    columns = {
        c.name: stored.columns.get(
            c.name, pa.Column(c.dtype, nullable=c.nullable, name=c.name, description=c.meaning)
        )
        for c in spec.columns
    }
    return pa.DataFrameSchema(
        columns, checks=stored.checks, name=stored.name, description=stored.description
    )
