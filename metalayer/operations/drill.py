"""A recovery that is tried, before it is needed: everything restored aside, compared, and removed.

    the newest of the vault --> a scratch home --> every month's sum, and whom to erase again
                                               --> how old it is, and how long it took

Does not belong here: restoring itself (`restore.py`).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2

from metalayer.errors import MetaLayerError, WarehouseError
from metalayer.inspection import libpq_url
from metalayer.landing.erased import load_register
from metalayer.operations.archive import Archive
from metalayer.operations.backup import Tell
from metalayer.operations.backup_state import note_state, now
from metalayer.operations.looking import is_there
from metalayer.operations.restore import Restored, restore
from metalayer.operations.vault import Vault
from metalayer.settings import Settings
from metalayer.warehouse.server import WarehouseServer, standing_server, warehouse_server
from metalayer.wording import counted, named

#: Erases again whom a restored home has brought back.
Replay = Callable[[Settings, Tell], None]

_FOLDER = "drill"
_NAMED = 5


@dataclass(frozen=True)
class Drill:
    """What a drill found.

    Attributes:
        restored: What came back.
        point_seconds: How much younger the warehouse's last act is than the last that came back.
        seconds: How long it took until everything was there and checked.
        erased: Persons whom the restored state had, and who were taken out of it again.
        differing: Months that came back other than they are, though nothing changed them since.
    """

    restored: Restored
    point_seconds: float
    seconds: float
    erased: int
    differing: tuple[str, ...]

    @property
    def problem(self) -> str:
        """What was wrong, in words; empty where nothing was."""
        wrong = sorted({*self.restored.wrong, *self.differing})
        said = []
        if wrong:
            said.append(f"{counted(len(wrong), 'month')} came back other: {named(wrong, _NAMED)}")
        if self.restored.lacking:
            said.append(f"landed files are lacking: {named(self.restored.lacking, _NAMED)}")
        return "; ".join(said)


def drill(settings: Settings, vault: Vault, tell: Tell, replay: Replay) -> Drill:
    """Restore the newest there is into a scratch home, hold it against what is, and remove it.

    Args:
        replay: Erases again whom what was restored has brought back.

    Raises:
        MetaLayerError: when it cannot be restored at all.
    """
    scratch = settings.home / _FOLDER
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with contextlib.suppress(MetaLayerError):  # what there is in the vault is what is tried
            Archive(settings, vault).ship()
        done = _drilled(settings, vault, scratch, tell, replay)
    except MetaLayerError as error:
        said = str(error).partition("\n")[0]
        note_state(settings, drill_at=now(), drill_failure=said)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    note_state(
        settings,
        drill_at=now(),
        drill_failure=done.problem,
        drill_point_seconds=done.point_seconds,
        drill_seconds=done.seconds,
    )
    return done


def _drilled(settings: Settings, vault: Vault, scratch: Path, tell: Tell, replay: Replay) -> Drill:
    began = time.monotonic()
    restored = restore(settings, vault, scratch, tell)
    seconds = time.monotonic() - began
    with warehouse_server(restored.settings, tell) as server:
        differing, last = _compared(settings, server)
        erased = brought_back(restored.settings, server)
        if erased:
            tell("erasing again whom it brought back")
            replay(restored.settings, tell)
            if brought_back(restored.settings, server):
                raise WarehouseError("Erased persons are in what was restored", "Build, and look.")
    reached = restored.reached
    point = max(0.0, (last - reached).total_seconds()) if last and reached else 0.0
    return Drill(restored, point, seconds, erased, differing)


def _compared(settings: Settings, server: WarehouseServer) -> tuple[tuple[str, ...], Any]:
    """Months that differ from the live ones of the same version; and when those last changed."""
    try:
        theirs = standing_server(settings)
        with contextlib.closing(psycopg2.connect(libpq_url(theirs.warehouse_url))) as live:
            now_there, last = _versions(live)
    except (psycopg2.Error, WarehouseError):
        return (), None  # it is gone: what the months themselves say must do
    with contextlib.closing(psycopg2.connect(libpq_url(server.warehouse_url))) as back:
        come_back, _ = _versions(back)
    return (
        tuple(
            f"{table} {month:%Y-%m}"
            for (table, month, version), data_version in come_back.items()
            if now_there.get((table, month, version), data_version) != data_version
        ),
        last,
    )


def _versions(connection: Any) -> tuple[dict[Any, str], datetime | None]:
    with connection.cursor() as cursor:
        if not is_there(cursor, "meta.acts"):
            return {}, None
        cursor.execute(
            "select table_name, month, version, data_version from meta.versions where is_current"
        )
        found = {tuple(key): data_version for *key, data_version in cursor.fetchall()}
        cursor.execute("select max(published_at) from meta.versions where is_current")
        (last,) = cursor.fetchone()
        return found, last and last.astimezone(UTC)


def brought_back(settings: Settings, server: WarehouseServer) -> int:
    """How many persons the home knows to be erased of whom a restored warehouse does not."""
    connection = psycopg2.connect(libpq_url(server.warehouse_url))
    with contextlib.closing(connection), connection.cursor() as cursor:
        if not is_there(cursor, "meta.erased"):
            return 0
        register = load_register(cursor, settings)
        if register is None:
            return 0
        cursor.execute("select count(*) from meta.erased")
        return sum(map(len, register.tokens.values())) - int(cursor.fetchone()[0])
