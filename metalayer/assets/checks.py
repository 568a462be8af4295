"""Asset checks, derived from the contracts.

Checks of a table itself belong to its asset's step: they run as soon as its months are published
and block what is downstream. References between typed tables are looked at in a step of their own,
once both sides are built, and only warn: a fact without its customer still counts.

Does not belong here: the questions themselves (see `metalayer.warehouse.checks`).
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import dagster as dg

from metalayer.assets.breaking import step
from metalayer.assets.keys import asset_key
from metalayer.assets.plot import plot
from metalayer.assets.resources import Warehouse
from metalayer.assets.showing import by_month
from metalayer.assets.types import BuildReport
from metalayer.catalog import Catalog
from metalayer.contracts.contract import TableSpec
from metalayer.contracts.promises import AUDIT_CHECK as AUDIT_CHECK
from metalayer.contracts.promises import CHECKS, USUAL_CHECK, blocking_checks
from metalayer.contracts.promises import DUE_CHECK as DUE_CHECK
from metalayer.failure import Failure
from metalayer.jobs import table_job
from metalayer.operations.anomalies import Anomaly, judge
from metalayer.settings import Settings
from metalayer.warehouse import checks
from metalayer.warehouse.build import TableJob, is_stale, to_be_checked
from metalayer.warehouse.checks import Finding
from metalayer.warehouse.failures import (
    load_failures,
    made_from,
    note_failed_checks,
    versions_asked,
)
from metalayer.warehouse.locks import begin_snapshot
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.profiling import profile_table
from metalayer.warehouse.state import Published, State, load_state

_MOST_UNUSUAL = 50
_log = logging.getLogger(__name__)
#: What to do when a check fails. Where a table only warns, see `_NEXT_OF_WARNINGS`.
_NEXT = {
    AUDIT_CHECK: "`metalayer rejects {table}` shows the rows of earlier builds, "
    "`by_month` why each month failed. Land the export corrected, mend the contract or the SELECT, "
    "and materialize these months again; readers keep what was published before.",
    "keys_unique": "One row too many was published. If the SELECT of {table} gives a row the wrong "
    "month, mend it; then `metalayer build {table} --force`.",
    "rows_conserved": "Rows were lost or multiplied. `metalayer build {table} --force` builds the "
    "months anew; if it stays, a join in the SELECT of {table} drops or repeats rows.",
    "references_resolve": "Materialize the same months of the table that is referenced, then these "
    "again. If it stays, the SELECT of {table} makes keys that nobody else has.",
    "money_conserved": "A filter or join in the SELECT of {table} leaves rows out or repeats them: "
    "compare one of the months that failed with its source in `metalayer query`.",
}
_NEXT_OF_WARNINGS = {
    "references_resolve": "Land the export that has the missing keys. Until then these rows count, "
    "and facts point at the Unknown member.",
}


def check_specs(spec: TableSpec) -> list[dg.AssetCheckSpec]:
    """The checks of a table that its own step asks: the blocking ones, and what is unusual."""
    blocking = blocking_checks(spec)
    asked = blocking if spec.layer == "bronze" else [*blocking, USUAL_CHECK]
    return [
        dg.AssetCheckSpec(
            name,
            asset=asset_key(spec.full_name),
            description=CHECKS[name],
            blocking=name in blocking,
        )
        for name in asked
    ]


def check_table(
    warehouse: Warehouse, spec: TableSpec, tables: Catalog, report: BuildReport
) -> list[dg.AssetCheckResult]:
    """Ask the blocking checks of `spec` about the published months that have not passed them yet.

    A month whose inputs have changed since it was built is asked about once it is built again.
    """
    verdict = Finding(
        not report.failed,
        report.verdict,
        {
            "months": len(report.months),
            "failed_months": len(report.failed),
            "rows_quarantined": sum(r.rows_quarantined for r in report.months),
        },
        {
            r.month: {
                "passed": r.outcome != "failed",
                "outcome": r.outcome,
                "rows": r.rows,
                "quarantined": r.rows_quarantined,
                "unjudged": r.audit.unjudged if r.audit is not None else 0,
                "problem": (r.problem or "").partition("\n")[0],
            }
            for r in report.months
        },
    )
    asked = ask_and_mark(warehouse, spec, tables)
    results = [
        _result(name, spec, finding, dg.AssetCheckSeverity.ERROR)
        for name, finding in {AUDIT_CHECK: verdict, **asked.findings}.items()
    ]
    unusual = _note_what_it_looks_like(warehouse, spec, tables)
    return results if spec.layer == "bronze" else [*results, _usual(spec, unusual)]


def _note_what_it_looks_like(
    warehouse: Warehouse, spec: TableSpec, tables: Catalog
) -> list[Anomaly]:
    """Note the profile of what was published, and hold it against those before."""
    with transaction(warehouse.pool) as connection:
        changed = profile_table(connection, spec, tables.specs)
    if spec.layer == "bronze":
        return []
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        return judge(cursor, spec.full_name, changed, by_day=spec.layer == "silver")


def _usual(spec: TableSpec, unusual: Sequence[Anomaly]) -> dg.AssetCheckResult:
    """What is unusual as a warning, with a picture of the worst."""
    metadata: dict[str, Any] = {"anomalies": len(unusual)}
    more = f" (and {len(unusual) - 1} more)" if len(unusual) > 1 else ""
    plotted = next((a for a in unusual if len(a.series) > 1), None)
    if plotted is not None:
        picture = plot(plotted.series, plotted.low, plotted.high)
        metadata["plot"] = dg.MetadataValue.md(f"{plotted.said}\n\n![{plotted.said}]({picture})")
    if unusual:
        metadata["all"] = dg.MetadataValue.md(
            "\n".join(f"- {a.said} (number {a.id})" for a in unusual[:_MOST_UNUSUAL])
        )
        metadata["what_to_do_next"] = (
            f"Ask whoever exports it whether it is right. If it is, `metalayer anomalies "
            f'--expected {unusual[0].id} --why "..."` says so; if not, land the file corrected.'
        )
    return dg.AssetCheckResult(
        asset_key=asset_key(spec.full_name),
        check_name=USUAL_CHECK,
        passed=not unusual,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{unusual[0].said}{more}" if unusual else None,
        metadata=metadata,
    )


@dataclass(frozen=True)
class Asked:
    """What the blocking checks of a table found.

    Attributes:
        findings: Check -> finding.
        versions: Month -> the version that was asked about, and what it was made from.
        fingerprint: Of all that was looked at, see `versions_asked`.
    """

    findings: Mapping[str, Finding]
    versions: Mapping[date, Published]
    fingerprint: str


def ask_and_mark(warehouse: Warehouse, spec: TableSpec, tables: Catalog) -> Asked:
    """Ask the blocking checks about what is published, and remember what they found."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        # One snapshot for the rows and for what they are compared with.
        begin_snapshot(cursor, _looked_at(spec, tables))
        asked = ask_checks(cursor, warehouse.settings, spec, tables)
        connection.commit()
        # Not in that snapshot: another build may have marked a month meanwhile.
        mark_checked(cursor, spec, asked)
    return asked


def _looked_at(spec: TableSpec, tables: Catalog) -> list[TableSpec]:
    """Every table that the checks of `spec` read."""
    names = set(tables.made_from(spec.full_name))
    names |= {pointer.rpartition(".")[0] for pointer in spec.sums_from.values()}
    names |= {c.references.table for c in spec.columns if c.references is not None}
    return [tables.specs[name] for name in tables.specs if name in names]


def ask_checks(cursor: Any, settings: Settings, spec: TableSpec, tables: Catalog) -> Asked:
    """Ask the blocking checks, but for the audit's verdict, about what the transaction sees."""
    job = table_job(spec.full_name, settings)
    ancestors, upstream = tables.made_from(spec.full_name), tables.upstream(spec.full_name)
    state = load_state(cursor, [*ancestors, *upstream, *job.upstream])
    published = state.published.get(spec.full_name, {})
    failed = load_failures(cursor).months
    # A row that moved may still stand in the month it leaves, until that is built. One that failed
    # as it is will not be: there it stands twice.
    settled = {
        month: version.rows
        for month, version in published.items()
        if not is_stale(job, state, month)
        or failed.get((spec.full_name, month))
        == made_from(job.code_version, job.inputs(state, month))
    }
    versions = to_be_checked(job, state)
    months = list(versions)
    restored = _restored(state, ancestors)
    conserving = [month for month in months if month not in restored]
    asked: dict[str, Callable[[], Finding]] = {
        "keys_unique": lambda: checks.keys_unique(cursor, spec, months, settled),
        "rows_conserved": lambda: _rows_conserved(cursor, settings, job, state, conserving),
        "references_resolve": lambda: _all(
            checks.references_resolve(cursor, spec, c, tables.specs[c.references.table], months)
            for c in spec.columns
            if c.references is not None
        ),
        "money_conserved": lambda: _money_conserved(cursor, spec, tables, conserving),
    }
    findings = {name: asked[name]() for name in blocking_checks(spec) if name != AUDIT_CHECK}
    return Asked(findings, versions, versions_asked(state, spec.full_name, versions, upstream))


def failed_checks(spec: TableSpec, asked: Asked) -> list[str]:
    """What the checks found wrong, a sentence each."""
    return [
        f"{spec.full_name}: {finding.description or name}"
        for name, finding in asked.findings.items()
        if not finding.passed
    ]


def mark_checked(cursor: Any, spec: TableSpec, asked: Asked) -> None:
    """Remember what has passed all checks, or what has not, so that it is not asked about again."""
    if not asked.versions:
        return
    failed = failed_checks(spec, asked)
    if failed:
        note_failed_checks(cursor, spec.full_name, asked.fingerprint, "\n".join(failed))
        return
    cursor.execute(
        "update meta.versions as v set is_checked = true "
        "from unnest(%s::date[], %s::int[], %s::text[]) as c (month, version, inputs) "
        "where v.table_name = %s and v.month = c.month and v.version = c.version "
        "and v.inputs = c.inputs::jsonb",
        (
            list(asked.versions),
            [published.version for published in asked.versions.values()],
            [json.dumps(dict(published.inputs)) for published in asked.versions.values()],
            spec.full_name,
        ),
    )


def _restored(state: State, tables: Iterable[str]) -> set[date]:
    """Months in which one of the tables was rolled back: a table, or one that it is made from.

    They differ on purpose from what was delivered, so rows and sums are not compared.
    """
    return {
        month
        for table in tables
        for month, version in state.published.get(table, {}).items()
        if version.restores is not None
    }


def asked_of_builds(keys: Iterable[dg.AssetCheckKey]) -> set[dg.AssetCheckKey]:
    """Of some checks those that a run that builds tables asks: all but lateness.

    No build can help it, and a run that fails before that step would leave it open.
    """
    return {key for key in keys if key.name != DUE_CHECK}


def reference_checks(tables: Catalog) -> list[dg.AssetChecksDefinition]:
    """One step that looks at the references between typed (silver) tables, and warns."""
    pointing = [
        s
        for s in tables.specs.values()
        if s.layer == "silver" and any(c.references for c in s.columns)
    ]
    if not pointing:
        return []
    targets = {
        s.full_name: sorted({c.references.table for c in s.columns if c.references})
        for s in pointing
    }

    @dg.multi_asset_check(
        name="references_of_typed_tables",
        specs=[
            dg.AssetCheckSpec(
                "references_resolve",
                asset=asset_key(s.full_name),
                additional_deps=[asset_key(t) for t in targets[s.full_name]],
                description="Every referenced key exists; those that don't become the "
                "Unknown member in gold.",
            )
            for s in pointing
        ],
        required_resource_keys={"warehouse"},
        can_subset=True,
    )
    def references(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        selected = {key.asset_key for key in context.selected_asset_check_keys}
        with step(context), transaction(context.resources.warehouse.pool) as connection:
            for s in pointing:
                if asset_key(s.full_name) in selected:
                    with connection.cursor() as cursor:
                        finding = _all(
                            checks.references_resolve(
                                cursor, s, c, tables.specs[c.references.table]
                            )
                            for c in s.columns
                            if c.references is not None
                        )
                    yield _result("references_resolve", s, finding, dg.AssetCheckSeverity.WARN)

    return [references]


def _rows_conserved(
    cursor: Any, settings: Settings, job: TableJob, state: State, months: Sequence[date]
) -> Finding:
    expected = {month: job.rows_expected(state, month) for month in months}
    finding = checks.rows_conserved(cursor, job.spec, months, expected)
    if job.spec.source is None:
        return finding
    # A typed table is compared with the deliveries themselves, where bronze has caught up.
    landed = table_job(f"bronze.{job.spec.name}", settings)
    settled = [month for month in months if not is_stale(landed, state, month)]
    return _all([finding, checks.deliveries_conserved(cursor, job.spec, settled)])


def _money_conserved(
    cursor: Any, spec: TableSpec, tables: Catalog, months: Sequence[date]
) -> Finding:
    findings = []
    for own, pointer in spec.sums_from.items():
        upstream, _, column = pointer.rpartition(".")
        findings.append(
            checks.money_conserved(cursor, spec, own, tables.specs[upstream], column, months)
        )
    return _all(findings)


def _all(findings: Any) -> Finding:
    """Several answers as one: passed when all passed."""
    every = list(findings)
    facts: dict[str, Any] = {}
    months: dict[date, dict[str, Any]] = {}
    are_told_apart = sum(bool(finding.facts) for finding in every) > 1
    for number, finding in enumerate(every):
        prefix = f"{finding.facts.get('references', number)}: " if are_told_apart else ""
        facts |= {f"{prefix}{name}": value for name, value in finding.facts.items()}
        for month, found in finding.months.items():
            so_far = months.setdefault(month, {"passed": True})
            passed = so_far["passed"] and found["passed"]
            so_far |= {f"{prefix}{name}": value for name, value in found.items()}
            so_far.pop(f"{prefix}passed")
            so_far["passed"] = passed
    return Finding(
        all(f.passed for f in every),
        "; ".join(f.description for f in every if not f.passed),
        facts,
        months,
    )


def _result(
    name: str, spec: TableSpec, finding: Finding, severity: dg.AssetCheckSeverity
) -> dg.AssetCheckResult:
    metadata = {**finding.facts, **by_month(finding.months)}
    if not finding.passed:
        warns = severity is dg.AssetCheckSeverity.WARN and name in _NEXT_OF_WARNINGS
        next_step = (_NEXT_OF_WARNINGS if warns else _NEXT)[name].format(table=spec.full_name)
        metadata["what_to_do_next"] = next_step
        if name != AUDIT_CHECK and severity is dg.AssetCheckSeverity.ERROR:
            # Its words may have values of rows. Months that fail their audit are logged one by one.
            facts = {"table": spec.full_name, **Failure("data", name, next_step).fields}
            _log.error("check failed: %s", name, extra=facts)
    return dg.AssetCheckResult(
        asset_key=asset_key(spec.full_name),
        check_name=name,
        passed=finding.passed,
        severity=severity,
        description=finding.description or None,
        metadata=metadata,
    )
