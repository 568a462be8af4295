"""What a table and a column mean is said in three places, and all say the same.

PostgreSQL's comments, Dagster's metadata and the dictionary are derived apart from each other; the
contract is where the words come from.
"""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest

from metalayer.assets.keys import asset_key
from metalayer.catalog import catalog
from metalayer.definitions import defs
from metalayer.governance.dictionary import dictionary
from metalayer.warehouse.migrate import prepare
from metalayer.warehouse.pool import transaction
from metalayer_tests.story import Platform


def comments(platform: Platform, table: str) -> tuple[str, dict[str, str]]:
    """The comment of what readers of `table` select from, and those of its columns."""
    layer, _, name = table.partition(".")
    whole = platform.one("select obj_description(to_regclass(%s))", f'"{layer}"."{name}"')
    rows = platform.ask(
        "select attname, col_description(attrelid, attnum) from pg_attribute "
        "where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped order by attnum",
        f'"{layer}"."{name}"',
    )
    return whole, dict(rows)


def said(asset: dg.AssetSpec, name: str) -> str:
    value = asset.metadata[name]
    return str(getattr(value, "value", value))


@pytest.mark.parametrize("table", list(catalog().specs))
def test_postgresql_the_ui_and_the_dictionary_agree(table: str, platform: Platform) -> None:
    tables = catalog()
    spec, entry = tables.specs[table], dictionary(tables).tables[table]
    in_postgresql, columns = comments(platform, table)
    (asset,) = [a for a in defs.resolve_all_asset_specs() if a.key == asset_key(table)]
    schema = asset.metadata["dagster/column_schema"].schema
    assert columns == {c.name: c.description for c in schema.columns}
    assert columns == {c.spec.name: c.spec.meaning for c in entry.columns}
    assert columns == {c.name: c.meaning for c in spec.columns}
    assert all(columns.values())
    assert asset.description is not None
    assert asset.description.startswith(in_postgresql)
    assert asset.owners == [spec.owner]
    assert in_postgresql.startswith(entry.spec.description)
    grain, due = (said(asset, name) for name in ("grain", "due"))
    assert f"Grain: {grain}. Owner: {spec.owner}. A month is due on {due}." in in_postgresql
    # Rules and marks of columns, too, are one list.
    for shown, own in zip(schema.columns, entry.columns, strict=True):
        assert shown.constraints is not None
        assert tuple(shown.constraints.other) == own.rules
        assert shown.tags == own.tags


def test_a_new_owner_is_named_in_the_comment(platform: Platform) -> None:
    tables = catalog()
    table = "gold.fact_sales"
    changed = dict(tables.specs)
    changed[table] = replace(changed[table], owner="team:billing")
    with transaction(platform.warehouse.pool) as connection:
        prepare(connection, list(changed.values()), tables.selects)
    before, _ = comments(platform, "gold.fact_orders")
    after, _ = comments(platform, table)
    assert "Owner: team:sales-data." in before
    assert "Owner: team:billing." in after
