"""Files without the records of erased persons: the same lines, and nobody else's changed."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metalayer.contracts.classification import ANONYMOUS
from metalayer.landing.judge import Erasing, LandedColumn, SourceShape
from metalayer.landing.reader import ErasedFound, parse
from metalayer.landing.redact import redacted

JANUARY = date(2025, 1, 1)
PREFIX = "salt:customer:"
HEAD = "id,customer,name,day"


def shape(*erased: int, keeps_rows: bool = False) -> SourceShape:
    tokens = {hashlib.sha256(f"{PREFIX}{n}".encode()).hexdigest() for n in erased}
    return SourceShape(
        name="erp/things",
        columns=(
            LandedColumn("id", "bigint"),
            LandedColumn("customer", "bigint"),
            LandedColumn("name", "text", required=False),
            LandedColumn("day", "date"),
        ),
        key=("id",),
        month_column="day",
        first_month=date(2020, 1, 1),
        last_month=date(2026, 1, 1),
        erasing=Erasing(
            (("customer", PREFIX, frozenset(tokens)),), keeps_rows=keeps_rows, personal=("name",)
        ),
    )


def rows(path: Path, of: SourceShape, folder: Path) -> list[Any]:
    out, rejects = folder / "rows.parquet", folder / "rejects.parquet"
    parse(path, of, JANUARY, out, rejects)
    found = duckdb.sql(
        f"select _line, id, customer, name, _extra from read_parquet('{out}') union all "
        f"select _line, rule, null, raw, null from read_parquet('{rejects}') order by 1"
    )
    return found.fetchall()


def whose(row: Any) -> str:
    """Whose record it is, also of one that cannot be read."""
    return str(row[2] or row[3].split(",")[1])


def taken_out(path: Path, of: SourceShape, folder: Path) -> Path:
    with pytest.raises(ErasedFound) as found:
        rows(path, of, folder)
    return redacted(path, of, found.value, folder)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(content: bytes) -> Path:
        path = tmp_path / "things.csv"
        path.write_bytes(content)
        return path

    return written


def test_a_record_leaves_blank_lines_and_every_other_stays(
    write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    text = (
        f"{HEAD},note\r\n"
        "1,7,Ada,2025-01-01,x\r\n"
        '2,8,"two\r\nlines",2025-01-02,y\r\n'
        '3, 007 ,"Ada\r\nLovelace, ""Countess""",2025-01-03,z\r\n'
        "4,9,Zoë,2025-01-04,\r\n"
    )
    path = write(text.encode())
    before = rows(path, shape(), tmp_path)
    aside = taken_out(path, shape(7), tmp_path)
    assert path.read_bytes() == text.encode()
    assert b"Ada" not in aside.read_bytes()
    assert b"Lovelace" not in aside.read_bytes()
    assert aside.stat().st_mtime_ns == path.stat().st_mtime_ns
    after = rows(aside, shape(7), tmp_path)
    assert after == [row for row in before if row[1] not in ("1", "3")]
    assert [line for line, *_ in after] == [3, 7]


def test_a_record_that_stays_is_nobodys(write: Callable[[bytes], Path], tmp_path: Path) -> None:
    path = write(
        f"{HEAD},note\n1,7,Ada,2025-01-01,call Ada\n"
        '2,7.0,"Ada\nLovelace",2025-01-02,\n3,8,Bob,2025-01-03,kept\n'.encode()
    )
    aside = taken_out(path, shape(7, keeps_rows=True), tmp_path)
    assert rows(aside, shape(7, keeps_rows=True), tmp_path) == [
        (2, "1", ANONYMOUS, None, None),
        (3, "2", ANONYMOUS, None, None),
        (5, "3", "8", "Bob", '{"note":"kept"}'),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_any_encoding_and_packed_files(tmp_path: Path, encoding: str, is_packed: bool) -> None:
    lines = "".join(f"{n},{n % 3},Zoë {n},2025-01-01\n" for n in range(1, 40))
    content = f"{HEAD}\n{lines}".encode(encoding)
    path = tmp_path / ("things.csv.gz" if is_packed else "things.csv")
    path.write_bytes(gzip.compress(content) if is_packed else content)
    before = rows(path, shape(), tmp_path)
    aside = taken_out(path, shape(2), tmp_path)
    assert (aside.read_bytes()[:2] == b"\x1f\x8b") is is_packed
    assert rows(aside, shape(2), tmp_path) == [row for row in before if row[2] != "2"]


def test_records_that_cannot_be_read_go_by_their_lines(
    write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    path = write(f"{HEAD}\n1,8,Bob,2025-01-01\n2,Ada\n3,8,Bob,2025-01-02\n".encode())
    known = shape(7)
    assert known.erasing is not None
    lines = replace(known, erasing=replace(known.erasing, lines=frozenset({3})))
    aside = taken_out(path, lines, tmp_path)
    assert [row[:2] for row in rows(aside, known, tmp_path)] == [(2, "1"), (4, "3")]


_VALUES = st.text(st.sampled_from('ab,;"\n\r\t é\ud7ff\0\ufdd0'.replace("\ufdd0", "")), max_size=6)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(1, 4), _VALUES), min_size=1, max_size=12), st.booleans())
def test_nobody_else_is_touched_whatever_is_in_the_file(
    tmp_path: Path, records: list[tuple[int, str]], keeps_rows: bool
) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    text = HEAD + "\n"
    for number, (customer, name) in enumerate(records):
        text += f"{number},{customer},{quoted(name)},2025-01-01\n"
    path = tmp_path / "things.csv"
    path.write_bytes(text.encode())
    plain, watched = shape(), shape(2, keeps_rows=keeps_rows)
    before = rows(path, plain, tmp_path)
    try:
        rows(path, watched, tmp_path)
    except ErasedFound as found:
        aside = redacted(path, watched, found, tmp_path)
    else:
        return
    after = rows(aside, watched, tmp_path)
    aside.unlink()
    others = [row for row in before if whose(row) != "2"]
    assert [row for row in after if whose(row) != ANONYMOUS] == others
    assert len([row for row in after if whose(row) == ANONYMOUS]) == (
        len(before) - len(others) if keeps_rows else 0
    )
