"""Dagster's daemon, which looks for backfills every few seconds.

Dagster's own looks every half a minute, and a backfill of tables behind each other takes several
looks: minutes in which nothing happens. There is no setting for it in this version.

    python -m metalayer.services.daemon run --workspace ...

Takes the arguments of `dagster-daemon`.
"""

from __future__ import annotations

from metalayer.process import collect_seldom

_BACKFILL_SECONDS = 5


def main() -> None:
    """The command `dagster-daemon`, with an eye on backfills."""
    collect_seldom()
    from dagster._daemon import controller
    from dagster._daemon.cli import main as dagster_daemon

    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = _BACKFILL_SECONDS
    dagster_daemon()


if __name__ == "__main__":
    main()
