"""The embedded server's log, kept for recovery: what it is told, and where finished segments go.

A home that has the folder `wal` archives: the server then logs all it does and copies each finished
segment of its log there, from where `operations/archive.py` takes it away. Without it the server
logs as little as it may, which makes loads faster. It is the home that says so and not a setting:
one command without the setting would tear a hole into the archive.

Does not belong here: where archived segments are kept, or recovering from them.
"""

from __future__ import annotations

import re
import shlex
import struct
from pathlib import Path
from typing import Any

#: A finished segment, or the history of a timeline.
SEGMENT = re.compile(r"[0-9A-F]{24}|[0-9A-F]{8}\.history|[0-9A-F]{24}\.[0-9A-F]{8}\.backup")
#: Nothing that was done longer ago is in an unfinished segment only.
SWITCH_SECONDS = 60


def spool_of(pgdata: Path) -> Path:
    """Where the server of a data folder puts finished segments, if it is there."""
    return pgdata.parent / "wal"


def begin_archiving(pgdata: Path) -> None:
    """Have the server archive from its next start on."""
    spool_of(pgdata).mkdir(mode=0o700, parents=True, exist_ok=True)


def is_archiving(cursor: Any) -> bool:
    """Whether the server that runs archives: it may have been started before it was told to."""
    cursor.execute("select current_setting('archive_mode') = 'on'")
    return bool(cursor.fetchone()[0])


def archiving(pgdata: Path) -> dict[str, str]:
    """Server settings of a home that archives, in place of those for loads alone."""
    spool = spool_of(pgdata)

    def at(name: str) -> str:
        # Of what stands around it only a percent sign means something to the server.
        return shlex.quote(str(spool)).replace("%", "%%") + "/" + name

    # Renamed when it is whole and on disk. Written over, so that a crash in between does no harm.
    copied = f'cp "%p" {at(".%f")} && sync {at(".%f")} && mv -f {at(".%f")} {at("%f")}'
    return {
        "wal_level": "replica",
        "max_wal_senders": "4",
        "summarize_wal": "on",
        "archive_mode": "on",
        "archive_timeout": f"{SWITCH_SECONDS}s",
        "archive_command": copied,
    }


def recovering(segments: Path, to: str | None) -> dict[str, str]:
    """Server settings for recovery from a folder of segments.

    Args:
        to: The instant to go to, as PostgreSQL reads it; None goes as far as there are segments.
    """
    settings = {
        "restore_command": f'cp {shlex.quote(str(segments)).replace("%", "%%")}/"%f" "%p"',
        "recovery_target_timeline": "latest",
        "hot_standby": "off",
        "archive_mode": "off",
    }
    if to is not None:
        settings |= {"recovery_target_time": to, "recovery_target_action": "promote"}
    return settings


def system_of(pgdata: Path) -> str:
    """The identifier of a data folder: another one each time that a server is set up."""
    with (pgdata / "global" / "pg_control").open("rb") as file:
        return str(struct.unpack("<Q", file.read(8))[0])
