"""One ASGI application served by a thread of its own, for as long as a block lasts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

SHUTDOWN_GRACE_S = 2


class _Server(uvicorn.Server):
    """Without signal handlers: whoever runs the process handles signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def served(app: Starlette, host: str, port: int, tls: tuple[str, str] | None = None) -> Iterator[str]:
    """Serve it; yields its base URL.

    Args:
        tls: files of a certificate and its key, PEM; None: plain HTTP.

    Raises:
        OSError: the port is taken, or may not be used; or the certificate cannot be (ssl.SSLError is one).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    address, bound = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    scheme = "https" if tls else "http"
    try:
        config.load()  # here, and not in the thread, where a certificate that cannot be used would say nothing
    except BaseException:
        listener.close()
        raise
    server = _Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="admin door", daemon=True)
    thread.start()
    try:
        yield f"{scheme}://[{address}]:{bound}" if ":" in address else f"{scheme}://{address}:{bound}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
