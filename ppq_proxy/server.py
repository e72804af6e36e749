"""The server under the application: uvicorn, with the one thing that it lacks for us."""

from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """A client that shuts its sending side and goes on reading is served on (money-cases, 11)."""

    def eof_received(self) -> bool:
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        return True


def config(app: Any, host: str, port: int, drain_seconds: float, **more: Any) -> uvicorn.Config:
    """uvicorn as we run it: no log of its own, no server header, a bounded drain."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Protocol,
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        ws="none",
        timeout_graceful_shutdown=max(1, int(drain_seconds)),
        timeout_keep_alive=75,
        **more,
    )


class Server(uvicorn.Server):
    """Says when it serves."""

    told: Callable[[], None] | None = None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.told:
            self.told()
