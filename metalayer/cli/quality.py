"""The command `quality`: the quality page."""

from __future__ import annotations

from typing import Annotated

import typer

from metalayer.console import say
from metalayer.pages import QUALITY_PORT


def quality(
    port: Annotated[
        int, typer.Option("--port", help="Port to listen at; 0 takes a free one.")
    ] = QUALITY_PORT,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at. Nobody is asked who they are.")
    ] = "127.0.0.1",
) -> None:
    """Serve the quality page until Ctrl-C: scores, flow, quarantine, freshness, times.

    `up` serves it as well. Starts no PostgreSQL: where none answers, the page says so.
    """
    from metalayer.logs.writing import log_to_stderr
    from metalayer.pages.quality import serve
    from metalayer.pages.sight import Sight
    from metalayer.services.platform import free_address
    from metalayer.settings import Settings

    settings = Settings.load()
    log_to_stderr(settings)
    address = free_address(host, port)
    serve(
        Sight(settings),
        address.host,
        address.port,
        lambda: say(f"Quality page: {address.url}. Ctrl-C ends it."),
    )
