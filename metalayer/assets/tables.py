"""One Dagster asset for each table of the catalog, and one external asset for each landed source.

Dependencies and their months come from the SELECT, everything shown from the contract. A step
builds the months of its partition range that are out of date, side by side, reports each as it
lands, and puts out a report whose type is the contract.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from functools import cache
from hashlib import sha256
from typing import Any

import dagster as dg
from pydantic import Field

from metalayer.assets.breaking import step
from metalayer.assets.checks import check_specs, check_table
from metalayer.assets.keys import asset_key, to_key, to_months
from metalayer.assets.partitions import mapping, monthly
from metalayer.assets.resources import Warehouse
from metalayer.assets.showing import (
    description,
    freshness,
    month_metadata,
    sample_metadata,
    step_metadata,
    table_metadata,
)
from metalayer.assets.types import BuildReport, table_type
from metalayer.catalog import Catalog
from metalayer.contracts.contract import TableSpec
from metalayer.jobs import table_job
from metalayer.lineage.columns import column_lineage
from metalayer.lineage.select import Reach
from metalayer.planning import months_with_data
from metalayer.warehouse.build import MonthResult, build_months
from metalayer.warehouse.phases import share, total
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.sampling import sample_rows
from metalayer.warehouse.state import load_state

#: A month is reported by itself when the step goes on for longer than this; Dagster reports all
#: months of the range once the step has ended.
REPORT_AFTER_SECONDS = 2.0


#: A run with this tag set to "true" builds months anew, as `force` does.
FORCE_TAG = "metalayer/force"


class BuildConfig(dg.Config):
    """What a run may set: `force` rebuilds months that are up to date as well, or some of them."""

    force: bool = False
    force_months: list[str] = Field(default_factory=list)


def landing_key(source: str) -> dg.AssetKey:
    """The external asset that stands for the files of a source."""
    return dg.AssetKey(["landing", *source.split("/")])


def source_assets(tables: Catalog, start_month: date) -> list[dg.AssetSpec]:
    """The landed exports, which come from outside."""
    return [
        dg.AssetSpec(
            landing_key(name),
            description=f"Files {spec.source.pattern} in the landing zone.",
            group_name="landing",
            kinds={"csv"},
            owners=[spec.owner],
            partitions_def=monthly(start_month),
            freshness_policy=freshness(spec),
            metadata={
                "pattern": spec.source.pattern,
                "kind": spec.source.kind,
                "due": str(spec.due) if spec.due is not None else "no month needs to come",
            },
        )
        for name, spec in tables.sources.items()
        if spec.source is not None
    ]


def table_asset(spec: TableSpec, tables: Catalog, start_month: date) -> dg.AssetsDefinition:
    """The asset that builds the months of one table."""
    contract_type = table_type(spec)
    lineage = cache(lambda: _lineage(spec, tables))

    @dg.asset(
        key=asset_key(spec.full_name),
        deps=_deps(spec, tables, start_month),
        partitions_def=monthly(start_month),
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=tables.code_versions[spec.full_name],
        description=description(spec, tables),
        group_name=spec.layer,
        owners=[spec.owner],
        kinds={"postgres", "sql"} if spec.full_name in tables.selects else {"postgres", "csv"},
        metadata=table_metadata(spec, tables, datetime.now(UTC).date().replace(day=1)),
        freshness_policy=freshness(spec),
        check_specs=check_specs(spec),
        dagster_type=contract_type,
        required_resource_keys={"warehouse"},
        op_tags={"metalayer/table": spec.full_name},
    )
    def build(context: dg.AssetExecutionContext, config: BuildConfig) -> Iterator[Any]:
        with step(context, table=spec.full_name):
            yield from _build(context, spec, tables, lineage, config)

    return build


def _build(
    context: dg.AssetExecutionContext,
    spec: TableSpec,
    tables: Catalog,
    lineage: Callable[[], dg.TableColumnLineage | None],
    config: BuildConfig,
) -> Iterator[Any]:
    warehouse: Warehouse = context.resources.warehouse
    results: list[MonthResult] = []
    unreported: list[MonthResult] = []
    began = reported = time.monotonic()
    try:
        with warehouse.profile.at_work():
            for result in build_months(
                warehouse.pool,
                table_job(spec.full_name, warehouse.settings),
                _months_to_build(context, spec, warehouse),
                workers=warehouse.settings.workers,
                run_id=context.run.run_id,
                force=config.force
                or context.run.tags.get(FORCE_TAG) == "true"
                or to_months(config.force_months),
            ):
                results.append(result)
                warehouse.profile.add(result.phases)
                if warehouse.landed is not None:
                    warehouse.landed(result)
                if result.outcome != "failed":
                    unreported.append(result)
                if time.monotonic() - reported > REPORT_AFTER_SECONDS:
                    yield from (_materialization(r) for r in unreported)
                    unreported, reported = [], time.monotonic()
    except Exception:
        # The step breaks off; what has landed is materialized all the same.
        yield from (_materialization(r) for r in unreported)
        raise
    report = BuildReport(spec.full_name, tuple(sorted(results, key=lambda r: r.month)))
    spent = share(time.monotonic() - began, total(r.phases for r in results))
    # A log line is an event of its own in Dagster's storage: one for the step, not one a month.
    context.log.info("\n".join(_line(result) for result in report.months))
    if report.failed:
        # The step is about to fail; what has landed is materialized all the same.
        yield from (_materialization(r) for r in unreported)
    for result in report.months:
        context.add_asset_metadata(
            month_metadata(result), asset_key=context.asset_key, partition_key=to_key(result.month)
        )
    _add_sample(context, warehouse, spec, report)
    began = time.monotonic()
    with warehouse.profile.spending("check"):
        checked = check_table(warehouse, spec, tables, report)
    spent["check"] = time.monotonic() - began
    yield from checked
    context.set_data_version(context.asset_key, _data_version(report))
    yield dg.Output(report, metadata=step_metadata(report, spent, lineage()))


def _add_sample(
    context: dg.AssetExecutionContext, warehouse: Warehouse, spec: TableSpec, report: BuildReport
) -> None:
    """Show some rows with the newest month that has any: its event is what a click opens."""
    filled = [r.month for r in report.months if r.outcome != "failed" and r.rows]
    if not filled:
        return
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        rows = sample_rows(cursor, spec, filled[-1])
    context.add_asset_metadata(
        sample_metadata(rows), asset_key=context.asset_key, partition_key=to_key(filled[-1])
    )


def _data_version(report: BuildReport) -> dg.DataVersion:
    """The contents of the step's months as one fingerprint; of one month, its own.

    Dagster gives all months of a step the same one. Each month's own is in its metadata.
    """
    versions = [f"{to_key(r.month)} {r.data_version}" for r in report.months]
    if len(versions) == 1:
        return dg.DataVersion(report.months[0].data_version or "none")
    return dg.DataVersion(sha256("\n".join(versions).encode()).hexdigest()[:32])


def _months_to_build(
    context: dg.AssetExecutionContext, spec: TableSpec, warehouse: Warehouse
) -> list[date]:
    """The months of the run's range that there is anything for: a range may span long gaps."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        there = months_with_data(spec.full_name, load_state(cursor))
    return [month for month in to_months(context.partition_keys) if month in there]


def _deps(spec: TableSpec, tables: Catalog, start_month: date) -> list[dg.AssetDep]:
    if spec.layer == "bronze" and spec.source is not None:
        months = mapping(Reach.SAME, start_month)
        return [dg.AssetDep(landing_key(spec.source.name), partition_mapping=months)]
    return [
        dg.AssetDep(asset_key(name), partition_mapping=mapping(reach, start_month))
        for name, reach in tables.upstream(spec.full_name).items()
    ]


def _lineage(spec: TableSpec, tables: Catalog) -> dg.TableColumnLineage | None:
    if spec.full_name in tables.selects:
        columns = column_lineage(tables.selects[spec.full_name], tables.specs)
        return dg.TableColumnLineage(
            {
                column: [
                    dg.TableColumnDep(asset_key=asset_key(o.table), column_name=o.column)
                    for o in origins
                ]
                for column, origins in columns.items()
                if origins
            }
        )
    if spec.source is None:
        return None
    landed = {c.name for c in tables.sources[spec.source.name].landed}
    key = landing_key(spec.source.name)
    return dg.TableColumnLineage(
        {c: [dg.TableColumnDep(asset_key=key, column_name=c)] for c in sorted(landed)}
    )


def _materialization(result: MonthResult) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=asset_key(result.table),
        partition=to_key(result.month),
        metadata=month_metadata(result),
        tags={"dagster/data_version": result.data_version},
    )


def _line(result: MonthResult) -> str:
    line = (
        f"{result.table} {to_key(result.month)} {result.outcome}: {result.rows:,} rows, "
        f"{result.rows_quarantined:,} quarantined, {result.rows_superseded:,} superseded"
    )
    if result.audit is not None and result.audit.unjudged:
        line += f", {result.audit.unjudged:,} not looked at"
    return f"{line}. {result.problem}" if result.problem else line
