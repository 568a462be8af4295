"""Dagster's code server, whose runs start at once.

Dagster gives each run a new Python process, which imports everything anew: seconds of a run that
may itself take two. Here a run is forked from a process that has imported it all (`forked.py`) and
done nothing else. Everything about a run stays as Dagster has it.

    python -m metalayer.services.code_server api grpc --socket ...

Takes the arguments of `dagster`.
"""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing import forkserver
from typing import Any

from metalayer.logs.writing import log_to_stderr
from metalayer.process import collect_seldom
from metalayer.services.json_lines import print_json
from metalayer.settings import Settings

_IMPORTED = ["metalayer.services.forked"]
#: The processor is for what a user waits for first: the web interface.
_WARM_AFTER_SECONDS = 10.0


def fork_runs() -> None:
    """Have the processes that Dagster asks to be spawned forked from one that is ready."""
    of_method = multiprocessing.get_context
    forks = of_method("forkserver")
    forks.set_forkserver_preload(_IMPORTED)

    def context(method: str | None = None) -> Any:
        return forks if method == "spawn" else of_method(method)

    multiprocessing.get_context = context
    warm = threading.Timer(_WARM_AFTER_SECONDS, forkserver.ensure_running)
    warm.daemon = True
    warm.start()


def main() -> None:
    """The command `dagster`, with runs that are forked."""
    collect_seldom()
    fork_runs()
    settings = Settings.load()
    if settings.log_format == "json":
        print_json()
    else:
        # What its sensors do. Of what a run does Dagster keeps the output.
        log_to_stderr(settings)
    from dagster._cli import main as dagster

    dagster()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
