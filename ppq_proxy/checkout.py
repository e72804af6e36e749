"""One order from the payer to the answer: who pays, was it asked before, what is held, what is delivered."""

from collections.abc import Callable

from ppq_proxy.delivery import Delivery
from ppq_proxy.errors import GatewayError, InsufficientBalance, Unauthorized
from ppq_proxy.exchange import Exchange, Header
from ppq_proxy.idempotency import Answers, body_of
from ppq_proxy.money.accounts import Payer
from ppq_proxy.payers import Payers
from ppq_proxy.payments.guests import Refused
from ppq_proxy.sale import Gate, Order, Sale
from ppq_proxy.store.base import Row

NO_CREDENTIAL = "No API key. Send Authorization: Bearer <api key>; POST /accounts/create makes one."


class Checkout:
    """Serves orders of every dialect."""

    def __init__(self, payers: Payers, gate: Gate, delivery: Delivery, answers: Answers) -> None:
        self.payers, self.gate, self.delivery, self.answers = payers, gate, delivery, answers
        self.guests = payers.guests

    async def serve(self, exchange: Exchange, order: Order, failure: Callable[[GatewayError], bytes]) -> None:
        """Answer the order or raise `GatewayError`. `failure` makes the event for a stream that breaks."""
        exchange.note["body"], exchange.note["offering"] = order.raw, order.offering.id
        try:
            payer = await self.payers.payer(exchange)
        except Refused as problem:
            raise await self._challenge(exchange, order) from problem
        if payer is None:
            raise await self._challenge(exchange, order)
        note = exchange.note
        note["account"], note["key"], note["model"], note["stream"] = (
            payer.account_id,
            payer.key_id,
            order.offering.id,
            order.stream,
        )
        row = None
        if b"idempotency-key" in exchange.headers:
            row = await self.answers.claim(exchange, payer.account_id, order.raw, self.gate.ledger.owner)
            if row is not None and row.state == "finished":
                await self._repeat(exchange, payer, row)
                return
        try:
            sale = await self._open(exchange, order, payer)
            if row is not None:
                Answers.finish(row, 200, "text/event-stream; charset=utf-8" if order.stream else "application/json")
                sale.kept = row
            await self.delivery.deliver(sale, self._headers, failure)
        except GatewayError as problem:
            if payer.guest and problem.http_status >= 500 and self.guests is not None:
                await self.gate.ledger.flushed()  # what the call had held is the guest's again
                problem.header_lines += tuple(await self.guests.headers(exchange, payer, receipt=False))
            raise
        finally:
            if row is not None:  # where the answer was kept, the row has moved on and this does nothing
                await self.answers.forget(row)

    async def _open(self, exchange: Exchange, order: Order, payer: Payer) -> Sale:
        try:
            sale = await self.gate.open(exchange, order, payer)
        except (InsufficientBalance, Unauthorized) as problem:
            if payer.guest:
                raise await self._challenge(exchange, order, problem) from problem
            raise
        if payer.guest and self.guests is not None:
            self.guests.accepted(exchange)
        return sale

    async def _challenge(self, exchange: Exchange, order: Order, short: GatewayError | None = None) -> GatewayError:
        """What a request is answered that nobody pays for: a 402 to be paid, or 401 where there are no challenges."""
        if self.guests is None:
            return Unauthorized(NO_CREDENTIAL)
        return await self.guests.challenge(exchange, await self.gate.quote(order), short)

    async def _headers(self, sale: Sale) -> list[Header]:
        headers: list[Header] = []
        if sale.clamped is not None:
            headers.append((b"x-max-tokens-clamped", b"%d" % sale.clamped))
        if (window := sale.payer.requests) is not None:
            headers.append((b"x-ratelimit-limit-requests", b"%d" % window.limit))
            headers.append((b"x-ratelimit-remaining-requests", b"%d" % window.granted))
        if (window := sale.payer.tokens) is not None:
            headers.append((b"x-ratelimit-limit-tokens", b"%d" % window.limit))
            headers.append((b"x-ratelimit-remaining-tokens", b"%d" % window.granted))
        if sale.payer.guest and self.guests is not None:
            headers += await self.guests.headers(
                sale.exchange, sale.payer, sale.hold.available if sale.order.stream else None
            )
        return headers

    async def _repeat(self, exchange: Exchange, payer: Payer, row: Row) -> None:
        exchange.note["replayed"] = True
        headers = [(b"content-type", row.doc["type"].encode()), (b"idempotent-replayed", b"true")]
        if payer.guest and self.guests is not None:
            headers += await self.guests.headers(exchange, payer)
        await exchange.answer(row.doc["status"], body_of(row.doc), headers)
