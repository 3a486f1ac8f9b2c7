"""The metrics' own port: a small HTTP server that idle connections cannot block."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

MAX_CONNECTIONS = 16  # one more, and the longest open one is closed: a scrape takes milliseconds
SILENCE_S = 10.0  # after which a connection is closed
NO_DESCRIPTOR_S = 0.1  # accepting failed: the system has none left, and would be asked again at once


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scrape is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, at most MAX_CONNECTIONS."""

    daemon_threads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # the longest open one first
        super().__init__(*args, **kwargs)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            connection, address = super().get_request()
        except OSError:
            time.sleep(NO_DESCRIPTOR_S)
            raise
        self._make_room()
        with self._lock:
            self._open[connection] = None
        return connection, address

    def _make_room(self) -> None:
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= MAX_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
                with contextlib.suppress(OSError):  # its thread reads the end, and closes it
                    oldest.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing for a caller that disconnects or sends nothing."""


@dataclass(slots=True)
class MetricsServer:
    """The HTTP side, on a port of its own."""

    server: WSGIServer
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.server.server_port)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=2.0)


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
    """Start answering on `host`; OSError if the port is taken."""
    app: Callable[..., Any] = make_wsgi_app(registry)
    server = make_server(host, port, app, _server_class(host, port), handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="polyhead-metrics", daemon=True)
    thread.start()
    return MetricsServer(server, thread)


def _server_class(host: str, port: int) -> type[_Server]:
    """For the host's own kind of address."""
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

    class Server(_Server):
        address_family = family

    return Server
