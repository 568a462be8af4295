"""One grammar, written twice: DuckDB reads keys and months by it, PostgreSQL types the rest.

metalayer/landing/macros.sql and metalayer/warehouse/functions.sql must say the same of every text.
"""

from collections.abc import Iterator
from importlib.resources import files

import duckdb
import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# What both answer, as text: bigint, numeric(18, 2), numeric(38, 10), date, timestamp, boolean,
# phone number.
IN_DUCKDB = """
    select try_bigint(t)::varchar, try_numeric(t, 18, 2), try_numeric(t, 38, 10),
        try_date(t)::varchar, strftime(try_timestamp(t), '%Y-%m-%d %H:%M:%S.%f'),
        try_boolean(t)::varchar, try_phone(t)
    from (select unnest(?::varchar[]) as t, generate_subscripts(?::varchar[], 1) as n) order by n
"""
IN_POSTGRESQL = """
    select meta.try_bigint(t)::text, trim_scale(meta.try_numeric(t, 18, 2))::text,
        trim_scale(meta.try_numeric(t, 38, 10))::text, to_char(meta.try_date(t), 'YYYY-MM-DD'),
        to_char(meta.try_timestamp(t), 'YYYY-MM-DD HH24:MI:SS.US'), meta.try_boolean(t)::text,
        meta.try_phone(t)
    from unnest(%s::text[]) with ordinality as given(t, n) order by n
"""
Answer = tuple[str | None, ...]

NUMBERS = {
    # text: (bigint, numeric(18, 2))
    "12": ("12", "12"),
    " 12 ": ("12", "12"),
    "\u00a0\t12\r\n": ("12", "12"),
    "+7": ("7", "7"),
    "-0": ("0", "0"),
    "-0.00": ("0", "0"),
    "007": ("7", "7"),
    "12.0": ("12", "12"),
    "12.": ("12", "12"),
    ".5": (None, "0.5"),
    "-.50": (None, "-0.5"),
    "1e3": ("1000", "1000"),
    "1.5E1": ("15", "15"),
    "15e-1": (None, "1.5"),
    "1,234": ("1234", "1234"),
    "1,234.50": (None, "1234.5"),
    "12,345,678.9": (None, "12345678.9"),
    "9223372036854775807": ("9223372036854775807", None),
    "-9223372036854775808": ("-9223372036854775808", None),
    "9223372036854775808": (None, None),
    "9999999999999999.99": (None, "9999999999999999.99"),
    "10000000000000000": ("10000000000000000", None),
    "1.005": (None, None),
    "1.0050e3": ("1005", "1005"),
    "1" * 31: (None, None),
    "0" * 30 + "1": (None, None),
    "0" * 29 + "1": ("1", "1"),
    **dict.fromkeys(
        [
            "",
            " ",
            ".",
            "-",
            "e3",
            "1e",
            "1e+",
            "1e100",
            "12,34",
            "1,2345",
            ",123",
            "1,234e3",
            "1 000",
        ],
        (None, None),
    ),
    **dict.fromkeys(
        [
            "0x1F",
            "0b1",
            "0o7",
            "1_000",
            "NaN",
            "inf",
            "-Infinity",
            "12,5",
            "--1",
            "1.2.3",
            "\uff11\uff12",
            "$1",
        ],
        (None, None),
    ),
}

MOMENTS = {
    # text: (date, timestamp)
    "2025-01-31": ("2025-01-31", "2025-01-31 00:00:00.000000"),
    "20250131": ("2025-01-31", "2025-01-31 00:00:00.000000"),
    "31/01/2025": ("2025-01-31", "2025-01-31 00:00:00.000000"),
    " 1/2/2025 ": ("2025-02-01", "2025-02-01 00:00:00.000000"),
    "2024-02-29": ("2024-02-29", "2024-02-29 00:00:00.000000"),
    "0001-01-01": ("0001-01-01", "0001-01-01 00:00:00.000000"),
    "9999-12-31": ("9999-12-31", "9999-12-31 00:00:00.000000"),
    "2025-01-31 23:30": ("2025-01-31", "2025-01-31 23:30:00.000000"),
    "2025-01-31 23:30:01": ("2025-01-31", "2025-01-31 23:30:01.000000"),
    "2025-01-31T23:30:01Z": ("2025-01-31", "2025-01-31 23:30:01.000000"),
    "2025-01-31T23:30:01.5z": ("2025-01-31", "2025-01-31 23:30:01.500000"),
    "2025-01-31T23:30:01.999999999": ("2025-01-31", "2025-01-31 23:30:01.999999"),
    "2025-01-31T23:30:00-05:00": ("2025-01-31", "2025-02-01 04:30:00.000000"),
    "2025-01-31 23:30 +0530": ("2025-01-31", "2025-01-31 18:00:00.000000"),
    "2025-01-31T00:30+02": ("2025-01-31", "2025-01-30 22:30:00.000000"),
    "1960-01-31T00:00:00.1234567Z": ("1960-01-31", "1960-01-31 00:00:00.123456"),
    "9999-12-31T23:59:59.9999999": ("9999-12-31", "9999-12-31 23:59:59.999999"),
    "0001-01-01T00:00+01": ("0001-01-01", None),
    "9999-12-31T23:30-01": ("9999-12-31", None),
    **dict.fromkeys(
        ["2025-02-30", "2025-02-29", "1900-02-29", "2025-13-01", "2025-00-10", "31/02/2025"],
        (None, None),
    ),
    **dict.fromkeys(
        ["0000-01-01", "10000-01-01", "2025-1-1", "2025/01/31", "31.01.2025", "01-31-2025"],
        (None, None),
    ),
    **dict.fromkeys(
        [
            "infinity",
            "-infinity",
            "epoch",
            "today",
            "now",
            "Sept-04-24",
            "2025-01-31 BC",
            "J2451187",
        ],
        (None, None),
    ),
    **dict.fromkeys(
        ["2025-01-31 24:00", "2025-01-31 23:60", "2025-01-31 23:30:60", "2025-01-31 23:30:01."],
        (None, None),
    ),
    **dict.fromkeys(
        ["2025-01-31T23:30:01.Z5", "2025-01-31T23:30:01ZZ", "2025-01-31T23:30+24", "2025-01-31Z"],
        (None, None),
    ),
    **dict.fromkeys(["2025-01-31 23:30 PST", "2025-01-31  23:30", "2025-01-31T"], (None, None)),
}

BOOLEANS = {
    **dict.fromkeys(["true", "True", " TRUE ", "t", "Yes", "y", "1"], "true"),
    **dict.fromkeys(["false", "False", "FALSE", "F", "nO", "n", "0"], "false"),
    **dict.fromkeys(["on", "off", "tr", "2", "", "yes!", "10"], None),
}


PHONES = {
    **dict.fromkeys(["(212) 555-0187", "212.555.0187 ", "1 212 555 0187"], "+12125550187"),
    **dict.fromkeys(["+1 (212) 555-0187", "\u00a02125550187"], "+12125550187"),
    "+49 30 901820": "+4930901820",
    "0049 30 901820": "+4930901820",
    **dict.fromkeys(["call me", "12345", "+1234567", "+12345678901234567", "2" * 11], None),
    **dict.fromkeys(["+", "", "2" * 201], None),
}


@pytest.fixture(scope="module")
def grammar_in_duckdb() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(files("metalayer.landing").joinpath("macros.sql").read_text())
        yield connection


@pytest.fixture
def cursor(empty_database: str) -> Iterator["psycopg2.extensions.cursor"]:
    functions = files("metalayer.warehouse").joinpath("functions.sql").read_text()
    connection = psycopg2.connect(empty_database.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(functions)
        cursor.execute(functions)  # safe to run again
        yield cursor
    connection.close()


def in_duckdb(connection: duckdb.DuckDBPyConnection, texts: list[str]) -> list[Answer]:
    return connection.execute(IN_DUCKDB, [texts, texts]).fetchall()


def in_postgresql(cursor: "psycopg2.extensions.cursor", texts: list[str]) -> list[Answer]:
    cursor.execute(IN_POSTGRESQL, (texts,))
    return cursor.fetchall()


def test_numbers(
    grammar_in_duckdb: duckdb.DuckDBPyConnection, cursor: "psycopg2.extensions.cursor"
) -> None:
    texts = list(NUMBERS)
    for answers in (in_duckdb(grammar_in_duckdb, texts), in_postgresql(cursor, texts)):
        assert {t: a[:2] for t, a in zip(texts, answers, strict=True)} == NUMBERS


def test_days_and_moments(
    grammar_in_duckdb: duckdb.DuckDBPyConnection, cursor: "psycopg2.extensions.cursor"
) -> None:
    texts = list(MOMENTS)
    for answers in (in_duckdb(grammar_in_duckdb, texts), in_postgresql(cursor, texts)):
        assert {t: a[3:5] for t, a in zip(texts, answers, strict=True)} == MOMENTS


def test_booleans(
    grammar_in_duckdb: duckdb.DuckDBPyConnection, cursor: "psycopg2.extensions.cursor"
) -> None:
    texts = list(BOOLEANS)
    for answers in (in_duckdb(grammar_in_duckdb, texts), in_postgresql(cursor, texts)):
        assert {t: a[5] for t, a in zip(texts, answers, strict=True)} == BOOLEANS


def test_phones(
    grammar_in_duckdb: duckdb.DuckDBPyConnection, cursor: "psycopg2.extensions.cursor"
) -> None:
    texts = list(PHONES)
    for answers in (in_duckdb(grammar_in_duckdb, texts), in_postgresql(cursor, texts)):
        assert {t: a[6] for t, a in zip(texts, answers, strict=True)} == PHONES


EXAMPLES = [*NUMBERS, *MOMENTS, *BOOLEANS, *PHONES]


@st.composite
def nearly_an_example(draw: st.DrawFn) -> str:
    """An example with a few characters changed, taken out or put in."""
    text = draw(st.sampled_from(EXAMPLES))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 2, len(text))))
        text = text[:start] + draw(st.text("0123456789+-.,eE/: TZz", max_size=2)) + text[end:]
    return text


TEXTS = st.lists(
    st.one_of(
        nearly_an_example(),
        st.text("0123456789+-.,eE/: TZz\u00a0\t", max_size=40),
        st.decimals(allow_nan=False, allow_infinity=False).map(str),
        st.integers(-(10**20), 10**20).map(str),
        st.datetimes().map(str),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60),
    ),
    min_size=1,
    max_size=60,
)


@pytest.mark.parametrize("date_style", ["ISO, MDY", "German, DMY", "SQL, MDY", "Postgres, YMD"])
def test_both_say_the_same_of_any_text(
    grammar_in_duckdb: duckdb.DuckDBPyConnection,
    cursor: "psycopg2.extensions.cursor",
    date_style: str,
) -> None:
    cursor.execute("select set_config('datestyle', %s, false)", (date_style,))

    @settings(
        max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(TEXTS)
    def agree(texts: list[str]) -> None:
        ours = in_duckdb(grammar_in_duckdb, texts)
        theirs = in_postgresql(cursor, texts)
        for text, here, there in zip(texts, ours, theirs, strict=True):
            assert (text, here) == (text, there)

    agree()
    assert in_postgresql(cursor, EXAMPLES) == in_duckdb(grammar_in_duckdb, EXAMPLES)


def test_very_long_texts_are_no_values_and_no_errors(
    grammar_in_duckdb: duckdb.DuckDBPyConnection, cursor: "psycopg2.extensions.cursor"
) -> None:
    texts = ["1" * 300_000, "1," * 100_000, "9" * 200_000 + "e99", "." * 99_999, "-" * 99_999]
    nothing = [(None,) * 7] * len(texts)
    assert in_duckdb(grammar_in_duckdb, texts) == nothing
    assert in_postgresql(cursor, texts) == nothing


def test_null_is_null(cursor: "psycopg2.extensions.cursor") -> None:
    cursor.execute(
        "select meta.try_bigint(null), meta.try_numeric(null, 1, 0), meta.try_date(null), "
        "meta.try_timestamp(null), meta.try_boolean(null)"
    )
    assert cursor.fetchone() == (None,) * 5


def test_casts_are_inlined(cursor: "psycopg2.extensions.cursor") -> None:
    """Else a million rows take half a minute."""
    cursor.execute("create temp table landed (t text)")
    cursor.execute(
        "explain (verbose, costs off) select meta.try_bigint(t), meta.try_numeric(t, 18, 2), "
        "meta.try_date(t), meta.try_timestamp(t), meta.try_boolean(t), meta.surrogate_key(t, t) "
        "from landed"
    )
    plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "try_" not in plan
    assert "surrogate_key" not in plan


def test_surrogate_keys(cursor: "psycopg2.extensions.cursor") -> None:
    cursor.execute(
        "select meta.surrogate_key('a', 'bc'), meta.surrogate_key('ab', 'c'), "
        "meta.surrogate_key('a', null), meta.surrogate_key('a', ''), meta.surrogate_key('a'), "
        "meta.surrogate_key('a', 'bc'), meta.surrogate_key('226')"
    )
    first, *others, again, known = cursor.fetchone()
    assert first == again
    assert len({first, *others}) == 5
    assert known == int.from_bytes(bytes.fromhex("9cfdf10e8fc047a4"), signed=True)
    cursor.execute("select 'x'::text, meta.surrogate_key(n::text) from generate_series(1, 1000) n")
    assert len({key for _, key in cursor.fetchall()} - {0}) == 1000
