"""The command `up`: the whole platform in one terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from metalayer.cli.production import confirm_migration, say_environment
from metalayer.console import say, say_next
from metalayer.wording import counted


def up(
    port: Annotated[
        int, typer.Option("--port", help="Port of the web interface; 0 takes a free one.")
    ] = 3000,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at. Nobody is asked who they are.")
    ] = "127.0.0.1",
    demo: Annotated[bool, typer.Option("--demo", help="Land the sample as it starts.")] = False,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="The web interface only shows: nobody can start a run."),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            help="Port of the metrics for Prometheus: 9464, or a free one where that is taken.",
        ),
    ] = None,
    quality_port: Annotated[
        int | None,
        typer.Option(
            "--quality-port",
            help="Port of the quality page: 3200, or a free one where that is taken.",
        ),
    ] = None,
) -> None:
    """Run the platform: web interface, sensors and runs, until Ctrl-C.

    Exports that land in the landing zone become tables by themselves. Starts the embedded
    PostgreSQL (or uses METALAYER_DATABASE_URL), Dagster's code server, webserver and daemon. Logs
    are in METALAYER_HOME/logs, metrics for Prometheus at another port.
    """
    from metalayer.services.platform import Platform
    from metalayer.settings import Settings

    settings = Settings.load()
    told, backed_up = 0, ""
    if settings.alert_urls is not None:
        from metalayer.operations.alerts import addresses

        # One that is none is refused before anything starts.
        told = len(addresses(settings))
    if settings.backup_url is not None:
        from metalayer.operations.vault import open_vault

        backed_up = open_vault(settings).shown
    confirm_migration(settings, yes=False)
    say_environment(settings)
    say(f"The warehouse: PostgreSQL {settings.database_shown}")

    def tell(line: str) -> None:
        say(f"{datetime.now().astimezone():%H:%M:%S} {line}")

    def prepare() -> None:
        if demo:
            from metalayer.cli.demo import land_sample

            say(land_sample(settings))

    def ready() -> None:
        say(f"MetaLayer is up: {platform.address.url}", "bold")
        say(f"Exports that land in {settings.landing} become tables. Ctrl-C ends it all.")
        say(f"The quality page: {platform.quality.url}")
        say(f"Metrics for Prometheus: {platform.metrics.url}/metrics")
        if told:
            say(f"What is wrong is told to {told:,} {'address' if told == 1 else 'addresses'}.")
        if backed_up:
            say(f"Backups go to {backed_up}, every {counted(settings.backup_hours, 'hour')}.")
        say_next(
            ("land FILE...", "take in exports of your own"),
            ("status", "each table"),
        )

    platform = Platform(
        settings,
        host,
        port,
        tell,
        read_only=read_only,
        metrics_port=metrics_port,
        quality_port=quality_port,
    )
    platform.run(prepare, ready)
