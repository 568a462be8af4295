"""Exported contracts keep the official schema, and say what the contract says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft201909Validator

from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.contracts.contract import TableSpec, pandera_schema
from metalayer.governance.dictionary import Dictionary, dictionary
from metalayer.lineage.columns import column_lineage

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "odcs-3.1.0.schema.json").read_text())
TABLES = sorted(catalog().specs)


@pytest.fixture(scope="module")
def entries() -> Dictionary:
    return dictionary(catalog())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Table -> its file, written by the command and read back."""
    out = tmp_path_factory.mktemp("odcs") / "new" / "contracts"
    assert main(["contracts", "export", "--format", "odcs", "--out", str(out)]) == 0
    files = sorted(out.iterdir())
    return {f.name.removesuffix(".odcs.yaml"): yaml.safe_load(f.read_text()) for f in files}


def properties(contract: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (table,) = contract["schema"]
    return {p["name"]: p for p in table["properties"]}


def problems(contract: Any) -> list[str]:
    return [
        f"{e.json_path}: {e.message}" for e in Draft201909Validator(SCHEMA).iter_errors(contract)
    ]


def test_there_is_a_file_for_each_table(exported: dict[str, Any]) -> None:
    assert sorted(exported) == TABLES


@pytest.mark.parametrize("table", TABLES)
def test_it_keeps_the_schema_of_the_standard(table: str, exported: dict[str, Any]) -> None:
    assert problems(exported[table]) == []


def test_the_schema_refuses_what_is_wrong(exported: dict[str, Any]) -> None:
    wrong = json.loads(json.dumps(exported["silver.orders"]))
    wrong["schema"][0]["properties"][0]["logicalType"] = "whole number"
    del wrong["status"]
    assert len(problems(wrong)) == 2


@pytest.mark.parametrize("table", TABLES)
def test_it_says_what_the_contract_says(table: str, exported: dict[str, Any]) -> None:
    spec, contract = catalog().specs[table], exported[table]
    (content,) = contract["schema"]
    columns = properties(contract)
    assert contract["description"]["purpose"] == spec.description
    assert contract["team"]["name"] == spec.owner
    assert list(columns) == [c.name for c in spec.columns]
    for c in spec.columns:
        assert columns[c.name]["description"] == c.meaning
        assert columns[c.name]["physicalType"] == c.type
        assert columns[c.name]["required"] is not c.nullable
        assert columns[c.name].get("primaryKey", False) is c.is_key
        level = c.sensitivity if c.sensitivity != "internal" else None
        assert columns[c.name].get("classification") == level
        assert (f"pii:{c.pii}" in columns[c.name].get("tags", [])) is bool(c.pii)
    by_position = sorted(
        (c["primaryKeyPosition"], name) for name, c in columns.items() if "primaryKey" in c
    )
    assert tuple(name for _, name in by_position) == spec.key
    assert [n for n, c in columns.items() if c.get("partitioned")] == [spec.month_column]
    (unique,) = [q for q in content["quality"] if q.get("metric") == "duplicateValues"]
    assert tuple(unique["arguments"]["properties"]) == spec.key


@pytest.mark.parametrize("table", [t for t in TABLES if t in catalog().selects])
def test_lineage_is_that_of_the_select(table: str, exported: dict[str, Any]) -> None:
    columns = properties(exported[table])
    for column, origins in column_lineage(catalog().selects[table], catalog().specs).items():
        sources = [f"{o.table}.{o.column}" for o in origins]
        assert columns[column].get("transformSourceObjects", []) == sources


def test_lineage_begins_at_the_landed_files(exported: dict[str, Any]) -> None:
    columns = properties(exported["bronze.orders"])
    assert columns["order_id"]["transformSourceObjects"] == ["erp/orders*.csv.order_id"]
    assert columns["month"]["transformSourceObjects"] == ["erp/orders*.csv.order_date"]
    assert "transformSourceObjects" not in columns["_extra"]


@pytest.mark.parametrize("table", TABLES)
def test_no_rule_is_left_out(table: str, exported: dict[str, Any]) -> None:
    columns, spec = properties(exported[table]), catalog().specs[table]
    for name, column in pandera_schema(spec).columns.items():
        said = columns[name]
        assert len(said.get("logicalTypeOptions", {})) + len(said.get("quality", [])) == len(
            column.checks
        ), name
    words = [
        q["description"] for q in exported[table]["schema"][0]["quality"] if "description" in q
    ]
    for check in pandera_schema(spec).checks:
        assert str(check.error) in words


def test_rules_are_ones_that_a_program_can_check(exported: dict[str, Any]) -> None:
    orders = properties(exported["silver.orders"])
    assert orders["quantity"]["logicalTypeOptions"]["exclusiveMinimum"] == 0
    (states,) = orders["status"]["quality"]
    assert states["arguments"]["validValues"] == ["CANCELLED", "COMPLETED", "PENDING", "SHIPPED"]
    code = properties(exported["silver.erp_sales"])["product_code"]
    assert code["logicalTypeOptions"] == {"pattern": r"^P[0-9]{5}$"}
    day = properties(exported["silver.customers"])["dob"]
    assert {"property": "encryptedType", "value": "date"} in day["customProperties"]


@pytest.mark.parametrize("table", TABLES)
def test_references_lead_to_a_column_of_a_file(table: str, exported: dict[str, Any]) -> None:
    pointed = {
        name: p["relationships"][0]["to"]
        for name, p in properties(exported[table]).items()
        if "relationships" in p
    }
    spec: TableSpec = catalog().specs[table]
    assert sorted(pointed) == sorted(c.name for c in spec.columns if c.references)
    for target in pointed.values():
        file, _, place = target.partition("#")
        (_, _, content_id, _, column_id) = place.split("/")
        (content,) = exported[file.removesuffix(".odcs.yaml")]["schema"]
        assert content["id"] == content_id
        assert column_id in {p["id"] for p in content["properties"]}


def test_when_a_month_is_due_and_how_fresh_it_is(exported: dict[str, Any]) -> None:
    for table, spec in catalog().specs.items():
        levels = {level["property"]: level for level in exported[table]["slaProperties"]}
        assert levels["latency"]["value"] == spec.fresh_within.days
        assert spec.due is not None
        assert levels["timeOfAvailability"]["schedule"] == f"0 {spec.due.hour} {spec.due.day} * *"


def test_consumers_are_named(exported: dict[str, Any], entries: Dictionary) -> None:
    custom = {p["property"]: p["value"] for p in exported["gold.customer_360"]["customProperties"]}
    assert custom["consumers"] == [
        "gold.customer_360_current",
        "gold.customer_cohorts",
        "gold.business_kpis",
    ]


def test_the_same_contracts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["contracts", "export", "--out", str(tmp_path / name)]) == 0
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
