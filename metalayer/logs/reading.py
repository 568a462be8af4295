"""The home's log as it is read: its lines, chosen by run, table, month, level and time.

    log.old.jsonl, log.jsonl --> lines, oldest first --> those that are asked for --> new ones

Does not belong here: how they are printed (`metalayer.cli.logs`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from metalayer.logs.file import set_aside

#: Levels, the least grave first.
LEVELS = ("debug", "info", "warning", "error", "critical")
_PAUSE_SECONDS = 0.3


@dataclass(frozen=True)
class Wanted:
    """Which lines are asked for; what is None or empty is no condition.

    Attributes:
        run: The beginning of a run's id.
        table: "silver.orders".
        month: "2025-01"; a line of several months is chosen for each of them.
        level: The least grave.
        since: The earliest time.
    """

    run: str = ""
    table: str = ""
    month: str = ""
    level: str = "debug"
    since: datetime | None = None

    def has(self, line: dict[str, Any]) -> bool:
        """Whether a line is asked for."""
        level = line.get("level")
        return (
            str(line.get("run", "")).startswith(self.run)
            and self.table in ("", line.get("table"))
            and (not self.month or self._is_of_month(line))
            and (level not in LEVELS or LEVELS.index(level) >= LEVELS.index(self.level))
            and (self.since is None or _time(line) >= self.since)
        )

    def _is_of_month(self, line: dict[str, Any]) -> bool:
        first, last = line.get("month"), line.get("month")
        if first is None and line.get("months"):
            first, _, last = str(line["months"]).partition("..")
        return first is not None and first <= self.month <= (last or first)


def lines(path: Path, wanted: Wanted, most: int | None = None) -> list[dict[str, Any]]:
    """The last lines of a log that are asked for, oldest first.

    Args:
        most: How many; None: all.
    """
    found: deque[dict[str, Any]] = deque(maxlen=most)
    for file in (set_aside(path), path):
        # It may be set aside just now.
        with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:
            found.extend(line for raw in opened if (line := _parsed(raw)) and wanted.has(line))
    return list(found)


def new_lines(path: Path, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """What is asked for of the lines that come from now on, without an end."""
    opened = path.open("rb") if path.exists() else None
    if opened is not None:
        opened.seek(0, 2)
    begun = b""
    while True:
        while opened is not None and (raw := opened.readline()):
            begun += raw
            if begun.endswith(b"\n"):
                line, begun = _parsed(begun), b""
                if line and wanted.has(line):
                    yield line
        if path.exists() and (opened is None or not _is_at(path, opened.fileno())):
            # It was set aside: what came to it until then has been read.
            opened, begun = path.open("rb"), b""
            continue
        time.sleep(_PAUSE_SECONDS)


def _is_at(path: Path, file: int) -> bool:
    return os.path.samestat(path.stat(), os.fstat(file))


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """A line as it was written; None for one that was torn by a full disk."""
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"event", "timestamp"} <= set(found) else None


def _time(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(str(line["timestamp"]))
