"""Wall-clock seconds and peak memory of a contender's commands, with all the processes they start.

The server's processes belong to nobody here: they are not children of a contender's.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from benchmarks.contender import BenchmarkError, Step
from metalayer.settings import ENV_PREFIX

_SAMPLE_SECONDS = 0.1
_PHASE = "phase "
_SHOWN_OF_A_LOG = 2000
_MB = 1024 * 1024


@dataclass
class Measured:
    """What a contender's commands took.

    Attributes:
        seconds: wall clock, from the start of the first process to the end of the last.
        peak_mb: largest sum of the resident memory of all processes at one time; pages that
            processes share count in each.
        phases: Phase -> its seconds, where the contender can tell them.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


def measure(steps: Sequence[Step], log: Path) -> Measured:
    """Run the steps one after the other; what they print goes to `log`.

    Raises:
        BenchmarkError: with the end of the log, when one fails.
    """
    measured = Measured()
    with log.open("w+", encoding="utf-8") as output:
        for step in steps:
            _run(step, output, measured)
            output.flush()
    return measured


def _run(step: Step, output: IO[str], measured: Measured) -> None:
    began = time.perf_counter()
    with subprocess.Popen(
        step.command,
        cwd=step.folder,
        env={**_clean_environment(), **step.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        marks: list[tuple[str, float]] = [] if step.phase is None else [(step.phase, began)]
        sampler = threading.Thread(target=_sample, args=(process, measured), daemon=True)
        sampler.start()
        assert process.stdout is not None
        for line in process.stdout:
            output.write(line)
            if line.startswith(_PHASE):
                marks.append((line.removeprefix(_PHASE).strip(), time.perf_counter()))
        code = process.wait()
    ended = time.perf_counter()
    sampler.join()
    if code != step.exit_code:
        output.seek(0)
        told = output.read()[-_SHOWN_OF_A_LOG:]
        raise BenchmarkError(f"{' '.join(step.command[:3])} ended with {code}:\n{told}")
    measured.seconds += ended - began
    ends = [start for _, start in marks[1:]] + [ended]
    for (phase, start), end in zip(marks, ends, strict=False):
        measured.phases[phase] = measured.phases.get(phase, 0.0) + end - start


def _sample(process: subprocess.Popen[str], measured: Measured) -> None:
    root = psutil.Process(process.pid)
    while process.poll() is None:
        measured.peak_mb = max(measured.peak_mb, _resident(root) / _MB)
        time.sleep(_SAMPLE_SECONDS)


def _resident(root: psutil.Process) -> int:
    total = 0
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return total


def _clean_environment() -> dict[str, str]:
    """Our environment without what would set up MetaLayer, Dagster, dbt or libpq otherwise."""
    foreign = (ENV_PREFIX, "DAGSTER", "DBT_", "PG", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
