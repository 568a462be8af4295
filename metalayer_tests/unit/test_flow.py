"""Where personal data may flow: what is made from it says so, or says why not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st

from metalayer.catalog import catalog
from metalayer.contracts.classification import covers, default_sensitivity
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import ContractError
from metalayer.governance import flow, verdict
from metalayer.governance.flow import refuse_unprotected_columns
from metalayer.lineage.select import Reach, Select

KINDS = ("name", "email", "phone", "free_text")


def made(name: str, pii: str | None = None, declassified: str | None = None) -> ColumnSpec:
    return ColumnSpec(
        *(name, "text", pl.String, "Text"),
        pii=pii,
        sensitivity=default_sensitivity(pii),
        declassified=declassified,
    )


def changed(name: str, column: str, **facts: object) -> dict[str, TableSpec]:
    """The tables of the project, with one column declared differently."""
    specs = dict(catalog().specs)
    columns = tuple(
        replace(c, **facts) if c.name == column else c  # type: ignore[arg-type]
        for c in specs[name].columns
    )
    assert columns != specs[name].columns
    return specs | {name: replace(specs[name], columns=columns)}


def refusal(specs: dict[str, TableSpec]) -> str:
    with pytest.raises(ContractError) as refused:
        refuse_unprotected_columns(specs, catalog().selects)
    return str(refused.value)


def test_the_tables_there_are_are_in_order() -> None:
    refuse_unprotected_columns(catalog().specs, catalog().selects)


def test_the_whole_path_is_named_and_how_to_mend_it() -> None:
    said = refusal(changed("gold.dim_customer", "dob", pii=None, sensitivity="internal"))
    assert (
        "contracts/gold/dim_customer.py: 'dob' is made from birth_date data and does not say so: "
        "gold.dim_customer.dob <- silver.customers.dob <- bronze.customers.dob "
        "<- crm/customers*.csv column dob"
    ) in said
    assert 'Give the column pii="birth_date" (or "free_text"), or declassified=' in said


def test_a_column_is_not_less_sensitive_than_its_origin() -> None:
    said = refusal(changed("gold.dim_customer", "dob", sensitivity="confidential"))
    assert "made from restricted values" in said
    assert 'sensitivity="restricted"' in said


def test_what_is_made_from_encrypted_values_is_encrypted() -> None:
    said = refusal(changed("gold.dim_customer", "dob", sealed_type=None))
    assert "made from encrypted values" in said
    assert "encrypted=True" in said


def test_without_its_reason_a_declassified_column_is_refused() -> None:
    said = refusal(changed("silver.customers", "is_phone_valid", declassified=None))
    assert "silver.customers.is_phone_valid <- bronze.customers.phone" in said


def test_a_view_that_renames_a_personal_column_is_refused() -> None:
    specs = dict(catalog().specs)
    name = "gold.customer_360"
    body = "select customer_id, email as contact from gold.customer_360"
    specs[name] = replace(specs[name], views={"contacts": body})
    said = refusal(specs)
    assert "gold.contacts.contact <- gold.customer_360.email <- gold.dim_customer.email" in said
    specs[name] = replace(specs[name], views={"contacts": body.replace("as contact", "")})
    refuse_unprotected_columns(specs, catalog().selects)


def test_a_derived_column_is_judged() -> None:
    specs = changed("gold.dim_customer", "valid_to", derived="lower(email)")
    assert "gold.dim_customer.valid_to <- gold.dim_customer.email <- silver." in refusal(specs)


def test_every_personal_column_of_the_files_arrives_tagged_everywhere() -> None:
    found = {
        (c.name, c.pii)
        for spec in catalog().specs.values()
        for c in spec.columns
        if spec.layer == "bronze" and c.pii
    }
    for spec in catalog().specs.values():
        for c in spec.columns:
            for name, kind in found:
                if c.name == name:
                    assert c.pii == kind, f"{spec.full_name}.{name}"
    assert {kind for _, kind in found} == {"name", "email", "phone", "address", "birth_date"}


# --- any graph ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    specs: dict[str, TableSpec]
    selects: dict[str, Select]
    edges: dict[tuple[str, str], list[tuple[str, str]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Tables in a row, each column of one made from some columns of those before it."""
    graph = Graph({}, {}, {})
    for place in range(draw(st.integers(2, 5))):
        name = f"gold.t{place}"
        columns = []
        parts = []
        before = [(t, c.name) for t, spec in graph.specs.items() for c in spec.columns]
        for number in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from((None, None, *KINDS)))
            reason = draw(st.sampled_from((None, None, None, "count only")))
            columns.append(made(f"c{number}", kind, reason))
            if before:
                origins = draw(st.lists(st.sampled_from(before), max_size=2, unique=True))
                graph.edges[name, f"c{number}"] = origins
                terms = [f"{t.partition('.')[2]}.{c}" for t, c in origins]
                shape = draw(st.sampled_from(("concat({})", "max({}) over ()", "count({})")))
                inner = " || ".join(terms) or "'x'"
                parts.append(f"{shape.format(inner)} as c{number}")
        if before:
            tables = list(graph.specs)
            joined = " cross join ".join(tables)
            text = f"select {', '.join(parts)} from {joined}"
            if draw(st.booleans()):
                text = f"with found as ({text}) select * from found"
            if draw(st.booleans()):
                # What is only asked in a condition is no value.
                first = next(iter(graph.specs.values())).columns[0].name
                text = f"select the_row.* from ({text}) as the_row, gold.t0 as asked"
                text += f" where asked.{first} = 'x'"
            tree = sqlglot.parse_one(text, read="postgres")
            assert isinstance(tree, sqlglot.exp.Query)
            inputs = dict.fromkeys(tables, Reach.SAME)
            graph.selects[name] = Select(name, Path("x.sql"), text, inputs, tree)
        graph.specs[name] = TableSpec(
            *("gold", f"t{place}", "A table.", "team:x", tuple(columns), "c0"),
            timedelta(days=1),
            0.1,
        )
    return graph


def leaks(graph: Graph) -> bool:
    """Whether a value of a tagged column reaches one that neither covers it nor says why not."""
    columns = {(t, c.name): c for t, spec in graph.specs.items() for c in spec.columns}
    for source, tagged in columns.items():
        if tagged.pii is None:
            continue
        reached = {source}
        for made_column, origins in graph.edges.items():  # upstream before downstream
            own = columns[made_column]
            if reached & set(origins) and own.declassified is None:
                if not covers(own.pii, tagged.pii):
                    return True
                reached.add(made_column)
    return False


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_nothing_personal_reaches_an_untagged_column_in_any_graph(graph: Graph) -> None:
    if leaks(graph):
        with pytest.raises(ContractError, match=" <- gold"):
            refuse_unprotected_columns(graph.specs, graph.selects)
    else:
        refuse_unprotected_columns(graph.specs, graph.selects)


# --- verdicts that are kept --------------------------------------------------------------------


def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the flow was really followed."""
    times: list[int] = []
    follow = flow.refuse_unprotected_columns

    def counted(specs: dict[str, TableSpec], selects: dict[str, Select]) -> None:
        times.append(1)
        follow(specs, selects)

    monkeypatch.setattr(flow, "refuse_unprotected_columns", counted)
    return times


def test_a_verdict_is_kept_for_the_same_tables_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALAYER_HOME", str(tmp_path))
    times = judged(monkeypatch)
    specs, selects = catalog().specs, catalog().selects
    verdict.refuse_unprotected(specs, selects)
    verdict.refuse_unprotected(specs, selects)
    assert len(times) == 1
    other = changed("gold.dim_customer", "email", pii=None, sensitivity="internal")
    for _ in range(2):  # what was refused is refused again
        with pytest.raises(ContractError):
            verdict.refuse_unprotected(other, selects)
    assert len(times) == 3


def test_a_home_that_cannot_be_had_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = judged(monkeypatch)
    (tmp_path / "verdicts").write_text("in the way")
    for home in (tmp_path / "missing", tmp_path):
        monkeypatch.setenv("METALAYER_HOME", str(home))
        verdict.refuse_unprotected(catalog().specs, catalog().selects)
    assert len(times) == 2
    assert not (tmp_path / "missing").exists()
