"""The upstream: a fixed answer at once, or a stream: the first event after 20 ms, then one to each stream every 20 ms.

`python -m tests.bench.upstream --port P` serves both from one bare `asyncio.Protocol`. For requests nginx takes its
place where it is installed (see nginx.py). Both count what they answered: the gateway's ledger is held against it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any, cast

import httptools
import uvloop

from tests.bench import shapes

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n"
_JSON = _HEAD % b"application/json"
_STREAM = _HEAD % b"text/event-stream" + b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"


# The timer serves a tenth of the streams every 2 ms. All of them at one instant would be a burst that no real traffic
# has, and the time to the first token would tell how long a gateway takes to get through the burst.
SLOTS = 10


@dataclass
class Counts:
    """What an upstream has served; `late_ms` is the longest that its timer was behind since it was last asked."""

    answers: int = 0
    streams: int = 0
    broken: int = 0
    late_ms: float = 0.0


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112 section 7.1)."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(body: bytes) -> bytes:
    """A whole HTTP response around a JSON body."""
    return _JSON + b"content-length: %d\r\n\r\n%s" % (len(body), body)


class Upstream:
    """State that the connections share: the open streams by the slot of the timer that feeds them, and the counts."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.counts = Counts()
        self.fixed = answer(shapes.completion())
        self.models = answer(shapes.model_list())
        self.slots: list[set[Connection]] = [set() for _ in range(SLOTS)]
        self._slot = 0
        self._event = chunk(shapes.content_event())
        self._ends = {
            asked: chunk(shapes.closing_events(events, include_usage=asked)) + b"0\r\n\r\n" for asked in (False, True)
        }

    def begin(self, connection: Connection) -> None:
        """Write a stream's first event; the timer writes the others."""
        if connection.closed:
            self.counts.broken += 1
            return
        connection.sent = 0
        connection.slot = self.slots[self._slot - 1]  # the one just fed: its turn comes in a full period
        connection.slot.add(connection)
        self._feed(connection)

    def tick(self, due: float) -> None:
        """Write the next event to the streams of a slot. Times are absolute: a late tick does not slow the streams."""
        loop = asyncio.get_running_loop()
        self.counts.late_ms = max(self.counts.late_ms, (loop.time() - due) * 1000)
        for connection in list(self.slots[self._slot]):
            self._feed(connection)
        self._slot = (self._slot + 1) % SLOTS
        due += shapes.EVENT_SECONDS / SLOTS
        loop.call_at(due, self.tick, due)

    def _feed(self, connection: Connection) -> None:
        connection.write(self._event)
        connection.sent += 1
        if connection.sent == self.events:
            connection.slot.discard(connection)
            self.counts.streams += 1
            connection.write(self._ends[connection.include_usage])

    def report(self) -> bytes:
        """The counts as a response; asking starts `late_ms` anew."""
        body = json.dumps(asdict(self.counts)).encode()
        self.counts.late_ms = 0.0
        return answer(body)


class Connection(asyncio.Protocol):
    """One connection of a gateway, kept alive."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self.sent = 0
        self.closed = False
        self.include_usage = False
        self.slot: set[Connection] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self in self.slot:
            self.slot.discard(self)
            self._upstream.counts.broken += 1

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        upstream = self._upstream
        if self._parser.get_method() == b"GET":
            self.write(upstream.report() if self._url == b"/counts" else upstream.models)
        elif b'"stream"' in self._body and self._starts_stream():
            self.write(_STREAM)
            # The wait for the common timer would hide a gateway's delay: the first event has a time of its own.
            asyncio.get_running_loop().call_later(shapes.EVENT_SECONDS, upstream.begin, self)
        else:
            upstream.counts.answers += 1
            self.write(upstream.fixed)

    def _starts_stream(self) -> bool:
        body = json.loads(self._body)
        self.include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return bool(body.get("stream"))


async def serve(port: int, events: int) -> None:
    """Serve on 127.0.0.1 until the process is ended."""
    loop = asyncio.get_running_loop()
    upstream = Upstream(events)
    server = await loop.create_server(lambda: Connection(upstream), "127.0.0.1", port, backlog=4096)
    upstream.tick(loop.time())
    await server.serve_forever()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, default=100, help="events a stream")
    arguments = parser.parse_args()
    run(serve(arguments.port, arguments.events))
