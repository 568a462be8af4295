"""What pages ask of the warehouse: one answer for all who look within a few seconds.

Nothing is started for it. Where PostgreSQL does not answer, pages say so, and go on asking.

Does not belong here: what is asked (`metalayer.operations.quality`), or how it is shown.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg2

from metalayer.errors import MetaLayerError
from metalayer.operations.looking import looking
from metalayer.operations.quality import (
    Quality,
    Trend,
    by_day,
    by_month,
    quality,
    rejected_rows,
)
from metalayer.settings import Settings
from metalayer.warehouse.server import standing_server

_FRESH_SECONDS = 4.0
_PATIENCE = 20.0
T = TypeVar("T")


class Sight:
    """Answers of one warehouse.

    Args:
        settings: Which home.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._kept: dict[object, tuple[float, Any]] = {}

    def quality(self) -> Quality | str:
        """Everything at first sight; or why it cannot be told, in a sentence."""

        def ask(warehouse: Any) -> Quality:
            with contextlib.ExitStack() as stack:
                dagster = None
                with contextlib.suppress(psycopg2.Error, MetaLayerError):
                    url = standing_server(self.settings).dagster_url
                    dagster = stack.enter_context(looking(url, "quality", _PATIENCE))
                return quality(warehouse, dagster, self.settings.start_month)

        return self._answered("quality", ask)

    def trends(self, table: str) -> tuple[Trend, Trend] | str:
        """Scores of a table by month, and by day."""
        return self._answered(("trends", table), lambda c: (by_month(c, table), by_day(c, table)))

    def rejects(self, table: str, column: str | None, rule: str | None) -> Any:
        """How many rows of a table broke a rule, and the first of them, masked."""

        def ask(connection: Any) -> Any:
            connection.autocommit = False
            return rejected_rows(connection, table, column, rule)

        return self._answered(("rejects", table, column, rule), ask)

    def _answered(self, key: object, ask: Callable[[Any], T]) -> T | str:
        with self._lock:
            at, answer = self._kept.get(key, (0.0, None))
            if answer is not None and time.monotonic() - at < _FRESH_SECONDS:
                return answer  # type: ignore[no-any-return]
            try:
                with self._connected() as connection:
                    found: T | str = ask(connection)
            except (psycopg2.Error, MetaLayerError) as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                found = f"The warehouse cannot be asked: {lines[0]}"
            if len(self._kept) > 200:
                self._kept.clear()
            self._kept[key] = (time.monotonic(), found)
            return found

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        url = standing_server(self.settings).warehouse_url
        with looking(url, "quality", _PATIENCE) as connection:
            yield connection
