"""Contracts and SELECTs that are edited while the platform runs: noticed, tried, taken over.

Does not belong here: what a definition is, and which files make one (`metalayer.definition_files`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from metalayer.definition_files import definitions_stamp
from metalayer.services.child import Child

_LOOK_SECONDS = 2.0


class DefinitionFiles:
    """The definitions that a code server was started with, and what has become of them since.

    Args:
        code: The code server.
        tell: Told in a line that changed definitions cannot be loaded.
    """

    def __init__(self, code: Child, tell: Callable[[str], None]) -> None:
        self._code = code
        self._tell = tell
        self._looked = 0.0
        self._in_use = self._seen = definitions_stamp()
        self._trial: Child | None = None

    def have_changed(self) -> bool:
        """Whether there are others now that can be loaded; said once.

        They are tried in a process of their own first. Returns at once: what is not known yet is
        by a later call.
        """
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        if self._trial is not None:
            return self._has_passed(self._trial)
        stamp = definitions_stamp()
        if stamp == self._seen != self._in_use:
            self._in_use = stamp
            self._trial = self._code.like(
                "trial", [sys.executable, "-c", "import metalayer.definitions"]
            )
            self._trial.start()
        self._seen = stamp  # it may still be edited: tried once it stands still
        return False

    def _has_passed(self, trial: Child) -> bool:
        if trial.exit_code is None:
            return False
        self._trial = None
        if trial.exit_code:
            self._tell(
                "contracts or SELECTs have changed, but cannot be loaded; the earlier ones "
                f"stay in use: {trial.last_words}"
            )
        return not trial.exit_code

    @property
    def trials(self) -> list[Child]:
        """Processes that try definitions just now."""
        return [self._trial] if self._trial is not None else []
