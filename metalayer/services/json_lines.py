"""What the code server and its runs write to stderr as JSON, if METALAYER_LOG_FORMAT asks for it.

Dagster's services have an option for what they say themselves (`platform.py`). For what sensors and
runs print in them this version has none that does not need configuring each run; and libraries log,
too. Does not belong here: what our own lines say (`metalayer.logs`).
"""

from __future__ import annotations

import logging
from typing import Any

from metalayer.logs.writing import ROOT, stderr_handler


def print_json() -> None:
    """Have all that is logged in this process, and in those forked from it, be JSON."""
    from dagster import _loggers
    from dagster._core.definitions import instigation_logger

    modules: list[Any] = [_loggers, instigation_logger]
    for module in modules:
        module.create_console_logger = _console_logger
    logging.getLogger().addHandler(stderr_handler(is_json=True))
    ROOT.setLevel(logging.INFO)


def _console_logger(name: str, level: str | int) -> logging.Logger:
    """A logger as Dagster makes one for the console."""
    logger = logging.Logger(name, level)
    logger.addHandler(stderr_handler(is_json=True))
    return logger
