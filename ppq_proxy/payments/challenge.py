"""The 402: one answer that every wallet can read, with one invoice for L402 and Payment (payments-402, §0).

The order of the lines, and of the first two parameters of the first, was found by running the wallets: L402 comes first,
`macaroon` and `invoice` adjacent, then exactly one Payment line.
"""

import secrets
from dataclasses import dataclass
from typing import Any

from ppq_proxy.errors import PaymentRequired
from ppq_proxy.exchange import Exchange, Header
from ppq_proxy.money.amounts import usd_from_nano
from ppq_proxy.payments import l402, macaroon, mpp
from ppq_proxy.payments.credentials import BadCredential, Problem
from ppq_proxy.payments.wallets.base import Invoice


@dataclass(frozen=True, slots=True)
class Keys:
    """What challenges are signed with, derived from the installation's secret."""

    l402: bytes
    mpp: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to pay: header lines, and members of the body."""

    lines: tuple[Header, ...] = ()
    body: dict[str, Any] | None = None


def lightning(keys: Keys, realm: str, network: str, sats: int, invoice: Invoice, expires_at: int) -> tuple[Offer, str]:
    """The two lines of an invoice, and the id of its Payment challenge."""
    identifier = macaroon.make_identifier(bytes.fromhex(invoice.payment_hash), secrets.token_bytes(32))
    token = macaroon.mint(macaroon.derive_root_key(keys.l402, identifier), identifier)
    charge = mpp.Charge(sats, invoice.bolt11, invoice.payment_hash, network)
    challenge = mpp.issue(keys.mpp, realm, charge, expires_at)
    lines = (
        (b"www-authenticate", l402.challenge(token, invoice.bolt11).encode()),
        (b"www-authenticate", challenge.header().encode()),
    )
    return Offer(lines), challenge.id


def payment_required(
    exchange: Exchange, quote: int, sats: int | None, offers: list[Offer], why: BadCredential | None
) -> PaymentRequired:
    """The 402 of these offers. `why`: the credential that was refused before."""
    problem = why.problem if why else Problem.PAYMENT_REQUIRED
    price: dict[str, Any] = {"usd": usd_from_nano(quote)}
    if sats is not None:
        price["sats"] = sats
    told = f" (the payment shown was refused: {why.message})" if why else ""
    how = "pay the invoice or authorization in this answer, and repeat it with the credential"
    detail = f"This call costs up to {price['usd']} USD; {how}{told}."
    body: dict[str, Any] = {
        "type": problem.value,
        "title": problem.summary,
        "status": 402,
        "detail": detail,
        "price": price,
    }
    for offer in offers:
        body |= offer.body or {}
    wants_problem = "application/problem+json" in exchange.header(b"accept") or b"accept-payment" in exchange.headers
    headers = {
        "cache-control": "no-store",
        "content-type": "application/problem+json" if wants_problem else "application/json",
    }
    return PaymentRequired(
        detail, headers=headers, body=body, header_lines=[line for offer in offers for line in offer.lines]
    )
