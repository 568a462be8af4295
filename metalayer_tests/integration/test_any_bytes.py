"""Any bytes landed as an export load, go to quarantine or are refused, and it adds up.

One warehouse takes all examples, each on top of those before. What becomes of single records is
told by `unit/test_reader_properties.py`; here the ledger and the tables are looked at.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Iterator
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metalayer.warehouse.server import WarehouseServer
from metalayer_tests.integration.sharing import module_platform
from metalayer_tests.story import Platform

ORDERS = [
    "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status",
    "1,7,P00226,2025-01-05,2,5.00,10.00,PAID",
    '2,7,"P00,227",2025-02-28,1,"1,234.50",1234.50,SHIPPED',
    "3,8,,31/01/2025,1e2,0.01,1,pending",
    '4,9,"P0\n0228",2025-01-31T23:00:00Z, 3 ,2,6,CANCELLED',
    "1,7,P00226,2025-02-05,3,5.00,15.00,CLOSED",
]
CUSTOMERS = [
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at",
    "7,Ada,Berg,Ada@Example.org,555 010 9999,Aarhus,dk,8000,1990-01-01,2024-01-01,2025-01-02",
    '8,"O""Neill",N/A,,+45 1234 5678,"Old\nTown",NULL,,,,2025-02-03 04:05:06+02:00',
    "7,Ada,Berg-Lund,,,Zürich,-,8000,29/02/2000,20240101,2025-02-02T10:00:00.123456789Z",
]
EXPORTS = {"erp/orders": ORDERS, "crm/customers": CUSTOMERS}
STUMBLING_BLOCKS = [
    b'"', b'""', b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\0", b"\\", b"'", b"\\N", b"\\.",
    b"\xff", b"\xfe", b"\xef\xbb\xbf", b"\x1a", b"\x1e", b"\x1f", b"\xc2\xa0", b"\xed\xa0\x80",
    b"%s", b"{}", b"$$", b"NULL", b"-", b"1e99", b"9" * 40, b"\xf0\x9f\x92\xa9", b"\xef\xb7\x90",
]  # fmt: skip


@st.composite
def _in_some_dialect(draw: st.DrawFn, lines: list[str]) -> bytes:
    """The export as some other program would write it."""
    records = list(csv.reader(io.StringIO("\n".join(lines))))
    text = io.StringIO(newline="")
    writer = csv.writer(
        text,
        delimiter=draw(st.sampled_from(",;\t|")),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])),
    )
    order = draw(st.permutations(range(len(records[0]))))
    writer.writerows([record[n] for n in order] for record in records)
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-32"]
    return text.getvalue().encode(draw(st.sampled_from(encodings)))


@st.composite
def _mutated(draw: st.DrawFn, lines: list[str]) -> bytes:
    """The export with bytes flipped, cut out, repeated and put in."""
    content = bytearray(
        draw(st.one_of(st.just("\n".join(lines).encode()), _in_some_dialect(lines)))
    )
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        chunk = slice(start, start + draw(st.integers(1, 40)))
        change = draw(st.sampled_from(["flip", "cut", "repeat", "insert", "insert", "insert"]))
        if change == "flip" and start < len(content):
            content[start] ^= draw(st.integers(1, 255))
        elif change == "cut":
            del content[chunk]
        elif change == "repeat":
            content[start:start] = content[chunk]
        else:
            content[start:start] = draw(st.sampled_from(STUMBLING_BLOCKS))
    return bytes(content)


def _file(export: str) -> st.SearchStrategy[tuple[str, bytes]]:
    lines = EXPORTS[export]
    header = lines[0].encode()
    content = st.one_of(
        st.binary(max_size=80),
        st.binary(max_size=120).map(lambda rest: header + b"\n" + rest),
        _in_some_dialect(lines),
        _mutated(lines),
        _mutated(lines),
        st.builds(
            lambda c, cut: gzip.compress(c)[: cut or None],
            _mutated(lines),
            st.sampled_from([0, -5]),
        ),
    )
    return st.tuples(st.just(export), content)


FILES = st.lists(
    st.tuples(st.one_of(_file("erp/orders"), _file("crm/customers")), st.booleans()),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def platform(
    server: WarehouseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("any-bytes")
    with module_platform(server, folder, date(2025, 1, 1), date(2025, 4, 1)) as platform:
        yield platform


def test_any_bytes_load_or_go_to_quarantine_or_are_refused(platform: Platform) -> None:
    numbers = itertools.count()

    @settings(
        max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(FILES)
    def holds(files: list[tuple[tuple[str, bytes], bool]]) -> None:
        names, name = [], ""
        for (export, content), is_redelivered in files:
            # A redelivery replaces what an earlier example left under that name.
            name = f"{export}_{'again' if is_redelivered else next(numbers)}.csv"
            platform.land(name, content)
            names.append(name)
        platform.register()
        entries = platform.ledger()
        assert set(names) <= {entry["file"] for entry in entries}
        for entry in entries:
            assert entry["rows_read"] == (
                entry["rows_loaded"] + entry["rows_rejected"] + entry["rows_superseded"]
            ), entry
            assert all(entry[n] >= 0 for n in entry if n.startswith("rows_")), entry
            assert entry["reason"] or entry["status"] == "loaded", entry

    holds()
    # The examples reach every verdict there is.
    assert {e["status"] for e in platform.ledger()} == {
        "loaded", "rejected", "superseded", "duplicate"
    }  # fmt: skip
    # Behind all that comes an export as it should be, in a month of its own.
    clean = "\n99".join(ORDERS[:5])
    for old, new in (("02-28", "01-28"), ("31", "30"), ("2025-01", "2025-04"), ("30/01", "30/04")):
        clean = clean.replace(old, new)
    platform.land("erp/orders_clean.csv", clean)
    outcome = platform.build()
    # A month with too much dirt is refused, as it should be; nothing else may go wrong.
    assert (outcome.errors, outcome.failed_checks) == ([], [])
    for failed in (r for r in outcome.months if r.outcome == "failed"):
        assert "rows break the contract (limit" in str(failed.problem)
    assert platform.balances()
    assert platform.ledger()[-1]["rows_loaded"] == 4
    arrived = "select order_id, total_amount from gold.fact_orders where order_id > 990 order by 1"
    assert platform.ask(arrived) == [(991, 10), (992, Decimal("1234.50")), (993, 1), (994, 6)]
    # What failed is all that another build tries.
    assert {r.outcome for r in platform.build().months} <= {"failed"}
