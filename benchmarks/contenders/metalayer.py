"""MetaLayer as its users run it: the exports lie in the landing zone, `metalayer build` is called.

Timed is the whole command: the process with its imports, its tables made, deliveries registered,
every month audited and published, every check, and Dagster's events.
"""

from __future__ import annotations

import shutil
import sys

from benchmarks.contender import Contender, Run, Step
from benchmarks.totals import postgres_totals
from metalayer.settings import ENV_PREFIX, PROJECT_ROOT


def _prepare(run: Run) -> list[Step]:
    home = run.folder / "home"
    # Times are copied too: what has just changed might still be being written, and is waited for.
    shutil.copytree(run.exports.folder, home / "landing", copy_function=shutil.copy2)
    environment = {
        f"{ENV_PREFIX}HOME": str(home),
        f"{ENV_PREFIX}DATABASE_URL": run.url,
        f"{ENV_PREFIX}START_MONTH": f"{run.exports.months.start:%Y-%m}",
        f"{ENV_PREFIX}WORKERS": str(run.cores),
        "PYTHONPATH": str(PROJECT_ROOT),
    }
    command = [sys.executable, "-m", "metalayer", "build"]
    return [Step(command, environment=environment, folder=run.folder)]


CONTENDER = Contender("metalayer", "MetaLayer", _prepare, postgres_totals)
