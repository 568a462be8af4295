"""The command `metrics`: what Prometheus fetches, served or printed."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Annotated

import typer

from metalayer.console import say
from metalayer.operations import METRICS_PORT

_log = logging.getLogger(__name__)


def metrics(
    port: Annotated[
        int, typer.Option("--port", help="Port to listen at; 0 takes a free one.")
    ] = METRICS_PORT,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at. Nobody is asked who they are.")
    ] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Print them once, and end.")] = False,
) -> None:
    """Serve metrics for Prometheus until Ctrl-C: runs, rows, quarantine, freshness, disks.

    They are measured when they are asked for. `up` serves them as well. Starts no PostgreSQL:
    where none answers, the metrics say so.
    """
    from metalayer.logs.writing import log_to_stderr
    from metalayer.operations.exporter import exporter, exposition
    from metalayer.settings import Settings

    settings = Settings.load()
    log_to_stderr(settings)
    if once:
        sys.stdout.write(exposition(settings))
        return
    with exporter(settings, host, port) as taken, contextlib.suppress(KeyboardInterrupt):
        shown = f"[{host}]" if ":" in host else host
        said = f"Metrics for Prometheus: http://{shown}:{taken}/metrics"
        if settings.log_format == "json":
            _log.info(said)
        else:
            say(f"{said}. Ctrl-C ends it.")
        threading.Event().wait()
