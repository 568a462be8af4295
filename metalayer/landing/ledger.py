"""The ledger: every version of every landed file, recorded once, with what became of it.

Registering reads new files, refuses those that cannot be read as a whole, recognises content it has
seen, lets a new version of a file replace the earlier one, and settles which rows count. It writes
nothing but `meta`: the bronze months it makes stale are built afterwards (`load.py` fills them).

    discover --> read (all sources side by side) --> for each source: decide, record, settle

A file that has records of erased persons is rewritten without them before it is recorded.

A source that cannot be settled keeps its state, and the others go on.

Does not belong here: reading CSV (`reader.py`), finding files (`files.py`), judging what was read
(`verdict.py`, `drift.py`, `copies.py`), writing entries (`entries.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from metalayer.contracts.contract import TableSpec
from metalayer.errors import LandingError
from metalayer.failure import CLASS, NEXT_STEP
from metalayer.landing import drift, verdict
from metalayer.landing.awaiting import awaiting
from metalayer.landing.copies import promote_copies, same_content, touched
from metalayer.landing.entries import Candidate, Delivery, Entries, LedgerBusyError, lock
from metalayer.landing.erase import clear_restored, take_out
from metalayer.landing.erased import load_expiries, load_register, watching
from metalayer.landing.files import STILL_SECONDS, FileState, LandedFile, Skipped, discover
from metalayer.landing.header import MissingColumns
from metalayer.landing.litter import clear_litter
from metalayer.landing.outdated import Outdated, outdated_deliveries, record_again
from metalayer.landing.parsed import parse_landed
from metalayer.landing.reader import ErasedFound, FileInFlux, Parsed, fingerprint
from metalayer.landing.shape import Terms, parsed_paths, terms_of, unpacking_of
from metalayer.settings import Settings
from metalayer.warehouse.pool import transaction

__all__ = [
    "Delivery",
    "LedgerBusyError",
    "Progress",
    "Registration",
    "lock",
    "register",
    "register_in",
]

Progress = Callable[[str], None]
_log = logging.getLogger(__name__)


@dataclass
class Registration:
    """What registering found: new deliveries, and files left alone with the reason."""

    deliveries: list[Delivery] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def register(
    pool: Engine,
    settings: Settings,
    sources: Mapping[str, TableSpec],
    *,
    today: date | None = None,
    still_seconds: float = STILL_SECONDS,
    progress: Progress | None = None,
    only: Set[FileState] | None = None,
    waits: bool = True,
) -> Registration:
    """Bring the ledger up to date with the landing zone.

    Args:
        sources: Source name -> the silver table it feeds.
        today: Tells the current month, past which no row is accepted; by default the UTC date.
        progress: Told in a line what is being read.
        only: The files to take in, as they were when they were looked at; None: all.
        waits: Whether to wait while somebody else takes files in.

    Returns:
        The deliveries registered now, oldest first, and the files left alone.

    Raises:
        LedgerBusyError: when somebody else takes files in, and this does not wait.
    """
    clear_litter(settings)
    day = today or datetime.now(UTC).date()
    left = clear_restored(pool, settings, sources, day, waits=waits)
    with transaction(pool) as connection, connection.cursor() as cursor:
        found = register_in(
            cursor,
            settings,
            sources,
            today=today,
            still_seconds=still_seconds,
            progress=progress,
            only=only,
            waits=waits,
            rewrites=True,
        )
    found.skipped += left
    _log_found(found)
    return found


def _log_found(found: Registration) -> None:
    """Log what became of each file."""
    for delivery in found.deliveries:
        facts: dict[str, Any] = {"file": delivery.file, "delivery": delivery.delivery_id}
        if delivery.status == "rejected":
            facts[CLASS], facts[NEXT_STEP] = "data", "Land it corrected under the same name."
            _log.warning("delivery rejected: %s", delivery.reason, extra=facts)
            continue
        facts |= {"rows": delivery.rows_read, "rows_quarantined": delivery.rows_rejected}
        if delivery.months:
            facts["months"] = f"{min(delivery.months):%Y-%m}..{max(delivery.months):%Y-%m}"
        _log.info("delivery %s", delivery.status, extra=facts)
        for said in delivery.drift:
            _log.warning("columns changed: %s", said, extra={"file": delivery.file})
    for skipped in found.skipped:
        _log.info("file left alone: %s", skipped.reason, extra={"file": skipped.name})


def register_in(
    cursor: Any,
    settings: Settings,
    sources: Mapping[str, TableSpec],
    *,
    today: date | None = None,
    still_seconds: float = STILL_SECONDS,
    progress: Progress | None = None,
    only: Set[FileState] | None = None,
    waits: bool = True,
    rewrites: bool = False,
) -> Registration:
    """The same in the caller's transaction, who may also take it back: a plan does.

    Args:
        rewrites: Whether records of erased persons are taken out of the files that have them; such
            files are left alone otherwise.
    """
    lock(cursor, waits=waits)
    day = today or datetime.now(UTC).date()
    unpacking = unpacking_of(settings)
    register, expiries = load_register(cursor, settings), load_expiries(cursor, settings)
    terms = {
        name: watching(
            terms_of(s, settings.start_month, day, unpacking),
            sources,
            register,
            expiries.get(name),
        )
        for name, s in sources.items()
    }
    desk = _Desk(cursor, settings, terms, progress or (lambda _line: None), rewrites=rewrites)
    files, skipped = discover(
        settings.landing, [t.source for t in terms.values()], still_seconds=still_seconds
    )
    desk.result.skipped += skipped
    candidates = [c for c in desk.candidates(files) if only is None or c.landed.state in only]
    outdated = outdated_deliveries(cursor, terms)
    desk.read(candidates, outdated)
    for source in terms:
        desk.take_in(
            Entries(cursor, settings, terms[source]),
            [c for c in candidates if c.landed.source.name == source],
            [o for o in outdated if o.terms.source.name == source],
            {f.name: f.path for f in files if f.source.name == source},
        )
    desk.result.deliveries.sort(key=lambda delivery: delivery.delivery_id)
    return desk.result


class _Desk:
    """One registration: the cursor of its transaction, and what it has found so far."""

    def __init__(
        self,
        cursor: Any,
        settings: Settings,
        terms: Mapping[str, Terms],
        progress: Progress,
        *,
        rewrites: bool,
    ) -> None:
        self.cursor = cursor
        self.settings = settings
        self.terms = terms
        self.progress = progress
        self.rewrites = rewrites
        self.result = Registration()

    def candidates(self, files: Sequence[LandedFile]) -> list[Candidate]:
        """The files whose state is not in the ledger, in the order of landing."""
        found, withdrawn = awaiting(self.cursor, self.terms, files)
        self.result.skipped += withdrawn
        new = [candidate for candidate in found if not candidate.delivery_id]
        self.cursor.execute(
            "select nextval(pg_get_serial_sequence('meta.deliveries', 'delivery_id')) as place "
            "from generate_series(1, %s) order by place",
            (len(new),),
        )
        for candidate, (place,) in zip(new, self.cursor.fetchall(), strict=True):
            candidate.delivery_id = place
        return found

    def read(self, candidates: Sequence[Candidate], outdated: Sequence[Outdated]) -> None:
        """Read files side by side, whatever their source; nothing is recorded yet."""
        self.cursor.execute("select source, sha256 from meta.deliveries where status = 'loaded'")
        live = set(self.cursor.fetchall())

        def again(delivery: Outdated) -> None:
            self.progress(f"reading {delivery.file} again")
            delivery.read(self.settings)

        with ThreadPoolExecutor(max_workers=self.settings.workers) as executor:
            list(executor.map(lambda candidate: self._read(candidate, live), candidates))
            list(executor.map(again, outdated))

    def take_in(
        self,
        entries: Entries,
        candidates: Sequence[Candidate],
        outdated: Sequence[Outdated],
        landed: Mapping[str, Path],
    ) -> None:
        """Record what was read of one source, and settle it: all of it or nothing.

        Args:
            landed: Files of the source in the landing zone, and where they are.
        """
        skipped: list[Skipped] = []
        self.cursor.execute("savepoint source")
        try:
            for candidate in candidates:
                self._enter(entries, candidate, skipped)
            promote_copies(entries, landed)
            skipped += record_again(entries, outdated)
            entries.settle()
        except LandingError as error:
            self.cursor.execute("rollback to savepoint source")
            source = entries.terms.source.name
            names = [candidate.landed.name for candidate in candidates]
            reason = f"nothing new of {source} can be taken in: {error}"
            skipped = [Skipped(name, reason) for name in names or [source]]
        else:
            self.result.deliveries += entries.deliveries
        self.cursor.execute("release savepoint source")
        self.result.skipped += skipped

    def _read(self, candidate: Candidate, live: set[tuple[str, str]]) -> None:
        try:
            candidate.sha256 = fingerprint(candidate.landed.path).sha256
            if (candidate.terms.source.name, candidate.sha256) not in live:
                self.progress(f"reading {candidate.landed.name}")
                self._parse(candidate)
        except LandingError as refusal:
            candidate.refusal = refusal

    def _parse(self, candidate: Candidate) -> Parsed:
        try:
            return self._parse_as_it_is(candidate)
        except ErasedFound as found:
            if not self.rewrites:
                raise
            take_out(candidate, found, self.settings)
        return self._parse_as_it_is(candidate)

    def _parse_as_it_is(self, candidate: Candidate) -> Parsed:
        candidate.parsed = parse_landed(
            candidate.landed.path,
            candidate.terms.shape,
            candidate.month,
            candidate.sha256,
            self.settings.parsed_dir,
        )
        return candidate.parsed

    def _enter(self, entries: Entries, candidate: Candidate, skipped: list[Skipped]) -> None:
        """Decide what becomes of a file, and give it its entry."""
        name = candidate.landed.name
        same = None if candidate.refusal else same_content(entries, candidate)
        if same is not None and touched(entries, candidate, same[0]):
            return
        if same is not None:
            reason = f"the same content as {same[1]}"
            delivery = entries.insert(candidate, "duplicate", reason=reason, related=same[0])
            entries.supersede(name, delivery)
            return
        if candidate.refusal is None and candidate.parsed is None:
            try:
                # Content that was live when it was read may have been replaced a moment ago.
                self._parse(candidate)
            except LandingError as refusal:
                candidate.refusal = refusal
        if isinstance(candidate.refusal, FileInFlux):
            skipped.append(Skipped(name, "it is still being written"))
        elif isinstance(candidate.refusal, ErasedFound):
            reason = "a build first takes out of it whom was erased, and what has expired"
            skipped.append(Skipped(name, reason))
        elif candidate.refusal is not None:
            reason = str(self._explained(candidate.refusal, candidate))
            entries.insert(candidate, "rejected", reason=reason)
        elif candidate.parsed is not None:
            self._judge(entries, candidate, candidate.parsed)

    def _judge(self, entries: Entries, candidate: Candidate, parsed: Parsed) -> None:
        """Take a file that could be read, or refuse it by the limits of its contract."""
        rows, rejects = self._parse_of(candidate)
        if not (rows.exists() and rejects.exists()):
            # A file of the same content was refused a moment ago, and its parse let go.
            parsed = self._parse(candidate)
        now = drift.Columns(parsed.extra_columns, parsed.missing_columns, rows)
        changes = drift.drift(candidate.terms, now, self._columns_before(candidate))
        problem = verdict.refusal(self.cursor, self.settings, candidate, parsed, changes)
        if problem is not None:
            entries.insert(candidate, "rejected", reason=problem)
            if not entries.is_live(candidate.sha256):
                rows.unlink(missing_ok=True)
                rejects.unlink(missing_ok=True)
            return
        delivery = entries.insert(candidate, "loaded", parsed=parsed, drift=changes.sentences)
        entries.supersede(candidate.landed.name, delivery)
        entries.file(delivery, candidate.sha256, candidate.month, parsed)

    def _explained(self, refusal: LandingError, candidate: Candidate) -> LandingError:
        if not isinstance(refusal, MissingColumns):
            return refusal
        return drift.explained(refusal, self._columns_before(candidate))

    def _columns_before(self, candidate: Candidate) -> drift.Columns | None:
        return drift.columns_before(
            self.cursor, self.settings, candidate.terms, candidate.delivery_id
        )

    def _parse_of(self, candidate: Candidate) -> tuple[Path, Path]:
        return parsed_paths(
            self.settings.parsed_dir, candidate.terms.shape, candidate.sha256, candidate.month
        )
