"""A warehouse that is lost is made anew from the landed files: the same rows, month for month."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg2 import sql

from metalayer.catalog import catalog
from metalayer.contracts.contract import PROVENANCE
from metalayer.sample import generate
from metalayer.warehouse.ddl import as_text, identifiers, stored_name
from metalayer_tests.story import Platform

COUNTED = (
    "select table_name, month, rows, rows_quarantined, rows_superseded from meta.versions "
    "where is_current order by 1, 2"
)


def contents(platform: Platform) -> dict[str, Any]:
    """Table -> fingerprint of its rows, but for which delivery brought them."""
    unsaid = {c.name for c in PROVENANCE}
    found = {}
    for name, spec in catalog().specs.items():
        columns = identifiers(c.name for c in spec.stored if c.name not in unsaid)
        rows = sql.SQL("select {} from {}").format(columns, stored_name(spec))
        found[name] = platform.one(
            f"select md5(string_agg(r::text, '|' order by r::text)) from ({as_text(rows)}) as r"
        )
    return found


def test_landed_files_make_the_same_tables_again(
    make_platform: Callable[[], Platform], tmp_path: Path
) -> None:
    before = make_platform()
    exports = tmp_path / "exports"
    made = generate(exports, rows=300, months=4, dirt=0.05, split="month")
    files = sorted(each.file for each in made)
    # They came in two parts, each built, and one came again with other rows.
    for part in (files[::2], files[1::2]):
        before.land_files(part, exports)
        assert before.build().succeeded
    again = next(f for f in files if "orders" in f.name)
    lines = again.read_bytes().splitlines(keepends=True)
    before.land(str(again.relative_to(exports)), b"".join(lines[: len(lines) // 2]))
    assert before.build().succeeded

    after = make_platform()
    shutil.copytree(before.landing, after.landing, dirs_exist_ok=True, copy_function=shutil.copy2)
    assert after.build().succeeded
    assert after.ask(COUNTED) == before.ask(COUNTED)
    found = contents(before)
    assert None not in found.values()
    assert contents(after) == found
