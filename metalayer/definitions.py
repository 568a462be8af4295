"""The whole platform on one page, as Dagster loads it."""

import warnings

import dagster as dg

from metalayer.assets.checks import reference_checks
from metalayer.assets.io_manager import warehouse_io_manager
from metalayer.assets.resources import warehouse_resource
from metalayer.assets.tables import source_assets, table_asset
from metalayer.catalog import catalog
from metalayer.settings import Settings

tables = catalog()
start_month = Settings.load().start_month

with warnings.catch_warnings():
    # Some of what is used says that it is in beta; the lock file pins the version that was tried.
    warnings.simplefilter("ignore", dg.BetaWarning)
    defs = dg.Definitions(
        assets=[
            *source_assets(tables, start_month),
            *(table_asset(spec, tables, start_month) for spec in tables.specs.values()),
        ],
        asset_checks=reference_checks(tables),
        resources={"warehouse": warehouse_resource, "io_manager": warehouse_io_manager},
        executor=dg.in_process_executor,
    )
