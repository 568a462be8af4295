"""Real-life dirt, one story each: bytes land, they are parsed, these rows and rejects come out."""

import gzip
import json
import os
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest

from metalayer.errors import LandingError
from metalayer.landing import records
from metalayer.landing.raw import RawBytes, Unpacking, opened, unpacked
from metalayer.landing.reader import (
    FileInFlux,
    Fingerprint,
    LandedColumn,
    Parsed,
    SourceShape,
    fingerprint,
    parse,
)

ORDERS = SourceShape(
    name="erp/orders",
    columns=(
        LandedColumn("order_id", "bigint"),
        LandedColumn("customer_name", "text"),
        LandedColumn("order_date", "date"),
        LandedColumn("note", "text", required=False),
    ),
    key=("order_id",),
    month_column="order_date",
    first_month=date(2020, 1, 1),
    last_month=date(2025, 6, 1),
)
HEADER = "order_id,customer_name,order_date,note\n"
GOOD = "1,Ann,2025-01-31,\n"


@dataclass(frozen=True)
class Outcome:
    parsed: Parsed
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        return [row["customer_name"] for row in self.rows]

    @property
    def rules(self) -> list[tuple[int, str]]:
        return [(reject["_line"], reject["rule"]) for reject in self.rejects]


Read = Callable[..., Outcome]


@pytest.fixture(params=["as it is", "as if large"])
def read(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Land these bytes and parse them, as they are and in the way of large files."""
    if request.param == "as if large":
        monkeypatch.setattr(records, "_SMALL_BYTES", -1)
        monkeypatch.setattr(records, "_SPILLED_BYTES", -1)

    def read(
        content: str | bytes, shape: SourceShape = ORDERS, name: str = "orders.csv"
    ) -> Outcome:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_file(path, shape)

    return read


def read_file(path: Path, shape: SourceShape = ORDERS) -> Outcome:
    out = path.parent / "parsed"
    out.mkdir(exist_ok=True)
    parsed = parse(path, shape, date(2025, 3, 1), out / "rows.parquet", out / "rejects.parquet")
    rows, rejects = table(out / "rows.parquet"), table(out / "rejects.parquet")
    assert parsed.rows_read == len(rows) + len(rejects)
    assert parsed.rows_rejected == len(rejects)
    assert sum(parsed.months.values()) == len(rows)
    assert len({reject["_line"] for reject in rejects}) == len(rejects)
    assert sorted(p.name for p in out.iterdir()) == ["rejects.parquet", "rows.parquet"]
    return Outcome(parsed, rows, rejects)


def table(path: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        found = connection.execute("select * from read_parquet(?) order by _line", [str(path)])
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def refusal(read: Read, content: str | bytes, name: str = "orders.csv") -> str:
    with pytest.raises(LandingError) as refused:
        read(content, name=name)
    assert name in refused.value.message
    assert refused.value.next_step
    assert not isinstance(refused.value, FileInFlux)
    return str(refused.value)


# ---- a clean file


def test_a_clean_file_gives_its_rows_as_text(read: Read) -> None:
    outcome = read(HEADER + "7,Ann,2025-02-01,hello\n 08 ,Bob,2025-01-31, x \n")
    assert outcome.rows == [
        {
            "order_id": "7",
            "customer_name": "Ann",
            "order_date": "2025-02-01",
            "note": "hello",
            "_extra": None,
            "_line": 2,
            "month": date(2025, 2, 1),
            "_key": "7",
        },
        {
            "order_id": " 08 ",
            "customer_name": "Bob",
            "order_date": "2025-01-31",
            "note": " x ",
            "_extra": None,
            "_line": 3,
            "month": date(2025, 1, 1),
            "_key": "8",
        },
    ]
    assert outcome.rejects == []
    parsed = outcome.parsed
    assert parsed.months == {date(2025, 1, 1): 1, date(2025, 2, 1): 1}
    assert (parsed.encoding, parsed.delimiter) == ("utf-8", ",")
    assert (parsed.extra_columns, parsed.missing_columns) == ((), ())


def test_an_empty_field_is_null_and_a_null_word_stays(read: Read) -> None:
    outcome = read(HEADER + '1,,2025-01-31,""\n2,NULL,2025-01-31,N/A\n')
    assert [(row["customer_name"], row["note"]) for row in outcome.rows] == [
        (None, None),
        ("NULL", "N/A"),
    ]


def test_the_same_bytes_have_the_same_fingerprint(read: Read, tmp_path: Path) -> None:
    outcome = read(HEADER + GOOD)
    expected = fingerprint(tmp_path / "orders.csv")
    assert outcome.parsed.fingerprint == expected
    assert expected == Fingerprint(expected.sha256, len(HEADER + GOOD))
    assert read(HEADER + GOOD, name="other.csv").parsed.fingerprint == expected


def test_parsing_again_replaces_what_was_there(read: Read) -> None:
    read(HEADER + GOOD * 3)
    assert len(read(HEADER + GOOD).rows) == 1


def test_a_folder_with_odd_letters(tmp_path: Path) -> None:
    folder = tmp_path / "it's a [folder] * ?"
    folder.mkdir()
    (folder / "x.csv").write_text(HEADER + GOOD)
    assert read_file(folder / "x.csv").names == ["Ann"]


def test_every_row_knows_its_line(read: Read) -> None:
    days = [f"2025-{1 + n % 5:02d}-11" for n in range(5000)]
    outcome = read(HEADER + "".join(f"{n},x,{day},\n" for n, day in enumerate(days)))
    assert [(row["_line"], row["order_date"]) for row in outcome.rows] == [
        (n + 2, day) for n, day in enumerate(days)
    ]


# ---- encodings and line ends


@pytest.mark.parametrize(
    ("codec", "mark", "name"),
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8", b"\xef\xbb\xbf", "utf-8-sig"),
        ("cp1252", b"", "windows-1252"),
        ("utf-16-le", b"\xff\xfe", "utf-16-le"),
        ("utf-16-be", b"\xfe\xff", "utf-16-be"),
        ("utf-16-le", b"", "utf-16-le"),
        ("utf-16-be", b"", "utf-16-be"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(
    read: Read, codec: str, mark: bytes, name: str, line_end: str
) -> None:
    text = HEADER + "1,Zoë Müller-Łê €,2025-01-31,“fine”\n\n3,Bob,2025-01-31,"
    text = text.replace("Ł", "" if codec == "cp1252" else "Ł").replace("\n", line_end)
    outcome = read(mark + text.encode(codec))
    assert outcome.parsed.encoding == name
    expected = "Zoë Müller-ê €" if codec == "cp1252" else "Zoë Müller-Łê €"
    assert [(row["_line"], row["customer_name"]) for row in outcome.rows] == [
        (2, expected),
        (4, "Bob"),
    ]


def test_bytes_windows_1252_does_not_define_are_kept(read: Read) -> None:
    outcome = read(HEADER.encode() + b"1,a\x81\x8d\xe9z,2025-01-31,\n")
    assert outcome.names == ["a\x81\x8d\xe9z"]


def test_one_windows_line_does_not_garble_the_utf8_lines(read: Read) -> None:
    good = "".join(f"{n},Zoë,2025-01-31,\n" for n in range(2, 60_000)).encode()
    outcome = read(HEADER.encode() + good + b"1,Jos\xe9,2025-01-31,\n")
    assert outcome.parsed.encoding == "utf-8, some lines windows-1252"
    assert set(outcome.names[:-1]) == {"Zoë"}
    assert outcome.names[-1] == "José"


def test_utf_32_is_refused(read: Read) -> None:
    assert "UTF-32" in refusal(read, (HEADER + GOOD).encode("utf-32"))


def test_a_lone_carriage_return_is_text(read: Read) -> None:
    outcome = read(HEADER + '1,a\rb,2025-01-31,\r\n2,"c\rd",2025-01-31,\r\r\n')
    assert [(row["_line"], row["customer_name"]) for row in outcome.rows] == [
        (2, "a\rb"),
        (3, "c\rd"),
    ]


def test_a_line_feed_that_comes_late_ends_lines_after_all(read: Read) -> None:
    outcome = read("\r" * 1_200_000 + " \n" + HEADER + GOOD)
    assert [(row["_line"], row["customer_name"]) for row in outcome.rows] == [(3, "Ann")]


def test_characters_the_reader_uses_itself_are_kept(read: Read) -> None:
    odd = "\ufdd0r\ufdd0n\ufdd0e\ufdd0\ufdd0z\x01\x1f\ufdd1"
    outcome = read(HEADER + f'1,{odd},2025-01-31,"a,{odd}"\n2,"{odd}","2025-01-31",""\n')
    assert outcome.names == [odd, odd]
    assert outcome.rows[0]["note"] == f"a,{odd}"


# ---- gzip


def test_gzip_is_told_by_its_bytes(read: Read) -> None:
    packed = gzip.compress((HEADER + GOOD).encode())
    assert read(packed, name="orders.csv.gz").names == ["Ann"]
    assert read(packed, name="orders.csv").names == ["Ann"]
    assert read(HEADER + GOOD, name="orders.csv.gz").names == ["Ann"]


def test_gzip_members_follow_each_other(read: Read) -> None:
    parts = [HEADER.encode(), b"1,Ann,2025-01", b"-31,\n2,Bob,2025-01-31,\n"]
    packed = b"".join(map(gzip.compress, parts)) + b"\0" * 512
    assert read(packed).names == ["Ann", "Bob"]


@pytest.mark.parametrize("keep", [5, 15, 0.5, -9, -8, -1])
def test_a_truncated_gzip_is_refused(read: Read, keep: float) -> None:
    packed = gzip.compress((HEADER + GOOD * 1000).encode())
    cut = int(len(packed) * keep) if isinstance(keep, float) else int(keep)
    assert "breaks off" in refusal(read, packed[:cut], "orders.csv.gz")


def test_a_damaged_gzip_is_refused(read: Read) -> None:
    packed = bytearray(gzip.compress((HEADER + GOOD * 1000).encode()))
    packed[-6] ^= 1
    assert "damaged" in refusal(read, bytes(packed))
    good = gzip.compress((HEADER + GOOD).encode())
    assert "damaged" in refusal(read, good + b"and more")


def test_a_large_gzip_is_unpacked_in_pieces(read: Read) -> None:
    text = HEADER.encode() + b"1,Ann,2025-01-31,\n" * 400_000
    assert len(read(zlib_gzip(text)).rows) == 400_000


def test_a_gzip_that_unfolds_beyond_all_measure_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv.gz"
    path.write_bytes(bomb(400))
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    unfolded = 0
    with pytest.raises(LandingError, match="more than 200 times its size"), opened(path) as file:
        for piece in unpacked(path, RawBytes(file).chunks()):
            unfolded += len(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert unfolded < 200 * path.stat().st_size, "it was stopped where it passed the limit"
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("limits", "cause"),
    [
        (Unpacking(most_bytes=1_000_000), "more than 1 MB"),
        (Unpacking(free_bytes=0, most_ratio=20), "more than 20 times its size"),
    ],
)
def test_how_far_a_gzip_may_unfold_can_be_set(
    read: Read, tmp_path: Path, limits: Unpacking, cause: str
) -> None:
    path = tmp_path / "orders.csv.gz"
    path.write_bytes(zlib_gzip((HEADER + GOOD * 200_000).encode()))
    with pytest.raises(LandingError, match=cause):
        read_file(path, replace(ORDERS, unpacking=limits))
    assert read_file(path).parsed.rows_read == 200_000


def bomb(megabytes: int) -> bytes:
    """A gzip of a header and so many megabytes of one row."""
    pack = zlib.compressobj(9, wbits=31)
    rows = (GOOD * (1_000_000 // len(GOOD))).encode()
    parts = [pack.compress(HEADER.encode()), *(pack.compress(rows) for _ in range(megabytes))]
    return b"".join([*parts, pack.flush()])


def zlib_gzip(text: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(text) + packer.flush()


# ---- the header


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(read: Read, delimiter: str) -> None:
    text = 'order_id,customer_name,order_date,note\n1,Ann,2025-01-31,"a,b"\n'
    outcome = read(text.replace(",", delimiter))
    assert outcome.parsed.delimiter == delimiter
    assert outcome.rows[0]["note"] == f"a{delimiter}b"


def test_the_other_delimiters_are_text(read: Read) -> None:
    outcome = read("order_id;customer_name;order_date\n1;a,b|c\td;2025-01-31\n")
    assert outcome.names == ["a,b|c\td"]


def test_a_header_in_another_order_case_and_spacing(read: Read) -> None:
    outcome = read('Order-Date, "Customer  Name" ,NOTE, Order ID\n2025-01-31,Ann,x,1\n')
    assert outcome.rows[0]["_key"] == "1"
    assert outcome.names == ["Ann"]


def test_blank_lines_before_the_header_and_between_rows(read: Read) -> None:
    outcome = read("\n  \n" + HEADER + "\n \t\u00a0\n" + GOOD + "\n\n2,Bob,2025-01-31,\n\n")
    assert [(row["_line"], row["customer_name"]) for row in outcome.rows] == [
        (6, "Ann"),
        (9, "Bob"),
    ]
    assert outcome.parsed.rows_read == 2


def test_header_only(read: Read) -> None:
    for text in (HEADER, HEADER.rstrip(), HEADER + "\n\n"):
        outcome = read(text)
        assert (outcome.parsed.rows_read, outcome.rows, outcome.rejects) == (0, [], [])


def test_a_header_over_two_lines(read: Read) -> None:
    outcome = read('order_id,customer_name,order_date,"Remark\n(free text)"\n1,Ann,2025-01-31,x\n')
    assert outcome.parsed.extra_columns == ("Remark (free text)",)
    assert outcome.rows[0]["_line"] == 3


def test_a_lone_quote_in_the_header(read: Read) -> None:
    outcome = read('order_id,"customer_name,order_date,note\n' + GOOD)
    assert (outcome.names, outcome.rows[0]["_line"]) == (["Ann"], 2)


def test_an_empty_file_is_refused(read: Read) -> None:
    assert "empty (0 bytes)" in refusal(read, "")
    assert "blank" in refusal(read, "\n \n")
    assert "blank" in refusal(read, b"\xef\xbb\xbf")


def test_a_missing_required_column_is_named_with_the_header_seen(read: Read) -> None:
    said = refusal(read, "customer_name,note,order-date\nAnn,x,2025-01-31\n")
    assert "no column order_id" in said
    assert "customer_name, note, order-date" in said


def test_a_missing_optional_column_is_reported(read: Read) -> None:
    outcome = read("order_id,customer_name,order_date\n1,Ann,2025-01-31\n")
    assert outcome.parsed.missing_columns == ("note",)
    assert outcome.rows[0]["note"] is None


def test_no_header_is_refused(read: Read) -> None:
    said = refusal(read, GOOD)
    assert "no header" in said
    assert "fields may be values and are not told" in said
    assert "Ann" not in said
    refusal(read, b"PK\x03\x04\x00\x00\xff\xff" * 100)


def test_a_duplicate_header_of_a_landed_column_is_refused(read: Read) -> None:
    assert "more than one column order_id" in refusal(read, "Order ID," + HEADER + "1," + GOOD)


def test_extra_columns_are_kept_and_reported(read: Read) -> None:
    outcome = read(
        "order_id,Rabatt %,customer_name,order_date,note,,Rabatt %\n"
        '1,"5 ""x""",Ann,2025-01-31,,q,\n'
    )
    assert outcome.parsed.extra_columns == ("Rabatt %", "column_6", "Rabatt %_2")
    assert json.loads(outcome.rows[0]["_extra"]) == {"Rabatt %": '5 "x"', "column_6": "q"}
    assert (
        read("order_id,x,customer_name,order_date\n1,,Ann,2025-01-31\n").rows[0]["_extra"] is None
    )


def test_columns_beyond_all_measure(read: Read) -> None:
    outcome = read(HEADER.rstrip() + "," * 16_000 + "\n" + GOOD.rstrip() + "," * 16_000 + "\n")
    assert (outcome.names, outcome.parsed.extra_columns) == (["Ann"], ())
    outcome = read(HEADER.rstrip() + ",x" * 1_000 + "\n" + GOOD.rstrip() + ",y" * 1_000 + "\n")
    assert len(json.loads(outcome.rows[0]["_extra"])) == 1_000
    assert "2,004 columns" in refusal(read, HEADER.rstrip() + ",x" * 2_000 + "\n")


# ---- fields


def test_too_few_and_too_many_fields(read: Read) -> None:
    outcome = read(HEADER + "1,Ann,2025-01-31\n2,Bob,2025-01-31,x,y\n3,Cid,2025-01-31,\n,\n")
    assert outcome.names == ["Cid"]
    assert outcome.rules == [
        (2, "expected 4 fields, found 3"),
        (3, "expected 4 fields, found 5"),
        (5, "expected 4 fields, found 2"),
    ]
    assert outcome.rejects[1] == {
        "_line": 3,
        "month": None,
        "column": None,
        "rule": "expected 4 fields, found 5",
        "value": None,
        "raw": "2,Bob,2025-01-31,x,y",
    }


def test_delimiters_at_the_end_that_bring_nothing_are_let_go(read: Read) -> None:
    assert read(HEADER + "1,Ann,2025-01-31,,,\n" + '2,Bob,2025-01-31,"x",""\n').names == [
        "Ann",
        "Bob",
    ]
    outcome = read(HEADER.rstrip() + ",\n1,Ann,2025-01-31,x,\n2,Bob,2025-01-31,x\n")
    assert outcome.names == ["Ann", "Bob"]


def test_nul_bytes_reject_their_record_alone(read: Read) -> None:
    outcome = read(HEADER + '1,A\0nn,2025-01-31,\n2,Bob,2025-01-31,\n3,"a\n\0b",2025-01-31,\n')
    assert outcome.names == ["Bob"]
    assert outcome.rules == [(2, "NUL byte"), (4, "NUL byte")]
    assert outcome.rejects[0]["month"] == date(2025, 1, 1)
    assert outcome.rejects[0]["raw"] == "1,A\u2400nn,2025-01-31,"
    assert outcome.rejects[1]["raw"] == '3,"a\n\u2400b",2025-01-31,'


def test_one_mebibyte_in_one_field(read: Read) -> None:
    long = "é" * (512 * 1024)
    outcome = read(HEADER + f'1,Ann,2025-01-31,{long}\n2,Bob,2025-01-31,"{long}"\n3,{long},?,\n')
    assert [row["note"] == long for row in outcome.rows] == [True, True]
    assert len(outcome.rejects[0]["raw"]) == 10_000


def test_a_line_past_all_measure_is_refused_with_its_number(read: Read) -> None:
    long = b"x" * (16 * 1024 * 1024)
    assert "line 3 is longer" in refusal(read, HEADER.encode() + GOOD.encode() + b"1," + long)
    assert "line 2 is longer" in refusal(
        read, HEADER.encode() + b"1," + long + b"\n" + GOOD.encode()
    )
    almost = long[: -len(b"1,,2025-01-31,")]
    assert len(read(HEADER.encode() + b"1," + almost + b",2025-01-31,\n").rows) == 1


def test_sql_and_html_are_text(read: Read) -> None:
    names = ["'; drop table orders; --", "<script>alert(1)</script>", "{{7*7}}", "${x}", "=1+1"]
    assert read(HEADER + "".join(f"1,{name},2025-01-31,\n" for name in names)).names == names


# ---- quotes


def test_quoted_fields(read: Read) -> None:
    outcome = read(
        HEADER
        + '"1","Ann, ""the"" 1st","2025-01-31",""\n'
        + '2,"",2025-01-31,""""\n'
        + '"3",Cid,"2025-01-31","a""b"\n'
        + '4,"""Dan""",2025-01-31,","\n'
        + '"5",",","2025-01-31",""","""\n'
    )
    assert outcome.rejects == []
    assert [(row["customer_name"], row["note"]) for row in outcome.rows] == [
        ('Ann, "the" 1st', None),
        (None, '"'),
        ("Cid", 'a"b'),
        ('"Dan"', ","),
        (",", '","'),
    ]


def test_a_quote_within_an_unquoted_field_is_literal(read: Read) -> None:
    outcome = read(HEADER + '1,12" pipe,2025-01-31,x"\n2,12" pipe,2025-01-31,"a, b"\n')
    assert [(row["customer_name"], row["note"]) for row in outcome.rows] == [
        ('12" pipe', 'x"'),
        ('12" pipe', "a, b"),
    ]


def test_quoted_line_breaks(read: Read) -> None:
    outcome = read(
        HEADER
        + '1,"Ann\r\nMarie",2025-01-31,"one\n\n two, ""x""\n"\n'
        + '"2\n",Bob,2025-01-31,\n'
        + '3,Cid,2025-01-31,"\n"\n'
        + GOOD.replace("1,", "4,", 1)
    )
    assert outcome.rejects == []
    assert [(r["_line"], r["_key"], r["customer_name"], r["note"]) for r in outcome.rows] == [
        (2, "1", "Ann\nMarie", 'one\n\n two, "x"\n'),
        (7, "2", "Bob", None),
        (9, "3", "Cid", "\n"),
        (11, "4", "Ann", None),
    ]


def test_a_lone_open_quote_rejects_its_line_alone(read: Read) -> None:
    valid = "".join(f"{n},Bob,2025-01-31,\n" for n in range(10, 3000))
    for lone in (
        '1,"Ann,2025-01-31,',
        '"1,Ann,2025-01-31,',
        '1,Ann,2025-01-31,"',
        '1,Ann,2025-01-31,"x',
        '1,Ann,"2025-01-31,"a, b"',
    ):
        outcome = read(HEADER + lone + "\n" + valid)
        assert (lone, outcome.rules) == (lone, [(2, "unclosed quote")])
        assert outcome.rejects[0]["raw"] == lone
        assert len(outcome.rows) == 2990


def test_a_lone_quote_among_quoted_rows(read: Read) -> None:
    outcome = read(
        HEADER
        + '"1","Ann","2025-01-31","\n'
        + '"2","Bob","2025-01-31","fine"\n'
        + '"3","Cid,"2025-01-31",""\n'
        + '"4","Dan\nDan","2025-01-31","fine"\n'
    )
    assert outcome.names == ["Bob", "Dan\nDan"]
    assert outcome.rules == [(2, "unclosed quote"), (4, "unclosed quote")]


def test_two_stray_quotes_do_not_frame_valid_rows(read: Read) -> None:
    outcome = read(HEADER + '1,"Ann,2025-01-31,\n2,Bob,2025-01-31,\n3,Cid",2025-01-31,\n')
    assert outcome.names == ["Bob", 'Cid"']
    assert outcome.rules == [(2, "unclosed quote")]
    outcome = read(HEADER + '1,"Ann,2025-01-31,\n3,Cid",2025-01-31,\n')
    assert outcome.names == ['Cid"']


def test_a_lone_quote_at_the_end_of_the_file(read: Read) -> None:
    outcome = read(HEADER + GOOD + '2,Bob,2025-01-31,"')
    assert (outcome.names, outcome.rules) == (["Ann"], [(3, "unclosed quote")])


def test_text_after_a_closing_quote(read: Read) -> None:
    outcome = read(HEADER + '1,"Ann"x,2025-01-31,\n' + GOOD)
    assert (outcome.names, outcome.rules) == (["Ann"], [(2, "text after a closing quote")])


def test_a_quoted_field_spans_a_thousand_lines_and_no_more(read: Read) -> None:
    note = "\n".join(f"line {n}" for n in range(999))
    assert read(HEADER + f'1,Ann,2025-01-31,"{note}"\n').rows[0]["note"] == note
    outcome = read(HEADER + f'1,Ann,2025-01-31,"{note}\n\nx\ny"\n2,Bob,2025-01-31,\n')
    assert outcome.names == ["Bob"]
    assert outcome.rules[0] == (2, "unclosed quote")


@pytest.mark.parametrize(
    "line",
    ['{n},"x,2025-01-31,\n', '{n},x","y,2025-01-31,\n', '{n},a,b,"\n', '"\n', '{n},"a\nb",c,\n'],
)
def test_many_lone_quotes_cost_no_more_than_their_number(read: Read, line: str) -> None:
    """Searching on from each to the end of the file would take hours here."""
    lines = "".join(line.format(n=n) for n in range(60_000))
    outcome = read(HEADER + lines + GOOD)
    assert outcome.names[-1:] == ["Ann"]


def test_many_quoted_line_breaks(read: Read) -> None:
    lines = "".join(f'{n},"street {n}\ntown",2025-01-31,"x"\n' for n in range(30_000))
    outcome = read(HEADER + lines)
    assert (len(outcome.rows), outcome.rejects) == (30_000, [])
    assert outcome.rows[-1]["customer_name"] == "street 29999\ntown"
    assert outcome.rows[-1]["_line"] == 60_000


# ---- months and keys


def test_a_month_that_cannot_be_told_or_is_out_of_range(read: Read) -> None:
    outcome = read(
        HEADER
        + "1,Ann,2025-02-30,\n2,Bob,,\n3,Cid,2019-12-31,\n4,Dan,2025-07-01,\n"
        + "5,Eve,31/12/2024,\n6,Fay,20250101,\n7,Gil,2025-06-30T23:30:00-05:00,\n"
    )
    assert outcome.names == ["Eve", "Fay", "Gil"]
    assert [
        (r["_line"], r["month"], r["column"], r["rule"], r["value"]) for r in outcome.rejects
    ] == [
        (2, None, "order_date", "month cannot be told", "2025-02-30"),
        (3, None, "order_date", "month cannot be told", None),
        (4, date(2019, 12, 1), "order_date", "before the first month 2020-01", "2019-12-31"),
        (5, date(2025, 7, 1), "order_date", "after the current month 2025-06", "2025-07-01"),
    ]


def test_the_month_of_a_moment_is_that_of_utc(read: Read) -> None:
    columns = tuple(
        replace(column, type="timestamp") if column.name == "order_date" else column
        for column in ORDERS.columns
    )
    outcome = read(
        HEADER + "1,Ann,2025-01-31T23:30:00-05:00,\n2,Bob,2025-02-01 01:00+02:00,\n",
        replace(ORDERS, columns=columns),
    )
    assert [(row["customer_name"], row["month"]) for row in outcome.rows] == [
        ("Ann", date(2025, 2, 1)),
        ("Bob", date(2025, 1, 1)),
    ]


def test_without_a_month_column_rows_take_the_month_of_the_delivery(read: Read) -> None:
    outcome = read(HEADER + "1,Ann,,\n2\n", replace(ORDERS, month_column=None))
    assert outcome.rows[0]["month"] == date(2025, 3, 1)
    assert outcome.rejects[0]["month"] == date(2025, 3, 1)
    late = replace(ORDERS, month_column=None, last_month=date(2025, 2, 1))
    assert read(HEADER + GOOD, late).rules == [(2, "after the current month 2025-02")]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("7", "7"),
        (" 007", "7"),
        ("7.0", "7"),
        ("1e3", "1000"),
        ("x", None),
        ("", None),
        ("-0", "0"),
    ],
)
def test_a_key_is_written_in_one_way(read: Read, text: str, key: str | None) -> None:
    assert read(HEADER + f"{text},Ann,2025-01-31,\n").rows[0]["_key"] == key


def test_a_key_of_several_parts(read: Read) -> None:
    shape = replace(ORDERS, key=("customer_name", "order_date"))
    outcome = read(
        HEADER + "1, Ann ,31/01/2025,\n2,Bob,2025-01-31T10:00,\n3, ,2025-01-31,\n", shape
    )
    assert [row["_key"] for row in outcome.rows] == [
        "Ann\x1f2025-01-31",
        "Bob\x1f2025-01-31",
        None,
    ]


# ---- what is no file, and files that move


def test_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    os.mkfifo(tmp_path / "y.csv")
    for name in ("x.csv", "y.csv"):
        with pytest.raises(LandingError, match=f"{name} is not a regular file"):
            read_file(tmp_path / name)


def test_a_link_to_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text(HEADER + GOOD)
    (tmp_path / "x.csv").symlink_to(tmp_path / "real.csv")
    with pytest.raises(LandingError, match="is a symbolic link"):
        read_file(tmp_path / "x.csv")


def test_a_vanished_file_is_worth_another_try(tmp_path: Path) -> None:
    for attempt in (lambda p: read_file(p), fingerprint):
        with pytest.raises(FileInFlux, match=r"gone\.csv") as refused:
            attempt(tmp_path / "gone.csv")
        assert refused.value.kind == "transient"


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_a_file_that_grows_while_it_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = (HEADER + GOOD * 400_000).encode()
    path.write_bytes(gzip.compress(content, 1)[:-20] if name.endswith(".gz") else content)
    done = threading.Event()

    def grow() -> None:
        while not done.is_set():
            with path.open("ab") as file:
                file.write(b"2,Bob,2025-01-31,\n")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(FileInFlux, match=f"{name} changed while it was read"):
            read_file(path)
    finally:
        done.set()
        writer.join()
