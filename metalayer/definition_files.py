"""The files that define tables, contracts and SELECTs, as files: have they changed?

Imports neither contracts nor Dagster, so that who only waits for a change need not load them. What
stands in the files does not belong here (`metalayer.catalog`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from metalayer.settings import PROJECT_ROOT

_FOLDERS = (Path(__file__).with_name("contracts"), PROJECT_ROOT / "sql")


def definitions_stamp() -> str:
    """Differs once a contract or a SELECT has changed on disk, has come, or is gone."""
    files = []
    for folder in _FOLDERS:
        for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.sql"))):
            state = path.stat()
            files.append((str(path), state.st_mtime_ns, state.st_size))
    return hashlib.sha256(repr(files).encode()).hexdigest()[:32]
