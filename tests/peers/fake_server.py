"""Runs a stand-in for somebody else's service as a process of its own, for services that cannot run for real here.

A stand-in is a Starlette application in a module of this package; `serve` runs it, `running` starts that as a process.
`POST /_set` with a JSON object changes its behaviour, `GET /_seen` lists the requests that it got.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

ROOT = Path(__file__).resolve().parents[2]


class Recorder:
    """Keeps method, path, query, headers and body of every request that is not for the stand-in itself."""

    def __init__(self, app: ASGIApp, seen: list[dict[str, Any]]) -> None:
        self.app, self.seen = app, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"].startswith("/_"):
            await self.app(scope, receive, send)
            return
        body: list[bytes] = []
        entry = {
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"],
            "query": scope["query_string"].decode(),
            "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        }
        self.seen.append(entry)

        async def recorded() -> Message:
            message = await receive()
            body.append(message.get("body", b""))
            entry["body"] = b"".join(body).decode()
            return message

        await self.app(scope, recorded, send)


def application(
    routes: Sequence[BaseRoute], state: MutableMapping[str, Any], lifespan: Lifespan[Starlette] | None = None
) -> Starlette:
    """An application with `routes`, whose `state` can be changed and whose requests can be read from outside."""
    seen: list[dict[str, Any]] = []

    async def change(request: Request) -> Response:
        state.update(await request.json())
        return JSONResponse({})

    async def show(_: Request) -> Response:
        return JSONResponse(seen)

    own = [Route("/_set", change, methods=["POST"]), Route("/_seen", show)]
    return Starlette(routes=[*own, *routes], middleware=[Middleware(Recorder, seen=seen)], lifespan=lifespan)


def serve(app: ASGIApp, *, key: str | None = None, certificate: str | None = None) -> None:
    """Serve on a free port of 127.0.0.1, after saying `ready URL`."""
    listener = socket.create_server(("127.0.0.1", 0))
    scheme = "https" if key else "http"
    print(f"ready {scheme}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, log_level="error", timeout_graceful_shutdown=1, ssl_keyfile=key, ssl_certfile=certificate
    )
    uvicorn.Server(config).run(sockets=[listener])


class Peer:
    """A running stand-in. `url` is its base URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set(self, **state: Any) -> None:
        """Change its behaviour."""
        httpx2.post(f"{self.url}/_set", json=state, verify=False).raise_for_status()

    def seen(self) -> list[dict[str, Any]]:
        """The requests that it got, oldest first."""
        found: list[dict[str, Any]] = httpx2.get(f"{self.url}/_seen", verify=False).json()
        return found


@contextlib.contextmanager
def running(module: str, *arguments: str) -> Iterator[Peer]:
    """Start `python -m module` and wait until it says `ready URL`; stopped at the end."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = process.stdout.readline().split()
            if said[:1] != ["ready"]:
                raise RuntimeError(f"{module} did not start")
            yield Peer(said[1])
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
