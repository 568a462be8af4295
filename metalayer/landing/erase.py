"""Erased persons taken out of landed files, and what was delivered of them recorded again.

A delivery keeps its place: the file is rewritten with the same lines (`redact.py`), and its entry
gets the new content. New files are written aside first, and take their places once the ledger has
been committed; one that did not get there, because somebody was killed, gets there with the next
registration.

Does not belong here: who was erased (`erased.py`), tables and versions (`governance/erasure.py`).
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from metalayer.contracts.contract import TableSpec
from metalayer.errors import LandingError
from metalayer.landing.entries import Candidate, Entries, lock
from metalayer.landing.erased import Register, folder_of, load_register, watching
from metalayer.landing.expired import Expiry
from metalayer.landing.files import WITHDRAWN_FOLDER, Skipped, landed_paths, match_source
from metalayer.landing.judge import SourceShape, identifier, literal
from metalayer.landing.parsed import parse_landed
from metalayer.landing.raw import GZIP_MAGIC
from metalayer.landing.reader import ErasedFound, FileInFlux, fingerprint
from metalayer.landing.records import is_erased, open_with_grammar
from metalayer.landing.redact import aside_of, redacted
from metalayer.landing.repaired import CONTENT_CHARACTERS
from metalayer.landing.shape import Terms, parse_name, parsed_paths, terms_of, unpacking_of
from metalayer.settings import Settings
from metalayer.warehouse.pool import transaction

_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{32}\.erased")
#: A file that was written to this lately is not rewritten: somebody may not be done with it.
_SETTLED_SECONDS = 5.0


@dataclass
class Cleared:
    """Files that are ready to be replaced.

    Attributes:
        files: File -> how many records were taken out of it, or made anonymous.
    """

    files: dict[str, int] = field(default_factory=dict)
    _asides: dict[Path, Path] = field(default_factory=dict)
    _parses: list[Path] = field(default_factory=list)

    def now_at(self, path: Path) -> Path:
        """Where the newest content of a file is."""
        return self._asides.get(path, path)

    def add(self, path: Path, aside: Path) -> None:
        """Have a file take the place of another, or of what was to take it."""
        earlier = self._asides.get(path)
        self._asides[path] = aside
        if earlier is not None:
            earlier.unlink(missing_ok=True)

    def forget_parse(self, *paths: Path) -> None:
        """Have the parse of an earlier content removed."""
        self._parses += paths

    def finish(self) -> None:
        """Put the new files in their places; the ledger has been committed."""
        for path, aside in self._asides.items():
            _take_place(aside, path)
        for parse in self._parses:
            parse.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave everything as it was."""
        for aside in self._asides.values():
            aside.unlink(missing_ok=True)


def _take_place(aside: Path, path: Path) -> None:
    """Put a new file in place of the one it was made from; not of a newer export of that name."""
    # A registration that began meanwhile may have done it.
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mtime_ns == aside.stat().st_mtime_ns:
            aside.replace(path)
        else:
            aside.unlink()


def _finish_interrupted(cursor: Any, settings: Settings) -> None:
    """Put new files in their places that somebody was killed before doing so with.

    The caller holds the ledger, so nobody is about to.
    """
    for aside in settings.landing.rglob(".*.erased"):
        named = _ASIDE.fullmatch(aside.name)
        if named is None:
            continue
        path = aside.with_name(named[1])
        cursor.execute(
            "select sha256 from meta.deliveries where file = %s "
            "and status in ('loaded', 'duplicate') and (rows_erased > 0 or is_repair)",
            (path.relative_to(settings.landing).as_posix(),),
        )
        entered = {sha256 for (sha256,) in cursor.fetchall()}
        with contextlib.suppress(LandingError, FileNotFoundError):
            if fingerprint(aside).sha256 in entered:
                _take_place(aside, path)
        aside.unlink(missing_ok=True)


def take_out(candidate: Candidate, found: ErasedFound, settings: Settings) -> None:
    """Rewrite a file that is to be taken in, without the records that were found in it.

    Raises:
        FileInFlux: when it has changed since it was found.
    """
    landed = candidate.landed
    if time.time() - landed.mtime_ns / 1e9 < _SETTLED_SECONDS:
        raise FileInFlux(f"{landed.path.name} may still be written to", "Build again")
    work = _work(settings, candidate.terms)
    aside = redacted(landed.path, candidate.terms.shape, found, work)
    try:
        content, info = fingerprint(aside), aside.stat()
        now = landed.path.stat()
        as_found = (landed.size, landed.mtime_ns, candidate.sha256)
        if (now.st_size, now.st_mtime_ns, found.sha256) != as_found:
            raise FileInFlux(f"{landed.path.name} changed while it was read", "Build again")
        aside.replace(landed.path)
    except FileNotFoundError:
        raise FileInFlux(f"{landed.path.name} is not there any more", "Build again") from None
    finally:
        aside.unlink(missing_ok=True)
    candidate.landed = replace(landed, size=info.st_size, mtime_ns=info.st_mtime_ns)
    candidate.sha256 = content.sha256
    candidate.rows_erased += len(found.spans)


def clear_restored(
    pool: Engine,
    settings: Settings,
    sources: Mapping[str, TableSpec],
    today: date,
    *,
    waits: bool = True,
) -> list[Skipped]:
    """Take those out again whom an earlier state of the warehouse, restored, has brought back.

    And finish what somebody was killed at. Where nothing was ever taken out it is one query.

    Args:
        waits: Whether to wait while somebody else takes files in.

    Returns:
        What could not be done, and why; what is landed otherwise goes on.

    Raises:
        LedgerBusyError: when somebody else takes files in, and this does not wait.
    """
    with transaction(pool) as connection, connection.cursor() as cursor:
        if not folder_of(settings).is_dir():
            cursor.execute("select exists (select from meta.retention)")
            if cursor.fetchone() == (False,):
                return []
        lock(cursor, waits=waits)
        _finish_interrupted(cursor, settings)
        register = load_register(cursor, settings, joins=True)
        if register is None or not register.news:
            return []
        try:
            cleared = clear(cursor, settings, sources, register, today)
        except LandingError as error:
            connection.rollback()
            return [Skipped("erased persons", str(error))]
        connection.commit()
        cleared.finish()
    return []


def clear(
    cursor: Any,
    settings: Settings,
    sources: Mapping[str, TableSpec],
    register: Register | None,
    today: date,
    lines: Mapping[int, Collection[int]] | None = None,
    expiries: Mapping[str, Expiry] | None = None,
) -> Cleared:
    """Take erased persons, or expired months, out of landed files, in the caller's transaction.

    Args:
        sources: Source name -> the silver table it feeds.
        lines: Delivery -> further lines on which records of theirs begin: such that cannot be read.
        expiries: Source -> which of its months are to go.

    Returns:
        The new files, for the caller to `finish` once committed, or to `abandon`.

    Raises:
        LandingError: when a file is needed that is not there any more as it was read.
    """
    lock(cursor)
    _finish_interrupted(cursor, settings)
    cleared = Cleared()
    try:
        for name, spec in sources.items():
            plain = terms_of(spec, settings.start_month, today, unpacking_of(settings))
            terms = watching(plain, sources, register, (expiries or {}).get(name))
            if terms.shape.erasing is not None:
                source = _Source(cursor, settings, terms, cleared, lines or {})
                source.clear()
                _clear_others(settings, terms, name, sources, cleared)
    except BaseException:
        cleared.abandon()
        raise
    return cleared


@dataclass(frozen=True)
class _Live:
    delivery: int
    file: str
    sha256: str
    month: date
    is_loaded: bool
    is_repair: bool


class _Source:
    """The live deliveries of one source."""

    def __init__(
        self,
        cursor: Any,
        settings: Settings,
        terms: Terms,
        cleared: Cleared,
        lines: Mapping[int, Collection[int]],
    ) -> None:
        self._entries = Entries(cursor, settings, terms)
        self._settings = settings
        self._terms = terms
        self._cleared = cleared
        self._lines = lines
        # Beginning of a content's fingerprint -> of the one that took its place.
        self._renamed: dict[str, str] = {}

    def clear(self) -> None:
        """Rewrite the files, and record them again."""
        live = list(self._live())
        for each in live:
            if self._may_concern(each):
                self._clear(each)
        for each in live:
            if each.is_repair and self._renamed:
                self._point_anew(each)
        self._entries.settle()

    def _live(self) -> Iterator[_Live]:
        cursor = self._entries.cursor
        cursor.execute(
            "select delivery_id, file, sha256, fallback_month, status = 'loaded', is_repair "
            "from meta.deliveries as d where source = %s and (status = 'loaded' "
            # A copy whose file has been replaced is no file any more.
            "or (status = 'duplicate' and not exists (select from meta.deliveries as n "
            "where n.source = d.source and n.file = d.file and n.delivery_id > d.delivery_id))) "
            "order by delivery_id",
            (self._terms.source.name,),
        )
        return (_Live(*row) for row in cursor.fetchall())

    def _may_concern(self, each: _Live) -> bool:
        """Whether the parse has an erased person, or cannot say so."""
        if self._lines.get(each.delivery):
            return True
        paths = parsed_paths(self._settings.parsed_dir, self._terms.shape, each.sha256, each.month)
        if not all(path.exists() for path in paths):
            return True
        rows, rejects = (f"read_parquet({literal(str(path))})" for path in paths)
        condition = is_erased(self._terms.shape, identifier)
        database = open_with_grammar({})
        try:
            # A record that could not be read may have the number all the same.
            ((found,),) = database.execute(
                f"select exists (select 1 from {rows} where {condition}) "
                f"or exists (select 1 from {rejects})"
            ).fetchall()
        finally:
            database.close()
        return bool(found)

    def _clear(self, each: _Live) -> None:
        path = self._settings.landing / each.file
        shape = self._shape_for(each.delivery)
        try:
            parse_landed(path, shape, each.month, each.sha256, self._settings.parsed_dir)
        except ErasedFound as found:
            if found.sha256 != each.sha256:
                raise self._is_another(each, "it has changed") from None
            aside = redacted(path, shape, found, _work(self._settings, self._terms))
            self._cleared.add(path, aside)
            self._cleared.files[each.file] = len(found.spans)
            self._record(each, aside, len(found.spans))
        except LandingError as error:
            raise self._is_another(each, error.message) from error

    def _is_another(self, each: _Live, cause: str) -> LandingError:
        return LandingError(
            f"{each.file} is needed to take out of it what must go, and cannot be read as "
            f"it was ({cause})",
            f"Land {each.file} as it was once more, or take it out with "
            f"`metalayer land --withdraw {each.file}`",
        )

    def _shape_for(self, delivery: int) -> SourceShape:
        shape = self._terms.shape
        assert shape.erasing is not None
        known = frozenset(self._lines.get(delivery, ()))
        return replace(shape, erasing=replace(shape.erasing, lines=known))

    def _record(self, each: _Live, aside: Path, erased: int) -> None:
        """Enter the new content of a delivery, which keeps its place."""
        content, info = fingerprint(aside), aside.stat()
        settings, shape = self._settings, self._terms.shape
        self._entries.cursor.execute(
            "update meta.deliveries set sha256 = %s, size = %s, mtime_ns = %s, "
            "rows_erased = rows_erased + %s where delivery_id = %s",
            (content.sha256, info.st_size, info.st_mtime_ns, erased, each.delivery),
        )
        self._cleared.forget_parse(
            *parsed_paths(settings.parsed_dir, shape, each.sha256, each.month)
        )
        if each.is_loaded:
            parsed = parse_landed(aside, shape, each.month, content.sha256, settings.parsed_dir)
            self._entries.file_again(each.delivery, content.sha256, each.month, parsed)
            self._renamed[each.sha256[:CONTENT_CHARACTERS]] = content.sha256[:CONTENT_CHARACTERS]

    def _point_anew(self, each: _Live) -> None:
        """Have a repair name the contents that it mends by what they are now."""
        path = self._settings.landing / each.file
        text = self._cleared.now_at(path).read_bytes()
        is_packed = text.startswith(GZIP_MAGIC)
        text = before = gzip.decompress(text) if is_packed else text
        for old, new in self._renamed.items():
            text = text.replace(f"{old}:".encode(), f"{new}:".encode())
        if text == before:
            return
        aside = aside_of(path)
        aside.write_bytes(gzip.compress(text, mtime=0) if is_packed else text)
        shutil.copystat(path, aside)
        self._cleared.add(path, aside)
        self._entries.cursor.execute(
            "select sha256 from meta.deliveries where delivery_id = %s", (each.delivery,)
        )
        (now,) = self._entries.cursor.fetchone()
        self._record(replace(each, sha256=now), aside, 0)


def parses_of_no_delivery(cursor: Any, settings: Settings) -> list[Path]:
    """Parses whose content no live delivery has: of what was erased before a kill, say.

    The caller holds the ledger, so nobody has just made one.
    """
    cursor.execute("select distinct sha256 from meta.deliveries where status = 'loaded'")
    live = {parse_name(sha256) for (sha256,) in cursor.fetchall()}
    return [
        path
        for path in settings.parsed_dir.glob("*/*.parquet")
        if path.name.partition("-")[0] not in live
    ]


def _clear_others(
    settings: Settings,
    terms: Terms,
    name: str,
    sources: Mapping[str, TableSpec],
    cleared: Cleared,
) -> None:
    """Take erased persons out of files that are in no table but could be: withdrawn ones."""
    patterns = [spec.source for spec in sources.values() if spec.source is not None]
    for file, path in landed_paths(settings.landing):
        inside = file.removeprefix(f"{WITHDRAWN_FOLDER}/")
        source = match_source(inside, patterns)
        if inside == file or source is None or source.name != name:
            continue
        try:
            content = fingerprint(path).sha256
            parse_landed(path, terms.shape, terms.shape.last_month, content, settings.parsed_dir)
        except ErasedFound as found:
            cleared.add(path, redacted(path, terms.shape, found, _work(settings, terms)))
            cleared.files[file] = len(found.spans)
        except LandingError:
            continue  # whom it names is told by the search that follows
        else:
            cleared.forget_parse(
                *parsed_paths(settings.parsed_dir, terms.shape, content, terms.shape.last_month)
            )


def _work(settings: Settings, terms: Terms) -> Path:
    folder = settings.parsed_dir / terms.source.name.replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
