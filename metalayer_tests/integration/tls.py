"""PostgreSQL behind TLS: certificates of a test's own, and what ends the encryption.

The embedded PostgreSQL is built without TLS. So a proxy on loopback ends it, as pgbouncer or a load
balancer does: PostgreSQL's own handshake, then everything as it is to the server's socket. Who does
not ask for TLS gets nothing.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


def authority(folder: Path, name: str) -> tuple[Path, Path]:
    """Certificate and key of an authority."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def certificate(folder: Path, of: tuple[Path, Path], host: str) -> tuple[Path, Path]:
    """Certificate and key of a server that is called `host`, signed by an authority."""
    made, key, request = (folder / f"{host}.{end}" for end in ("crt", "key", "csr"))
    names = folder / f"{host}.ext"
    names.write_text(f"subjectAltName=DNS:{host}\n")
    for command in (
        [
            *("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host}"),
            *("-keyout", str(key), "-out", str(request)),
        ],
        [
            *("openssl", "x509", "-req", "-in", str(request), "-days", "2"),
            *("-CA", str(of[0]), "-CAkey", str(of[1]), "-CAcreateserial"),
            *("-extfile", str(names), "-out", str(made)),
        ],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return made, key


@dataclass
class Proxy:
    """What listens: its port, and how many came with TLS and without."""

    port: int
    encrypted: int = 0
    refused: int = 0
    _open: list[socket.socket] = field(default_factory=list)


@contextlib.contextmanager
def tls_proxy(files: tuple[Path, Path], server_socket: str) -> Iterator[Proxy]:
    """TLS on a port of 127.0.0.1, and PostgreSQL's socket behind it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(listener.getsockname()[1])

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error), client:
            code = _SSL_REQUEST + 1
            while code != _SSL_REQUEST:
                _, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
                if code == _GSS_REQUEST:
                    client.sendall(b"N")
                elif code != _SSL_REQUEST:
                    proxy.refused += 1
                    return
            client.sendall(b"S")
            with (
                context.wrap_socket(client, server_side=True) as inside,
                socket.socket(socket.AF_UNIX) as server,
            ):
                server.connect(server_socket)
                proxy.encrypted += 1
                proxy._open.extend((inside, server))
                back = threading.Thread(target=_pump, args=(server, inside), daemon=True)
                back.start()
                _pump(inside, server)
                back.join(5)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield proxy
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in proxy._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
