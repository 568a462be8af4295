"""The entries of the ledger: what `meta` says of each delivery, written nowhere else.

An entry is inserted, retired, or filed again from another parse; `settle` then brings which rows
count up to date. All of it is of one source at a time, so that a source that cannot be settled
holds up no other.

Does not belong here: deciding what becomes of a file (`ledger.py`, `verdict.py`, `copies.py`), or
which row of a key counts (`settle.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from psycopg2.extras import execute_values

from metalayer.errors import Kind, LandingError, WarehouseError
from metalayer.governance.sealing import Sealer
from metalayer.landing.copy import quoted
from metalayer.landing.engine import open_memory
from metalayer.landing.files import LandedFile
from metalayer.landing.parsed import parsed_deliveries
from metalayer.landing.reader import Parsed
from metalayer.landing.repaired import file_rejects
from metalayer.landing.settle import Settlement, settle
from metalayer.landing.shape import REPAIRS_COLUMN, Terms, parsed_paths
from metalayer.settings import Settings
from metalayer.warehouse.keys import sealer

_LEDGER_LOCK = 0x4D4C0002


class LedgerBusyError(WarehouseError):
    """Somebody else is taking files in."""

    usual_kind: ClassVar[Kind] = "transient"


def lock(cursor: Any, *, waits: bool = True) -> None:
    """Let nobody else change the ledger until the end of the transaction.

    Raises:
        LedgerBusyError: when somebody else has it, and this does not wait.
    """
    if waits:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_LEDGER_LOCK,))
        return
    cursor.execute("select pg_try_advisory_xact_lock(%s)", (_LEDGER_LOCK,))
    if cursor.fetchone() == (False,):
        raise LedgerBusyError("Another process is taking files in", "Look again once it is done")


@dataclass(frozen=True)
class Delivery:
    """One file as it was registered, or withdrawn, just now.

    Attributes:
        drift: What changed in its columns since the delivery before, in sentences.
    """

    delivery_id: int
    file: str
    source: str
    status: str
    rows_read: int = 0
    rows_rejected: int = 0
    reason: str | None = None
    extra_columns: tuple[str, ...] = ()
    missing_columns: tuple[str, ...] = ()
    months: tuple[date, ...] = ()
    drift: tuple[str, ...] = ()


@dataclass
class Candidate:
    """A file that is not in the ledger as it is now, and what reading it gave.

    Attributes:
        delivery_id: Its place among the deliveries, should it get an entry.
        was_refused: Whether a version of the file has an entry that says so.
        rows_erased: Records of erased persons that were taken out of it, or made anonymous in it.
    """

    landed: LandedFile
    terms: Terms
    month: date
    delivery_id: int = 0
    was_refused: bool = False
    sha256: str = ""
    parsed: Parsed | None = None
    refusal: LandingError | None = None
    rows_erased: int = 0


class Entries:
    """The entries of one source, and what has changed in them so far."""

    def __init__(self, cursor: Any, settings: Settings, terms: Terms) -> None:
        self.cursor = cursor
        self.settings = settings
        self.terms = terms
        self.deliveries: list[Delivery] = []
        self.changed: dict[int, Path] = {}

    def insert(
        self,
        candidate: Candidate,
        status: str,
        *,
        reason: str | None = None,
        related: int | None = None,
        parsed: Parsed | None = None,
        drift: Sequence[str] = (),
    ) -> int:
        """Give a file its entry; one that was refused as it is keeps the entry it has."""
        landed = candidate.landed
        if candidate.was_refused:
            self._forget_refusals(candidate)
        delivery = Delivery(
            candidate.delivery_id,
            landed.name,
            self.terms.source.name,
            status,
            parsed.rows_read if parsed else 0,
            parsed.rows_rejected if parsed else 0,
            reason,
            _extra_columns(parsed) if parsed else (),
            parsed.missing_columns if parsed else (),
            tuple(sorted(parsed.months)) if parsed else (),
            tuple(drift),
        )
        values = {
            "delivery_id": delivery.delivery_id,
            "source": delivery.source,
            "file": delivery.file,
            "sha256": candidate.sha256,
            "size": landed.size,
            "mtime_ns": landed.mtime_ns,
            "status": status,
            "reason": reason,
            "related_delivery_id": related,
            "fallback_month": candidate.month,
            "shape": self.terms.judged_by if status == "rejected" else self.terms.version,
            "rows_read": delivery.rows_read,
            "rows_rejected": delivery.rows_rejected,
            "extra_columns": list(delivery.extra_columns),
            "missing_columns": list(delivery.missing_columns),
            "drift": list(drift),
            "rows_erased": candidate.rows_erased,
            "is_repair": parsed is not None and REPAIRS_COLUMN in parsed.extra_columns,
        }
        self.cursor.execute(
            f"insert into meta.deliveries ({', '.join(values)}) overriding system value "
            f"values ({', '.join(f'%({name})s' for name in values)}) "
            "on conflict (delivery_id) do update set registered_at = now(), "
            + ", ".join(f"{name} = excluded.{name}" for name in values if name != "delivery_id"),
            values,
        )
        self.deliveries.append(delivery)
        return delivery.delivery_id

    def _forget_refusals(self, candidate: Candidate) -> None:
        """Remove earlier refusals of the same content: it has an entry with today's reason."""
        self.cursor.execute(
            "with refused as (select delivery_id from meta.deliveries where source = %s "
            "and file = %s and sha256 = %s and status = 'rejected' and delivery_id <> %s), "
            "freed as (update meta.deliveries set related_delivery_id = null "
            "where related_delivery_id in (select delivery_id from refused)) "
            "delete from meta.deliveries where delivery_id in (select delivery_id from refused)",
            (
                self.terms.source.name,
                candidate.landed.name,
                candidate.sha256,
                candidate.delivery_id,
            ),
        )

    def is_live(self, sha256: str) -> bool:
        """Whether a live delivery of the source has this content."""
        self.cursor.execute(
            "select exists (select from meta.deliveries where source = %s and sha256 = %s "
            "and status = 'loaded')",
            (self.terms.source.name, sha256),
        )
        return bool(self.cursor.fetchone()[0])

    def supersede(self, file: str, by: int) -> None:
        """Let the earlier version of a file leave: its rows count no longer."""
        self.cursor.execute(
            "select delivery_id, sha256, fallback_month from meta.deliveries where source = %s "
            "and file = %s and status = 'loaded' and delivery_id <> %s",
            (self.terms.source.name, file, by),
        )
        for delivery, sha256, month in self.cursor.fetchall():
            reason = "a newer version of the file landed"
            self.retire(delivery, sha256, month, "superseded", reason, by)
            self.judge_snapshots_again()

    def judge_snapshots_again(self) -> None:
        """Give refused snapshots another chance: they may have been measured by one that left."""
        if self.terms.is_snapshot:
            self.cursor.execute(
                "update meta.deliveries set shape = '' where source = %s and status = 'rejected'",
                (self.terms.source.name,),
            )

    def retire(
        self,
        delivery: int,
        sha256: str,
        month: date,
        status: str,
        reason: str,
        by: int | None = None,
    ) -> None:
        """Take a live delivery out: its rows leave the tables with the next build."""
        is_refused = status == "rejected"
        self.cursor.execute(
            "update meta.deliveries set status = %s, reason = %s, related_delivery_id = %s, "
            "shape = %s where delivery_id = %s",
            (
                status,
                reason,
                by,
                self.terms.judged_by if is_refused else self.terms.version,
                delivery,
            ),
        )
        if is_refused:
            self.cursor.execute(
                "update meta.deliveries set rows_read = 0, rows_rejected = 0, "
                "rows_repaired = 0 where delivery_id = %s",
                (delivery,),
            )
            self.cursor.execute(
                "delete from meta.delivery_months where delivery_id = %s", (delivery,)
            )
        self._clear_quarantine(delivery)
        self.changed[delivery] = self._rows_path(sha256, month)

    def file_again(self, delivery: int, sha256: str, month: date, parsed: Parsed) -> None:
        """Record what another parse of a delivery gave."""
        self.cursor.execute(
            "update meta.deliveries set shape = %s, rows_read = %s, rows_rejected = %s, "
            "extra_columns = %s, missing_columns = %s, is_repair = %s where delivery_id = %s",
            (
                self.terms.version,
                parsed.rows_read,
                parsed.rows_rejected,
                list(_extra_columns(parsed)),
                list(parsed.missing_columns),
                REPAIRS_COLUMN in parsed.extra_columns,
                delivery,
            ),
        )
        self.file(delivery, sha256, month, parsed)

    def file(self, delivery: int, sha256: str, month: date, parsed: Parsed) -> None:
        """Record what a delivery brings: rows by month, and the rows that could not be read."""
        cursor = self.cursor
        cursor.execute("delete from meta.superseded_rows where delivery_id = %s", (delivery,))
        cursor.execute("delete from meta.delivery_months where delivery_id = %s", (delivery,))
        execute_values(
            cursor,
            "insert into meta.delivery_months (delivery_id, month, rows) values %s",
            [(delivery, m, rows) for m, rows in sorted(parsed.months.items())],
        )
        self._clear_quarantine(delivery)
        rows, rejects = parsed_paths(self.settings.parsed_dir, self.terms.shape, sha256, month)
        if parsed.rows_rejected:
            with open_memory() as memory:
                unreadable = f"read_parquet('{quoted(rejects)}')"
                file_rejects(
                    cursor,
                    memory,
                    self.terms.bronze,
                    f"(select {delivery} as delivery_id, * from {unreadable})",
                    self._sealer,
                )
        self.changed[delivery] = rows

    def settle(self) -> None:
        """Settle which rows of the source count, if a delivery came or went.

        Raises:
            LandingError: when a delivery has to be parsed again for it and cannot be.
        """
        if not self.changed:
            return
        live = parsed_deliveries(
            self.cursor, self.terms.shape, self.settings, since=None, until=None
        )
        settle(self.cursor, Settlement(self.terms.spec, live, self.changed, self._sealer))

    @cached_property
    def _sealer(self) -> Sealer | None:
        """What seals the source's values, if any are encrypted."""
        return sealer(self.cursor, self.settings) if self.terms.spec.sealed else None

    def _clear_quarantine(self, delivery: int) -> None:
        self.cursor.execute(
            "delete from meta.quarantine where delivery_id = %s and table_name = %s",
            (delivery, self.terms.bronze),
        )

    def _rows_path(self, sha256: str, month: date) -> Path:
        return parsed_paths(self.settings.parsed_dir, self.terms.shape, sha256, month)[0]


def _extra_columns(parsed: Parsed) -> tuple[str, ...]:
    """The columns that no contract knows; the one that makes a file a repair is not of them."""
    return tuple(name for name in parsed.extra_columns if name != REPAIRS_COLUMN)
