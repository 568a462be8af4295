"""Contracts and SELECTs that do not hold together: the file is named, the cause, and the fix."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metalayer import catalog as catalog_module
from metalayer import contracts
from metalayer.catalog import Catalog, catalog
from metalayer.contracts.contract import (
    Contract,
    TableSpec,
    _refuse_what_cannot_be_sealed,
    bronze_spec,
    column,
    key,
    month_column,
    pandera_schema,
    table_spec,
)
from metalayer.contracts.sealed import WELL_SEALED
from metalayer.errors import ContractError
from metalayer.lineage.select import Select, parse_select

IMPORTS = """
from datetime import date, datetime
from decimal import Decimal
from metalayer.contracts.contract import Contract, column, key, month_column
"""
PARCELS = '''
class Parcels(Contract):
    """One row per parcel."""

    parcel_id: int = key("Number of the parcel")
    sent_on: date = month_column("Day it was sent")
    weight: Decimal = column("Weight in kg", ge=0)

    class Table:
        owner = "team:logistics"

    class Source:
        files = "wms/parcels*.csv"
'''
SELECT = """
select
    try_cast(parcel_id as bigint) as parcel_id,
    try_cast(sent_on as date) as sent_on,
    try_cast(weight as numeric(18, 2)) as weight,
    _delivery_id,
    _line
from bronze.parcels
where month >= :start and month < :end and _is_latest
"""

Declare = Callable[..., TableSpec]


@pytest.fixture
def declare(tmp_path: Path) -> Iterator[Declare]:
    """Write a contract's file and read the table off it."""
    imported: list[str] = []

    def declare(text: str, layer: str = "silver", name: str = "parcels") -> TableSpec:
        path = tmp_path / "contracts" / layer / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(IMPORTS + text)
        module_name = f"contract_{uuid.uuid4().hex}"
        module_spec = importlib.util.spec_from_file_location(module_name, path)
        assert module_spec is not None
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_name] = module  # annotations and the file are looked up there
        imported.append(module_name)
        module_spec.loader.exec_module(module)
        (contract,) = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Contract) and value is not Contract
        ]
        return table_spec(contract)

    yield declare
    for module_name in imported:
        del sys.modules[module_name]


@pytest.fixture
def parse(tmp_path: Path, declare: Declare) -> Callable[[str], Select]:
    """Write a SELECT for `PARCELS` and read it, beside the tables that there really are."""

    def parse(text: str) -> Select:
        spec = declare(PARCELS)
        specs = {**catalog().specs, "bronze.parcels": bronze_spec(spec), spec.full_name: spec}
        path = tmp_path / "sql" / "silver" / "parcels.sql"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return parse_select(path, spec, specs)

    return parse


def test_a_contract_that_holds_together(declare: Declare, parse: Callable[[str], Select]) -> None:
    spec = declare(PARCELS)
    assert (spec.full_name, spec.key, spec.month_column) == (
        "silver.parcels", ("parcel_id",), "sent_on"
    )  # fmt: skip
    assert [c.type for c in spec.columns] == ["bigint", "date", "numeric(18,2)", "bigint", "bigint"]
    assert spec.source is not None
    assert (spec.source.name, spec.source.month_from) == ("wms/parcels", "sent_on")
    assert parse(SELECT).outputs == ("parcel_id", "sent_on", "weight", "_delivery_id", "_line")


@pytest.mark.parametrize(
    ("old", "new", "message", "next_step"),
    [
        (
            '    """One row per parcel."""\n',
            "",
            "contracts/silver/parcels.py has no description",
            "Give class Parcels a docstring",
        ),
        (
            '    class Table:\n        owner = "team:logistics"\n',
            "",
            "contracts/silver/parcels.py has no table facts",
            "Add an inner `class Table:` with at least `owner`",
        ),
        (
            'owner = "team:logistics"',
            "max_reject_rate = 0.5",
            "contracts/silver/parcels.py has no owner",
            'Add owner = "team:..." to `class Table:`',
        ),
        (
            "= key(",
            "= column(",
            "contracts/silver/parcels.py has no key",
            "Declare the identifying column with key(...)",
        ),
        (
            "= month_column(",
            "= column(",
            "contracts/silver/parcels.py has no month column",
            "Declare the column that tells the month with month_column(...)",
        ),
        (
            "weight: Decimal = column(",
            "weight: date = month_column(",
            "contracts/silver/parcels.py has two month columns, 'sent_on' and 'weight'",
            "Keep one",
        ),
        (
            "weight: Decimal",
            "weight: list",
            "contracts/silver/parcels.py: 'weight' has the unknown type <class 'list'>",
            "Use one of int, str, bool, float, date, datetime, Decimal",
        ),
        (
            'weight: Decimal = column("Weight in kg", ge=0)',
            "weight: Decimal",
            "contracts/silver/parcels.py: 'weight' is not declared with key(), column() or "
            "month_column()",
            "Use one of them, so that the column has a meaning",
        ),
        (
            "weight: Decimal",
            "Weight: Decimal",
            "contracts/silver/parcels.py: 'Weight' is no plain column name",
            "Use lower case letters, digits and _",
        ),
        (
            "ge=0",
            'references="silver.orders"',
            "contracts/silver/parcels.py: 'weight' references 'silver.orders'",
            'Write it as "layer.table.column"',
        ),
        (
            'files = "wms/parcels*.csv"',
            'kind = "delta"',
            "contracts/silver/parcels.py: `class Source:` has no files",
            'Add files = "system/export*.csv"',
        ),
        (
            'files = "wms/parcels*.csv"',
            'files = "wms/parcels*.csv"\n        kind = "stream"',
            "contracts/silver/parcels.py: Source.kind is 'stream'",
            'Use "delta" or "snapshot"',
        ),
        (
            'owner = "team:logistics"',
            'owner = "team:logistics"\n        due = 5',
            "contracts/silver/parcels.py: Table.due is 5",
            "Use Due(day=5, hour=6) for the 5th of the next month, 06:00 UTC, or None for never",
        ),
        (
            'owner = "team:logistics"',
            'owner = "team:logistics"\n        fresh_within = 35',
            "contracts/silver/parcels.py: Table.fresh_within is 35",
            "Use a timedelta of an hour or more, e.g. timedelta(days=35)",
        ),
    ],
)
def test_what_a_contract_lacks_is_named_with_the_fix(
    declare: Declare, old: str, new: str, message: str, next_step: str
) -> None:
    assert old in PARCELS
    with pytest.raises(ContractError) as refused:
        declare(PARCELS.replace(old, new))
    assert (refused.value.message, refused.value.next_step) == (message, next_step)


def test_when_a_month_is_due(declare: Declare) -> None:
    assert str(declare(PARCELS).due) == "day 5 of the next month, 06:00 UTC"
    never = declare(PARCELS.replace("        owner", "        due = None\n        owner"))
    assert never.due is None
    assert bronze_spec(never).due is None


def test_free_text_stays_so_as_it_landed(declare: Declare) -> None:
    spec = declare(PARCELS.replace("ge=0)", "ge=0, free_text=True)"))
    assert [c.name for c in spec.columns if c.is_free_text] == ["weight"]
    assert bronze_spec(spec).column("weight").is_free_text


def test_how_sensitive_a_column_is_follows_from_its_kind(declare: Declare) -> None:
    kinds = {"None": "internal", "'email'": "confidential", "'birth_date'": "restricted"}
    for kind, level in kinds.items():
        spec = declare(PARCELS.replace("ge=0)", f"ge=0, pii={kind})"))
        assert spec.column("weight").sensitivity == level
        assert bronze_spec(spec).column("weight").sensitivity == level
    spec = declare(PARCELS.replace("ge=0)", 'ge=0, pii="email", sensitivity="restricted")'))
    assert spec.column("weight").sensitivity == "restricted"


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ('pii="iris"', "unknown pii 'iris'. Use one of name, email, phone, address, birth_date"),
        ('sensitivity="secret"', "unknown sensitivity 'secret'. Use one of public, internal"),
        ('declassified=" "', "declassified without a reason"),
    ],
)
def test_words_of_classification_are_of_a_closed_set(
    declare: Declare, fact: str, said: str
) -> None:
    with pytest.raises(ContractError) as refused:
        declare(PARCELS.replace("ge=0)", f"ge=0, {fact})"))
    assert "contracts/silver/parcels.py: 'weight' " in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["x" * 33, "Parcels", "parcels-2"])
def test_a_table_is_named_so_that_its_months_can_be(declare: Declare, name: str) -> None:
    with pytest.raises(ContractError, match=rf"contracts/silver/{name}\.py is no name for a table"):
        declare(PARCELS, name=name)


def test_a_contract_in_no_layer(declare: Declare) -> None:
    with pytest.raises(ContractError, match=r"contracts/bronze/parcels\.py is in no layer"):
        declare(PARCELS, layer="bronze")


@pytest.mark.parametrize(
    ("old", "new", "message", "next_step"),
    [
        (
            "select\n",
            "select\n    1 as postage,\n",
            "sql/silver/parcels.sql selects 'postage', which contracts/silver/parcels.py does not "
            "declare",
            "Add it there or drop it here",
        ),
        (
            "    try_cast(sent_on as date) as sent_on,\n",
            "",
            "sql/silver/parcels.sql does not select 'sent_on', which contracts/silver/parcels.py "
            "declares",
            "Select it here or drop it there",
        ),
        (
            "    _delivery_id,\n    _line\n",
            "    _line,\n    _delivery_id\n",
            "sql/silver/parcels.sql selects its columns in another order than "
            "contracts/silver/parcels.py declares them",
            "Select parcel_id, sent_on, weight, _delivery_id, _line",
        ),
        (
            "bronze.parcels",
            "silver.parcels",
            "sql/silver/parcels.sql reads its own table",
            "Read the tables it is made from",
        ),
        ("bronze.parcels", "bronze.letters", "sql/silver/parcels.sql reads the unknown table "
         "'bronze.letters'", "Known are "),
        ("bronze.parcels", "parcels", "sql/silver/parcels.sql reads the unknown table 'parcels'",
         "Known are "),
        ("from ", "frm ", "sql/silver/parcels.sql is not valid SQL", "Mend the statement"),
        ("\nselect", "\ndelete from bronze.orders;\nselect", "sql/silver/parcels.sql is not one "
         "SELECT", "Keep a single SELECT in the file"),
        ("\nselect", "\ncreate table x as select", "sql/silver/parcels.sql is not one SELECT",
         "Keep a single SELECT in the file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_select_is_named_with_the_fix(
    parse: Callable[[str], Select], old: str, new: str, message: str, next_step: str
) -> None:
    assert old in SELECT
    with pytest.raises(ContractError) as refused:
        parse(SELECT.replace(old, new))
    assert refused.value.message.startswith(message)
    assert refused.value.next_step is not None
    assert refused.value.next_step.startswith(next_step)


@pytest.mark.parametrize(
    "text",
    [
        "with typed as ("
        + SELECT
        + ") select parcel_id, sent_on, weight, _delivery_id, _line from typed",
        SELECT.replace("\nselect", "\nselect distinct"),
        SELECT + "union all" + SELECT,
    ],
    ids=["in a step", "under distinct", "in a union"],
)
def test_landed_text_is_cast_in_the_final_select(parse: Callable[[str], Select], text: str) -> None:
    # Elsewhere a failed cast could not be told from a value that is missing.
    with pytest.raises(ContractError) as refused:
        parse(text)
    assert "sql/silver/parcels.sql casts landed text outside a plain final select" in str(
        refused.value
    )


def test_a_cast_to_an_unsupported_type(parse: Callable[[str], Select]) -> None:
    with pytest.raises(ContractError) as refused:
        parse(SELECT.replace("as bigint", "as interval"))
    assert "sql/silver/parcels.sql has a try_cast to INTERVAL" in str(refused.value)


# ---- encrypted columns


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (key("Number", encrypted=True), "is part of the key"),
        (column("Number", encrypted=True, identifies="customer"), "identifies somebody"),
        (column("Number", encrypted=True, references="silver.a.b"), "references another table"),
        (column("Number", encrypted=True, derived="1"), "is derived"),
        (month_column("Day", encrypted=True), "is the month column"),
        (column("Number", encrypted=True, gt=0, isin=[1]), "has rules: greater_than, isin"),
    ],
)
def test_what_asks_for_plain_values_is_not_encrypted(info: Any, problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        _refuse_what_cannot_be_sealed(info.metadata["metalayer"], info, "x.py: 'x'")


def test_an_encrypted_column_is_text_that_is_sealed() -> None:
    for table in ("silver.customers", "gold.dim_customer"):
        spec = catalog_module.catalog().spec(table)
        dob = spec.column("dob")
        assert (dob.type, dob.sealed_type) == ("text", "date")
        (check,) = pandera_schema(spec).columns["dob"].checks
        assert check.statistics == {"pattern": WELL_SEALED}
    bronze = catalog_module.catalog().spec("bronze.customers").column("dob")
    assert bronze.sealed_type == "date"
    assert "N/A" in bronze.null_tokens


# ---- the catalog of a project of its own


Project = Callable[[dict[str, str]], Catalog]
GOLD = '''
class {cls}(Contract):
    """One row per {name}."""

    {name}_id: int = key("Number")
    sent_on: date = month_column("Day it was sent")

    class Table:
        owner = "team:logistics"
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Write a project's contracts and SELECTs and find its tables, as importing it would."""
    package = f"contracts_{uuid.uuid4().hex}"

    def load(files: dict[str, str]) -> Catalog:
        for layer in ("silver", "gold"):
            for folder in (tmp_path / package / layer, tmp_path / "sql" / layer):
                folder.mkdir(parents=True, exist_ok=True)
            (tmp_path / package / layer / "__init__.py").touch()
        (tmp_path / package / "__init__.py").touch()
        for name, text in files.items():
            path = tmp_path / name.replace("contracts/", f"{package}/")
            path.write_text(IMPORTS + text if path.suffix == ".py" else text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(catalog_module, "contracts", importlib.import_module(package))
        monkeypatch.setattr(catalog_module, "PROJECT_ROOT", tmp_path)
        return catalog_module.catalog.__wrapped__()

    return load


def gold(name: str, reads: str) -> dict[str, str]:
    """A gold table that reads another one of its kind."""
    source_id = f"{reads.partition('.')[2].removesuffix('s')}_id"
    return {
        f"contracts/gold/{name}s.py": GOLD.format(cls=f"{name.title()}s", name=name),
        f"sql/gold/{name}s.sql": f"select {source_id} as {name}_id, sent_on from {reads} "
        "where sent_on >= :start and sent_on < :end",
    }


PARCELS_FILES = {"contracts/silver/parcels.py": PARCELS, "sql/silver/parcels.sql": SELECT}


def test_a_table_is_a_contract_and_a_select(project: Project) -> None:
    found = project({**PARCELS_FILES, **gold("letter", "silver.parcels")})
    assert list(found.specs) == ["bronze.parcels", "silver.parcels", "gold.letters"]
    assert list(found.sources) == ["wms/parcels"]


def refusal(project: Project, files: dict[str, str]) -> str:
    with pytest.raises(ContractError) as refused:
        project(files)
    return str(refused.value)


def test_a_contract_without_a_select(project: Project) -> None:
    said = refusal(project, {"contracts/silver/parcels.py": PARCELS})
    assert "contracts/silver/parcels.py has no SELECT" in said
    assert "Add sql/silver/parcels.sql" in said


def test_a_select_without_a_contract(project: Project) -> None:
    said = refusal(project, {**PARCELS_FILES, "sql/gold/letters.sql": "select 1"})
    assert "sql/gold/letters.sql has no contract" in said
    assert "Add contracts/gold/letters.py" in said


def test_tables_that_read_each_other_in_a_circle(project: Project) -> None:
    circle = {**gold("letter", "gold.stamps"), **gold("stamp", "gold.letters")}
    said = refusal(project, {**PARCELS_FILES, **circle})
    assert "read each other in a circle" in said
    assert "gold.letters -> " in said
    assert "gold.stamps" in said


def test_rewording_is_no_reason_to_rebuild(project: Project, tmp_path: Path) -> None:
    found = project(PARCELS_FILES)
    before = found.code_versions["silver.parcels"]
    contract = found.specs["silver.parcels"].path
    assert contract is not None
    contract.write_text(
        "# A note.\n" + IMPORTS + PARCELS.replace("One row per parcel", "A parcel a row")
    )
    reworded = SELECT.replace("from bronze", "-- why\nFROM  bronze")
    assert project({"sql/silver/parcels.sql": reworded}).code_versions["silver.parcels"] == before
    # So is when a month is due, with all that has to be imported for it, and what a sample hides.
    due = PARCELS.replace("        owner", "        due = Due(day=2)\n        owner")
    said = 'ge=0, free_text=True, sensitivity="internal", declassified="a weight")'
    due = due.replace("ge=0)", said)
    contract.write_text(IMPORTS.replace("import Contract", "import Due, Contract") + due)
    assert project({"sql/silver/parcels.sql": reworded}).code_versions["silver.parcels"] == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("contracts/silver/parcels.py", "ge=0", "gt=0"),
        ("contracts/silver/parcels.py", "int = key", "str = key"),
        ("sql/silver/parcels.sql", "and _is_latest", ""),
        ("sql/silver/parcels.sql", "numeric(18, 2)", "numeric(18, 3)"),
    ],
)
def test_other_code_is_a_reason_to_rebuild(project: Project, file: str, old: str, new: str) -> None:
    before = project(PARCELS_FILES).code_versions["silver.parcels"]
    changed = PARCELS_FILES[file].replace(old, new)
    assert changed != PARCELS_FILES[file]
    assert project({file: changed}).code_versions["silver.parcels"] != before


@pytest.mark.parametrize("option", ["isin", "null_tokens"])
def test_a_rule_from_another_file_is_a_reason_to_rebuild(
    project: Project, tmp_path: Path, option: str
) -> None:
    def version(words: str) -> str:
        # What a contract takes its rules from, as `contracts/silver/__init__.py`.
        (tmp_path / "words.py").write_text(f"WORDS = {words}\n")
        for module in [m for m in sys.modules if m == "words" or m.endswith(".silver.parcels")]:
            del sys.modules[module]
        importlib.invalidate_caches()
        text = "from words import WORDS\n" + PARCELS.replace(
            "    class Table:",
            f'    note: str = column("Note", landed=False, {option}=WORDS)\n    class Table:',
        )
        select = SELECT.replace("    _delivery_id", "    'x' as note,\n    _delivery_id")
        files = {"contracts/silver/parcels.py": text, "sql/silver/parcels.sql": select}
        return project(files).code_versions["silver.parcels"]

    before = version("('x',)")
    assert version("('x', 'y')") != before
    assert version("('x',)") == before


def test_two_contracts_in_a_file(project: Project) -> None:
    twice = PARCELS + PARCELS.replace("Parcels", "Letters")
    said = refusal(project, {**PARCELS_FILES, "contracts/silver/parcels.py": twice})
    assert "contracts/silver/parcels.py has 2 contracts" in said


def test_two_tables_fed_by_one_source(project: Project) -> None:
    copies = {name.replace("parcels", "letters"): text for name, text in PARCELS_FILES.items()}
    said = refusal(project, {**PARCELS_FILES, **copies})
    assert "are both fed by wms/parcels" in said


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("silver.senders.id", "names the unknown table 'silver.senders'"),
        ("silver.parcels.sender", "names the unknown column 'silver.parcels.sender'"),
    ],
)
def test_a_contract_that_points_at_nothing(project: Project, reference: str, message: str) -> None:
    text = PARCELS.replace("ge=0", f'references="{reference}"')
    said = refusal(project, {**PARCELS_FILES, "contracts/silver/parcels.py": text})
    assert f"contracts/silver/parcels.py {message}" in said
    assert "Known are " in said


def test_every_contract_of_this_project_is_paired_with_its_select() -> None:
    root = catalog_module.PROJECT_ROOT
    package = Path(contracts.__file__).parent
    for layer in ("silver", "gold"):
        declared = {p.stem for p in (package / layer).glob("*.py")} - {"__init__"}
        selected = {p.stem for p in (root / "sql" / layer).glob("*.sql")}
        assert declared == selected
        assert {f"{layer}.{stem}" for stem in declared} <= catalog().specs.keys()
