"""What goes on, looked for beside the processes: a thread that may wait for PostgreSQL.

It also brings the embedded PostgreSQL back, and clears up what others left: runs nobody works on,
logs nobody reads. Does not belong here: what is said (`activity.py`).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

from metalayer.errors import MetaLayerError
from metalayer.outages import outage
from metalayer.settings import Settings
from metalayer.warehouse.server import WarehouseServer

_LOOK_SECONDS = 1.0
_TIDY_SECONDS = 10.0
_SWEEP_SECONDS = 3600.0
#: For this many days Dagster's captured logs of ticks and steps are kept.
_LOG_DAYS = 30


class News:
    """Looks for what is new, every second, in a thread of its own.

    Args:
        settings: Which home.
        server: Which PostgreSQL.
        look: What has happened since the last call, a line each.
        tidy: Called every few seconds.
        sweep: Called at the start, and every hour.
    """

    def __init__(
        self,
        settings: Settings,
        server: WarehouseServer,
        look: Callable[[], Iterator[str]],
        tidy: Callable[[], None],
        sweep: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._server = server
        self._look = look
        self._tidy = tidy
        self._sweep = sweep
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._first: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._trouble = ""

    def start(self) -> None:
        """Begin. The thread ends with the process."""
        threading.Thread(target=self._run, name="news", daemon=True).start()

    def heard(self) -> Iterator[str]:
        """What was found and not handed out yet."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._lines.get_nowait()

    def before_next(self, task: Callable[[], None]) -> None:
        """Have something done before the next look."""
        self._first.put(task)

    def _run(self) -> None:
        tidied = swept = 0.0
        while True:
            try:
                self._do_first()
                for line in self._look():
                    self._lines.put(line)
                if time.monotonic() - tidied > _TIDY_SECONDS:
                    tidied = time.monotonic()
                    self._tidy()
                if time.monotonic() - swept > _SWEEP_SECONDS:
                    swept = time.monotonic()
                    sweep_logs(self._settings)
                    self._sweep()
                self._trouble = ""
            except Exception as error:
                self._recover(error)
            time.sleep(_LOOK_SECONDS)

    def _do_first(self) -> None:
        while not self._first.empty():
            task = self._first.get()
            try:
                task()
            except Exception:
                self._first.put(task)
                raise

    def _recover(self, error: Exception) -> None:
        """Say what is wrong, once, and bring the embedded PostgreSQL back should it have died."""
        known = error if isinstance(error, MetaLayerError) else outage(error)
        said = str(known) if known is not None else f"{type(error).__name__} while looking for news"
        is_new = said != self._trouble
        self._trouble = said
        if is_new:
            self._lines.put(said)
        if known is None or self._server.revive is None:
            return
        try:
            self._server.revive()
            self._lines.put("PostgreSQL runs")
        except Exception as failure:
            if is_new:
                self._lines.put(str(failure))


def sweep_logs(settings: Settings) -> None:
    """Remove captured logs of ticks and steps that are old; Dagster keeps them for ever."""
    oldest = time.time() - _LOG_DAYS * 86_400
    for path in (settings.dagster_home / "storage").rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()
