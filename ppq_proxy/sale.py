"""The gate that every sale passes: payer → hold → work → charge → receipt.

One function captures, called from one place, whatever the protocol, streamed or not, tried again or not. What is sold and
how it looks on the wire is the dialect's and the protocol's business; here is no path name and no envelope.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ppq_proxy.catalog.offerings import Offering
from ppq_proxy.catalog.tokens import count_completion_async, hold_factor, needs_rules
from ppq_proxy.errors import GatewayError
from ppq_proxy.exchange import Exchange
from ppq_proxy.metering.sse import Reader
from ppq_proxy.metering.usage import ABSURD_FACTOR, Units, totals
from ppq_proxy.money.accounts import Payer
from ppq_proxy.money.amounts import ceil_div
from ppq_proxy.money.ledger import Hold, Ledger, now_ms
from ppq_proxy.providers.router import Attempts
from ppq_proxy.shelf import Shelf
from ppq_proxy.store.base import Entry, Row

LEAST_OUTPUT = 16
"""A limit is not lowered below this (or what was asked for): an answer of three tokens helps nobody."""
UNLIMITED_OUTPUT = 4096
"""The limit sent upstream for a model whose greatest output is unknown, and the one a guest's quote is made for."""


class Events(Reader, Protocol):
    """A reader that also keeps the usage it saw."""

    usage: Any


class Wire(Protocol):
    """A protocol as the gate sees it; `providers.openai.ChatCompletions` is one."""

    path: str
    query_type: str
    end: bytes
    outputs: bool
    """Whether an answer has output tokens, which a limit can bound."""

    def prepare(
        self, body: dict[str, Any], model: str, stream: bool, usage: str, limits: dict[str, int] | None
    ) -> bytes: ...

    def events(self, body: dict[str, Any]) -> Events: ...

    def delivered(self, parsed: Any) -> bool: ...

    def text(self, parsed: Any) -> str: ...

    def usage(self, block: Any) -> tuple[int, int, Units] | None: ...

    async def count(self, body: dict[str, Any], offering: Offering, size: int) -> int:
        """The input tokens of a request of so many bytes, by our own count."""
        ...


@dataclass(slots=True)
class Order:
    """What a client wants, validated. `caps` are the output limits it gave, by field; `n` how many answers at once."""

    offering: Offering
    wire: Wire
    body: dict[str, Any]
    raw: bytes
    stream: bool
    caps: dict[str, int]
    n: int = 1
    cap_field: str = "max_tokens"
    query_source: str = "api"


@dataclass(slots=True)
class Sale:
    """One order on its way through the gate."""

    exchange: Exchange
    order: Order
    payer: Payer
    hold: Hold
    limits: dict[str, int] | None = None
    clamped: int | None = None
    counted_prompt: int | None = None
    attempts: Attempts | None = None
    tokens: tuple[int, int] | None = None
    kept: Row | None = None

    @property
    def cap(self) -> int:
        """The most output that the upstream was asked for, over all answers."""
        order = self.order
        if not order.wire.outputs:
            return 0
        if self.limits:
            return max(self.limits.values()) * order.n
        if order.caps:
            return max(order.caps.values()) * order.n
        return (order.offering.max_output or UNLIMITED_OUTPUT) * order.n


class Gate:
    """Holds, counts and charges."""

    def __init__(self, ledger: Ledger, shelf: Shelf) -> None:
        self.ledger, self.shelf = ledger, shelf
        self._price_lines: dict[str, orjson.Fragment] = {}

    # hold

    async def open(self, exchange: Exchange, order: Order, payer: Payer) -> Sale:
        """A sale with its hold. Raises what a hold and the limits by the minute raise."""
        if payer.requests is not None and not payer.requests.take(1, time.time()):
            await payer.requests.draw(1, self.ledger.store)
        output = wanted_output(order, payer.guest) * order.n
        if payer.tokens is None:
            return await self._open(exchange, order, payer, output, None)
        wanted = min(len(order.raw) // 4 + output, payer.tokens.limit)
        await payer.tokens.draw(wanted, self.ledger.store)
        tokens = (wanted, payer.tokens.minute)
        try:
            return await self._open(exchange, order, payer, output, tokens)
        except GatewayError:
            payer.tokens.give_back(*tokens)
            raise

    async def _open(
        self, exchange: Exchange, order: Order, payer: Payer, output: int, tokens: tuple[int, int] | None
    ) -> Sale:
        unbounded = needs_rules(order.raw)
        need = order.offering.prices.bound(len(order.raw), output)
        hold = None if unbounded or payer.guest else self.ledger.try_hold(payer.allotment, need)
        if hold is None and not (unbounded or payer.guest or payer.allotment.thin):
            hold = await self.ledger.hold_ahead(payer.allotment, need)
        if hold is not None:
            sale = Sale(exchange, order, payer, hold, tokens=tokens)
            if not order.caps and order.offering.max_output is None and order.wire.outputs:
                sale.limits = {order.cap_field: UNLIMITED_OUTPUT}
            return sale
        return await self._open_counted(exchange, order, payer, tokens)

    async def _open_counted(
        self, exchange: Exchange, order: Order, payer: Payer, tokens: tuple[int, int] | None
    ) -> Sale:
        """A hold near an account's edge: the prompt is counted, and the output limited to what can be paid."""
        prices, wanted = order.offering.prices, wanted_output(order, payer.guest)
        counted = await count_prompt(order)
        prompt = hold_tokens(counted, order.offering)
        need = prices.bound(prompt, wanted * order.n)
        least = need if payer.guest else prices.bound(prompt, min(wanted, LEAST_OUTPUT) * order.n)
        hold = await self.ledger.hold(payer.allotment, need, least, ahead=not payer.guest)
        sale = Sale(exchange, order, payer, hold, counted_prompt=counted, tokens=tokens)
        if not order.wire.outputs:
            return sale
        if hold.amount < need:
            output = prices.affordable_output(hold.amount, prompt)
            limit = max(1, (wanted * order.n if output is None else output) // order.n)
            fields = order.caps or {order.cap_field: wanted}
            sale.limits = {name: min(limit, asked) for name, asked in fields.items()}
            sale.clamped = min(sale.limits.values())
        elif not order.caps:
            sale.limits = {order.cap_field: wanted} if payer.guest or order.offering.max_output is None else None
        return sale

    async def quote(self, order: Order) -> int:
        """What a guest is asked to pay for an order, in nano-USD: counted input and the output limit."""
        counted = hold_tokens(await count_prompt(order), order.offering)
        return order.offering.prices.bound(counted, wanted_output(order, True) * order.n)

    # charge

    async def settle(self, sale: Sale, block: Any, text: Callable[[], str], *, cut: bool = False) -> int:
        """Charge what was delivered, once; nano-USD, durable on return.

        `block` is the upstream's last usage block, `text` makes what was delivered, where it has to be counted; `cut`: the
        answer is not whole, so the block, if any, is not its sum.
        """
        order = sale.order
        units, source = None if cut else await self._believed(sale, block, text), "upstream"
        if units is None:
            units, source = {"input": await self._prompt(sale)}, "counted"
            if made := await count_completion_async(text(), order.offering):
                units["output"] = made
        entry = self._entry(sale, units, source, order.offering.prices.charge(units))
        if sale.tokens and sale.payer.tokens:
            taken, minute = sale.tokens
            sale.payer.tokens.give_back(max(0, taken - entry.inputs - entry.outputs), minute)
        charged = await self.ledger.capture(sale.hold, entry, [sale.kept] if sale.kept else None)
        note = sale.exchange.note
        note["units"], note["usage_source"], note["cost_nano_usd"] = units, source, charged
        note["in"], note["out"] = entry.inputs, entry.outputs
        note["upstream"] = sale.attempts.made[-1]["upstream"] if sale.attempts else ""
        return charged

    async def _prompt(self, sale: Sale) -> int:
        if sale.counted_prompt is None:
            sale.counted_prompt = await count_prompt(sale.order)
        return sale.counted_prompt

    async def _believed(self, sale: Sale, block: Any, text: Callable[[], str]) -> Units | None:
        """The upstream's usage, or None if it cannot be true (money-cases, 3)."""
        order = sale.order
        read = order.wire.usage(block) if block is not None else None
        if read is None:
            return None
        prompt, completion, units = read
        if completion > sale.cap:
            return None
        if completion == 0 or order.n > 1:
            delivered = text()
            if delivered and (
                completion == 0 or 2 * completion < await count_completion_async(delivered, order.offering)
            ):
                return None
        if prompt > len(order.raw) // 2 + 64 and prompt > ABSURD_FACTOR * await self._prompt(sale):
            return None
        return units

    def _entry(self, sale: Sale, units: Units, source: str, charge: int) -> Entry:
        order, payer = sale.order, sale.payer
        inputs, outputs = totals(units)
        detail = {
            "units": units,
            "prices": self._prices(order.offering, units),
            "catalogue": self.shelf.catalog.version,
            "usage_source": source,
            "attempts": sale.attempts.made if sale.attempts else [],
            "stream": order.stream,
        }
        return Entry(
            payer.account_id, payer.key_id, now_ms(), "charge", charge, sale.exchange.request_id, order.offering.id,
            order.wire.query_type, order.query_source, inputs, outputs, 0, orjson.dumps(detail),
        )  # fmt: skip

    def _prices(self, offering: Offering, units: Units) -> orjson.Fragment:
        """The unit prices that a charge used, as JSON; remembered, as few sets of classes occur for each offering."""
        name = "" if any(row.when for row in offering.prices.rows) else f"{offering.id} {' '.join(units)}"
        found = self._price_lines.get(name)
        if found is None:
            lines = [{"of": line.of, "usd": line.usd, "unit": line.unit} for line in offering.prices.lines(units)]
            found = orjson.Fragment(orjson.dumps(lines))
            if name and len(self._price_lines) < 10_000:
                self._price_lines[name] = found
        return found

    def release(self, sale: Sale) -> None:
        """End a sale that costs nothing."""
        self.ledger.release(sale.hold)
        if sale.tokens and sale.payer.tokens:
            sale.payer.tokens.give_back(*sale.tokens)


async def count_prompt(order: Order) -> int:
    """The prompt's tokens by our own count."""
    return await order.wire.count(order.body, order.offering, len(order.raw))


def wanted_output(order: Order, guest: bool) -> int:
    """The most output tokens of one answer that may be asked for: the client's limit, or the model's."""
    if not order.wire.outputs:
        return 0
    if order.caps:
        return max(order.caps.values())
    most = order.offering.max_output or UNLIMITED_OUTPUT
    return min(most, UNLIMITED_OUTPUT) if guest else most


def hold_tokens(counted: int, offering: Offering) -> int:
    """A count made safe against encodings that are not ours, for a hold."""
    over, under = hold_factor(offering)
    return ceil_div(counted * over, under)
