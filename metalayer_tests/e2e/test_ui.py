"""A person's day in a real browser: everything is green, exports land, something is bad or late.

One platform serves all tests of this file, in their order: later ones land files for later months.
Each waits for the sample first, so that it can be run alone. Starting and ending the platform is
`test_up.py`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from metalayer.catalog import catalog
from metalayer.contracts.silver import NO_VALUE
from metalayer.governance.sealing import Opener, known_keys
from metalayer.settings import Settings
from metalayer_tests.e2e.asking import (
    TABLES,
    backfill_of,
    checks,
    failed_months,
    is_built,
    materialized_since,
    runs,
    verdict,
)
from metalayer_tests.e2e.up import ORDERS, Up, browser, keep_logs, picture, platform, wait

SAMPLE = {f"2025-{month:02}" for month in range(1, 7)}
YEAR = {f"2025-{month:02}" for month in range(1, 13)}
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
#: What a person who looks waits for at most, where nothing has to be built.
PATIENCE = 45_000


@pytest.fixture(scope="module")
def up(module_folder: Path, request: pytest.FixtureRequest) -> Iterator[Up]:
    failed = request.session.testsfailed
    with platform(module_folder / "home", "--demo") as running:
        assert running.url
        yield running
        if request.session.testsfailed > failed:
            keep_logs(running)


@pytest.fixture
def sample(up: Up) -> Up:
    """The platform, with all tables of the sample built and nothing going on."""
    wait(lambda: is_built(up, SAMPLE) and not up.unfinished_runs(), 180, up)
    return up


# --- what a person does -------------------------------------------------------------------------


def keep_looking(page: Page, what: Locator, seconds: float) -> None:
    """Wait until something is shown, loading the page anew now and then as a person would."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            expect(what).to_be_visible(timeout=8_000)
            return
        except AssertionError:
            page.reload()
    expect(what).to_be_visible(timeout=8_000)


def choose(page: Page, months: str) -> Locator:
    """Type months into the dialogue that launches runs; returns the dialogue."""
    dialogue = page.get_by_role("dialog")
    field = dialogue.get_by_placeholder("ex: ")
    field.fill(months)
    field.press("Enter")
    return dialogue


def dot(page: Page, month: str) -> Locator:
    """The dot beside a month on the partitions page; green once it is materialized."""
    entry = page.locator(f'[data-tooltip="{month}"]').first
    return entry.locator("xpath=following-sibling::div[1]")


def is_green(page: Page, month: str) -> bool:
    style = dot(page, month).get_attribute("style", timeout=PATIENCE) or ""
    return "--color-accent-green" in style


# --- nothing was touched ------------------------------------------------------------------------


def test_all_tables_of_the_sample_are_green_within_90_seconds(up: Up) -> None:
    assert up.url
    left = 90 - (time.monotonic() - up.ready_at)
    wait(lambda: is_built(up, SAMPLE) and not up.unfinished_runs(), left, up)
    assert len(TABLES) == 19
    assert failed_months(up) == {}
    blocking = {key: verdict(check) for key, check in checks(up).items() if check["blocking"]}
    assert {table for table, _ in blocking} == set(TABLES)
    assert set(blocking.values()) == {"SUCCEEDED"}, blocking
    assert {run["status"] for run in runs(up).values()} == {"SUCCESS"}
    # Every file of the sample was looked at, and each got its verdict.
    landed = sum(1 for path in up.landing.rglob("*") if path.is_file())
    assert up.ask("select count(*) from meta.ledger") == [(landed,)]


def test_the_graph_shows_the_layers_and_what_is_materialized(sample: Up) -> None:
    with browser(sample.url) as page:
        page.goto("/asset-groups")
        left = []
        for layer in ("landing", "bronze", "silver", "gold"):
            node = page.locator(f'[data-tooltip="{layer}"]').locator("visible=true").last
            expect(node).to_be_visible(timeout=PATIENCE)
            box = node.bounding_box()
            assert box is not None
            left.append(box["x"])
        assert left == sorted(left)

        page.set_viewport_size({"width": 2600, "height": 1600})
        layers = ",".join(f"global@global:{g}" for g in ("landing", "bronze", "silver", "gold"))
        page.goto(f"/asset-groups?expanded={layers}")
        for table in TABLES:
            link = page.locator(f'a[href="/assets/{table.replace(".", "/")}?view=partitions"]')
            filled = link.filter(has_text=re.compile(r"^[1-9]\d*% filled$"))
            expect(filled).to_be_visible(timeout=PATIENCE)
        picture(page, "asset-graph")


# --- what a click shows -------------------------------------------------------------------------


def test_a_table_shows_its_contract(sample: Up) -> None:
    spec = catalog().spec("silver.customers")
    with browser(sample.url) as page:
        page.goto("/assets/silver/customers")
        expect(page.get_by_text("One row per change of a customer").first).to_be_visible(
            timeout=PATIENCE
        )
        expect(page.get_by_text("customer-data", exact=True)).to_be_visible()
        for column in spec.columns:
            row = page.get_by_role("row").filter(has=page.get_by_text(column.name, exact=True))
            row = row.filter(has_text=column.meaning)
            expect(row.first).to_be_visible()
            if column.pii:
                expect(row.first).to_contain_text(f"pii: {column.pii}")
            if not column.nullable:
                expect(row.first).to_contain_text("non-nullable")
        phone = page.get_by_role("row").filter(has_text="Phone number as E.164")
        expect(phone.first).to_contain_text("encrypted; in plain, text")
        expect(page.get_by_role("link", name="gold / dim_customer").first).to_be_visible()
        picture(page, "asset")


@dataclass(frozen=True)
class People:
    """What identifies persons in the files of the sample, as delivered."""

    texts: set[str]
    last_names: set[str]

    def found_in(self, text: str) -> set[str]:
        """What of it stands in a text; a last name only as a word."""
        return {t for t in self.texts if t in text} | self.last_names & set(_WORD.findall(text))


_WORD = re.compile(r"\w+")


def people(up: Up) -> People:
    texts = up.ask(
        "select unnest(array[first_name || ' ' || last_name, email, phone]) from bronze.customers "
        "union select unnest(array[customer_name, email]) from bronze.crm_customers"
    )
    names = up.ask("select distinct last_name from bronze.customers")
    keys = Opener(known_keys(Settings(_env_file=None, home=up.home)))
    texts = [(text and keys.opened(text),) for (text,) in texts]
    assert any(re.fullmatch(r"\+[0-9]+", text) for (text,) in texts if text)
    return People(
        *(
            {v.strip() for (v,) in rows if len(v or "") >= length and v.strip() not in NO_VALUE}
            for rows, length in ((texts, 8), (names, 3))
        )
    )


@contextmanager
def overheard(page: Page) -> Iterator[list[str]]:
    """What the interface answers the page while the block lasts, shown or not."""
    answers: list[str] = []

    def listen(route: Route) -> None:
        # The webserver closes idle connections after seconds, at times as one is used again.
        answer = route.fetch(max_retries=5)
        answers.append(answer.text())
        route.fulfill(response=answer)

    page.route("**/graphql*", listen)
    page.on(
        "websocket",
        lambda socket: socket.on("framereceived", lambda frame: answers.append(str(frame))),
    )
    yield answers
    page.unroute_all(behavior="wait")


@pytest.mark.parametrize("table", ["bronze.customers", "silver.customers", "gold.dim_customer"])
def test_no_page_of_a_table_shows_a_person(sample: Up, table: str) -> None:
    known = people(sample)
    said = "Paul Murphy, paul.murphy10002@example.com"
    assert known.found_in(said) >= {"Murphy", "Paul Murphy", "paul.murphy10002@example.com"}
    page_of = f"/assets/{table.replace('.', '/')}"
    with browser(sample.url) as page, overheard(page) as answers:
        shown = []
        page.goto(page_of)
        expect(page.get_by_text("***").first).to_be_visible(timeout=PATIENCE)
        shown.append(page.locator("body").inner_text())
        page.goto(f"{page_of}?view=events")
        expect(page.get_by_text("***").first).to_be_visible(timeout=PATIENCE)
        shown.append(page.locator("body").inner_text())
        page.goto(f"{page_of}?view=checks&checkDetail=contract_satisfied")
        expect(page.get_by_text("by_month").first).to_be_visible(timeout=PATIENCE)
        shown.append(page.locator("body").inner_text())
    assert "***" in "".join(answers)
    assert known.found_in("\n".join([*shown, *answers])) == set()


def test_a_late_table_says_what_was_due_when(sample: Up) -> None:
    due = catalog().spec("gold.fact_orders").due
    assert due is not None
    month = due.newest_month(datetime.now(UTC))
    with browser(sample.url) as page:
        page.goto("/assets/gold/fact_orders?view=checks&checkDetail=due_month_present")
        said = page.get_by_text(
            f"gold.fact_orders is late: {month:%Y-%m} was due on "
            f"{due.moment(month):%Y-%m-%d %H:%M} UTC, the newest month there is 2025-06."
        )
        keep_looking(page, said.first, 120)
        expect(page.get_by_text(f"Land the export of {month:%Y-%m}").first).to_be_visible()
        expect(page.get_by_text("bronze.orders").first).to_be_visible()
        picture(page, "late")
    check = checks(sample)["gold.fact_orders", "due_month_present"]
    execution = check["executionForLatestMaterialization"]
    assert execution["evaluation"] == {"severity": "WARN", "success": False}
    assert not check["blocking"]


# --- something is done by hand ------------------------------------------------------------------


def test_one_month_is_materialized_by_clicks(sample: Up) -> None:
    before = runs(sample)
    with browser(sample.url) as page:
        page.goto("/assets/gold/agg_daily_sales")
        page.get_by_role("button", name="Materialize…").click(timeout=PATIENCE)
        choose(page, "2025-03").get_by_role("button", name="Launch 1 run").click()
        page.get_by_role("link", name="View", exact=True).click()
        expect(page).to_have_url(re.compile(r"/runs/[0-9a-f-]{36}"))
        run = page.url.rpartition("/")[2].partition("?")[0]
        expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=90_000)
        expect(page.get_by_text("gold__agg_daily_sales").first).to_be_visible()
    new = {run_id: facts for run_id, facts in runs(sample).items() if run_id not in before}
    assert new == {
        run: {
            "status": "SUCCESS",
            "assets": {"gold.agg_daily_sales"},
            "months": ("2025-03", "2025-03"),
        }
    }


# --- exports land -------------------------------------------------------------------------------


def test_a_rejected_file_shows_with_its_reason(sample: Up) -> None:
    name = "erp/orders_2025-06_without_status.csv"
    header = ORDERS.replace(",status", "")
    began = time.time()
    sample.land(name, f"{header}3100000,10001,P00226,2025-06-03,2,5.00,10.00\n")
    with browser(sample.url) as page:
        page.goto("/assets/landing/erp/orders?view=checks&checkDetail=files_accepted")
        reason = page.get_by_text("orders_2025-06_without_status.csv has no column status")
        keep_looking(page, reason.first, 60)
        expect(page.get_by_text("Land each file corrected").first).to_be_visible()
        picture(page, "rejected-file")
        page.get_by_text("[Show Markdown]").click()
        refused = page.get_by_role("dialog")
        for name_of in ("orders_2025-01_cut.csv.gz", "orders_2025-06_empty.csv", Path(name).name):
            expect(refused).to_contain_text(name_of)
    check = checks(sample)["landing.erp.orders", "files_accepted"]
    assert check["executionForLatestMaterialization"]["evaluation"] == {
        "severity": "WARN",
        "success": False,
    }
    # Nothing was built of it.
    assert materialized_since(sample, began) == set()
    assert sample.ask("select status from meta.ledger where file = %s", name) == [("rejected",)]


def test_four_files_of_a_month_make_that_month_and_what_depends_on_it(sample: Up) -> None:
    before, began = sample.materialized(), time.time()
    snapshot = (sample.landing / "crm/crm_customers_2025-06.csv").read_text("utf-8-sig").rstrip()
    nora = "nora.newcomer99001@example.org"
    with browser(sample.url) as page:
        page.goto("/assets/gold/fact_orders?view=partitions")
        assert is_green(page, "2025-06")
        assert not is_green(page, "2025-07")
        sample.land(
            "crm/customers_2025-07.csv",
            f"{CUSTOMERS}99001,Nora,Newcomer,{nora},704-555-0143,Austin,TX,73301,1990-02-03,"
            "2025-07-02 08:00:00,2025-07-02 08:00:00\n",
        )
        sample.land(
            "crm/crm_customers_2025-07.csv",
            f"{snapshot}\n99001,Nora Newcomer,{nora},South\n",
        )
        sample.land(
            "erp/orders_2025-07.csv",
            f"{ORDERS}2000001,99001,P00226,2025-07-03,2,5.00,10.00,PAID\n",
        )
        sample.land("erp/erp_sales_2025-07.csv", f"{SALES}9000001,226,99001,2,2025-07-04,10.00\n")
        landed = time.monotonic()
        while not is_green(page, "2025-07"):
            assert time.monotonic() - landed < 90, sample.said
            # The page looks for what is new every fifteen seconds, a person more often.
            page.get_by_role("button", name="refresh").first.click()
            page.wait_for_timeout(500)
        picture(page, "landed")
    wait(lambda: is_built(sample, SAMPLE | {"2025-07"}), 60, sample)
    wait(lambda: not sample.unfinished_runs(), 60, sample)
    assert materialized_since(sample, began) == {(table, "2025-07") for table in TABLES}
    after = sample.materialized()
    assert all(after[table] - before[table] == {"2025-07"} for table in TABLES)
    assert failed_months(sample) == {}
    told = sample.ask(
        "select c.customer_id, f.quantity from gold.fact_orders f "
        "join gold.dim_customer c using (customer_key) where order_id = 2000001"
    )
    assert told == [(99001, 2)]


def test_a_failed_contract_shows_the_rule_and_the_file_corrected_is_green(sample: Up) -> None:
    month = "2025-08"
    wait(lambda: not sample.unfinished_runs(), 60, sample)
    before, runs_before = sample.materialized(), runs(sample)
    rows = [f"{3000000 + n},10001,P00226,{month}-{n % 28 + 1:02},2,5.00,10.00" for n in range(40)]
    sample.land_orders(f"orders_{month}.csv", *(f"{row},LOST" for row in rows))

    def failed() -> list[str]:
        return [
            run
            for run, facts in runs(sample).items()
            if run not in runs_before and facts["status"] == "FAILURE"
        ]

    (run,) = wait(failed, 60, sample)
    rule = "40 of 40 rows break the contract (limit 10%): status must be one of (PENDING, SHIPPED"
    with browser(sample.url) as page:
        page.goto(f"/runs/{run}")
        expect(page.get_by_text("Failure", exact=True).first).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text(rule).first).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text(f"erp/orders_{month}.csv:2 status").first).to_be_visible()

        page.goto("/assets/silver/orders?view=checks&checkDetail=contract_satisfied")
        expect(page.get_by_text(rule).first).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text("This is a blocking asset check").first).to_be_visible()
        expect(page.get_by_text("metalayer rejects silver.orders").first).to_be_visible()
        picture(page, "contract-failed")
        assert verdict(checks(sample)["silver.orders", "contract_satisfied"]) == "FAILED"

        # What was green stays green, and what does not need the month's orders is not held up.
        wait(lambda: not sample.unfinished_runs(), 60, sample)
        after = sample.materialized()
        assert all(before[table] <= after[table] for table in TABLES)
        assert month not in after["silver.orders"] | after["gold.fact_orders"]
        assert all(
            table.split(".")[0] == "gold" or table == "silver.orders"
            for table in failed_months(sample)
        )

        sample.land_orders(f"orders_{month}.csv", *(f"{row},PAID" for row in rows))
        facts = "select count(*) from gold.fact_orders where order_date >= %s"
        wait(lambda: sample.ask(facts, f"{month}-01") == [(40,)], 120, sample)
        wait(lambda: not sample.unfinished_runs(), 90, sample)
        assert failed_months(sample) == {}
        page.reload()
        expect(page.get_by_text("Passed", exact=True).first).to_be_visible(timeout=PATIENCE)
    assert verdict(checks(sample)["silver.orders", "contract_satisfied"]) == "SUCCEEDED"
    assert month in sample.materialized()["gold.fact_orders"]


def test_a_backfill_of_a_year_is_started_by_clicks_and_ends(sample: Up) -> None:
    with browser(sample.url) as page:
        page.goto("/asset-groups")
        page.get_by_role("button", name=f"Materialize all ({len(TABLES)})").click(timeout=PATIENCE)
        dialogue = choose(page, "[2025-01...2025-12]")
        expect(dialogue.get_by_text("12 partitions")).to_be_visible()
        dialogue.get_by_role("button", name="Launch backfill").click()
        page.get_by_role("link", name="View", exact=True).click()
        expect(page).to_have_url(re.compile(r"/runs/b/\w+"))
        backfill = re.split(r"[/?]", page.url.partition("/runs/b/")[2])[0]
        expect(page.get_by_text("2025-01...2025-12").first).to_be_visible(timeout=PATIENCE)
        # Tables that look back over all months wait for those they look at.
        status = page.get_by_text("Status", exact=True).locator("xpath=..")
        expect(status).to_contain_text("Succeeded", timeout=180_000)
        picture(page, "backfill")
    status, spans = backfill_of(sample, backfill)
    assert status == "COMPLETED_SUCCESS"
    # A run spans all months, none is of a month: one for the tables whose months stand alone, and
    # a few for those behind, as the daemon finds them ready. (Dagster has these follow to the
    # newest month, where they read all earlier ones.)
    assert 1 <= len(spans) <= 6
    assert all(first == "2025-01" and last >= "2025-12" for first, last in spans)
    assert is_built(sample, YEAR)
    assert failed_months(sample) == {}
