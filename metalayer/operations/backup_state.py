"""What was last backed up and tried, in a file of the home: for whoever looks, without the vault.

Does not belong here: doing any of it (`backup.py`, `archive.py`, `drill.py`).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from metalayer.settings import Settings
from metalayer.whole_files import alone_with, write_over

_FILE = "backups.json"


@dataclass(frozen=True)
class BackupState:
    """The last of each; None where there was none. Times are ISO, in UTC.

    Attributes:
        backup_at: When the last backup that succeeded was begun: it holds all that was done before.
        backup_bytes: Bytes that it takes in the vault.
        failed_at: When a backup, or taking segments away, last failed, and has not succeeded since.
        failure: Why.
        shipped_at: When every finished segment of the log was last in the vault.
        drill_at: When a drill last ended.
        drill_failure: Why it failed; empty where it did not.
        drill_point_seconds: How far what it recovered lay behind what there was.
        drill_seconds: How long recovering took.
    """

    backup_at: str | None = None
    backup_bytes: int = 0
    failed_at: str | None = None
    failure: str = ""
    shipped_at: str | None = None
    drill_at: str | None = None
    drill_failure: str = ""
    drill_point_seconds: float = 0.0
    drill_seconds: float = 0.0


def load_state(settings: Settings) -> BackupState:
    """What the home says; nothing where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads((settings.home / _FILE).read_text(encoding="utf-8"))
        known = {field.name for field in fields(BackupState)}
        return BackupState(**{name: value for name, value in found.items() if name in known})
    return BackupState()


def note_state(settings: Settings, **changed: Any) -> None:
    """Note what has changed. What cannot be noted must not undo what was done."""
    path = settings.home / _FILE
    with contextlib.suppress(OSError), alone_with(path):
        state = replace(load_state(settings), **changed)
        write_over(path, json.dumps(asdict(state), indent=1).encode())


def note_failure(settings: Settings, error: BaseException) -> None:
    """Note that something failed, and since when."""
    since = load_state(settings).failed_at or now()
    note_state(settings, failed_at=since, failure=str(error).strip().partition("\n")[0])


def note_well(settings: Settings, **changed: Any) -> None:
    """Note that it works again, with what has changed."""
    note_state(settings, failed_at=None, failure="", **changed)


def now() -> str:
    """This moment."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
