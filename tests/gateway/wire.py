"""A plain HTTP/1.1 client that does what real ones do at their worst: leave in the middle, half-close, read slowly."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from decimal import Decimal
from types import TracebackType
from typing import Any

import orjson

LIMIT = 1 << 26
SECONDS = 30.0


class Answer:
    """What came back. `body` is without its chunked framing; `whole` means that it ended as HTTP says it should."""

    def __init__(self, status: int = 0, lines: list[tuple[str, str]] | None = None) -> None:
        self.status = status
        self.lines = lines or []
        self.body = b""
        self.whole = False
        self.tag = ""

    @property
    def headers(self) -> dict[str, str]:
        """By lower-case name; of a name that comes twice, the last."""
        return dict(self.lines)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of the envelope."""
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def cost(self) -> Decimal:
        """What `x-cost-usd` says."""
        return Decimal(self.headers["x-cost-usd"])

    @property
    def data(self) -> list[str]:
        """The data of each event, in order (only what is written with line feeds)."""
        lines = self.body.decode(errors="replace").split("\n")
        return [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]

    @property
    def events(self) -> list[Any]:
        """The events as JSON, without [DONE]."""
        return [orjson.loads(data) for data in self.data if data != "[DONE]"]

    @property
    def done(self) -> bool:
        """True if a stream ended with its marker."""
        return self.data[-1:] == ["[DONE]"]

    @property
    def broken(self) -> dict[str, Any] | None:
        """The error object of a stream's last event, if it is one."""
        last = self.events[-1] if self.events else {}
        return last.get("error") if isinstance(last, dict) else None

    @property
    def text(self) -> str:
        """The content of the first choice, streamed or not."""
        parts = self.events if self.data else [self.json]
        choices = [one for part in parts for one in part.get("choices", []) if one.get("index", 0) == 0]
        return "".join((one.get("delta") or one.get("message") or {}).get("content") or "" for one in choices)


class Talk:
    """One connection with one request on it: `async with Talk(…) as talk`, then read as far as you like."""

    def __init__(self, port: int, request: bytes, *, receive_buffer: int = 0) -> None:
        self.port, self.request, self.receive_buffer = port, request, receive_buffer
        self.answer = Answer()
        self._framed = False
        self._left = 0

    async def __aenter__(self) -> "Talk":
        sock = socket.socket()
        sock.setblocking(False)
        if self.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            limit = self.receive_buffer or LIMIT
            self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=limit)
        except BaseException:
            sock.close()
            raise
        self.writer.write(self.request)
        await self.writer.drain()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def head(self) -> Answer:
        """Read status and headers."""
        first, *rest = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        lines = [
            (name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest if line)
        ]
        self.answer.status, self.answer.lines = int(first.split(" ")[1]), lines
        self._framed = self.answer.headers.get("transfer-encoding") == "chunked"
        self._left = int(self.answer.headers.get("content-length", 0))
        return self.answer

    async def piece(self) -> bytes:
        """The next piece of the body, b"" at its end. Raises `asyncio.IncompleteReadError` where it breaks off."""
        if self._framed:
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            found = (await self.reader.readexactly(size + 2))[:-2]
        else:
            found = await self.reader.read(min(self._left, 65536)) if self._left else b""
            if self._left and not found:
                raise asyncio.IncompleteReadError(b"", self._left)
            self._left -= len(found)
        self.answer.body += found
        self.answer.whole = not found
        return found

    async def events(self, count: int) -> Answer:
        """Read until so many events have come, or the end."""
        while self.answer.body.count(b"data:") < count and await self.piece():
            pass
        return self.answer

    async def rest(self) -> Answer:
        """Read to the end, however it ends; `answer.whole` says."""
        try:
            if not self.answer.status:
                await self.head()
            while not self.answer.whole:
                await self.piece()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        return self.answer

    def half_close(self) -> None:
        """Shut the sending side and go on reading."""
        self.writer.write_eof()

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection now; `reset`: without a good-bye."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        else:
            self.writer.close()


def request_bytes(
    method: str,
    path: str,
    port: int,
    body: Any = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request as it goes on the wire; `body` is bytes, or becomes JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
    lines = {"host": f"127.0.0.1:{port}", "connection": "close", "content-length": str(len(content))}
    if content:
        lines["content-type"] = "application/json"
    if key:
        lines["authorization"] = f"Bearer {key}"
    lines |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


async def ask(port: int, request: bytes, seconds: float = SECONDS) -> Answer:
    """One request on a connection of its own and its answer, as far as it came."""
    async with asyncio.timeout(seconds), Talk(port, request) as talk:
        return await talk.rest()
