"""The server under the application: uvicorn, with what it lacks for us.

- A client that shuts its sending side and goes on reading is served on.
- What is no HTTP is refused in the envelope, with a request id.
- A short lane past ASGI's messages, as an ASGI extension: a whole answer is one write, a chunk of a stream is one write, and
  neither is awaited. On the hot path the messages cost as much as key check, price and charge together. Whoever runs the
  application under another server has no extension, and everything goes by messages.
"""

from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ppq_proxy.dialects.openai import envelope
from ppq_proxy.errors import BadRequest
from ppq_proxy.exchange import RequestIds, dump

LONGEST_BODY = 1024 * 1024


EXTENSION = "ppq.lane"
HALF_CLOSED = "ppq.half_closed"


class Lane:
    """The short lane of one exchange. Each method says False where it cannot be used now; then messages can."""

    __slots__ = ("_cycle", "_flow", "_write")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle, self._flow, self._write = cycle, cycle.flow, cycle.transport.write

    @property
    def gone(self) -> bool:
        """True if the connection is lost."""
        return self._cycle.disconnected

    @property
    def left(self) -> bool:
        """True if the client has gone, or has shut its side: most who do that have gone, which only a write would show."""
        return self._cycle.disconnected or HALF_CLOSED in self._cycle.scope

    def body(self) -> bytes | None:
        """The whole request body if it has come already; it is taken."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue or len(cycle.body) > LONGEST_BODY:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return body

    def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole answer. The headers, `content-length` among them, are our own: lower case, one line each."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected or cycle.response_started or not cycle.keep_alive:
            return False
        pieces = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            pieces += (name, b": ", value, b"\r\n")
        for name, value in headers:
            pieces += (name, b": ", value, b"\r\n")
        head = b"".join(pieces)
        if head.count(b"\n") != 1 + len(cycle.default_headers) + len(headers):
            raise ValueError("a header value has more than one line")
        cycle.response_started = cycle.response_complete = True
        cycle.transport.write(b"%b\r\n%b" % (head, body))
        cycle.message_event.set()
        cycle.on_response()
        return True

    def chunk(self, data: bytes) -> bool:
        """Write a piece of a streamed answer that has been started."""
        cycle = self._cycle
        if self._flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with the above (money-cases, 11)."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.scope["extensions"] = {EXTENSION: Lane(cycle)}  # type: ignore[dict-item]  # an extension may be any object
        super()._start_asgi_task(cycle, app)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own signature is bool | None
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:  # the rest of a body can never come
            return False
        cycle.keep_alive = False
        cycle.scope[HALF_CLOSED] = True  # type: ignore[literal-required]
        return True

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused as everything else is: in the envelope, with a request id.

        Rubbish behind a whole request does not take its answer away: that is given, and is the last one.
        """
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        request_id = RequestIds()()
        problem = BadRequest(
            "This is not a valid HTTP/1.1 request: its first line, a header or its framing is malformed."
        )
        body = dump(envelope(problem, request_id))
        headers = b"content-type: application/json\r\nx-request-id: %b\r\nconnection: close" % request_id.encode()
        self.transport.write(b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (STATUS_LINE[400], headers, len(body), body))
        self.transport.close()


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
