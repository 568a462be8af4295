"""The folder of the Dagster instance, and the environment by which a process finds it.

Imports no Dagster, as who starts processes should not have to wait for it. Does not belong here:
Dagster's tables (`metalayer.assets.storage`).
"""

from __future__ import annotations

import os
import shutil

from metalayer.settings import PROJECT_ROOT, Settings


def dagster_environment(settings: Settings, storage_url: str) -> dict[str, str]:
    """Environment variables of every process that works with this home's Dagster instance.

    Its folder and `dagster.yaml` are there afterwards.

    Args:
        storage_url: SQLAlchemy URL of Dagster's database.
    """
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    aside = settings.dagster_home / f".dagster.yaml.{os.getpid()}"
    shutil.copyfile(PROJECT_ROOT / "dagster.yaml", aside)
    aside.replace(settings.dagster_home / "dagster.yaml")
    return {
        "DAGSTER_HOME": str(settings.dagster_home),
        "DAGSTER_PG_URL": storage_url,
        # One insert for the events of all months of a step, instead of one for each.
        "DAGSTER_EVENT_BATCH_SIZE": os.environ.get("DAGSTER_EVENT_BATCH_SIZE", "500"),
    }
