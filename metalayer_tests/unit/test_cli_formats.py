"""Values as JSON, CSV and terminal text: exact, and harmless."""

import csv
import io
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalayer.cli.formats import csv_line, json_lines, json_text
from metalayer.console import ago, months_shown, shown


@dataclass
class _Row:
    name: str
    at: datetime | None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1234567890123456789.50"), "1234567890123456789.50"),
        (Decimal("1E-10"), "0.0000000001"),
        (Decimal("NaN"), '"NaN"'),
        (float("inf"), '"Infinity"'),
        (0.1, "0.1"),
        (True, "true"),
        (None, "null"),
        (date(2025, 1, 31), '"2025-01-31"'),
        ("Zoë <b>", '"Zoë <b>"'),
        ([Decimal("1.50"), None], "[1.50, null]"),
        ({"a": {"b": Decimal("2.0")}}, '{"a": {"b": 2.0}}'),
        (datetime(2025, 1, 1, tzinfo=UTC), '"2025-01-01T00:00:00+00:00"'),
        (_Row("x", None), '{"name": "x", "at": null}'),
    ],
)  # fmt: skip
def test_json_keeps_every_digit(value: Any, text: str) -> None:
    assert json_text(value) == text
    json.loads(text)


@given(st.lists(st.lists(st.text() | st.integers() | st.none())))
def test_a_json_list_reads_back(values: list[Any]) -> None:
    assert json.loads("".join(json_lines(values))) == values


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=2))
def test_csv_reads_back(values: list[str]) -> None:
    (row,) = csv.reader(io.StringIO(csv_line(values), newline=""), strict=True)
    assert row == values


def test_csv_tells_null_from_an_empty_text() -> None:
    assert csv_line([None, "", 1, Decimal("1.50"), True]) == ',"",1,1.50,true\n'


def test_csv_for_people_runs_nothing_in_a_spreadsheet() -> None:
    values = ["=1+1", "-5", -5, Decimal("-1.50"), "@x", None, ""]
    assert csv_line(values, is_raw=False) == "'=1+1,-5,-5,-1.50,'@x,,\"\"\n"
    assert csv_line(values) == '=1+1,-5,-5,-1.50,@x,,""\n'


@given(st.text())
def test_nothing_shown_can_steer_the_terminal(text: str) -> None:
    assert shown(text).isprintable()


def test_months_and_moments_for_people() -> None:
    assert months_shown([]) == ""
    assert months_shown(["2025-02"]) == "2025-02"
    assert months_shown(["2025-03", "2025-01"]) == "2025-01..2025-03"
    assert ago(None) == "never"
    assert ago(datetime.now(UTC)) == "0 s ago"
    assert ago(datetime(2025, 1, 1, tzinfo=UTC)).endswith(" d ago")
