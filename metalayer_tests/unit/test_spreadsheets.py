"""Formulas are made harmless, exactly, and the same in Python as in DuckDB."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalayer.spreadsheets import defused, defused_sql, restored, restored_sql

ODD = "'=+-@\t\r\n\uff1d1.eE ax"
TEXT = st.text(st.sampled_from(ODD) | st.characters(codec="utf-8", exclude_characters="\0"))


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1",
        "'=1",
        "-",
    ],
)
def test_what_a_spreadsheet_would_run_is_text(text: str) -> None:
    assert defused(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-5", "+4.5", "-1e-3", "-.5", "", "a=1", "' x", "O'Neil", "1-2"])
def test_numbers_and_other_text_stay(text: str) -> None:
    assert defused(text) == text


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=30))
def test_both_ways_are_exact_and_the_same_in_duckdb(texts: list[str]) -> None:
    assert [restored(defused(text)) for text in texts] == texts
    with duckdb.connect() as memory:
        memory.execute("create table t as select unnest(?::varchar[]) as v", [texts])
        safe, back = f"({defused_sql('v')})", restored_sql("w")
        asked = f"select v, w, {back} from (select v, {safe} as w from t)"
        for text, written, read in memory.execute(asked).fetchall():
            assert (written, read) == (defused(text), text)
