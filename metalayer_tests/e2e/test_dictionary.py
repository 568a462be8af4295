"""The dictionary in a real browser, opened from a disk: search, lineage, dark, a phone's width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from metalayer.catalog import catalog
from metalayer.governance.dictionary import dictionary
from metalayer.governance.dictionary_site import build_site
from metalayer_tests.e2e.up import picture

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1400, "height": 950}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("site") / "docs"
    return build_site(dictionary(catalog()), folder).parent.as_uri()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.fail("There is no Chromium. Install it: apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page without a network, on which nothing may go wrong."""
    context = chromium.new_context(viewport=DESK, color_scheme="light", offline=True)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(request.url))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield opened
    context.close()
    assert wrong == []


def found(page: Page, text: str) -> list[str]:
    """The names that a search lists, the best first."""
    page.get_by_role("combobox").fill(text)
    expect(page.locator("#found")).to_be_visible()
    return page.locator("#found strong").all_inner_texts()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("fcat_sales", "gold.fact_sales"),
        ("fact sales", "gold.fact_sales"),
        ("reconcilation", "gold.sales_reconciliation"),
        ("custmer", "silver.customers"),
        ("phne", "phone"),
        ("emial", "email"),
        ("lifetme value", "lifetime_value"),
        ("birth_dte", "dob"),
    ],
)
def test_the_search_forgives_typos(typed: str, meant: str, page: Page, site: str) -> None:
    page.goto(f"{site}/index.html")
    assert meant in found(page, typed)[:4]


def test_what_is_like_nothing_is_said_to_be(page: Page, site: str) -> None:
    page.goto(f"{site}/index.html")
    assert found(page, "qqxxqqxx") == []
    expect(page.locator("#found")).to_contain_text("Nothing is like")


def test_a_person_types_a_typo_and_reads_about_the_column(page: Page, site: str) -> None:
    page.goto(f"{site}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("lifetme value")
    expect(page.locator("#found [aria-selected=true] strong")).to_have_text("lifetime_value")
    page.keyboard.press("Enter")
    page.wait_for_url("**/gold.customer_360.html#*")
    section = page.locator("section", has=page.get_by_role("heading", name="lifetime_value")).last
    expect(section).to_contain_text("Total of COMPLETED orders ever.")
    # Its lineage lies open, from the landed file on.
    graph = section.locator(".graph svg")
    expect(graph).to_be_visible()
    for text in ("erp/orders*.csv", "bronze.orders", "silver.orders", "gold.fact_orders"):
        expect(graph.get_by_text(text, exact=True)).to_have_count(1)
    graph.locator("a[href*='silver.orders.html#'] text", has_text="total_amount").click()
    page.wait_for_url("**/silver.orders.html#column-silver-orders-total-amount")
    expect(page.get_by_role("heading", level=1)).to_contain_text("silver.orders")


def brightness(page: Page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(", "))) / 3


def test_light_and_dark(page: Page, site: str) -> None:
    page.goto(f"{site}/gold.fact_sales.html")
    assert brightness(page) > 200
    picture(page, "dictionary-light")
    page.emulate_media(color_scheme="dark")
    assert brightness(page) < 60
    picture(page, "dictionary-dark")
    # What a person chooses outlasts the page, and counts more than the machine.
    page.get_by_role("button", name="Light or dark").click()
    assert brightness(page) > 200
    page.goto(f"{site}/gold.fact_orders.html")
    assert brightness(page) > 200


def test_no_page_is_wider_than_a_phone(page: Page, site: str) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    for name in ("index", *catalog().specs):
        page.goto(f"{site}/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
    page.goto(f"{site}/index.html")
    expect(page.locator("#tables")).to_be_hidden()
    page.get_by_role("button", name="Tables").click()
    page.locator("#tables").get_by_role("link", name="fact_sales").click()
    page.wait_for_url("**/gold.fact_sales.html")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    picture(page, "dictionary-phone")
    assert found(page, "custmer")
    box = page.locator("#found").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
