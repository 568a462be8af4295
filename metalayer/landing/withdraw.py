"""Taking a landed file out: the next build acts as if it had never come.

Its entries in the ledger stay and say so; its rows count no longer, and what they had superseded
counts again. The file itself is kept, in a folder of the landing zone that nobody looks into.

Does not belong here: a file that a newer version replaces (`ledger.py`).
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from sqlalchemy import Engine

from metalayer.contracts.contract import TableSpec
from metalayer.errors import LandingError, UsageError
from metalayer.landing.copies import promote_copies
from metalayer.landing.entries import Delivery, Entries, lock
from metalayer.landing.files import WITHDRAWN_FOLDER, LandedFile, discover, refuse_leaving
from metalayer.landing.shape import terms_of, unpacking_of
from metalayer.settings import Settings
from metalayer.warehouse.acts import record
from metalayer.warehouse.pool import transaction


@dataclass
class Withdrawal:
    """What was taken out.

    Attributes:
        file: Its name in the ledger, or in the landing zone where it had not been read yet.
        deliveries: Its entries that are withdrawn now; none where that was done before.
        rows: How many rows leave with them.
        copies: Files of the same content that are loaded in its place.
        moved_to: Where the landed file is now; None where there was none.
    """

    file: str
    deliveries: list[Delivery] = field(default_factory=list)
    rows: int = 0
    copies: list[str] = field(default_factory=list)
    moved_to: Path | None = None


def withdraw(
    pool: Engine,
    settings: Settings,
    sources: Mapping[str, TableSpec],
    name: str,
    *,
    today: date | None = None,
) -> Withdrawal:
    """Take a file out of the ledger and out of the landing zone.

    Earlier versions of the file do not come back. Done twice it changes nothing more; a move that
    was interrupted is finished.

    Args:
        sources: Source name -> the silver table it feeds.
        name: The file: as the ledger names it, as a path, or without its folder if that is enough.
        today: As for `register`.

    Raises:
        UsageError: when there is no such file, naming close ones, or more than one.
        LandingError: when the folder for withdrawn files leads out of the landing zone, or which
            rows count cannot be settled without it, and then nothing has changed; or when the
            landed file cannot be moved, and then it is withdrawn all the same.
    """
    with transaction(pool) as connection, connection.cursor() as cursor:
        lock(cursor)
        files, _ = discover(
            settings.landing,
            [spec.source for spec in sources.values() if spec.source is not None],
            still_seconds=0.0,
        )
        cursor.execute(
            "select distinct source, file from meta.deliveries where source = any(%s)",
            (list(sources),),
        )
        entered = cursor.fetchall()
        file = _named(name, settings.landing, {f.name for f in files} | {f for _, f in entered})
        refuse_leaving(settings.landing, f"{WITHDRAWN_FOLDER}/{file}")
        done = Withdrawal(file)
        for source in sorted(source for source, entry in entered if entry == file):
            terms = terms_of(
                sources[source],
                settings.start_month,
                today or datetime.now(UTC).date(),
                unpacking_of(settings),
            )
            _take_out(Entries(cursor, settings, terms), files, done)
        deliveries = [d.delivery_id for d in done.deliveries]
        record(cursor, "withdraw", file, {"deliveries": deliveries, "rows": done.rows})
    landed = next((f for f in files if f.name == file), None)
    if landed is not None:
        done.moved_to = _move_aside(settings.landing, landed)
    return done


def _named(name: str, landing: Path, files: Collection[str]) -> str:
    """The one of `files` that is meant."""
    if name in files:
        return name
    path = Path(name).resolve()
    if path.is_relative_to(landing) and (inside := path.relative_to(landing).as_posix()) in files:
        return inside
    if ".." in Path(name).parts and not path.is_relative_to(landing):
        raise UsageError(
            f"{name} leads out of the landing zone {landing}",
            "Name the file as `metalayer ledger` lists it",
        )
    called = sorted(file for file in files if file.rpartition("/")[2] == name)
    if len(called) == 1:
        return called[0]
    if called:
        raise UsageError(
            f"There are several files called {name}", f"Say which: {', '.join(called)}"
        )
    ends = {file.rpartition("/")[2]: file for file in sorted(files)}
    close = difflib.get_close_matches(name, [*files, *ends], n=3)
    likely = list(dict.fromkeys(ends.get(match, match) for match in close))
    raise UsageError(
        f"No file {name} has landed",
        f"Did you mean {' or '.join(likely)}?" if likely else "`metalayer ledger` lists them all",
    )


def _take_out(entries: Entries, files: Iterable[LandedFile], done: Withdrawal) -> None:
    """Withdraw a file's entries, and let what they stood in the way of count again."""
    source = entries.terms.source.name
    _withdraw_entries(entries, done)
    entries.judge_snapshots_again()
    landed = {f.name: f.path for f in files if f.source.name == source and f.name != done.file}
    done.copies += promote_copies(entries, landed)
    entries.settle()


def _withdraw_entries(entries: Entries, done: Withdrawal) -> None:
    cursor, source, file = entries.cursor, entries.terms.source.name, done.file
    cursor.execute(
        "select d.delivery_id, d.status, d.sha256, d.fallback_month, d.rows_read, "
        "d.rows_rejected, array(select m.month from meta.delivery_months as m "
        "where m.delivery_id = d.delivery_id order by m.month) from meta.deliveries as d "
        "where d.source = %s and d.file = %s and d.status in ('loaded', 'duplicate', 'rejected') "
        "order by d.delivery_id",
        (source, file),
    )
    for delivery, status, sha256, month, read, rejected, months in cursor.fetchall():
        reason = f"it was {status} until it was withdrawn"
        if status == "loaded":
            entries.retire(delivery, sha256, month, "withdrawn", reason)
            done.rows += read - rejected
        done.deliveries.append(
            Delivery(
                delivery, file, source, "withdrawn", read, rejected, reason, months=tuple(months)
            )
        )
    cursor.execute(
        "update meta.deliveries set status = 'withdrawn', related_delivery_id = null, "
        "reason = format('it was %%s until it was withdrawn', status) "
        "where source = %s and file = %s and status in ('duplicate', 'rejected')",
        (source, file),
    )


def _move_aside(landing: Path, file: LandedFile) -> Path | None:
    """Move a landed file out of the way, under a name that is free; None if it is gone already."""
    folder = landing / WITHDRAWN_FOLDER / Path(file.name).parent
    stem, dot, suffix = file.path.name.partition(".")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            free = folder / (f"{stem}.{number}{dot}{suffix}" if number > 1 else file.path.name)
            try:
                # Taken first, so that nothing is ever overwritten but what is ours.
                free.touch(exist_ok=False)
            except FileExistsError:
                continue
            break
        try:
            now = file.path.stat()
            if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
                free.unlink()
                return None  # it landed again a moment ago: that one counts
            file.path.replace(free)
        except BaseException:
            free.unlink(missing_ok=True)
            raise
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LandingError(
            f"{file.name} is withdrawn, but its file cannot be moved to {folder}: {error.strerror}",
            "It stays out as long as nobody changes it; move it away when you can",
        ) from error
    return free
