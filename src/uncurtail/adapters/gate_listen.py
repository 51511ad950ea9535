"""The gate's socket: TLS 1.3, plain HTTP/1.1 in it, and no patience with those who say nothing."""

import asyncio
import resource
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

# Longer than a client keeps an idle connection (httpx: 5 s), so that it is never closed while the
# next request is on its way.
IDLE_WALL_S = 30.0


class _Impatient(H11Protocol):
    """Ends a connection on which no request begins: those of idle strangers would use up all."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._waits is not None:
            self._waits.cancel()

    def _wait(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
        self._waits = self.loop.call_later(self.config.timeout_keep_alive, self._waited)

    def _waited(self) -> None:
        # no request yet, or none since the last; also in the middle of the headers of one
        if getattr(self.cycle, "response_complete", True):
            self.transport.close()


def server(app: Starlette, tls: Path, host: str, port: int, **more: Any) -> uvicorn.Server:
    """The server of an application, with `server.crt` and `server.key` of a folder."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            ssl_certfile=str(tls / "server.crt"),
            ssl_keyfile=str(tls / "server.key"),
            ssl_context_factory=_tls,
            loop="asyncio",
            http=_Impatient,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            # Not "warning": a line for each malformed request, and strangers would fill the disk.
            log_level="error",
            access_log=False,
            **{"timeout_keep_alive": IDLE_WALL_S, **more},
        )
    )


def serve(app: Starlette, tls: Path, host: str, port: int) -> None:
    """Serve until SIGTERM."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection is one
    server(app, tls, host, port).run()


def _tls(_: uvicorn.Config, usual: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = usual()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
