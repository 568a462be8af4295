"""Who is told what is wrong, once, and that it is well again.

    conditions.py: what is wrong --> what is new, what is over --> messages --> Apprise

What was told to whom is kept in a file of the home, so that PostgreSQL need not answer for it, and
a process that is started again repeats nothing. An address that takes no message is tried again at
the next look; the others are not told twice.

    METALAYER_ALERT_URLS="mailtos://... team:sales-data=slack://..."

An address without an owner is told everything; one with an owner what concerns tables of theirs.

Does not belong here: what is wrong (`conditions.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from metalayer.errors import ConfigurationError, UsageError
from metalayer.operations.conditions import Condition, Findings, find
from metalayer.settings import Settings
from metalayer.warehouse.server import open_lock
from metalayer.whole_files import write_over
from metalayer.wording import counted, named

_FILE = "alerts.json"
#: More news than this for one address at one look come in one message.
_MOST_MESSAGES = 3
_MOST_AFFECTED = 8
_MOST_CHARACTERS = 1_500
_log = logging.getLogger(__name__)
# Addresses may hold commas of their own, and may stand with commas between.
_COMMA = re.compile(r",(?=(?:[\w.@:-]+=)?[\w+.-]+://)")
_OWNED = re.compile(r"([\w.@:-]+)=(?=[\w+.-]+://)")


@dataclass(frozen=True)
class Address:
    """Somebody to be told.

    Attributes:
        url: Apprise's; it may hold a password.
        owner: Whose tables it is told about; None: everything.
        number: Its place in METALAYER_ALERT_URLS, from 1.
    """

    url: str = field(repr=False)
    owner: str | None
    number: int

    @property
    def shown(self) -> str:
        """It without anything that may be secret: in many, host and path are."""
        return f"address {self.number} ({self.url.partition('://')[0]}://...)"

    @property
    def id(self) -> str:
        """What stands for it in the file of what was told."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def wants(self, condition: Condition) -> bool:
        """Whether it is told about a condition."""
        return self.owner is None or self.owner == condition.owner

    def send(self, message: Message) -> bool:
        """Send a message; whether it was taken."""
        import apprise

        sender = apprise.Apprise()
        sender.add(self.url)
        kind = {
            "critical": apprise.NotifyType.FAILURE,
            "warning": apprise.NotifyType.WARNING,
            "well": apprise.NotifyType.SUCCESS,
        }[message.mood]
        with _quiet():
            return bool(
                sender.notify(
                    body=message.body,
                    title=message.title,
                    notify_type=kind,
                    body_format=apprise.NotifyFormat.TEXT,
                )
            )


@dataclass(frozen=True)
class Message:
    """What an address gets.

    Attributes:
        mood: "critical", "warning" or "well".
    """

    title: str
    body: str
    mood: str


@dataclass
class _Told:
    """What is remembered of a condition.

    Attributes:
        title: As it was when it was last told.
        seen_at: When it was first seen.
        news_at: When what is told now was first seen: it may have spread since.
        about: What it was about, see `Condition.about`.
        settles_seconds: For how long it must be so, or no longer so, to be told.
        told: Addresses that know of it as it is now.
        knows: Addresses that know that there is something, and are told when it is over.
        gone_at: When it was first seen no longer; None while it lasts.
        is_silent: Whether something else that was told explains it for good.
    """

    title: str
    seen_at: str
    news_at: str
    about: list[str]
    settles_seconds: float
    told: list[str] = field(default_factory=list)
    knows: list[str] = field(default_factory=list)
    gone_at: str | None = None
    is_silent: bool = False

    @classmethod
    def begun(cls, condition: Condition, now: datetime) -> _Told:
        """Of one that is seen for the first time."""
        seen = now.isoformat()
        return cls(condition.title, seen, seen, sorted(condition.about), condition.settles_seconds)

    def is_ripe(self, since: str, now: datetime) -> bool:
        """Whether it has been so for long enough to be told."""
        return now - datetime.fromisoformat(since) >= timedelta(seconds=self.settles_seconds)

    def takes(self, condition: Condition, now: datetime) -> None:
        """It is wrong, again or still: what is new in it is told anew."""
        self.gone_at = None
        if condition.is_explained:
            # A run that failed for something that was told did so for good.
            if condition.stays_explained and not self.knows:
                self.is_silent, self.about = True, sorted(condition.about)
            return
        is_new = bool(condition.about - set(self.about))
        if is_new and (condition.spreads or self.is_silent):
            self.title, self.told, self.news_at = condition.title, [], now.isoformat()
            self.is_silent = False
        self.about = sorted(condition.about)

    def is_told_to(self, address: str) -> None:
        """Note that an address knows."""
        self.told.append(address)
        self.knows = sorted({*self.knows, address})


@dataclass(frozen=True)
class Round:
    """What came of one look.

    Attributes:
        wrong: What is wrong just now.
        sent: Messages that were taken, by the address as it is shown.
        refused: Addresses that took none.
    """

    wrong: tuple[Condition, ...]
    sent: tuple[tuple[str, Message], ...] = ()
    refused: tuple[str, ...] = ()


def addresses(settings: Settings) -> list[Address]:
    """Everybody in METALAYER_ALERT_URLS.

    Raises:
        ConfigurationError: for one that Apprise does not know, which is not named in full: it may
            hold a password.
    """
    if settings.alert_urls is None:
        return []
    import apprise

    found = []
    entries = [
        entry
        for words in settings.alert_urls.get_secret_value().split()
        for entry in _COMMA.split(words.strip(","))
    ]
    for number, entry in enumerate(entries, 1):
        owned = _OWNED.match(entry)
        owner, url = (owned[1], entry[owned.end() :]) if owned else (None, entry)
        with _quiet():
            known = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        if known is None:
            scheme = url.partition("://")[0] if "://" in url else "***"
            raise ConfigurationError(
                f"METALAYER_ALERT_URLS: address {number} ({scheme}://...) is none of Apprise's",
                "Write it as its documentation has it, for example "
                "mailtos://user:password@example.org or slack://...",
            )
        found.append(Address(url, owner, number))
    return found


class Teller:
    """Looks again and again, and tells whoever does not know what is new or over.

    Args:
        settings: With the addresses.

    Raises:
        ConfigurationError: when an address cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._to = addresses(settings)
        self._path = settings.home / _FILE
        # What could not be written, on a full disk, is known at least as long as this lives.
        self._unwritten: dict[str, _Told] | None = None

    def look(self, now: datetime | None = None) -> Round:
        """Look once.

        Raises:
            UsageError: when another process of this home is at it.
        """
        now = now or datetime.now(UTC)
        with _alone(self._settings):
            told = self._unwritten if self._unwritten is not None else _read(self._path)
            done = _tell(find(self._settings, now), told, self._to, now, lambda: self._keep(told))
            self._keep(told)
        return done

    def _keep(self, told: dict[str, _Told]) -> None:
        content = json.dumps({key: asdict(known) for key, known in told.items()}, indent=1)
        try:
            write_over(self._path, content.encode())
            self._unwritten = None
        except OSError as error:
            self._unwritten = told
            _log.warning("%s cannot be written: %s", self._path, error.strerror)


def _tell(
    findings: Findings,
    told: dict[str, _Told],
    to: Sequence[Address],
    now: datetime,
    keep: Callable[[], None],
) -> Round:
    """Send what is to be sent, and note in `told` who knows what, at once: nobody is told twice."""
    wrong = {condition.key: condition for condition in findings.conditions}
    for c in wrong.values():
        if c.key in told or not c.is_explained or c.stays_explained:
            told.setdefault(c.key, _Told.begun(c, now)).takes(c, now)
    over = {}
    for key, known in list(told.items()):
        if key in wrong or key.partition(" ")[0] in findings.unknown:
            continue
        known.gone_at = known.gone_at or now.isoformat()
        # Whoever is no longer in the settings need not be told that it is well.
        if not set(known.knows) & {address.id for address in to}:
            del told[key]
        elif known.is_ripe(known.gone_at, now):
            over[key] = known
    sent: list[tuple[str, Message]] = []
    refused: list[str] = []
    for address in to:
        new = [
            condition
            for key, condition in wrong.items()
            if address.wants(condition)
            and not condition.is_explained
            and not told[key].is_silent
            and address.id not in told[key].told
            and told[key].is_ripe(told[key].news_at, now)
        ]
        well = [known for known in over.values() if address.id in known.knows]
        news: list[_News] = [
            *((_wrong(c, told[c.key]), partial(told[c.key].is_told_to, address.id)) for c in new),
            *((_well(known, now), partial(known.knows.remove, address.id)) for known in well),
        ]
        if len(news) > _MOST_MESSAGES:
            news = [_digest(news)]
        for message, note in news:
            if address.send(message):
                sent.append((address.shown, message))
                note()
                keep()
            else:
                refused.append(address.shown)
                break
    for key in [key for key, known in over.items() if not known.knows]:
        del told[key]
    return Round(findings.told, tuple(sent), tuple(refused))


_News = tuple[Message, Callable[[], Any]]


def _wrong(condition: Condition, known: _Told) -> Message:
    since = min(condition.since, datetime.fromisoformat(known.seen_at)).astimezone(UTC)
    lines = [condition.what, "", f"Since: {since:%Y-%m-%d %H:%M} UTC"]
    if condition.owner:
        lines.append(f"Owner: {condition.owner}")
    if condition.affects:
        lines.append(f"Affects: {named(condition.affects, _MOST_AFFECTED)}")
    lines.append(f"Next: {condition.next_step}")
    return Message(f"[MetaLayer] {condition.title}", "\n".join(lines), condition.severity)


def _well(known: _Told, now: datetime) -> Message:
    lasted = now - datetime.fromisoformat(known.seen_at)
    minutes = max(1, round(lasted.total_seconds() / 60))
    shown = counted(minutes, "minute") if minutes < 120 else counted(round(minutes / 60), "hour")
    body = f"What was wrong: {known.title}.\nIt was seen for {shown}."
    return Message(f"[MetaLayer] No longer so: {known.title}", body, mood="well")


def _digest(news: Sequence[_News]) -> _News:
    """One message for many, and what notes that they were all told."""
    messages = [message for message, _ in news]
    wrong = [m for m in messages if m.mood != "well"]
    said = [f"{counted(len(wrong), 'thing')} wrong"] if wrong else []
    if len(wrong) < len(messages):
        said.append(f"{counted(len(messages) - len(wrong), 'thing')} no longer so")
    title = f"[MetaLayer] {', '.join(said)}"
    # Chats take some 2,000 characters, and nothing of what is longer.
    lines = [f"- {m.title.removeprefix('[MetaLayer] ')}" for m in messages]
    while sum(map(len, lines)) > _MOST_CHARACTERS:
        lines.pop()
    if len(lines) < len(messages):
        lines.append(f"and {len(messages) - len(lines):,} more")
    body = "\n".join([*lines, "Next: `metalayer alerts` says of each what to do."])
    moods = {m.mood for m in messages}
    mood = next(m for m in ("critical", "warning", "well") if m in moods)

    def note() -> None:
        for _, each in news:
            each()

    return Message(title, body, mood), note


def _read(path: Path) -> dict[str, _Told]:
    """What was told; nothing where the file cannot be read: then it is told once more."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        told = {key: _Told(**known) for key, known in found.items()}
        for known in told.values():
            for at in (known.seen_at, known.news_at, *filter(None, [known.gone_at])):
                datetime.fromisoformat(at)
            _ = {*known.about, *known.told, *known.knows}, known.settles_seconds + 1.0
        return told
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        _log.warning("%s cannot be read and is begun anew", path)
        return {}


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    handle = open_lock(settings, "alerts.lock")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another process tells about METALAYER_HOME={settings.home} just now",
                "`up` does so by itself; try again in a moment.",
            ) from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Apprise's own log would name addresses with their secrets."""
    logger = logging.getLogger("apprise")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
