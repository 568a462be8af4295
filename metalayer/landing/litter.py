"""What killed commands left in the landing zone and among the parsed deliveries, and how it goes.

Only what MetaLayer itself names so is touched: a `.part` that somebody else is still copying into
the landing zone stays. Nobody holds a lock on these files; what has not changed for a day is
nobody's.

Does not belong here: staged tables (`warehouse/sweep.py`).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from metalayer.settings import Settings

_OLD_SECONDS = 24 * 60 * 60
#: As `files.land` names the copy that it makes before a file appears.
_COPY = re.compile(r"\..+\.[0-9a-f]{32}\.part")


def clear_litter(settings: Settings) -> None:
    """Remove half copies and half parses that are more than a day old."""
    oldest = time.time() - _OLD_SECONDS
    for path in _litter(settings):
        # Gone since it was listed, or another account's: no reason to stop a build.
        with suppress(OSError):
            if max(each.lstat().st_mtime for each in (path, *path.glob("*"))) > oldest:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _litter(settings: Settings) -> Iterator[Path]:
    yield from settings.parsed_dir.glob("*/.parse-*")
    for path in settings.landing.glob("*/.*.part"):
        if _COPY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            yield path
