"""The rail x402: dollars on an EVM chain, by signed payments (versions 1 and 2) and by transactions shown afterwards.

A payment is settled before the call is served ("upfront") and is then the credit of a guest account, as an invoice is:
what a call does not use stays on it, and the same payment shown again spends it.
"""

import asyncio
import logging
import re
import time
from typing import Any

from ppq_proxy.errors import GatewayError, RateLimited, SettingsError
from ppq_proxy.exchange import Exchange, Header
from ppq_proxy.money.accounts import Payer
from ppq_proxy.money.amounts import ceil_div
from ppq_proxy.payments.challenge import Offer
from ppq_proxy.payments.credentials import BadCredential, Problem
from ppq_proxy.payments.guests import Guests
from ppq_proxy.payments.patience import Minutes, network_of
from ppq_proxy.payments.x402_chain import Chain
from ppq_proxy.payments.x402_facilitator import Facilitator, RemoteFacilitator
from ppq_proxy.payments.x402_in_process import InProcessFacilitator, in_daemon_thread, load_library, require_library
from ppq_proxy.payments.x402_payments import Payments, Shown
from ppq_proxy.payments.x402_quotes import Quote, Quotes
from ppq_proxy.payments.x402_transfers import Transfers
from ppq_proxy.payments.x402_wire import (
    EXACT,
    UNIT_NANO,
    UPTO,
    Document,
    Network,
    Payment,
    Terms,
    Transfer,
    is_address,
    network_named,
    payment_required,
    payment_response,
    request_digest,
    shown,
)
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Row, Rows

RECONCILE_SECONDS = 2
SWEEP_SECONDS = 300
LONGEST_VALIDITY = 3900
"""For how many seconds an authorization may be valid: as long as it is and its outcome is open, it is looked after."""
FAILED_A_MINUTE = 30
"""So many payments of one peer may fail to verify within a minute before no more are handed to the facilitator."""
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]+)?|\[[0-9A-Fa-f:]+\](?::[0-9]+)?")

log = logging.getLogger("ppq.x402")


class X402Rail:
    """`guests.Rail` for x402. A handler may describe what it sells in `exchange.note["x402"]`: `description`, and
    `input` and `output` for directories.
    """

    def __init__(
        self, settings: Settings, rows: Rows, network: Network, facilitator: Facilitator, chain: Chain | None
    ) -> None:
        self.settings, self.network, self.facilitator, self.chain = settings, network, facilitator, chain
        self.quotes = Quotes(rows, network, settings.x402_pay_to, settings.challenge_seconds)
        self.payments = Payments(rows, facilitator, chain, settings.x402_settle_seconds)
        unsigned = settings.x402_unsigned_transfers
        self.transfers = Transfers(rows, chain, self.quotes, unsigned=unsigned) if chain else None
        self._failed = Minutes()
        self._binds = ""
        self._task: asyncio.Task[None] | None = None

    # the offer

    async def offer(self, exchange: Exchange, quote: int) -> Offer:
        """PAYMENT-REQUIRED for version 2, and the members of the body for version 1."""
        terms = self._terms(exchange, quote)
        quote_id = await self.quotes.make(terms, request_digest(exchange, _body(exchange)))
        accepts = [terms.requirement(2, EXACT, quote_id)]
        if self.settings.x402_upto and (binds := await self._bound()):
            accepts.append(terms.requirement(2, UPTO, quote_id, binds))
        error = exchange.note.get("x402_error") or "this call has to be paid for"
        lines = [(b"payment-required", payment_required(terms, accepts, error).encode()), (b"x-payment-version", b"1")]
        lines += exchange.note.get("payment_lines", ())
        if not self.network.name:
            return Offer(tuple(lines))
        return Offer(tuple(lines), {"x402Version": 1, "accepts": [terms.requirement(1, EXACT, quote_id)]})

    def _terms(self, exchange: Exchange, quote: int) -> Terms:
        told: dict[str, Any] = exchange.note.get("x402") or {}
        amount = max(1, ceil_div(quote, UNIT_NANO))
        what = told.get("description") or f"One call of {exchange.method} {exchange.path}"
        if "description" not in told and (model := exchange.note.get("offering")):
            what += f" with the model {model}"
        price = f"{amount // 10**6}.{amount % 10**6:06d} USDC"
        described = f"{what}, paid in advance: {price}. What it does not use stays as credit on the payment."
        schema: Document = {name: told[name] for name in ("input", "output") if name in told}
        resource = self._origin(exchange) + exchange.path
        return Terms(
            self.network, self.settings.x402_pay_to, amount, resource, described, exchange.method, schema or None
        )

    def _origin(self, exchange: Exchange) -> str:
        if self.settings.public_url:
            return self.settings.public_url.rstrip("/")
        host = exchange.header(b"host")
        safe = host if _HOST.fullmatch(host) else f"{self.settings.host}:{self.settings.port}"
        return f"{exchange.scope.get('scheme', 'http')}://{safe}"

    async def _bound(self) -> str:
        """The address that upto binds payments to; "" while the facilitator does not say."""
        if not self._binds:
            try:
                self._binds = await self.facilitator.binds()
            except GatewayError as problem:
                log.warning("x402: %s", problem)
        return self._binds

    # the payment

    async def payer(self, exchange: Exchange, guests: Guests) -> Payer | None:
        """The guest behind a payment that a request shows; None if it shows none.

        Raises:
            BadCredential: refused. PaymentPending, Unavailable: nothing can be said yet.
        """
        try:
            payment = shown(exchange)
            if payment is None:
                return None
            if isinstance(payment, Payment):
                row = await self._signed(exchange, payment)
            else:
                row = await self._sent(exchange, payment)
        except BadCredential as problem:
            exchange.note["x402_error"] = problem.message
            raise
        payer = await guests.credit(f"x402:{row.id}", int(row.doc["nano"]))
        await self.payments.credited(row)
        exchange.note["account"] = payer.account_id
        exchange.note["payment_lines"] = [_response(self.network, row)]
        return payer

    async def _signed(self, exchange: Exchange, payment: Payment) -> Row:
        request = request_digest(exchange, _body(exchange))
        key = f"{self.network.caip2}/{self.network.asset}/{payment.signed.payer}/{payment.signed.nonce}".lower()
        peer = network_of(exchange.peer)

        async def terms() -> Terms:
            if self._failed.count(peer) >= FAILED_A_MINUTE:
                wait = str(self._failed.wait(peer))
                raise RateLimited(
                    f"Too many payments of this address were no good; wait {wait} s.", headers={"retry-after": wait}
                )
            return (await self._quoted(payment, request)).terms

        try:
            return await self.payments.settled(Shown(payment, key, request, peer), terms)
        except BadCredential as problem:
            self._failed.add(peer)
            told = payment_response(payment.version, self.network, payment.signed.payer, "", problem.message)
            exchange.note["payment_lines"] = [told]
            raise

    async def _quoted(self, payment: Payment, request: str) -> Quote:
        """The quote that a payment is for, which it meets in everything that can be seen without the chain."""
        signed, at = payment.signed, int(time.time())
        if payment.network not in (self.network.caip2, self.network.name) or (
            payment.scheme == UPTO and not self.settings.x402_upto
        ):
            raise BadCredential("scheme and network are not among those offered", Problem.METHOD_UNSUPPORTED)
        named = payment.version == 2
        quote = await (self.quotes.named(payment.quote_id) if named else self.quotes.made_for(request, signed.value))
        if quote is None or quote.request != request:
            raise BadCredential("no quote of this amount was made for this request", Problem.INVALID_CHALLENGE)
        terms = quote.terms
        if signed.value != terms.amount or (
            named and not terms.accepted(payment.accepted, payment.scheme, payment.quote_id)
        ):
            raise BadCredential("what was signed or accepted is not what was quoted", Problem.INVALID_CHALLENGE)
        if signed.pay_to != terms.pay_to.lower() or signed.asset not in ("", terms.network.asset.lower()):
            raise BadCredential("recipient or asset is not the one that was quoted", Problem.INVALID_CHALLENGE)
        if at > quote.expires_at or not signed.valid_after <= at < signed.valid_before:
            raise BadCredential("the quote or the authorization has expired", Problem.PAYMENT_EXPIRED)
        if signed.valid_before > at + LONGEST_VALIDITY:
            raise BadCredential(f"the authorization is valid for longer than {LONGEST_VALIDITY} s")
        return quote

    async def _sent(self, exchange: Exchange, transfer: Transfer) -> Row:
        if self.transfers is None:
            raise BadCredential("payments by transaction hash are not taken here", Problem.METHOD_UNSUPPORTED)
        body = _body(exchange)
        return await self.transfers.settled(transfer, body, request_digest(exchange, body))

    # in the background

    def start(self, guests: Guests) -> None:
        """Begin to look after payments whose outcome is open."""
        self._task = asyncio.create_task(self._run(guests))

    async def stop(self) -> None:
        """End, and let go of connections."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.payments.stop()
        await self.facilitator.close()
        if self.chain:
            await self.chain.close()

    async def _run(self, guests: Guests) -> None:
        swept = time.monotonic()
        await asyncio.sleep(RECONCILE_SECONDS)  # the first answers come before what takes seconds to import
        if self.chain:
            await in_daemon_thread(load_library)
        while True:
            await asyncio.sleep(RECONCILE_SECONDS)
            try:
                for row in await self.payments.reconcile():
                    await guests.credit(f"x402:{row.id}", int(row.doc["nano"]))
                    await self.payments.credited(row)
                if time.monotonic() - swept >= SWEEP_SECONDS:
                    swept = time.monotonic()
                    await self.payments.sweep()
                    await self.quotes.sweep()
            except GatewayError as problem:
                log.warning("x402: %s", problem)
            except Exception:  # border: of the background task, which has to go on
                log.exception("x402: looking after payments failed")


def open_x402(settings: Settings, rows: Rows) -> X402Rail | None:
    """The rail that the settings name, or None without `PPQ_X402_PAY_TO`. It connects to nothing until it is used.

    Raises:
        SettingsError: something is missing or wrong, or the extra is not installed.
    """
    if not settings.x402_pay_to:
        return None
    if not is_address(settings.x402_pay_to):
        raise SettingsError("PPQ_X402_PAY_TO must be an address: 0x and 40 hex digits")
    network = _network(settings)
    for name in ("x402_facilitator", "x402_rpc_url"):
        if (url := getattr(settings, name)) and not url.startswith(("http://", "https://")):
            raise SettingsError(f"PPQ_{name.upper()} must begin with http:// or https://")
    if settings.x402_sanctions_oracle and not (settings.x402_rpc_url and is_address(settings.x402_sanctions_oracle)):
        raise SettingsError("PPQ_X402_SANCTIONS_ORACLE must be an address, and needs PPQ_X402_RPC_URL to be asked")
    if settings.x402_rpc_url or not settings.x402_facilitator:
        require_library()
    chain = None
    if settings.x402_rpc_url:
        chain = Chain(settings.x402_rpc_url, network.chain_id, network.asset, settings.x402_sanctions_oracle)
    return X402Rail(settings, rows, network, _facilitator(settings, network), chain)


def _network(settings: Settings) -> Network:
    found = network_named(settings.x402_network)
    if found is None:
        raise SettingsError('PPQ_X402_NETWORK must be a name like "base" or a CAIP-2 id like "eip155:8453"')
    asset = settings.x402_asset or found.asset
    if not is_address(asset):
        raise SettingsError(f"PPQ_X402_ASSET must be the token's address: there is no default for {found.caip2}")
    known = found if asset.lower() == found.asset.lower() else Network(found.chain_id, found.name)
    name = settings.x402_asset_name or known.asset_name
    return Network(found.chain_id, found.name, asset, name, settings.x402_asset_version or known.asset_version)


def _facilitator(settings: Settings, network: Network) -> Facilitator:
    seconds = settings.x402_settle_seconds
    if settings.x402_facilitator:
        return RemoteFacilitator(settings.x402_facilitator, settings.x402_facilitator_key, network.caip2, seconds)
    if not (settings.x402_key and settings.x402_rpc_url):
        raise SettingsError("x402 needs PPQ_X402_FACILITATOR, or PPQ_X402_KEY and PPQ_X402_RPC_URL to settle by itself")
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{64}", settings.x402_key):
        raise SettingsError("PPQ_X402_KEY must be a private key: 64 hex digits")
    return InProcessFacilitator(
        settings.x402_key, settings.x402_rpc_url, network.caip2, seconds, upto=settings.x402_upto
    )


def _body(exchange: Exchange) -> bytes:
    body = exchange.note.get("body", b"")
    return body if isinstance(body, bytes) else b""


def _response(network: Network, row: Row) -> Header:
    return payment_response(int(row.doc["version"]), network, str(row.doc["payer"]), str(row.doc["transaction"]))
