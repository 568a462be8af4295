"""The whole platform on one page, as Dagster loads it."""

import warnings

import dagster as dg

from metalayer.assets.checks import reference_checks
from metalayer.assets.io_manager import warehouse_io_manager
from metalayer.assets.resources import console_logger, warehouse_resource
from metalayer.assets.tables import source_assets, table_asset
from metalayer.automation.arrivals import acceptance_checks
from metalayer.automation.conditions import table_condition
from metalayer.automation.following import following_sensor
from metalayer.automation.freshness import due_checks, lateness_sensor
from metalayer.automation.jobs import current_month, full_refresh, month_turn
from metalayer.automation.landing import landing_sensor, take_in
from metalayer.automation.retention import retain, retention_schedule
from metalayer.catalog import catalog
from metalayer.settings import Settings

tables = catalog()
settings = Settings.load()
start_month = settings.start_month

with warnings.catch_warnings():
    # Some of what is used says that it is in beta; the lock file pins the version that was tried.
    warnings.simplefilter("ignore", dg.BetaWarning)
    this_month = current_month(tables)
    defs = dg.Definitions(
        assets=[
            *source_assets(tables, start_month),
            *(
                table_asset(spec, tables, start_month).with_attributes(
                    automation_condition=table_condition()
                )
                for spec in tables.specs.values()
            ),
        ],
        asset_checks=[
            *reference_checks(tables),
            *acceptance_checks(tables),
            *due_checks(tables),
        ],
        jobs=[full_refresh(tables), this_month, take_in, retain],
        schedules=[month_turn(this_month, settings), retention_schedule],
        sensors=[landing_sensor(settings), following_sensor(tables), lateness_sensor(tables)],
        resources={"warehouse": warehouse_resource, "io_manager": warehouse_io_manager},
        loggers={"console": console_logger},
        executor=dg.in_process_executor,
    )
    # Made once, and kept: here, as what is in beta says so again while it is made.
    defs.get_repository_def()
