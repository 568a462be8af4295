"""Where the time of a run goes: seconds of the clock, phase by phase.

Does not belong here: showing them, or timing single statements.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

Phase = Literal[
    "read",  # landed files into the ledger
    "plan",  # which months are out of date, and waiting for those that another run builds
    "copy in",  # parsed files into bronze
    "transform",  # SELECTs into silver and gold
    "audit",  # staged rows held against their contract, keys, statistics
    "publish",
    "check",  # asset checks of what is published
    "Dagster",  # everything else: its events, and setting up the run
]
ORDER: tuple[Phase, ...] = (
    "read", "plan", "copy in", "transform", "audit", "publish", "check", "Dagster"
)  # fmt: skip


class Profile:
    """What a run has spent so far. Work that goes on side by side shares the time it takes."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._work: dict[Phase, float] = defaultdict(float)
        self._at_work = 0
        self._since = 0.0
        self._worked = 0.0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """In the block MetaLayer is at work; several threads may be in one at a time."""
        with self._lock:
            if not self._at_work:
                self._since = time.monotonic()
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1
                if not self._at_work:
                    self._worked += time.monotonic() - self._since

    @contextmanager
    def spending(self, phase: Phase) -> Iterator[None]:
        """The work of the block is the phase's."""
        began = time.monotonic()
        try:
            with self.at_work():
                yield
        finally:
            self.add({phase: time.monotonic() - began})

    def add(self, work: Mapping[Phase, float]) -> None:
        """Note work that was done: phase -> seconds, of all workers together."""
        with self._lock:
            for phase, seconds in work.items():
                self._work[phase] += seconds

    def seconds(self) -> dict[Phase, float]:
        """Phase -> seconds of the clock, in order; together all that have passed."""
        with self._lock:
            spent = share(self._worked, self._work)
        return in_order({**spent, "Dagster": time.monotonic() - self._began - self._worked})


def share(seconds: float, work: Mapping[Phase, float]) -> dict[Phase, float]:
    """Seconds of the clock as shares of the phases, in proportion to the work done in each.

    Without any work all of it went into finding that out: "plan".
    """
    whole = sum(work.values())
    if not whole:
        return {"plan": seconds}
    return {phase: seconds * part / whole for phase, part in work.items()}


def total(parts: Iterable[Mapping[Phase, float]]) -> dict[Phase, float]:
    """Several of them added up."""
    added: dict[Phase, float] = defaultdict(float)
    for part in parts:
        for phase, seconds in part.items():
            added[phase] += seconds
    return in_order(added)


def in_order(seconds: Mapping[Phase, float]) -> dict[Phase, float]:
    """The phases that took any time, in the order of the work."""
    return {phase: seconds[phase] for phase in ORDER if seconds.get(phase)}


def in_words(seconds: Mapping[Phase, float]) -> str:
    """As people read it, "read 9.0 s, copy in 4.1 s", without what took hardly any time."""
    told = [f"{phase} {spent:.1f} s" for phase, spent in seconds.items() if spent >= 0.05]
    return ", ".join(told)
