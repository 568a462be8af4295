"""What was asked for already, kept from tick to tick, so that the same is not asked for at once.

A run that is asked for and ends without a verdict is asked for again: after 20 seconds, then
later and later, up to an hour.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

#: Dagster looks every five seconds whether a sensor is due, and what is due a moment later waits
#: for the next look: an interval that is a little shorter is kept.
EARLIER_SECONDS = 2

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 20.0, 3600.0


def fingerprint(value: object) -> str:
    """Differs when a value does, as `repr` shows it."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Asked:
    """What was asked for already.

    Attributes:
        times: What -> (fingerprint of what it was to be made from, how often it was asked for,
            when last in Unix seconds).
    """

    times: Mapping[str, tuple[str, int, float]]

    @classmethod
    def read(cls, cursor: str | None) -> Asked:
        """From what the tick before left."""
        return cls({k: (f, n, at) for k, (f, n, at) in json.loads(cursor or "{}").items()})

    def written(self) -> str:
        """For the tick that comes next."""
        return json.dumps(self.times)

    def is_due(self, what: str, fingerprint: str, now: float) -> bool:
        """Whether to ask for it: at once when it is new, and otherwise later and later."""
        before = self.times.get(what)
        if before is None or before[0] != fingerprint:
            return True
        _, times, at = before
        wait = min(_FIRST_RETRY_SECONDS * 2.0 ** (times - 1), _LAST_RETRY_SECONDS)
        return now >= at + wait

    def after(self, due: Collection[str], fingerprints: Mapping[str, str], now: float) -> Asked:
        """What is known once `due` is asked for; what is not in `fingerprints` is forgotten."""
        times = {}
        for what, fingerprint in fingerprints.items():
            before = self.times.get(what)
            if what in due:
                again = before is not None and before[0] == fingerprint
                times[what] = (fingerprint, before[1] + 1 if before and again else 1, now)
            elif before is not None:
                times[what] = before
        return Asked(times)
