"""Guests: whoever pays by the call. A payment is the credit of an account behind its credential, and spends like any other.

A payment is a row by its hash, issued → credited or claimed; the compare-and-set of that row decides, once, whose money
it is. Creating the account and crediting it are idempotent and are done anew by whoever finds a row credited, so a crash
in between loses nothing.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from ppq_proxy.errors import (
    Conflict,
    GatewayError,
    InsufficientBalance,
    NotFound,
    PaymentRequired,
    RateLimited,
    Unavailable,
)
from ppq_proxy.exchange import Exchange, Header
from ppq_proxy.money.accounts import Accounts, Payer, digest
from ppq_proxy.money.amounts import usd_from_nano
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payments import challenge, l402, macaroon, mpp
from ppq_proxy.payments.challenge import Keys, Offer
from ppq_proxy.payments.credentials import BadCredential, Problem, payment_hash_of, read_preimage
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.patience import REFUSALS, Minutes, network_of
from ppq_proxy.payments.rates import Rates, nano_for, sats_for
from ppq_proxy.payments.wallets.base import State, Wallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Row

log = logging.getLogger("ppq.guests")

KIND = "payment"
ISSUED, CREDITED, CLAIMED = "issued", "credited", "claimed"
LIFE_MS = 90 * 24 * 3600 * 1000
CLAIM_MS = 24 * 3600 * 1000
LOOK_MS = 3600 * 1000  # how long after its end an unpaid invoice is looked at for the last time
SETTLE_SECONDS = 2.0  # not money: seconds
SETTLE_STEP = 0.1  # not money: seconds
REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Shown:
    """A credential that was read and is authentic: the payment it shows, and its challenge where a receipt is due."""

    payment_hash: str
    challenge_id: str = ""
    receipt: bool = False


class Rail(Protocol):
    """Another way to pay than Lightning; `payments.x402` is one."""

    async def offer(self, exchange: Exchange, quote: int) -> Offer:
        """What the 402 says about it."""
        ...

    async def payer(self, exchange: Exchange, guests: "Guests") -> Payer | None:
        """The guest behind a payment that a request shows by this rail; None if it shows none. Raises `BadCredential`."""
        ...


class Guests:
    """Challenges, credentials and the accounts behind them."""

    def __init__(
        self, settings: Settings, accounts: Accounts, wallet: Wallet | None, rates: Rates, rails: list[Rail]
    ) -> None:
        self.settings, self.accounts, self.store = settings, accounts, accounts.store
        self.wallet, self.rates, self.rails = wallet, rates, rails
        self.keys = Keys(b"", b"")
        self._realm = settings.realm or "ppq"
        # LNbits shows the preimage of a paid invoice to anybody who knows its hash, and the hash is in the invoice
        self.claimable = settings.claims and not (wallet and wallet.name == "lnbits")
        self._minted, self._refused = Minutes(), Minutes()
        self._mints = settings.per_minute("challenges_per_minute")
        self._known: OrderedDict[str, Payer] = OrderedDict()

    def unlock(self, secret: bytes) -> None:
        """Use the installation's secret, once it is known."""
        self.keys = Keys(*(hmac.digest(secret, f"ppq {name}".encode(), hashlib.sha256) for name in ("l402", "mpp")))

    # the credential

    async def payer(self, exchange: Exchange) -> Payer | None:
        """The guest behind what a request shows; None if it shows no payment.

        A credential that is refused is noted, and answered by `challenge` like none at all.
        """
        try:
            for rail in self.rails:
                if payer := await rail.payer(exchange, self):
                    return payer
            shown = self._read(exchange)
            return await self._guest(exchange, shown) if shown else None
        except BadCredential as problem:
            exchange.note["refused"] = problem
            raise Refused from problem

    def _read(self, exchange: Exchange) -> Shown | None:
        """The Lightning credential of a request, verified as far as that goes without a look at the store."""
        for name in (b"payment-authorization", b"authorization"):
            text = exchange.header(name)
            if not text:
                continue
            if (payment := mpp.parse_credential(text)) is not None:
                charge = mpp.verify(payment, [self.keys.mpp])
                return Shown(charge.payment_hash, payment.challenge.id, receipt=True)
            if (credential := l402.parse_credential(text)) is not None:
                return self._verified(credential)
        return None

    def _verified(self, credential: l402.L402Credential) -> Shown:
        token = credential.macaroon
        if token is None:
            return Shown(credential.payment_hash, credential.challenge_id or "")
        if not hmac.compare_digest(token.payment_hash.hex(), credential.payment_hash):
            raise BadCredential("the preimage is not that of the macaroon's invoice", Problem.INVALID_PREIMAGE)
        root = macaroon.derive_root_key(self.keys.l402, token.identifier)
        try:
            macaroon.verify(token, root, now=int(time.time()), service=self._realm)
        except macaroon.MacaroonError as problem:
            raise BadCredential(
                f"the macaroon is not one of this service: {problem}", Problem.INVALID_CHALLENGE
            ) from None
        return Shown(credential.payment_hash)

    async def _guest(self, exchange: Exchange, shown: Shown) -> Payer:
        payer = None if shown.challenge_id and not shown.receipt else self._known.get(shown.payment_hash)
        if payer is None:
            row = await self.store.rows.get(KIND, shown.payment_hash)
            if row is None or (
                shown.challenge_id and not hmac.compare_digest(row.doc["challenge_id"], shown.challenge_id)
            ):
                raise BadCredential("no payment is known for this credential", Problem.UNKNOWN_CHALLENGE)
            payer = await self._credited(row)
        exchange.note["account"] = payer.account_id
        if shown.receipt:
            exchange.note["receipt"] = (shown.challenge_id, shown.payment_hash)
        return payer

    async def _credited(self, row: Row) -> Payer:
        """The guest account of a payment, made and credited if this is the first use."""
        if row.state == ISSUED:
            await self._settled(row)
            await self.store.rows.replace(row, row.doc, state=CREDITED, due=now_ms() + LIFE_MS)
            row = await self.store.rows.get(KIND, row.id) or row
        if row.state != CREDITED:
            raise BadCredential("this payment was claimed by an account", Problem.VERIFICATION_FAILED)
        return await self.credit(row.id, int(row.doc["nano"]))

    async def _settled(self, row: Row) -> None:
        """Wait a moment for the wallet to say SETTLED; a wallet that cannot tell leaves it at the preimage."""
        if self.wallet is None:
            raise BadCredential("payments are not taken at the moment")
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            status = await self.wallet.status(row.doc["handle"])
            if status.state is State.SETTLED and status.amount_msat >= 1000 * int(row.doc["sats"]):
                return
            if status.state is State.UNTOLD:
                return
            if time.monotonic() >= end:
                raise BadCredential("the invoice is not settled", Problem.VERIFICATION_FAILED)
            await asyncio.sleep(SETTLE_STEP)

    async def credit(self, proof: str, nano: int) -> Payer:
        """The guest account of a proof of payment, credited with it once, whoever asks how often."""
        known = self._known.get(proof)
        if known is None:
            account_id = hashlib.sha256(f"guest:{proof}".encode()).hexdigest()[:24]
            at = now_ms()
            await self.store.create_account(account_id, digest("guest", proof), "guest", at, at + LIFE_MS)
            await self.accounts.credit(account_id, nano, f"payment:{proof}")
            known = self._known[proof] = self.accounts.guest(account_id)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known

    # the challenge

    async def challenge(self, exchange: Exchange, quote: int, short: GatewayError | None = None) -> GatewayError:
        """The 402 for a quote in nano-USD, with a fresh invoice; or 429 to a peer that asks or is refused too often.

        `short`: the credential is good, and its credit does not pay for the whole quote.
        """
        refused = exchange.note.pop("refused", None)
        if short is not None:
            refused = BadCredential("its credit does not pay for this call", Problem.PAYMENT_INSUFFICIENT)
        peer = network_of(exchange.peer)
        if refused is not None:
            self._refused.add(peer)
            if self._refused.count(peer) > REFUSALS:
                return _too_often("credentials were refused", self._refused.wait(peer))
        if self._mints is not None and self._minted.count(peer) >= self._mints:
            return _too_often("challenges were asked for", self._minted.wait(peer))
        self._minted.add(peer)
        problem = await self._minting(exchange, quote, refused)
        if isinstance(short, InsufficientBalance):
            problem.headers["x-credit-remaining-usd"] = short.fields["available"]
        return problem

    async def _minting(self, exchange: Exchange, quote: int, refused: BadCredential | None) -> PaymentRequired:
        offers, sats = [], None
        if self.wallet is not None and mpp.accepts(exchange.header(b"accept-payment") or None):
            offer, sats = await self._lightning(exchange, quote)
            offers.append(offer)
        offers += [await rail.offer(exchange, quote) for rail in self.rails]
        return challenge.payment_required(exchange, quote, sats, offers, refused)

    async def _lightning(self, exchange: Exchange, quote: int) -> tuple[Offer, int]:
        assert self.wallet is not None
        rate = self.rates.rate().nano_per_btc
        sats, life = sats_for(quote, rate), self.settings.challenge_seconds
        at = int(time.time())
        try:
            invoice = await self.wallet.create(1000 * sats, f"{self._realm}: one call", life, exchange.request_id)
        except InvoiceMismatch as problem:
            log.error("the wallet's invoice is not the one asked for: %s", problem)
            raise Unavailable("The operator's wallet does not work at the moment.") from None
        expires_at = min(at + life, invoice.expires_at)
        offer, challenge_id = challenge.lightning(
            self.keys, self._realm, self.wallet.network, sats, invoice, expires_at
        )
        doc = {
            "sats": sats, "nano": nano_for(sats, rate), "rate": rate, "handle": invoice.handle, "challenge_id": challenge_id,
            "quote": quote, "path": exchange.path, "at": at, "expires_at": expires_at,
        }  # fmt: skip
        due = 1000 * expires_at + LOOK_MS
        if not await self.store.rows.insert(KIND, invoice.payment_hash, doc, state=ISSUED, due=due):
            raise Unavailable("The operator's wallet gave out one invoice twice.")
        return offer, sats

    def accepted(self, exchange: Exchange) -> None:
        """A credential was good for its call: the peer is no loop."""
        self._refused.clear(network_of(exchange.peer))

    # the answer

    async def headers(
        self, exchange: Exchange, payer: Payer, available: int | None = None, *, receipt: bool = True
    ) -> list[Header]:
        """Remaining credit, and on a success the receipt of a `Payment`. `available`: what is left, where that is known."""
        if available is None:
            available = (await self.accounts.account(payer.account_id)).available
        lines = [(b"x-credit-remaining-usd", usd_from_nano(available).encode())]
        if receipt and (paid := exchange.note.get("receipt")):
            lines.append((b"payment-receipt", mpp.receipt(paid[0], paid[1], int(time.time())).encode()))
            lines.append((b"cache-control", b"private"))
        lines += exchange.note.get("payment_lines", ())
        return lines

    async def head(self, exchange: Exchange) -> None:
        """HEAD on a path whose price depends on the body: a 402 without a challenge, and where to read on (§1.7, rule 5)."""
        link = (b"link", b'</llms.txt>; rel="describedby"')
        await exchange.answer(402, b"", [link, (b"cache-control", b"no-store"), (b"content-type", b"application/json")])

    # claims

    async def claim(self, preimage: str, account_id: str) -> int:
        """Move a settled payment that nobody has used to an account; nano-USD credited.

        Raises:
            NotFound: unknown, unpaid, too old, or claims are switched off. Conflict: used or claimed.
        """
        unknown = NotFound("No payment that can be claimed has this preimage.")
        try:
            row = await self.store.rows.get(KIND, payment_hash_of(read_preimage(preimage)))
            if row is None or not self.claimable:
                raise unknown
            if row.state == ISSUED:
                if now_ms() > 1000 * int(row.doc["expires_at"]) + CLAIM_MS:
                    raise unknown
                await self._settled(row)
                if await self.store.rows.replace(
                    row, row.doc | {"claimed_by": account_id}, state=CLAIMED, due=now_ms() + LIFE_MS
                ):
                    return await self._claimed(row, account_id)
        except BadCredential:
            raise unknown from None
        row = await self.store.rows.get(KIND, row.id) or row
        if row.state == CLAIMED:
            await self._claimed(row, row.doc["claimed_by"])  # finished here if its process died in between
        raise Conflict("This payment was used or claimed already.")

    async def _claimed(self, row: Row, account_id: str) -> int:
        nano = int(row.doc["nano"])
        await self.accounts.credit(account_id, nano, f"payment:{row.id}")
        return nano

    async def sweep(self) -> None:
        """Forget invoices that ended unpaid; keep what was paid and not used yet."""
        for row in await self.store.rows.find(KIND, state=ISSUED, due_before=now_ms()):
            status = await self.wallet.status(row.doc["handle"]) if self.wallet else None
            if status is None or status.state in (State.SETTLED, State.UNTOLD):
                await self.store.rows.replace(row, row.doc, due=1000 * int(row.doc["at"]) + LIFE_MS)
            else:
                await self.store.rows.delete(row)
        for state in (CREDITED, CLAIMED):
            for row in await self.store.rows.find(KIND, state=state, due_before=now_ms()):
                await self.store.rows.delete(row)


class Refused(PaymentRequired):
    """A payment was shown and refused; the caller answers with `challenge`."""

    def __init__(self) -> None:
        super().__init__("The payment shown was refused.")


def _too_often(what: str, wait: int) -> RateLimited:
    return RateLimited(
        f"Too many {what} for this address within a minute; wait {wait} s and do not pay again.",
        headers={"retry-after": str(wait)},
    )
