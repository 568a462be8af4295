"""What is published, from what, and hence which months are out of date.

A month is current when it was built by the code there is now from the inputs there are now. Inputs
are compared by the fingerprint of their contents, so a month whose upstream was rebuilt to the same
rows stays current.

Does not belong here: building or publishing anything.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

from metalayer.lineage.select import Reach


@dataclass(frozen=True)
class Published:
    """The current version of one month, as `meta.versions` has it.

    Attributes:
        inputs: What it was made from: upstream table -> fingerprint of its months; in bronze
            delivery id, as text -> what the delivery has in the month.
        restores: The earlier version that a rollback brought back, or None.
        is_checked: Whether the table's blocking checks have passed since it was published.
    """

    version: int
    data_version: str
    code_version: str
    inputs: Mapping[str, str]
    rows_read: int
    rows: int
    rows_quarantined: int
    rows_superseded: int
    restores: int | None = None
    is_checked: bool = False


@dataclass(frozen=True)
class State:
    """All published months, and what has been delivered, at one moment.

    Attributes:
        published: Table -> month -> current version.
        delivered: Source -> month -> the live deliveries that touch the month: id, as text -> what
            it has there (shape, rows, which of them count).
        delivered_rows: Source -> month -> rows they have in the month.
        expired: Table -> months whose rows are kept no longer.
    """

    published: Mapping[str, Mapping[date, Published]]
    delivered: Mapping[str, Mapping[date, Mapping[str, str]]]
    delivered_rows: Mapping[str, Mapping[date, int]]
    expired: Mapping[str, Collection[date]] = field(default_factory=dict)
    _prefixes: dict[str, tuple[list[date], list[str]]] = field(default_factory=dict)

    def input_fingerprint(self, table: str, reach: Reach, month: date) -> str:
        """Fingerprint of the months of `table` that `month` is made from; "" if there are none."""
        if reach is Reach.SAME:
            published = self.published.get(table, {}).get(month)
            return published.data_version if published else ""
        months, prefixes = self._prefix(table)
        if reach is Reach.ALL:
            return prefixes[-1]
        cut = bisect_left if reach is Reach.BEFORE else bisect_right
        return prefixes[cut(months, month)]

    def span(self, but_for: Collection[str]) -> tuple[date, date] | None:
        """First and last month of which there are rows, delivered or published; None without any.

        Args:
            but_for: Tables that do not count.
        """
        found = [ends for name, ends in self._ends if name not in but_for]
        return (min(e[0] for e in found), max(e[1] for e in found)) if found else None

    @cached_property
    def _ends(self) -> list[tuple[str, tuple[date, date]]]:
        """Source or table -> first and last month in which it has rows, of those that have any."""
        filled = {name: set(months) for name, months in self.delivered.items()}
        for table, months in self.published.items():
            filled[table] = {month for month, version in months.items() if version.rows}
        return [(name, (min(months), max(months))) for name, months in filled.items() if months]

    def _prefix(self, table: str) -> tuple[list[date], list[str]]:
        """Months of `table` in order, and the fingerprint of each beginning of that list."""
        if table not in self._prefixes:
            published = self.published.get(table, {})
            months = sorted(published)
            digest, prefixes = hashlib.sha256(), [""]
            for month in months:
                digest.update(f"{month} {published[month].data_version}\n".encode())
                prefixes.append(digest.hexdigest()[:32])
            self._prefixes[table] = (months, prefixes)
        return self._prefixes[table]


def load_state(cursor: Any, tables: Collection[str] | None = None) -> State:
    """Read the state from the warehouse, of `tables` only or of all.

    What was delivered is left out where no bronze table is asked for.
    """
    names = list(tables) if tables is not None else None
    cursor.execute(
        "select table_name, month, version, data_version, code_version, inputs, rows_read, rows, "
        "rows_quarantined, rows_superseded, restores, is_checked from meta.versions "
        "where is_current and (%s::text[] is null or table_name = any(%s::text[]))",
        (names, names),
    )
    published: dict[str, dict[date, Published]] = {}
    for table, month, *values in cursor.fetchall():
        published.setdefault(table, {})[month] = Published(*values)
    delivered: dict[str, dict[date, dict[str, str]]] = {}
    delivered_rows: dict[str, dict[date, int]] = {}
    if names is None or any(name.startswith("bronze.") for name in names):
        cursor.execute(
            "select d.source, m.month, jsonb_object_agg(d.delivery_id, concat_ws(':', d.shape, "
            "m.rows, m.is_replaced, m.superseded_fingerprint, "
            # Erasing changes the content of a delivery, and what repairs say of where it is.
            "case when d.rows_erased > 0 or d.is_repair then left(d.sha256, 16) end)), sum(m.rows) "
            "from meta.delivery_months as m join meta.deliveries as d using (delivery_id) "
            "where d.status = 'loaded' group by d.source, m.month"
        )
        for source, month, deliveries, rows in cursor.fetchall():
            delivered.setdefault(source, {})[month] = deliveries
            delivered_rows.setdefault(source, {})[month] = int(rows)
    cursor.execute("select table_name, month from meta.expired_months")
    expired: dict[str, set[date]] = {}
    for table, month in cursor.fetchall():
        expired.setdefault(table, set()).add(month)
    return State(published, delivered, delivered_rows, expired)
