"""MetaLayer as its users run it: the exports lie in the landing zone, `metalayer build` is called.

Timed is the whole command: the process with its imports, its tables made, deliveries registered,
every month audited and published, every check, and Dagster's events.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.contender import Contender, Run, Step
from benchmarks.selects import Months
from benchmarks.totals import postgres_totals
from metalayer.settings import ENV_PREFIX, PROJECT_ROOT


def _prepare(run: Run) -> list[Step]:
    home = run.folder / "home"
    # Times are copied too: what has just changed might still be being written, and is waited for.
    shutil.copytree(run.exports.folder, home / "landing", copy_function=shutil.copy2)
    return [build_step(home, run.url, run.exports.months, run.cores)]


def build_step(home: Path, url: str, months: Months, workers: int) -> Step:
    """The command that builds what has landed in a home."""
    environment = {
        f"{ENV_PREFIX}HOME": str(home),
        f"{ENV_PREFIX}DATABASE_URL": url,
        f"{ENV_PREFIX}START_MONTH": f"{months.start:%Y-%m}",
        f"{ENV_PREFIX}WORKERS": str(workers),
        "PYTHONPATH": str(PROJECT_ROOT),
    }
    command = [sys.executable, "-m", "metalayer", "build"]
    return Step(command, environment=environment, folder=home)


CONTENDER = Contender("metalayer", "MetaLayer", _prepare, postgres_totals)
