"""The work of a sale: the answer of the first upstream that delivers one, whole or as a stream, charged before its last byte."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from pyreqwest.response import Response

from ppq_proxy.errors import GatewayError, StoreUnavailable, UpstreamNonsense
from ppq_proxy.exchange import JSON_TYPE, Exchange, Header
from ppq_proxy.metering.sse import Passage
from ppq_proxy.metering.stream import Pump, Wait, Watch, has_left, shielded
from ppq_proxy.money.amounts import usd_from_nano
from ppq_proxy.providers.http import Failed
from ppq_proxy.providers.router import Router
from ppq_proxy.sale import Events, Gate, Order, Sale

STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
Headers = Callable[[Sale], Awaitable[list[Header]]]
Failure = Callable[[GatewayError], bytes]


def _nothing() -> Failed:
    return Failed(UpstreamNonsense("The model's upstream failed and delivered nothing."), again=True)


class Delivery:
    """Sends orders upstream and answers down. `active` counts the sales that are not settled yet."""

    def __init__(self, gate: Gate, router: Router, watch: Watch) -> None:
        self.gate, self.router, self.watch = gate, router, watch
        self.active = 0

    async def deliver(self, sale: Sale, more: Headers, failure: Failure) -> None:
        """Answer a sale and charge it, or raise `GatewayError` with nothing sent and nothing charged.

        `more` makes further headers once a whole answer is charged or a stream begins, `failure` an event that says what
        went wrong.
        """
        self.active += 1
        try:
            if sale.order.stream:
                with Wait(sale.exchange, self.watch) as wait:
                    await self._stream(sale, wait, more, failure)
            else:
                await self._once(sale, more)
        finally:
            self.active -= 1
            if sale.hold.open:
                self.gate.release(sale)

    async def drained(self, seconds: float) -> None:
        """Wait for what is under way, at most so long."""
        end = asyncio.get_running_loop().time() + seconds
        while self.active and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 (once, at the end)
            await asyncio.sleep(0.02)

    # whole answers

    async def _once(self, sale: Sale, more: Headers) -> None:
        with Wait(sale.exchange, self.watch):
            content, parsed = await self._fetch(sale)
        wire = sale.order.wire
        if sale.kept:
            sale.kept.doc |= kept_body(content)
        charged = await self.gate.settle(sale, parsed.get("usage"), lambda: wire.text(parsed))
        headers = [JSON_TYPE, (b"x-cost-usd", usd_from_nano(charged).encode()), *await more(sale)]
        await sale.exchange.answer(200, content, headers)

    async def _fetch(self, sale: Sale) -> tuple[bytes, Any]:
        order = sale.order
        attempts = sale.attempts = self.router.attempts(order.offering)
        while True:
            upstream, model = attempts.current
            try:
                sent = order.wire.prepare(order.body, model, False, upstream.usage, sale.limits)
                content = await upstream.post(order.wire.path, sent)
                parsed = self._read(order, content)
            except Failed as problem:
                if not attempts.failed(problem) or await _gone(sale.exchange):
                    raise problem.error from None
                await attempts.pause()
                continue
            attempts.delivered()
            return content, parsed

    @staticmethod
    def _read(order: Order, content: bytes) -> Any:
        try:
            parsed = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise Failed(UpstreamNonsense("The model's upstream did not answer in JSON."), again=True) from None
        if not order.wire.delivered(parsed):
            raise _nothing()
        return parsed

    # streams

    async def _stream(self, sale: Sale, wait: Wait, more: Headers, failure: Failure) -> None:
        order = sale.order
        attempts = sale.attempts = self.router.attempts(order.offering)
        while True:
            upstream, model = attempts.current
            sent = order.wire.prepare(order.body, model, True, upstream.usage, sale.limits)
            try:
                async with upstream.stream(order.wire.path, sent) as response:
                    events = order.wire.events(order.body)
                    sink: list[bytes] | None = [] if sale.kept else None
                    pump = Pump(sale.exchange, Passage(events), self.watch, upstream.idle_seconds, sale.cap, sink)
                    first = await self._begin(response, pump)
                    wait.over()
                    attempts.delivered()
                    await sale.exchange.start(200, [*STREAM_HEADERS, *await more(sale)])
                    await self._pass_on(sale, response, events, pump, first, failure)
                    return
            except Failed as problem:
                if sale.exchange.status:  # after the end: of no consequence
                    return
                if not attempts.failed(problem) or await _gone(sale.exchange):
                    raise problem.error from None
                await attempts.pause()

    @staticmethod
    async def _begin(response: Response, pump: Pump) -> bytes:
        """The bytes up to the first content. Raises `Failed`."""
        kind = response.get_header("content-type") or ""
        if "json" in kind or "html" in kind:
            raise _nothing()
        try:
            first = await pump.prelude(response)
        except UpstreamNonsense as problem:
            raise Failed(problem) from None
        if not pump.passage.started:
            raise _nothing()
        return first

    async def _pass_on(
        self, sale: Sale, response: Response, events: Events, pump: Pump, first: bytes, failure: Failure
    ) -> None:
        """The delivering part: pass on, charge, end."""
        try:
            await pump.run(response, first)
            if events.done and events.usage is None:
                await pump.late_usage(response, lambda: events.usage is None)
        except asyncio.CancelledError:
            pump.cut = "the gateway is shutting down"
        last = pump.passage.end or sale.order.wire.end
        if sale.kept:
            if pump.cut:
                sale.kept = None
            else:
                sale.kept.doc |= kept_body(b"".join([*(pump.sink or ()), last]))
        try:
            await shielded(self.gate.settle(sale, events.usage, pump.passage.delivered, cut=bool(pump.cut)))
        except StoreUnavailable:
            pump.cut = "its charge could not be made durable"
        if pump.cut:
            last = failure(UpstreamNonsense(f"The answer is not whole: {pump.cut}. What was delivered is charged."))
            sale.exchange.note["cut"] = pump.cut
        await pump.close(last)
        if events.done and not pump.cut:
            await pump.late_usage(response, lambda: True)


def kept_body(content: bytes) -> dict[str, str]:
    """An answer's bytes as they are kept for its repetition."""
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


async def _gone(exchange: Exchange) -> bool:
    """True if the client has left: nobody is tried again for it."""
    if exchange.lane is not None:
        return has_left(exchange)
    waiting = asyncio.ensure_future(exchange.receive())
    await asyncio.wait([waiting], timeout=0)
    if not waiting.done():
        waiting.cancel()
        return False
    return bool(waiting.result()["type"] == "http.disconnect")
