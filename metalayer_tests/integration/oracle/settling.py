"""From deliveries to the rows that count: months, rejects, and which row of a key is latest.

Belongs here: the four sources, the month and key of a record, duplicates and superseded deliveries.
Does not belong here: what else is wrong with a row (`silver.py`); a row that fails there has still
superseded older ones.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from metalayer_tests.integration.oracle import files, grammar

Reader = Callable[[str], Hashable]


@dataclass(frozen=True)
class Landed:
    """One landed file and its source ("erp/orders")."""

    path: Path
    source: str


@dataclass(frozen=True)
class Source:
    """How the rows of one source are named and dated.

    Without a month column it is a snapshot source, and the file name tells the month.
    """

    columns: tuple[str, ...]
    key: Mapping[str, Reader]
    month: tuple[str, Callable[[str], date | None]] | None = None


SOURCES: Mapping[str, Source] = {
    "crm/customers": Source(
        columns=(
            *("customer_id", "first_name", "last_name", "email", "phone", "city", "state", "zip"),
            *("dob", "created_at", "updated_at"),
        ),
        key={"customer_id": grammar.bigint, "updated_at": grammar.instant},
        month=("updated_at", grammar.instant),
    ),
    "crm/crm_customers": Source(
        columns=("customer_id", "customer_name", "email", "region"),
        key={"customer_id": grammar.bigint},
    ),
    "erp/orders": Source(
        columns=(
            *("order_id", "customer_id", "product_code", "order_date", "quantity", "unit_price"),
            *("total_amount", "status"),
        ),
        key={"order_id": grammar.bigint},
        month=("order_date", grammar.day),
    ),
    "erp/erp_sales": Source(
        columns=(
            *("sales_id", "product_id", "customer_id", "quantity", "sale_date", "sale_amount"),
        ),
        key={"sales_id": grammar.bigint},
        month=("sale_date", grammar.day),
    ),
}


class Row(NamedTuple):
    """One record that passed landing. `key` is `None` where a part of it can't be read."""

    delivery: int
    line: int
    month: date
    key: tuple[Hashable, ...] | None
    texts: files.Fields


@dataclass
class Delivery:
    """What became of one landed file: its rows, its rejects, or why nothing of it loads."""

    number: int
    source: str
    path: Path
    status: Literal["loaded", "duplicate", "superseded", "refused"] = "loaded"
    rows: list[Row] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    refusal: str | None = None
    month: date | None = None

    @property
    def rows_read(self) -> int:
        """The records of the file, rejected ones included."""
        return len(self.rows) + len(self.rejects)


def deliveries(
    landed: Sequence[Landed], name: str, first_month: date, last_month: date
) -> list[Delivery]:
    """Each file of one source in order, read, with duplicates and superseded ones told apart.

    The same bytes as an earlier file load nothing; the same name with other bytes supersedes the
    earlier file, unless it is refused.
    """
    seen: set[str] = set()
    live: dict[str, Delivery] = {}
    result: list[Delivery] = []
    for number, item in enumerate(landed, start=1):
        if item.source != name:
            continue
        delivery = Delivery(number, name, item.path)
        result.append(delivery)
        fingerprint = hashlib.sha256(item.path.read_bytes()).hexdigest()
        if fingerprint in seen:
            delivery.status = "duplicate"
            continue
        seen.add(fingerprint)
        try:
            _fill(delivery, SOURCES[name], first_month, last_month)
        except files.RefusedError as refusal:
            delivery.status, delivery.refusal = "refused", str(refusal)
            continue
        if item.path.name in live:
            live[item.path.name].status = "superseded"
        live[item.path.name] = delivery
    return result


def _fill(delivery: Delivery, source: Source, first_month: date, last_month: date) -> None:
    key_readers = [
        (source.columns.index(column), grammar.Remembered(read))
        for column, read in source.key.items()
    ]

    def key_of(texts: files.Fields) -> tuple[Hashable, ...] | None:
        key = tuple([read[texts[place]] for place, read in key_readers])
        return None if None in key else key

    if source.month is None:
        delivery.month = month = _month_of_file(delivery.path)

        def month_of(texts: files.Fields) -> date | None:
            return month
    else:
        column, read = source.month
        place = source.columns.index(column)
        months = grammar.Remembered(
            lambda text: None if (moment := read(text)) is None else grammar.month_of(moment)
        )

        def month_of(texts: files.Fields) -> date | None:
            return months[texts[place]]

    export = files.read(
        delivery.path,
        source.columns,
        lambda texts: key_of(texts) is not None and month_of(texts) is not None,
    )
    delivery.rejects = export.rejects
    for line, texts in export.records:
        at = month_of(texts)
        if at is None:
            delivery.rejects.append((line, "month can't be told"))
        elif at < first_month:
            delivery.rejects.append((line, "before the first month"))
        elif at > last_month:
            delivery.rejects.append((line, "after the last month"))
        else:
            delivery.rows.append(Row(delivery.number, line, at, key_of(texts), texts))


def _month_of_file(path: Path) -> date:
    if found := re.search(r"_(\d{4})-(0[1-9]|1[0-2])(?!\d)", path.name):
        return date(int(found[1]), int(found[2]), 1)
    return grammar.month_of(datetime.fromtimestamp(path.stat().st_mtime, tz=UTC))


def latest(delivered: Sequence[Delivery], source: Source) -> list[Row]:
    """The rows that count, of all live deliveries; rows without a readable key all do.

    Delta: the last row of a key, across months. Snapshot: of each month the newest delivery, and in
    it the last row of a key.
    """
    live = [delivery for delivery in delivered if delivery.status == "loaded"]
    if source.month is None:
        newest = {delivery.month: delivery for delivery in live}
        live = [delivery for delivery in live if newest[delivery.month] is delivery]
    last: dict[Hashable, Row] = {}
    for delivery in live:
        for row in delivery.rows:
            if row.key is None:
                name: Hashable = (row.delivery, row.line)
            else:
                name = (row.month if source.month is None else None, row.key)
            last[name] = row
    return list(last.values())


@dataclass(frozen=True)
class Account:
    """Where the rows of one source went: read = rejected + superseded + published + quarantined."""

    read: int
    rejected: int
    superseded: int
    published: int
    quarantined: int


def account(delivered: Sequence[Delivery], latest_rows: int, published: int) -> Account:
    """Add up one source: `latest_rows` counted, and of these `published` survived silver."""
    counts = Counter[str]()
    for delivery in delivered:
        counts["read"] += delivery.rows_read
        counts["rejected"] += len(delivery.rejects)
    return Account(
        read=counts["read"],
        rejected=counts["rejected"],
        superseded=counts["read"] - counts["rejected"] - latest_rows,
        published=published,
        quarantined=latest_rows - published,
    )
