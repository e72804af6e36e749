"""The front door: a plain ASGI callable that finds the handler, and turns what goes wrong into the dialect's envelope.

Hot paths are looked up in a dictionary; everything with a parameter in its path goes through Starlette's router.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route, Router

from ppq_proxy.errors import GatewayError, MethodNotAllowed, NotFound, StoreUnavailable
from ppq_proxy.exchange import ClientGone, Exchange, Header, Receive, RequestIds, Scope, Send, dump
from ppq_proxy.telemetry import Telemetry

log = logging.getLogger("ppq.front")

Handler = Callable[[Exchange], Awaitable[None]]
Envelope = Callable[[GatewayError, str], dict[str, Any]]
ALLOWED_HEADERS = (
    b"authorization, content-type, payment-authorization, x-api-key, api-key, x-credit-id, idempotency-key, x-request-id, "
    b"payment-signature, x-payment, accept-payment, anthropic-version, anthropic-beta"
)


@dataclass(frozen=True, slots=True)
class Path:
    """A path, its handlers by method, and the dialect's envelope. `paid`: a call there is charged for."""

    path: str
    handlers: Mapping[str, Handler]
    envelope: Envelope
    paid: bool = False


class Front:
    """The application as the server calls it. `unreachable`: it could not start, as there is no database."""

    def __init__(
        self, paths: list[Path], telemetry: Telemetry, envelope: Envelope, start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]], head: Callable[[Exchange], Awaitable[None]] | None = None, proxies: str = "",
    ) -> None:  # fmt: skip
        self.paths, self.telemetry, self.envelope = paths, telemetry, envelope
        self._start, self._stop, self._head = start, stop, head
        self.unreachable = False
        self._ids = RequestIds(frozenset(filter(None, proxies.replace(" ", "").split(","))))
        self._fixed = {path.path: path for path in paths if "{" not in path.path}
        self._router = Router(
            [Route(path.path, _Found(path)) for path in paths if "{" in path.path], redirect_slashes=False
        )
        self._router.default = _nowhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._ids)
        path = self._fixed.get(exchange.path)
        try:
            if path is None:
                path = await self._find(scope, receive, send)
            handler = path.handlers.get(exchange.method) if path else None
            if handler is None:
                await self._otherwise(exchange, path)
            else:
                await handler(exchange)
        except GatewayError as problem:
            await self._fail(exchange, problem, path)
        except ClientGone:
            exchange.status = 499
        except asyncio.CancelledError:
            exchange.status = exchange.status or 503
            raise
        except Exception:  # border: of one request; told, logged, counted
            log.exception("request %s failed", exchange.request_id)
            await self._fail(exchange, GatewayError("Something went wrong here; nothing is lost."), path)
        finally:
            self.telemetry.request(exchange, path.path if path else "other")

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _find(self, scope: Scope, receive: Receive, send: Send) -> Path | None:
        await self._router(scope, receive, send)
        found: Path | None = scope.get("ppq.path")
        return found

    async def _otherwise(self, exchange: Exchange, path: Path | None) -> None:
        """No handler: a preflight, a HEAD, or an error."""
        if path is None:
            raise NotFound(
                f"There is nothing at {exchange.method} {exchange.path[:200]}. GET /openapi.json lists what there is."
            )
        allowed = ", ".join(sorted({*path.handlers, "OPTIONS", "HEAD"}))
        if exchange.method == "OPTIONS":
            await self._preflight(exchange, allowed)
        elif exchange.method == "HEAD" and path.paid and self._head is not None:
            await self._head(exchange)
        elif exchange.method == "HEAD" and "GET" in path.handlers:
            await path.handlers["GET"](exchange)
        else:
            raise MethodNotAllowed(
                f"{exchange.path[:200]} takes {allowed}, not {exchange.method}.", headers={"allow": allowed}
            )

    @staticmethod
    async def _preflight(exchange: Exchange, allowed: str) -> None:
        exchange.cors = False
        wanted = exchange.headers.get(b"access-control-request-headers", b"")
        named = ALLOWED_HEADERS + (b", " + wanted if wanted and wanted.isascii() and len(wanted) < 2000 else b"")
        headers: list[Header] = [
            (b"allow", allowed.encode()),
            (b"access-control-allow-origin", b"*"),
            (b"access-control-allow-methods", allowed.encode()),
            (b"access-control-allow-headers", named),
            (b"access-control-max-age", b"600"),
        ]
        await exchange.start(204, headers)
        await exchange.send({"type": "http.response.body", "body": b""})

    async def _fail(self, exchange: Exchange, problem: GatewayError, path: Path | None) -> None:
        exchange.note["error"] = problem.code
        if exchange.status:  # the answer has begun: there is no envelope any more
            return
        envelope = path.envelope if path else self.envelope
        headers: list[Header] = [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in problem.headers.items()
        ]
        if "content-type" not in problem.headers:
            headers.append((b"content-type", b"application/json"))
        headers += problem.header_lines
        await exchange.answer(problem.http_status, dump(envelope(problem, exchange.request_id)), headers)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as problem:  # border: of the process's start; the server ends with the message
            self.unreachable = isinstance(problem, StoreUnavailable)
            if not self.unreachable:
                log.exception("cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(problem)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})


class _Found:
    """Starlette's router calls this for a path that matches; it only notes which."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["ppq.path"] = self.path


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """No route matches; `Front` answers."""
