"""`metalayer.read`: published rows as pandas frames, with exact types."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

import metalayer
from metalayer.errors import UsageError, WarehouseError
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform


@pytest.fixture
def built(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    platform.land("crm/customers.csv", CUSTOMERS + customer(7, "2025-01-01"))
    assert platform.build().succeeded
    url = platform.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    return platform


def test_a_table_is_read_with_exact_types(built: Platform) -> None:
    frame = metalayer.read("gold.fact_orders")
    assert list(frame["order_id"]) == [1, 2]
    assert frame["total_amount"].tolist() == [Decimal("10.00"), Decimal("10.00")]
    assert str(frame["order_date"].dtype) == "datetime64[us]"
    assert str(frame["quantity"].dtype) == "Int64"


def test_months_are_both_ends_included(built: Platform) -> None:
    assert len(metalayer.read("gold.fact_orders", months="2025-01..2025-02")) == 2
    frame = metalayer.read("gold.fact_orders", months="2025-02")
    assert frame["order_date"].tolist() == [pd.Timestamp("2025-02-05")]


def test_derived_columns_and_the_unknown_member_are_read(built: Platform) -> None:
    frame = metalayer.read("gold.dim_customer")
    assert frame[frame.customer_key != 0]["is_current"].tolist() == [True]
    assert frame[frame.customer_key == 0]["customer_name"].tolist() == ["Unknown"]


@pytest.mark.parametrize("months", ["2025", "2025-13", "2025-03..2025-01", "jan"])
def test_unreadable_months_are_told(built: Platform, months: str) -> None:
    with pytest.raises(UsageError, match="Write 2025"):
        metalayer.read("gold.fact_orders", months=months)


def test_an_unknown_table_is_told(built: Platform) -> None:
    with pytest.raises(UsageError, match=r"There is no table 'gold.fact_sale'"):
        metalayer.read("gold.fact_sale")


def test_without_a_warehouse_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALAYER_HOME", str(tmp_path / "nothing"))
    with pytest.raises(WarehouseError, match="There is no warehouse at"):
        metalayer.read("gold.fact_orders")
    assert not (tmp_path / "nothing").exists()
