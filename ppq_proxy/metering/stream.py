"""The pump of a stream: whoever reads the upstream also meters it, and outlives the client.

The endpoint itself is the pump: read a chunk, meter it, send it. The server does not cancel it when the client leaves,
its `send` then does nothing; a task on `receive` tells. A client that has gone is read on for, under a limit of time and
bytes; one that has stalled counts as gone and the upstream is hung up on.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pyreqwest.exceptions import PyreqwestError
from pyreqwest.response import Response

from ppq_proxy.errors import UpstreamNonsense, UpstreamTimeout
from ppq_proxy.exchange import Exchange
from ppq_proxy.metering.sse import Passage

LATE_USAGE_SECONDS = 0.5
WATCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream is kept up for whom: seconds, and bytes."""

    read_on_seconds: float = 30
    read_on_bytes: int = 8 * 1024 * 1024
    stall_seconds: float = 120


class Watch:
    """Looks after all calls of a process: one timer, whatever their number."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.pumps: set[Pump] = set()
        self.waits: set[Wait] = set()
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self.task:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = time.monotonic()
            for pump in tuple(self.pumps):
                pump.look(now)
            for wait in tuple(self.waits):
                wait.look(now)


def has_left(exchange: Exchange) -> bool:
    """True if the client has gone or may have; always False under a server that does not tell."""
    return exchange.lane is not None and exchange.lane.left


class Wait:
    """A call whose answer has not begun. Once its client has left it is waited for so long and no longer (money-cases, 10)."""

    __slots__ = ("_since", "_task", "exchange", "given_up", "watch")

    def __init__(self, exchange: Exchange, watch: Watch) -> None:
        self.exchange, self.watch = exchange, watch
        self.given_up = False
        self._since = 0.0

    def __enter__(self) -> "Wait":
        self._task = asyncio.current_task()
        self.watch.waits.add(self)
        return self

    def over(self) -> None:
        """The answer begins."""
        self.watch.waits.discard(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.watch.waits.discard(self)
        if self.given_up and kind is asyncio.CancelledError and self._task and not self._task.uncancel():
            raise UpstreamTimeout("The model's upstream took too long to answer a client that has left.")

    def look(self, now: float) -> None:
        """Give up if it is time."""
        if not has_left(self.exchange):
            self._since = 0.0
        elif not self._since:
            self._since = now
        elif now - self._since >= self.watch.patience.read_on_seconds and not self.given_up and self._task:
            self.given_up = True
            self._task.cancel()


class Pump:
    """One stream to one client. `gone` once the client has left; `cut` says why the stream is not whole."""

    def __init__(
        self,
        exchange: Exchange,
        passage: Passage,
        watch: Watch,
        idle_seconds: float,
        most: int,
        sink: list[bytes] | None,
    ) -> None:
        """`idle_seconds`: how long the upstream may be silent; `most`: tokens that it may make for a client that has left."""
        self.exchange, self.passage, self.watch, self.sink = exchange, passage, watch, sink
        self.idle_seconds = idle_seconds
        self.gone = False
        self.cut = ""
        self.sending_since = 0.0
        self._limit: asyncio.Timeout | None = None
        self._listener: asyncio.Task[None] | None = None
        self._gone_at = 0
        self._unread = most
        self._why = ""
        self._mark, self._quiet_since = -1, 0.0

    async def prelude(self, response: Response) -> bytes:
        """Read up to the first content: nothing has been sent, so a failure here can still be mended elsewhere."""
        passage, held = self.passage, bytearray()
        read = response.body_reader.read_chunk
        while True:
            data = await read()
            held += passage.finish() if data is None else passage.feed(data.to_bytes())
            reader = passage.reader
            if passage.started or data is None or reader.failed or reader.done:
                return bytes(held)

    async def run(self, response: Response, first: bytes) -> None:
        """Send `first`, then what the upstream sends, up to its end. Everything but cancellation ends in `cut`."""
        self.watch.pumps.add(self)
        if self.exchange.lane is None:
            self._listener = asyncio.create_task(self._listen())
        try:
            async with asyncio.timeout(None) as self._limit:
                if self.gone:  # before there was a limit to set
                    self._left()
                await self.write(first)
                await self._pass_on(response)
        except (PyreqwestError, UpstreamNonsense) as problem:  # some of the former are a TimeoutError too
            if not self._finished():
                self.cut = f"the upstream broke off ({type(problem).__name__})"
        except TimeoutError:
            if not self._finished():
                self.cut = self._why or "the client left"
        finally:
            self._limit = None
            self.watch.pumps.discard(self)
        if self.passage.reader.failed:
            self.cut = "the upstream reported an error"

    async def _pass_on(self, response: Response) -> None:
        passage, reader, read, write = self.passage, self.passage.reader, response.body_reader.read_chunk, self.write
        feed = passage.feed
        lane = self.exchange.lane.chunk if self.exchange.lane is not None else _closed
        quiet = self.sink is not None
        while not reader.done and reader.failed is None:
            data = await read()
            if data is None:
                await write(passage.finish())
                if not self._finished():
                    self.cut = "the upstream ended its answer early"
                return
            out = feed(data.to_bytes())
            if out and (quiet or self.gone or not lane(out)):
                self.notice()
                await write(out)
            if self.gone:
                self._unread -= out.count(b"\n\n")  # an event is a token at least
                if self._unread < 0 or passage.seen - self._gone_at > self.watch.patience.read_on_bytes:
                    raise TimeoutError

    def _finished(self) -> bool:
        """True if the answer is whole, however its transport ended (money-cases, 7)."""
        if not self.passage.reader.done:
            self.passage.fold()  # a finish may be among what was only passed on
        return self.passage.reader.done or self.passage.reader.finished

    async def late_usage(self, response: Response, wanted: Callable[[], bool]) -> None:
        """Some upstreams send their usage after the end marker; and a connection read to its end can be used again."""
        with contextlib.suppress(TimeoutError, PyreqwestError, UpstreamNonsense):
            async with asyncio.timeout(LATE_USAGE_SECONDS):
                while wanted() and (data := await response.body_reader.read_chunk()) is not None:
                    self.passage.feed(data.to_bytes())

    async def write(self, data: bytes) -> None:
        """To the client, if it is still there."""
        if not data:
            return
        if self.sink is not None:
            self.sink.append(data)
        if self.gone:
            return
        exchange = self.exchange
        if not exchange.first_byte:
            exchange.first_byte = time.perf_counter()
        if exchange.lane is not None and exchange.lane.chunk(data):
            return
        self.sending_since = time.monotonic()
        await exchange.send({"type": "http.response.body", "body": data, "more_body": True})
        self.sending_since = 0.0

    async def close(self, last: bytes = b"") -> None:
        """End the answer to the client with these bytes."""
        if self._listener:
            self._listener.cancel()
        if self.sink is not None:
            self.sink.append(last)
        if not self.gone:
            await self.exchange.send({"type": "http.response.body", "body": last, "more_body": False})

    async def _listen(self) -> None:
        while (await self.exchange.receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def notice(self) -> None:
        """Find out whether the client has gone, where nobody listens for it."""
        if self.exchange.lane is not None and self.exchange.lane.gone:
            self._leave()

    def _leave(self) -> None:
        if not self.gone:
            self.gone = True
            self._left()

    def _left(self) -> None:
        self._gone_at = self.passage.seen
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self.watch.patience.read_on_seconds)

    def look(self, now: float) -> None:
        """End a stream whose client has stopped reading, or whose upstream has fallen silent."""
        self.notice()
        patience, seen = self.watch.patience, self.passage.seen
        if self.sending_since:
            self._mark = -1
            if now - self.sending_since > patience.stall_seconds:
                self.gone, self.sending_since = True, 0.0
                self._stop("the client stalled")
        elif seen != self._mark:
            self._mark, self._quiet_since = seen, now
        elif now - self._quiet_since >= self.idle_seconds:
            self._stop("the upstream fell silent")
        elif has_left(self.exchange) and now - self._quiet_since >= patience.read_on_seconds:
            self._stop("the client left")

    def _stop(self, why: str) -> None:
        self._why = why
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())


def _closed(data: bytes) -> bool:
    """No lane."""
    return False


async def shielded(work: Awaitable[Any]) -> Any:
    """Finish `work` even if the caller is cancelled; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
