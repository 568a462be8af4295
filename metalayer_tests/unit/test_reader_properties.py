"""What holds of any bytes whatever: they load or are rejected, and the count is right."""

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metalayer.errors import LandingError
from metalayer.landing.reader import LandedColumn, Parsed, SourceShape, parse

SHAPE = SourceShape(
    name="erp/orders",
    columns=(
        LandedColumn("order_id", "bigint"),
        LandedColumn("name", "text", required=False),
        LandedColumn("order_date", "date"),
    ),
    key=("order_id",),
    month_column="order_date",
    first_month=date(2020, 1, 1),
    last_month=date(2025, 12, 1),
)
HEADER = b"order_id,name,order_date\n"
Row = dict[str, Any]
ParseBytes = Callable[[bytes], tuple[Parsed, list[Row], list[Row]]]

thoroughly = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def parse_bytes(tmp_path: Path) -> Iterator[ParseBytes]:
    with duckdb.connect() as connection:

        def table(path: Path) -> list[Row]:
            found = connection.execute("select * from read_parquet(?) order by _line", [str(path)])
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

        def parse_bytes(content: bytes) -> tuple[Parsed, list[Row], list[Row]]:
            landed = tmp_path / "landed.csv"
            landed.write_bytes(content)
            rows, rejects = tmp_path / "rows.parquet", tmp_path / "rejects.parquet"
            parsed = parse(landed, SHAPE, date(2025, 1, 1), rows, rejects)
            return parsed, table(rows), table(rejects)

        yield parse_bytes


def check_balance(parsed: Parsed, rows: list[Row], rejects: list[Row]) -> None:
    assert parsed.rows_read == len(rows) + len(rejects)
    assert parsed.rows_rejected == len(rejects)
    assert sum(parsed.months.values()) == len(rows)
    lines = [row["_line"] for row in [*rows, *rejects]]
    assert len(set(lines)) == len(lines)
    assert all(reject["rule"] and reject["raw"] for reject in rejects)
    assert all(row["month"] is not None for row in rows)


DIRT = st.text('",;\t\n\r\0 019-é\u00a0a\ufdd0rnqd', max_size=40).map(str.encode)
ANY_BYTES = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda rest: HEADER + rest, st.binary(max_size=200)),
    st.builds(lambda parts: HEADER + b"".join(parts), st.lists(DIRT, max_size=12)),
    st.builds(
        lambda rest, codec: (HEADER.decode() + rest).encode(codec, "replace"),
        st.text(max_size=60),
        st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    ),
    st.builds(
        lambda rest, cut: gzip.compress(HEADER + rest)[: cut or None],
        st.binary(max_size=100),
        st.sampled_from([0, 0, 0, -1, -9, 12]),
    ),
)


@thoroughly
@given(ANY_BYTES)
@example(HEADER + b'"\n"\n"\n"')
@example(HEADER + b'1,"' * 3)
def test_any_bytes_balance_or_are_refused(parse_bytes: ParseBytes, content: bytes) -> None:
    try:
        parsed, rows, rejects = parse_bytes(content)
    except LandingError as refused:
        assert "landed.csv" in refused.message
    else:
        check_balance(parsed, rows, rejects)


GARBAGE = st.one_of(
    st.text('",,," 0129-ax\0é', max_size=30).map(str.encode),
    st.sampled_from(
        [b'9,"x,2025-01-01', b'"', b',"', b'9,x",2025-01-01', b'"x",', b'x""y', b'","']
    ),
    st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")),
)
PLANTED = st.sampled_from(
    ["{n},Ann,2025-01-31", '"{n}","A, ""x""","2025-01-31"', '{n},6" pipe,2025-01-31']
)


@thoroughly
@given(st.lists(st.one_of(GARBAGE, PLANTED), max_size=40), st.sampled_from([b"\n", b"\r\n"]))
def test_no_garbage_takes_a_valid_row_with_it(
    parse_bytes: ParseBytes, parts: list[bytes | str], line_end: bytes
) -> None:
    lines = [
        part.format(n=1000 + n).encode() if isinstance(part, str) else part
        for n, part in enumerate(parts)
    ]
    parsed, rows, rejects = parse_bytes(line_end.join([HEADER.rstrip(), *lines]))
    check_balance(parsed, rows, rejects)
    planted = {n + 2: str(1000 + n) for n, part in enumerate(parts) if isinstance(part, str)}
    found = {row["_line"]: row["order_id"] for row in rows}
    assert planted.items() <= found.items()


TEXT = st.text(
    st.one_of(
        st.sampled_from('",\n; "'),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"),
    ),
    max_size=12,
)


@thoroughly
@given(
    st.lists(TEXT, min_size=1, max_size=15),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_csv_writer_writes_comes_back(
    parse_bytes: ParseBytes, names: list[str], delimiter: str, quoting: int, line_end: str
) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(
        written, delimiter=delimiter, quoting=quoting, lineterminator=line_end, strict=True
    )
    writer.writerow(["order_id", "name", "order_date"])
    writer.writerows([n, name, "2025-01-31"] for n, name in enumerate(names))
    parsed, rows, rejects = parse_bytes(written.getvalue().encode())
    assert rejects == []
    assert [row["name"] or "" for row in rows] == names
    assert parsed.delimiter == delimiter
