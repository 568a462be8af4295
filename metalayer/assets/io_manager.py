"""How an asset written in Python reads a table: as a frame of the months it depends on.

Nothing is written here. A table's rows are published by its own step, after their audit, before
Dagster would hand an output over.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from metalayer.assets.keys import table_of, to_months
from metalayer.assets.resources import Warehouse
from metalayer.assets.types import BuildReport
from metalayer.errors import BuildError
from metalayer.reading import read_months


class WarehouseIOManager(dg.IOManager):
    """Hands the months of an upstream table to a Python asset as a pandas frame."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Refuse anything but a report: a table's rows are published already."""
        if not isinstance(obj, BuildReport):
            raise BuildError(
                f"{context.asset_key.to_user_string()} puts out {type(obj).__name__}, "
                "which the warehouse does not keep",
                "Write the table as a contract and a SELECT, or give the asset its own IO manager",
                kind="configuration",
            )

    def load_input(self, context: dg.InputContext) -> Any:
        """The upstream months as a pandas frame."""
        warehouse: Warehouse = context.resources.warehouse
        months = to_months(context.asset_partition_keys) if context.has_asset_partitions else None
        return read_months(warehouse.pool, table_of(context.asset_key), months)


@dg.io_manager(required_resource_keys={"warehouse"})
def warehouse_io_manager(_context: dg.InitResourceContext) -> WarehouseIOManager:
    """The IO manager of all tables."""
    return WarehouseIOManager()
