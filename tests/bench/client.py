"""One keep-alive connection that posts the same request again and again: what both load clients are made of."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools

RECONNECT_SECONDS = 0.05
DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """What is posted, and where."""

    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        return parts.hostname, parts.port or 80

    def raw(self) -> bytes:
        """The request as it goes over the wire."""
        parts = urlsplit(self.url)
        headers = {"host": parts.netloc, "content-type": "application/json"} | self.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {parts.path} HTTP/1.1\r\n{head}content-length: {len(self.body)}\r\n\r\n".encode() + self.body


@dataclass
class Tally:
    """What the connections of one run share."""

    running: bool = True
    answers: int = 0
    bad_status: int = 0
    lost: int = 0
    problem: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Answers that are not 200, and connections that broke."""
        return self.bad_status + self.lost


class Caller(asyncio.Protocol):
    """Posts, waits for the whole answer, posts again; nothing is pipelined. Subclasses see the answer as it comes."""

    def __init__(self, raw: bytes, tally: Tally, done: Callable[[], None]) -> None:
        self._raw = raw
        self._tally = tally
        self._done = done
        self._parser: httptools.HttpResponseParser
        self._transport: asyncio.Transport
        self.sent_at = 0.0
        self.idle = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self.post()

    def post(self) -> None:
        """Send the request again."""
        self.idle = False
        self.sent_at = time.perf_counter()
        self._transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        status = self._parser.get_status_code()
        if status != 200 and not self._tally.problem:
            self._tally.problem = f"{status}: {body[:200].decode(errors='replace')}"

    def on_message_complete(self) -> None:
        self.idle = True
        status = self._parser.get_status_code()
        if status != 200:
            self._tally.bad_status += 1
        self.finished(status == 200)
        if self._tally.running:
            self.post()
        else:
            self._transport.close()

    def finished(self, good: bool) -> None:
        """A whole answer has come."""
        self._tally.answers += good
        self._tally.seconds.append(time.perf_counter() - self.sent_at)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.idle:
            self._tally.lost += 1
        self._done()


async def keep_calling(request: Request, tally: Tally, make: Callable[[Callable[[], None]], Caller]) -> None:
    """Hold one connection open while the tally runs, connecting again where it breaks; return once it is drained."""
    loop = asyncio.get_running_loop()
    while tally.running:
        ended = asyncio.Event()
        try:
            await loop.create_connection(lambda: make(ended.set), *request.address)  # noqa: B023
        except OSError:
            tally.lost += 1
        else:
            await ended.wait()
        if tally.running:
            await asyncio.sleep(RECONNECT_SECONDS)


async def drain(tally: Tally, callers: list[asyncio.Task[None]]) -> int:
    """Send nothing more and wait for what is in flight, since it will be charged; how many never ended."""
    tally.running = False
    _, late = await asyncio.wait(callers, timeout=DRAIN_SECONDS)
    for caller in late:
        caller.cancel()
    return len(late)


def write_request(request: Request, folder: Path) -> Path:
    """Hand a request to a client process."""
    path = folder / "request.json"
    path.write_text(json.dumps({"url": request.url, "headers": request.headers, "body": request.body.decode()}))
    return path


def read_request(path: Path) -> Request:
    """A request as `write_request` wrote it."""
    document = json.loads(path.read_text())
    return Request(document["url"], document["headers"], document["body"].encode())


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of an ordered list lies; 0.0 for an empty one."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0
