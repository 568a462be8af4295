"""The generator: the same bytes every time, clean where asked, and every kind of dirt it names."""

import csv
import gzip
import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from metalayer.errors import UsageError
from metalayer.sample import generate
from metalayer.sample.dirt import KINDS
from metalayer.sample.words import CITIES, ORDER_STATUSES, REGIONS

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
ROWS = 6000


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.csv*"))
    }


def records(folder: Path, pattern: str) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob(pattern)):
        with file.open(newline="", encoding="utf-8") as lines:
            for record in csv.DictReader(lines, strict=True):
                yield {"file": file.name, **record}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    generate(folder, rows=ROWS, months=9, dirt=0, seed=3)
    return folder


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dirty")
    generate(folder, rows=20_000, months=12, dirt=0.05, seed=1)
    return folder


def test_the_same_arguments_give_the_same_bytes_on_one_thread_and_on_many(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from metalayer.sample import generate;"
        "[generate(Path(sys.argv[1]) / split, rows=3000, months=7, dirt=0.1, seed=5, split=split)"
        " for split in ('file', 'month')]"
    )
    for threads in ("1", "4"):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / threads)],
            env={**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads},
            check=True,
        )
    assert digests(tmp_path / "1") == digests(tmp_path / "4") != {}


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    for seed in (0, 1):
        generate(tmp_path / str(seed), rows=200, months=2, seed=seed)
    first, second = digests(tmp_path / "0"), digests(tmp_path / "1")
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize("split", ["file", "month"])
def test_the_counts_are_what_a_csv_reader_counts(tmp_path: Path, split: str) -> None:
    done = generate(tmp_path, rows=ROWS, months=5, dirt=0, split=split)  # type: ignore[arg-type]
    counted = Counter(file["file"] for file in records(tmp_path, "*/*.csv"))
    assert {each.file.name: each.rows for each in done} == counted
    totals = Counter[str]()
    for each in done:
        totals[re.sub(r"_\d{4}-\d\d$", "", each.file.stem)] += each.rows
    assert totals["customers"] == totals["orders"] == totals["erp_sales"] == ROWS
    assert totals["crm_customers"] == pytest.approx(ROWS, rel=0.03)


def test_the_counts_of_dirty_files_leave_out_blank_lines(dirty: Path, tmp_path: Path) -> None:
    done = generate(tmp_path, rows=20_000, months=12, dirt=0.05, seed=1)
    assert digests(dirty) == digests(tmp_path)
    for each in done:
        text = each.file.read_bytes().decode()
        assert re.search(r"^$", text.rstrip("\n"), re.M) is not None or each.rows < 5000
        # A quoted line break, with its closing quote, is the only other line that is no record.
        lines = [line for line in text.split("\n") if line and not re.match(r'^"(,|$)', line)]
        assert len(lines) - 1 == each.rows


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("months", [1, 3, 72])
@pytest.mark.parametrize("split", ["file", "month"])
def test_a_handful_of_rows_can_be_generated(
    tmp_path: Path, rows: int, months: int, split: str
) -> None:
    done = generate(tmp_path, rows=rows, months=months, dirt=0.5, split=split)  # type: ignore[arg-type]
    assert all(each.file.exists() for each in done)
    assert not list(tmp_path.rglob("*.part"))


def test_files_match_the_patterns_and_months_of_the_sources(tmp_path: Path) -> None:
    generate(tmp_path, rows=50, months=2, start_month=date(2025, 3, 15), split="month", dirt=0)
    assert sorted(digests(tmp_path)) == [
        "crm/crm_customers_2025-03.csv",
        "crm/crm_customers_2025-04.csv",
        "crm/customers_2025-03.csv",
        "crm/customers_2025-04.csv",
        "erp/erp_sales_2025-03.csv",
        "erp/erp_sales_2025-04.csv",
        "erp/orders_2025-03.csv",
        "erp/orders_2025-04.csv",
    ]


@pytest.mark.parametrize(
    ("months", "first", "last"),
    [(6, "2024-01", "2024-06"), (24, "2024-01", "2025-12"), (30, "2023-07", "2025-12")],
)
def test_the_last_month_is_in_the_past(tmp_path: Path, months: int, first: str, last: str) -> None:
    generate(tmp_path, rows=ROWS, months=months, dirt=0)
    days = [order["order_date"] for order in records(tmp_path, "erp/orders.csv")]
    assert (min(days)[:7], max(days)[:7]) == (first, last)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"months": 0},
        {"months": 73},
        {"dirt": 1.5},
        {"months": 2, "start_month": date(2025, 12, 1)},
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        generate(tmp_path, **{"rows": 10, "months": 1, **wrong})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_clean_customers_keep_the_rules(clean: Path) -> None:
    changes = list(records(clean, "crm/customers.csv"))
    assert len({(row["customer_id"], row["updated_at"]) for row in changes}) == ROWS
    latest: dict[str, datetime] = {}
    several = 0
    for row in changes:
        created, updated = (
            datetime.fromisoformat(row[at] + "Z") for at in ("created_at", "updated_at")
        )
        several += row["customer_id"] in latest
        assert (
            latest.get(row["customer_id"], created) <= updated < datetime(2024, 10, 1, tzinfo=UTC)
        )
        latest[row["customer_id"]] = updated
        assert re.fullmatch(r"[a-z.]+\d+@example\.(org|com|net)", row["email"])
        assert re.fullmatch(r"[A-Z]{2}\d{5}", row["state"] + row["zip"])
        assert date(1930, 1, 1) < date.fromisoformat(row["dob"]) < date(2006, 1, 1)
        phone = re.sub(r"^\+1|\D", "", row["phone"])
        assert re.fullmatch(r"\d{3}55501\d\d", phone)
        assert phone[:3] in {city.area for city in CITIES}
    assert several > ROWS / 2
    assert len(latest) == pytest.approx(ROWS / 2.5, rel=0.01)


def test_clean_snapshots_grow_and_few_leave_or_return(clean: Path) -> None:
    months: dict[str, dict[str, dict[str, str]]] = {}
    for row in records(clean, "crm/crm_customers*.csv"):
        month = months.setdefault(row.pop("file"), {})
        assert row["customer_id"] not in month
        assert row["region"] in REGIONS
        month[row["customer_id"]] = row
    states = list(months.values())
    assert len(states) == 9
    assert len(states[-1]) > 1.4 * len(states[0])
    left, returned, gone = 0, 0, set[str]()
    for before, after in pairwise(states):
        left += len(before.keys() - after.keys())
        gone |= before.keys() - after.keys()
        returned += len(gone & after.keys())
        changed = sum(before[key] != after[key] for key in before.keys() & after.keys())
        assert 0 < changed < 0.1 * len(before)
        assert len(before.keys() - after.keys()) < 0.02 * len(before)
    assert left > 0 < returned


def test_clean_orders_keep_the_rules(clean: Path) -> None:
    since: dict[str, str] = {}
    for row in records(clean, "crm/customers.csv"):
        since.setdefault(row["customer_id"], row["updated_at"][:10])
    orders = list(records(clean, "erp/orders.csv"))
    assert len({row["order_id"] for row in orders}) == ROWS
    for row in orders:
        assert since[row["customer_id"]] < row["order_date"] <= "2024-09-30"
        assert re.fullmatch(r"P00[0-3]\d\d", row["product_code"])
        assert int(row["quantity"]) > 0
        assert re.fullmatch(r"\d+\.\d\d", row["total_amount"])
        assert int(row["quantity"]) * Decimal(row["unit_price"]) == Decimal(row["total_amount"])
        assert row["status"] in ORDER_STATUSES
    buyers = sorted(Counter(row["customer_id"] for row in orders).values(), reverse=True)
    assert sum(buyers[: len(buyers) // 5]) > 0.5 * ROWS
    assert len({row["product_code"] for row in orders}) > 250


def test_clean_sales_invoice_orders(clean: Path) -> None:
    booked = Counter[tuple[str, int]]()
    for row in records(clean, "erp/orders.csv"):
        booked[row["customer_id"], int(row["product_code"][1:])] += int(row["quantity"])
    sales = list(records(clean, "erp/erp_sales.csv"))
    assert len({row["sales_id"] for row in sales}) == ROWS
    invoiced = Counter[tuple[str, int]]()
    for row in sales:
        assert int(row["quantity"]) > 0 < Decimal(row["sale_amount"])
        assert "2024-01-01" < row["sale_date"] <= "2024-09-30"
        invoiced[row["customer_id"], int(row["product_id"])] += int(row["quantity"])
    assert invoiced <= booked
    assert invoiced.total() > 0.85 * booked.total()


def test_booked_and_invoiced_differ_in_some_months(tmp_path: Path) -> None:
    generate(tmp_path, rows=20_000, months=12, dirt=0)
    price = {
        (row["customer_id"], int(row["product_code"][1:]), Decimal(row["unit_price"]))
        for row in records(tmp_path, "erp/orders.csv")
    }
    wrong, total = Counter[str](), Counter[str]()
    for row in records(tmp_path, "erp/erp_sales.csv"):
        billed = Decimal(row["sale_amount"]) / int(row["quantity"])
        total[row["sale_date"][:7]] += 1
        wrong[row["sale_date"][:7]] += (
            row["customer_id"],
            int(row["product_id"]),
            billed,
        ) not in price
    shares = [wrong[month] / total[month] for month in total]
    assert min(shares) < 0.01
    assert max(shares) > 0.03


def test_months_split_into_files_hold_late_rows_of_earlier_months(tmp_path: Path) -> None:
    generate(tmp_path, rows=ROWS, months=6, dirt=0, split="month")
    late = Counter[int]()
    for row in records(tmp_path, "erp/orders_*.csv"):
        late[int(row["file"][12:14]) - int(row["order_date"][5:7])] += 1
    assert set(late) == {0, 1, 2}
    assert 0 < late[2] < late[1] < 0.03 * ROWS


# What to find in a file with dirt, and never in a clean one: export, kinds of dirt, pattern.
SIGNS = [
    ("orders", "thousands separator", r',"\d{1,3},\d{3}\.\d\d",'),
    ("orders", "a thousand as 1e3", r",(1e3|1E\+3|1\.0e3),"),
    ("orders", "amount with exponent", r",\d+[eE]-0?2,"),
    ("orders", "padded quantity", r", \d+[ \u00a0]+,"),
    ("orders", "minus zero", r",-0,"),
    ("orders", "impossible date", r",2024-(02-30|13-01|04-31|00-00),"),
    ("orders", "day first", r",\d\d/\d\d/2024,"),
    ("orders", "compact date", r",2024\d{4},"),
    ("orders", "date with time", r",2024-\d\d-\d\dT\d\d:\d\d:\d\dZ,"),
    ("orders", "date with time", r",2024-\d\d-\d\d[T ][\d:.]+[+-]\d\d:?\d\d,"),
    ("orders", "no quantity", r",P\d+,2024-\d\d-\d\d,,"),
    ("orders", "no quantity", r",NULL,"),
    ("orders", "no quantity", r",N/A,"),
    ("orders", "zero quantity", r",0,"),
    ("orders", "negative quantity", r",-[1-9]\d*,"),
    ("orders", "unknown status", r",REFUNDED$"),
    ("orders", "status in odd case", r",(paid|Closed|cOMPLETE)$"),
    ("orders", "unknown customer", r"^\d+,9000\d{5},"),
    ("orders", "unknown product", r",\?\?\?,"),
    ("orders", "unknown product", r"^\d+,\d+,,"),
    ("orders", "unknown product", r",X1,"),
    ("orders", "no key", r"^,"),
    ("orders", "too few fields", r"^[^,\n]*(,[^,\n]*){5}$"),
    ("orders", "too many fields", r"^[^,\n]*(,[^,\n]*){8,}$"),
    ("orders", "blank line", r"^\n"),
    ("orders", "lone quote", r',"[A-Z]+$'),
    ("orders", "quoted newline", r',"[A-Z]+\r?\n"$'),
    ("orders", "NUL byte", r"\0"),
    ("orders", "too early", r",(2019|2015|1970|0001)-"),
    ("orders", "in the future", r",2099-"),
    ("erp_sales", "unknown product", r"^\d+,0,"),
    ("erp_sales", "unknown product", r"^\d+,,"),
    ("erp_sales", "unknown customer", r",9000\d{5},"),
    ("erp_sales", "no amount", r",$"),
    ("customers", "SQL in a name", r"DROP TABLE customers;--\""),
    ("customers", "SQL in a name", r"'; drop table"),
    ("customers", "HTML in a name", r"<script>"),
    ("customers", "e-mail in upper case", r"@EXAMPLE\.(ORG|COM|NET)"),
    ("customers", "padded e-mail", r", [a-z.]+\d+@"),
    ("customers", "garbage for a phone", r",call me,"),
    ("customers", "time with zone", r"T\d\d:\d\d:\d\d(\.250)?Z$"),
    ("customers", "impossible hour", r" 25:61:00$"),
    ("crm_customers", "region in upper case", r",(NORTHEAST|MIDWEST|SOUTH|WEST)$"),
    ("crm_customers", "region abbreviated", r",(NE|MW|S|W)$"),
    ("crm_customers", "unknown region", r",Atlantis$"),
    ("crm_customers", "HTML in a name", r"<script>"),
]


@pytest.mark.parametrize(("export", "kind", "sign"), SIGNS)
def test_each_kind_of_dirt_is_there_and_only_when_asked_for(
    clean: Path, dirty: Path, export: str, kind: str, sign: str
) -> None:
    system = "erp" if export in ("orders", "erp_sales") else "crm"
    assert kind in {each.name for each in KINDS[f"{system}/{export}"]}

    def text(folder: Path) -> str:
        files = sorted(folder.glob(f"{system}/{export}*.csv"))
        return "".join(file.read_bytes().decode() for file in files)

    assert re.search(sign, text(dirty), re.M)
    assert not re.search(sign, text(clean), re.M)


@pytest.mark.parametrize("export", KINDS)
def test_every_kind_comes_in_every_export_and_half_of_them_load(export: str) -> None:
    kinds = KINDS[export]
    assert len({kind.name for kind in kinds}) == len(kinds)
    weight = sum(kind.weight for kind in kinds)
    assert 0.45 < sum(kind.weight for kind in kinds if kind.loads) / weight < 0.6
    # Rare enough to be missed in 20,000 rows at 5 % would be too rare.
    assert min(kind.weight for kind in kinds) / weight * 1000 > 10


def test_corrections_repeat_a_key_with_other_values_and_other_months(dirty: Path) -> None:
    rows: dict[str, list[list[str]]] = {}
    for line in (dirty / "erp" / "orders.csv").read_text().splitlines():
        rows.setdefault(line.split(",")[0], []).append(line.split(","))
    twice = [lines for key, lines in rows.items() if re.fullmatch(r"\d{7}", key) and len(lines) > 1]
    assert len(twice) > 50
    assert all(lines[0] != lines[1] for lines in twice)
    assert any(lines[0][3][:7] != lines[1][3][:7] for lines in twice if len(lines[1]) == 8)


def test_the_share_of_dirty_rows_is_the_one_asked_for(dirty: Path, tmp_path: Path) -> None:
    generate(tmp_path, rows=20_000, months=12, dirt=0, seed=1)
    untouched = Counter((tmp_path / "erp" / "orders.csv").read_text().splitlines())
    changed = Counter((dirty / "erp" / "orders.csv").read_text().splitlines())
    assert (untouched - changed).total() / 20_000 == pytest.approx(0.05, abs=0.006)


def test_files_of_a_month_differ_as_exports_do(tmp_path: Path) -> None:
    done = generate(tmp_path, rows=60_000, months=6, dirt=0.02, split="month")
    crm, erp = tmp_path / "crm", tmp_path / "erp"

    def head(file: Path) -> bytes:
        return file.read_bytes()[:60]

    assert head(erp / "orders_2024-02.csv").startswith(b"\xef\xbb\xbforder_id,")
    assert head(crm / "customers_2024-03.csv").startswith("\ufeffcust".encode("utf-16-le"))
    assert "Žofia".encode("cp1252") in (crm / "customers_2024-02.csv").read_bytes()
    assert b"\r\n" in (erp / "orders_2024-03.csv").read_bytes()[:100]
    assert head(erp / "orders_2024-06.csv").startswith(b"order_id;customer_id;")
    assert head(erp / "erp_sales_2024-02.csv").startswith(b"sales_id\tproduct_id\t")
    assert head(erp / "erp_sales_2024-05.csv").startswith(b"sale_amount,sale_date,")
    assert head(crm / "customers_2024-04.csv").startswith(b"CUSTOMER_ID,")
    assert head(erp / "erp_sales_2024-03.csv").startswith(b" Sales_Id , Product_Id ,")
    assert b"status,channel\n" in (erp / "orders_2024-04.csv").read_bytes()[:100]
    packed = (erp / "orders_2024-05.csv.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0"
    assert gzip.decompress(packed).startswith(b"order_id,")
    with pytest.raises(EOFError):
        gzip.decompress((erp / "orders_2024-01_cut.csv.gz").read_bytes())
    assert (erp / "orders_2024-06_empty.csv").read_bytes() == b""
    assert (erp / "erp_sales_2024-06_header_only.csv").read_bytes().count(b"\n") == 1
    again = erp / "erp_sales_2024-01_again.csv"
    assert again.read_bytes() == (erp / "erp_sales_2024-01.csv").read_bytes()
    assert b"customer_id" not in head(crm / "customers_2024-01_no_id.csv")
    assert (crm / "customers_2024-01_long_city.csv").stat().st_size > 1_000_000
    rows = {each.file.name: each.rows for each in done}
    assert rows["erp_sales_2024-01_again.csv"] == rows["erp_sales_2024-01.csv"]
    assert rows["orders_2024-06_empty.csv"] == 0


def test_the_committed_sample_is_what_its_command_writes(tmp_path: Path) -> None:
    command = re.search(r"^metalayer generate (.*)$", (SAMPLE / "README.md").read_text(), re.M)
    assert command
    words = shlex.split(command[1])
    said = dict(zip(words[::2], words[1::2], strict=True))
    generate(
        tmp_path,
        rows=int(said["--rows"]),
        months=int(said["--months"]),
        dirt=float(said["--dirt"]),
        seed=int(said["--seed"]),
        start_month=date.fromisoformat(said["--start"] + "-01"),
        split=said["--split"],  # type: ignore[arg-type]
    )

    def contents(folder: Path) -> dict[str, bytes]:
        files = sorted(folder.rglob("*.csv*"))
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    assert contents(SAMPLE) == contents(tmp_path)
    assert sum(map(len, contents(SAMPLE).values())) < 1_000_000
