"""The metrics over HTTP, where Prometheus fetches them.

Does not belong here: what is measured (`metrics.py`).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.exposition import generate_latest

from metalayer.errors import UsageError
from metalayer.operations.metrics import Metrics
from metalayer.settings import Settings


def exposition(settings: Settings) -> str:
    """All metrics as they are now, in Prometheus' text format."""
    text: bytes = generate_latest(_registry(settings))
    return text.decode()


@contextlib.contextmanager
def exporter(settings: Settings, host: str, port: int) -> Iterator[int]:
    """Serve the metrics at `/metrics` for as long as the `with` lasts; gives the port.

    Args:
        port: 0 takes a free one.

    Raises:
        UsageError: when nothing can listen there.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=_registry(settings))
    except (OSError, OverflowError, socket.gaierror) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"Nothing can listen at {host}, port {port}: {told}",
            "Choose another with `--port`, or end what uses it.",
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(settings: Settings) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Metrics(settings))
    return registry
