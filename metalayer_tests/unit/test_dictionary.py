"""The dictionary says all that contracts and SELECTs say, and its site holds together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from metalayer.catalog import Catalog, catalog
from metalayer.cli import main
from metalayer.errors import UsageError
from metalayer.governance.dictionary import Dictionary, dictionary
from metalayer.governance.dictionary_pages import anchor
from metalayer.governance.dictionary_site import build_site
from metalayer.lineage.columns import Origin

TABLES = list(catalog().specs)


@pytest.fixture(scope="module")
def entries() -> Dictionary:
    return dictionary(catalog())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as the command writes it."""
    out = tmp_path_factory.mktemp("site") / "docs"
    assert main(["docs", "--out", str(out)]) == 0
    return out


class Parsed(HTMLParser):
    """A page's ids, links, and words."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


# --- what it knows ------------------------------------------------------------------------------


def roots(entries: Dictionary, place: Origin) -> Iterator[Origin]:
    """The columns at which the ways to `place` begin."""
    sources = entries.made_from.get(place, ())
    if not sources:
        yield place
    for source in sources:
        yield from roots(entries, source)


def test_a_column_is_followed_back_to_the_landed_files(entries: Dictionary) -> None:
    assert set(roots(entries, Origin("gold.fact_sales", "sale_amount"))) == {
        Origin("erp/erp_sales*.csv", "sale_amount")
    }
    assert set(roots(entries, Origin("gold.customer_360_current", "email"))) == {
        Origin("crm/customers*.csv", "email"), Origin("crm/crm_customers*.csv", "email"),
    }  # fmt: skip


def test_every_landed_column_begins_in_its_own_file(entries: Dictionary) -> None:
    for spec in catalog().sources.values():
        assert spec.source is not None
        for c in spec.landed:
            found = set(roots(entries, Origin(spec.full_name, c.name)))
            assert Origin(spec.source.pattern, c.name) in found
            assert {place.table for place in found} == {spec.source.pattern}


def test_downstream_is_upstream_turned_round(entries: Dictionary) -> None:
    for name, entry in entries.tables.items():
        for c in entry.columns:
            place = Origin(name, c.spec.name)
            for reader in c.downstream:
                assert place in entries.made_from[reader]
            for source in c.upstream:
                if source.table in entries.tables:
                    (there,) = [
                        s for s in entries.tables[source.table].columns
                        if s.spec.name == source.column
                    ]  # fmt: skip
                    assert place in there.downstream


def test_lineage_has_every_step_both_ways(entries: Dictionary) -> None:
    steps = entries.lineage(Origin("silver.erp_sales", "sale_amount"))
    assert (
        Origin("erp/erp_sales*.csv", "sale_amount"),
        Origin("bronze.erp_sales", "sale_amount"),
    ) in steps
    assert (
        Origin("gold.fact_sales", "sale_amount"),
        Origin("gold.agg_monthly_sales", "invoiced_amount"),
    ) in steps
    # A brother, made from the same file but not from this column, is no part of it.
    assert not any(end.column == "quantity" for step in steps for end in step)


def test_consumers_are_those_whose_selects_read_the_table(entries: Dictionary) -> None:
    for name, entry in entries.tables.items():
        readers = {t for t in TABLES if name in catalog().inputs(t)}
        assert {c for c in entry.consumers if c in TABLES} == readers | (
            {name.replace("bronze", "silver")} if name.startswith("bronze") else set()
        )
    assert "gold.customer_360_current" in entries.tables["gold.customer_360"].consumers


def test_pictures_have_no_table_left_of_what_it_reads(entries: Dictionary) -> None:
    for name, sources in entries.reads.items():
        assert all(entries.ranks[source] < entries.ranks[name] for source in sources)


# --- the site -----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_a_page_says_all_about_its_table(table: str, site: Path, entries: Dictionary) -> None:
    page, entry = Parsed(site / f"{table}.html"), entries.tables[table]
    text = " ".join(page.text.split())
    spec = entry.spec
    for said in (
        plain(spec.description),
        f"one row per {', '.join(spec.key)}",
        spec.owner.removeprefix("team:"),
        str(spec.due),
        *entry.sources, *entry.consumers, *entry.rules, *(check.name for check in entry.checks),
    ):  # fmt: skip
        assert plain(said) in plain(text), said
    for c in entry.columns:
        assert anchor(spec, c.spec.name) in page.ids
        assert f"{c.spec.meaning}." in text
        for rule in c.rules:
            assert " ".join(rule.split()) in text
        if c.spec.pii:
            assert f"personal: {c.spec.pii.replace('_', ' ')}" in text
    if entry.select is not None:
        assert " ".join(entry.select.split()) in text
        copy = site / "sql" / spec.layer / f"{spec.name}.sql"
        assert copy.read_text().strip() == entry.select
        assert f"sql/{spec.layer}/{spec.name}.sql" in page.links


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = {path.name: Parsed(path) for path in site.glob("*.html")}
    assert len(pages) == len(TABLES) + 1
    for name, page in pages.items():
        assert len(page.links) > len(TABLES)
        for link in page.links:
            target, _, place = unquote(link).partition("#")
            assert (site / (target or name)).exists(), (name, link)
            if place:
                assert place in pages[target or name].ids, (name, link)


def test_nothing_comes_from_the_network(site: Path) -> None:
    """What Fuse.js asks for, which is nothing, a browser without a network shows (`e2e`)."""
    own = [p for p in site.rglob("*") if p.suffix in (".html", ".css", ".js")]
    assert len(own) == len(TABLES) + 1 + 4
    for path in own:
        if path.name != "fuse.js":
            text = path.read_text(encoding="utf-8")
            assert re.findall(r"https?:|@import|//cdn|url\(", text) == [], path.name


def test_a_site_takes_the_place_of_an_earlier_one_and_of_nothing_else(
    entries: Dictionary, site: Path, tmp_path: Path
) -> None:
    before = {p.relative_to(site): p.read_bytes() for p in site.rglob("*") if p.is_file()}
    (site / "old.html").write_text("a page of a table that is gone")
    build_site(entries, site)
    after = {p.relative_to(site): p.read_bytes() for p in site.rglob("*") if p.is_file()}
    assert after == before
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        build_site(entries, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letters.txt"]


def test_any_text_may_stand_in_a_contract(tmp_path: Path) -> None:
    hostile = "*Bold* `code` |bar| under_ :role:`x` <script>alert(1)</script> \\ `` .. raw:: html"
    tables = catalog()
    spec = tables.specs["silver.orders"]
    first, *others = spec.columns
    changed = replace(spec, description=hostile, columns=(replace(first, meaning=hostile), *others))
    specs = {**tables.specs, "silver.orders": changed}
    worded = dictionary(Catalog(specs, tables.selects, tables.code_versions))
    site = build_site(worded, tmp_path / "site").parent
    page = site / "silver.orders.html"
    assert "<script>alert" not in page.read_text()
    assert f"{hostile}." in " ".join(Parsed(page).text.split())
    assert "</script>" not in (site / "_static" / "records.js").read_text()
