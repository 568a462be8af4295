"""Stories of files that would do harm: what leads out of the landing zone, what unfolds too far."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.errors import LandingError, UsageError
from metalayer.inspection import reading
from metalayer.landing.raw import opened
from metalayer.landing.repair import land_repair
from metalayer_tests.integration.test_repair import ORDERS, Desk, order
from metalayer_tests.story import Platform
from metalayer_tests.unit.test_reader import zlib_gzip


def test_a_file_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("x")
    (tmp_path / "orders.csv").symlink_to(secret)
    with (
        pytest.raises(LandingError, match="is a symbolic link"),
        opened(tmp_path / "orders.csv"),
    ):
        pass


def test_a_withdrawn_file_is_not_moved_through_a_link(platform: Platform, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    landed = platform.land("erp/orders.csv", ORDERS + order(1))
    assert platform.build("bronze.orders").succeeded
    (platform.landing / ".withdrawn").symlink_to(outside)
    with pytest.raises(LandingError, match="leads out of the landing zone"):
        platform.withdraw("orders.csv")
    assert landed.is_file()
    assert list(outside.rglob("*")) == []
    assert [entry["status"] for entry in platform.ledger()] == ["loaded"], "nothing was changed"
    (platform.landing / ".withdrawn").unlink()
    assert platform.withdraw("orders.csv").moved_to is not None


@pytest.mark.parametrize("name", ["../outside.csv", "erp/../../outside.csv", "../../etc/passwd"])
def test_a_name_with_dots_takes_nothing_out(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1))
    (platform.landing.parent / "outside.csv").write_text("x")
    monkeypatch.chdir(platform.landing)
    with pytest.raises(UsageError, match="leads out of the landing zone"):
        platform.withdraw(name)
    assert (platform.landing.parent / "outside.csv").is_file()
    # Dots that lead back inside are only another way to say it.
    assert platform.withdraw("erp/../erp/orders.csv").moved_to is not None


def test_a_repair_is_not_landed_through_a_link(platform: Platform, tmp_path: Path) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1) + order(2, status="LOST"))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    path, _ = Desk(platform, tmp_path).export()
    path.write_text(path.read_text().replace("LOST", "PAID"))
    link = tmp_path / "mended.csv"
    link.symlink_to(path)
    outside = tmp_path / "outside"
    (platform.landing / "erp").rename(outside)
    (platform.landing / "erp").symlink_to(outside)
    settings = platform.warehouse.settings
    with (
        reading(settings) as connection,
        pytest.raises(LandingError, match="leads out of the landing zone"),
    ):
        land_repair(connection, settings, catalog().sources, path)
    assert [f.name for f in outside.iterdir()] == ["orders.csv"]
    (platform.landing / "erp").unlink()
    outside.rename(platform.landing / "erp")
    # The mended file itself may be reached by a link: it is the user's.
    with reading(settings) as connection:
        assert land_repair(connection, settings, catalog().sources, link).rows == 1


def test_a_gzip_that_unfolds_too_far_is_rejected_and_read_again_once_allowed(
    platform: Platform,
) -> None:
    rows = "".join(order(n) for n in range(1, 40_000))
    platform.land("erp/orders.csv.gz", zlib_gzip((ORDERS + rows).encode()))
    normal = platform.warehouse
    strict = normal.settings.model_copy(update={"max_unpacked_mb": 1})
    platform.warehouse = Warehouse(normal.pool, strict)
    platform.register()
    (entry,) = platform.ledger()
    assert entry["status"] == "rejected"
    assert "orders.csv.gz unfolds to more than 1 MB" in entry["reason"]
    assert "METALAYER_MAX_UNPACKED_MB" in entry["reason"]
    assert not list(strict.parsed_dir.rglob("*.parquet"))
    platform.warehouse = normal
    platform.register()
    assert platform.ledger()[-1]["status"] == "loaded"


def test_an_export_runs_nothing_in_a_spreadsheet_and_lands_as_it_was(
    platform: Platform, tmp_path: Path
) -> None:
    """Formulas in every place a file can bring them: values, a column's name, the raw line."""
    header = ORDERS.strip() + ",=cmd|x,note\n"
    bad = [
        '1,7,P00001,2025-01-05,2,5.00,10.00,LOST,"=HYPERLINK(""http://x"")",-5\n',
        "2,7,P00001,2025-01-05,2,5.00,10.00,LOST,'=1,+1+1\n",
        '3,7,P00001,2025-01-05,2,5.00,10.00,=LOST,@x,"a\nb"\n',
        "=4,7,P00001\n",
    ]
    platform.land("erp/orders.csv", header + "".join(bad))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    desk = Desk(platform, tmp_path)
    path, done = desk.export()
    assert done.rows == 4
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [c for c in cells if c[:1] and c[0] in "=+-@\t\r"] == ["-5"]
    assert '\'=HYPERLINK("http://x")' in cells
    assert "'=cmd|x" in cells
    assert "''=1" in cells
    # Nothing was changed, so nothing is to be landed: every value is what it was.
    untouched = desk.land(whole_rows(path))
    assert (untouched.rows, untouched.unchanged) == (0, 3)
    # Mended in one cell, all others are as they were delivered.
    mended = whole_rows(path)
    text = mended.read_text(encoding="utf-8-sig").replace(",LOST,", ",PAID,")
    mended.write_text(text, "utf-8")
    assert desk.land(mended).rows == 2
    assert platform.build("bronze.orders", "silver.orders").succeeded
    kept = platform.ask(
        "select order_id, _extra ->> '=cmd|x', _extra ->> 'note' from bronze.orders "
        "where status = 'PAID' order by 1"
    )
    assert kept == [("1", '=HYPERLINK("http://x")', "-5"), ("2", "'=1", "+1+1")]


def whole_rows(path: Path) -> Path:
    """The export without the rows whose columns are empty."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names, *rows = csv.reader(file)
    whole = path.with_name(f"whole_{path.name}")
    with whole.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([names, *(row for row in rows if not row[-1])])
    return whole
