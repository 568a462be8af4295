"""The landing zone: which files are picked up, which are left alone, and how one gets in."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from metalayer.contracts.contract import SourceSpec
from metalayer.errors import LandingError, UsageError
from metalayer.landing.files import Skipped, discover, land, match_source

ORDERS = SourceSpec("erp/orders", "erp/orders*.csv", "delta", "order_date")
CUSTOMERS = SourceSpec("crm/customers", "crm/customers*.csv", "delta", "updated_at")
VIP = SourceSpec("crm/customers_vip", "crm/customers_vip*.csv", "snapshot", None)
SOURCES = (ORDERS, CUSTOMERS, VIP)
LISTING = (
    "erp/orders (erp/orders*.csv); crm/customers (crm/customers*.csv); "
    "crm/customers_vip (crm/customers_vip*.csv)"
)


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    folder = tmp_path / "landing"
    for source in SOURCES:
        (folder / source.pattern).parent.mkdir(parents=True, exist_ok=True)
    return folder


def put(path: Path, content: str = "x\n", age_seconds: float = 60) -> Path:
    path.write_text(content)
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def found(landing: Path) -> list[str]:
    return [file.name for file in discover(landing, SOURCES)[0]]


def skipped(landing: Path) -> list[Skipped]:
    return discover(landing, SOURCES)[1]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("erp/orders.csv", ORDERS),
        ("erp/orders_2025-01.csv.gz", ORDERS),
        ("crm/customers.csv", CUSTOMERS),
        # The pattern that says more wins.
        ("crm/customers_vip_1.csv", VIP),
        ("erp/customers.csv", None),
        ("orders.csv", None),
        ("erp/Orders.csv", None),
        ("erp/orders.csv.zip", None),
        ("erp/orders.csv.gz.gz", None),
        ("erp/orders.gz", None),
    ],
)
def test_a_name_tells_the_source(name: str, source: SourceSpec | None) -> None:
    assert match_source(name, SOURCES) == source


def test_files_come_in_the_order_they_landed(landing: Path) -> None:
    put(landing / "erp/orders_b.csv", age_seconds=30)
    put(landing / "erp/orders_c.csv.gz", age_seconds=10)
    put(landing / "crm/customers.csv", age_seconds=20)
    same_time = time.time() - 5
    for name in ("erp/orders_z.csv", "crm/customers_a.csv"):
        os.utime(put(landing / name), (same_time, same_time))
    files, left_alone = discover(landing, SOURCES)
    assert [f.name for f in files] == [
        "erp/orders_b.csv",
        "crm/customers.csv",
        "erp/orders_c.csv.gz",
        "crm/customers_a.csv",
        "erp/orders_z.csv",
    ]
    assert left_alone == []
    assert [f.source for f in files[:2]] == [ORDERS, CUSTOMERS]
    assert files[0].path == landing / "erp/orders_b.csv"
    assert files[0].size == 2


def test_a_landing_zone_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert discover(tmp_path / "nowhere", SOURCES) == ([], [])


@pytest.mark.parametrize(
    "name", [".orders.csv", ".~lock.orders.csv#", "orders.csv.part", "orders.csv.tmp", "orders.tmp"]
)
def test_what_is_hidden_or_unfinished_is_left_without_a_word(landing: Path, name: str) -> None:
    put(landing / "erp" / name)
    assert discover(landing, SOURCES) == ([], [])


def test_what_is_no_export_is_left_with_a_word(landing: Path) -> None:
    put(landing / "erp/notes.txt")
    (landing / "erp/orders_dir.csv").mkdir()
    (landing / "erp/archive").mkdir()
    put(landing / "erp/archive/orders.csv")
    (landing / "erp/orders_link.csv").symlink_to(put(landing / "real.csv"))
    (landing / "erp/orders_dangling.csv").symlink_to(landing / "nowhere")
    os.mkfifo(landing / "erp/orders_pipe.csv")
    assert found(landing) == []
    link = "it is a symbolic link; copy the file itself"
    assert skipped(landing) == [
        Skipped("erp/notes.txt", "it matches no source"),
        Skipped("erp/orders_dangling.csv", link),
        Skipped("erp/orders_dir.csv", "it is a folder"),
        Skipped("erp/orders_link.csv", link),
        Skipped("erp/orders_pipe.csv", "it is no regular file"),
    ]


def test_a_name_that_is_no_text_is_left_with_a_word(landing: Path) -> None:
    # Some file systems take any bytes for a name; PostgreSQL and a terminal do not.
    try:
        (landing / os.fsdecode(b"erp/orders_\xff.csv")).write_text("x\n")
    except OSError:
        assert found(landing) == []  # as on macOS, which refuses the name
        return
    put(landing / "erp/orders.csv")
    files, left_alone = discover(landing, SOURCES)
    assert [f.name for f in files] == ["erp/orders.csv"]
    assert left_alone == [Skipped("erp/orders_\ufffd.csv", "its name is not UTF-8; rename it")]


def test_a_folder_that_leads_out_of_the_landing_zone_is_not_followed(
    landing: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    put(outside / "orders.csv")
    (landing / "erp").rmdir()
    (landing / "erp").symlink_to(outside)
    files, left_alone = discover(landing, SOURCES)
    assert files == []
    assert left_alone == [Skipped("erp", "it is a link that leads out of the landing zone")]
    # The landing zone itself may be one, and so may a folder that stays inside.
    (landing / "erp").unlink()
    (landing / "elsewhere").mkdir()
    put(landing / "elsewhere/orders.csv")
    (landing / "erp").symlink_to(landing / "elsewhere")
    (tmp_path / "alias").symlink_to(landing)
    assert found(tmp_path / "alias") == ["erp/orders.csv"]


def test_a_file_that_just_came_is_taken_once_it_stands_still(landing: Path) -> None:
    put(landing / "erp/orders.csv", age_seconds=0)
    began = time.monotonic()
    files, left_alone = discover(landing, SOURCES, still_seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert [f.name for f in files] == ["erp/orders.csv"]
    assert left_alone == []


def test_a_file_that_grows_is_left_for_the_next_time(landing: Path) -> None:
    growing = put(landing / "erp/orders.csv", age_seconds=0)
    put(landing / "erp/orders_old.csv")
    done = threading.Event()

    def grow() -> None:
        with growing.open("a") as file:
            while not done.wait(0.01):
                file.write("more\n")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        files, left_alone = discover(landing, SOURCES, still_seconds=0.3)
    finally:
        done.set()
        writer.join()
    assert [f.name for f in files] == ["erp/orders_old.csv"]
    assert left_alone == [Skipped("erp/orders.csv", "it is still being written")]


def test_nothing_waits_where_all_stands_still(landing: Path) -> None:
    put(landing / "erp/orders.csv", age_seconds=30)
    began = time.monotonic()
    assert discover(landing, SOURCES, still_seconds=20)[0]
    assert time.monotonic() - began < 10


def test_a_clock_that_runs_ahead_holds_nothing_up_for_ever(landing: Path) -> None:
    put(landing / "erp/orders.csv", age_seconds=-3600)
    assert [f.name for f in discover(landing, SOURCES, still_seconds=0.1)[0]] == ["erp/orders.csv"]


# ---- getting in


def test_landing_copies_a_file_to_its_source(landing: Path, tmp_path: Path) -> None:
    exports = [
        put(tmp_path / n, n) for n in ("orders_1.csv", "customers.csv.gz", "customers_vip.csv")
    ]
    assert land(exports, landing, SOURCES) == [
        "erp/orders_1.csv",
        "crm/customers.csv.gz",
        "crm/customers_vip.csv",
    ]
    assert (landing / "erp/orders_1.csv").read_text() == "orders_1.csv"
    # It lands now, whatever the age of the export: what lands later is newer.
    assert time.time() - (landing / "erp/orders_1.csv").stat().st_mtime < 30
    assert sorted(p.name for p in landing.rglob("*") if p.is_file()) == [
        "customers.csv.gz",
        "customers_vip.csv",
        "orders_1.csv",
    ]


def test_landing_makes_the_landing_zone(tmp_path: Path) -> None:
    export = put(tmp_path / "orders.csv")
    assert land([export], tmp_path / "new" / "landing", SOURCES) == ["erp/orders.csv"]
    assert (tmp_path / "new/landing/erp/orders.csv").is_file()


def test_a_file_appears_whole_or_not_at_all(landing: Path, tmp_path: Path) -> None:
    export = put(tmp_path / "orders.csv", "old\n" * 500_000)
    land([export], landing, SOURCES)
    sizes, done = set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            sizes.update(f.size for f in discover(landing, SOURCES, still_seconds=0)[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for length in (400_000, 300_000, 200_000):
            put(export, "new\n" * length)
            land([export], landing, SOURCES)
    finally:
        done.set()
        watcher.join()
    assert sizes <= {4 * 500_000, 4 * 400_000, 4 * 300_000, 4 * 200_000}
    assert [p.name for p in (landing / "erp").iterdir()] == ["orders.csv"]


def test_a_file_of_no_source_is_refused_and_nothing_is_copied(
    landing: Path, tmp_path: Path
) -> None:
    exports = [put(tmp_path / "orders.csv"), put(tmp_path / "invoices.csv")]
    with pytest.raises(UsageError) as refused:
        land(exports, landing, SOURCES)
    assert refused.value.message == "invoices.csv matches no source"
    assert refused.value.next_step == (
        f"Rename it or say which with --source. Sources are {LISTING}"
    )
    assert list((landing / "erp").iterdir()) == []


def test_told_its_source_a_file_lands_under_any_name(landing: Path, tmp_path: Path) -> None:
    exports = [
        put(tmp_path / n) for n in ("Export 7.csv", "dump.csv.gz", "data.txt", "orders_x.csv")
    ]
    landed = land(exports, landing, SOURCES, "erp/orders")
    assert landed == [
        "erp/orders_Export 7.csv",
        "erp/orders_dump.csv.gz",
        "erp/orders_data.csv",
        "erp/orders_x.csv",
    ]
    assert sorted(found(landing)) == sorted(landed)


def test_names_that_differ_land_apart(landing: Path, tmp_path: Path) -> None:
    for folder, name in (("a", "2025.01.csv"), ("b", "2025.02.csv")):
        (tmp_path / folder).mkdir()
        put(tmp_path / folder / name, folder)
    exports = [tmp_path / "a/2025.01.csv", tmp_path / "b/2025.02.csv"]
    landed = land(exports, landing, SOURCES, "erp/orders")
    assert len(set(landed)) == 2
    assert sorted(found(landing)) == sorted(landed)


def test_two_exports_of_one_name_are_refused(landing: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        put(tmp_path / folder / "orders.csv", folder)
    exports = [tmp_path / "a/orders.csv", tmp_path / "b/orders.csv"]
    with pytest.raises(UsageError) as refused:
        land(exports, landing, SOURCES)
    assert "would both become erp/orders.csv" in refused.value.message
    assert list((landing / "erp").iterdir()) == []


def test_an_unknown_source_is_refused_with_those_there_are(landing: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        land([put(tmp_path / "orders.csv")], landing, SOURCES, "erp/invoices")
    assert refused.value.message == "There is no source 'erp/invoices'"
    assert refused.value.next_step == f"Sources are {LISTING}"


@pytest.mark.parametrize("name", ["nowhere.csv", "folder.csv"])
def test_what_is_no_file_cannot_land(landing: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=f"{name} is no file"):
        land([tmp_path / name], landing, SOURCES)


def test_a_copy_that_fails_says_so_and_leaves_nothing(landing: Path, tmp_path: Path) -> None:
    export = put(tmp_path / "orders.csv")
    (landing / "erp/orders.csv").mkdir()
    with pytest.raises(LandingError) as failed:
        land([export], landing, SOURCES)
    assert f"{export} cannot be copied to {landing / 'erp/orders.csv'}" in failed.value.message
    assert [p.name for p in (landing / "erp").iterdir()] == ["orders.csv"]


@pytest.mark.parametrize("link", ["erp", "erp/deeper"])
def test_nothing_is_written_through_a_link_out_of_the_landing_zone(
    landing: Path, tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    export = put(tmp_path / "orders.csv")
    sources = [SourceSpec("erp/orders", f"{link}/orders*.csv", "delta", "order_date")]
    if link == "erp":
        (landing / "erp").rmdir()
    (landing / link).symlink_to(outside)
    with pytest.raises(LandingError, match="leads out of the landing zone"):
        land([export], landing, sources)
    assert list(outside.iterdir()) == []
    # A folder elsewhere inside is no way out.
    (landing / link).unlink()
    (landing / "aside").mkdir()
    (landing / link).symlink_to(landing / "aside")
    assert land([export], landing, sources) == [f"{link}/orders.csv"]


def test_a_pattern_with_dots_does_not_lead_out(landing: Path, tmp_path: Path) -> None:
    export = put(tmp_path / "orders.csv")
    sources = [SourceSpec("erp/orders", "../erp/orders*.csv", "delta", "order_date")]
    with pytest.raises(LandingError, match="leads out of the landing zone"):
        land([export], landing, sources)
    assert not (landing.parent / "erp").exists()


def test_a_link_in_place_of_a_landed_file_is_replaced_not_followed(
    landing: Path, tmp_path: Path
) -> None:
    victim = put(tmp_path / "victim.csv", "untouched")
    (landing / "erp/orders.csv").symlink_to(victim)
    land([put(tmp_path / "orders.csv", "new")], landing, SOURCES)
    assert victim.read_text() == "untouched"
    assert not (landing / "erp/orders.csv").is_symlink()
