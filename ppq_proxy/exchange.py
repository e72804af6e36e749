"""One HTTP exchange on plain ASGI: what a handler needs of the request, and the answer it gives.

Handlers are plain ASGI callables: a request and a response object of a framework cost more than key check, limits, metrics
and log line together.
"""

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

import orjson

from ppq_proxy.errors import BadRequest, BodyTooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
JSON_TYPE: Header = (b"content-type", b"application/json")
EXPOSED = (
    b"www-authenticate, payment-required, payment-response, x-payment-response, payment-receipt, x-request-id, x-cost-usd, "
    b"x-max-tokens-clamped, x-credit-remaining-usd, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests"
)
CORS: tuple[Header, ...] = ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED))


class Lane(Protocol):
    """A server's short lane past ASGI's messages (`server.Lane`); False or None where it cannot be used now."""

    @property
    def gone(self) -> bool: ...

    @property
    def left(self) -> bool: ...

    def body(self) -> bytes | None: ...

    def answer(self, status: int, headers: list[Header], body: bytes) -> bool: ...

    def chunk(self, data: bytes) -> bool: ...


class ClientGone(Exception):
    """The client closed the connection before its request was whole."""


class RequestIds:
    """Ids that grow with time, so that the ledger's index of them does too: the process's start, a counter.

    `proxies` are the addresses of reverse proxies whose X-Forwarded-For is believed.
    """

    def __init__(self, proxies: frozenset[str] = frozenset()) -> None:
        self.proxies = proxies
        self._prefix = f"req-{time.time_ns() // 1_000_000:011x}{secrets.token_hex(3)}-"
        self._count = itertools.count()

    def __call__(self) -> str:
        return f"{self._prefix}{next(self._count):08x}"


class Exchange:
    """A request and its one answer. `status` is 0 until an answer has begun."""

    __slots__ = (
        "began",
        "cors",
        "first_byte",
        "headers",
        "ids",
        "lane",
        "method",
        "note",
        "path",
        "receive",
        "request_id",
        "scope",
        "send",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, ids: RequestIds) -> None:
        self.scope, self.receive, self.send, self.ids = scope, receive, send, ids
        # taken out of the scope: the server's own record of the exchange holds the scope, and would hold itself by it
        extensions = scope.get("extensions")
        self.lane: Lane | None = extensions.pop("ppq.lane", None) if extensions else None
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id")
        self.request_id = given.decode() if given and SANE_ID.fullmatch(given) else ids()
        self.began = time.perf_counter()
        self.first_byte = 0.0
        self.status = 0
        self.cors = b"origin" in self.headers
        self.note: dict[str, Any] = {}

    def header(self, name: bytes) -> str:
        """A header's value, "" if there is none; Latin-1, as HTTP says."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def peer(self) -> str:
        """The address that the request came from."""
        client = self.scope.get("client")
        address: str = client[0] if client else ""
        forwarded = self.headers.get(b"x-forwarded-for")
        if forwarded and address in self.ids.proxies:
            address = forwarded.decode("latin-1").rpartition(",")[2].strip() or address
        return address

    def query(self) -> dict[str, str]:
        """The query's parameters, the last of several of a name."""
        return dict(parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True))

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises `BodyTooLarge`, `ClientGone`."""
        announced = self.headers.get(b"content-length")
        if announced is not None and (not announced.isdigit() or int(announced) > limit):
            raise _too_large(limit)
        if self.lane is not None and (whole := self.lane.body()) is not None:
            if len(whole) > limit:
                raise _too_large(limit)
            return whole
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def json(self, limit: int) -> Any:
        """The body as JSON, {} if it is empty. Raises `BadRequest`."""
        raw = await self.body(limit)
        try:
            return orjson.loads(raw) if raw.strip() else {}
        except orjson.JSONDecodeError as problem:
            raise BadRequest(f"The body is not valid JSON: {problem}.") from None

    async def start(self, status: int, headers: list[Header]) -> None:
        """Send status and headers; the request id is added."""
        self.status = status
        headers.append((b"x-request-id", self.request_id.encode()))
        if self.cors:
            headers += CORS
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def answer(self, status: int, body: bytes, headers: list[Header]) -> None:
        """A whole answer in one go."""
        headers.append((b"content-length", b"%d" % len(body)))
        if self.lane is not None and status == 200 and self.method != "HEAD":
            headers.append((b"x-request-id", self.request_id.encode()))
            if self.cors:
                headers += CORS
            if self.lane.answer(status, headers, body):
                self.status, self.first_byte = status, time.perf_counter()
                return
            del headers[-1 - (len(CORS) if self.cors else 0) :]
        await self.start(status, headers)
        self.first_byte = time.perf_counter()
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def answer_json(self, value: Any, status: int = 200, headers: list[Header] | None = None) -> None:
        """A JSON answer; `Decimal` is written as a number with all its digits."""
        await self.answer(status, dump(value), [JSON_TYPE, *(headers or [])])


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body may have at most {limit} bytes.", headers={"connection": "close"})


def dump(value: Any) -> bytes:
    """JSON in which a `Decimal` keeps its digits: orjson writes it through a fragment."""
    return orjson.dumps(value, default=_number)


def _number(value: Any) -> Any:
    from decimal import Decimal

    if isinstance(value, Decimal):
        return orjson.Fragment(format(value.normalize() if value else Decimal(0), "f").encode())
    raise TypeError(f"{type(value).__name__} is not JSON")
