"""What a Lightning wallet has to do for us, and what passes between it and the rest. One file for each backend.

A backend is asked for an invoice with `create`, and what it returns is decoded and compared before anybody sees it.
Amounts are millisatoshis, times unix seconds, hashes and preimages hex.
"""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from ppq_proxy.errors import GatewayError, Unavailable
from ppq_proxy.payments.invoice import check


class WalletError(Unavailable):
    """The operator's wallet did not do what it was asked. `detail` is for the operator, the message for customers."""

    code: ClassVar[str] = "wallet_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__("the operator's wallet is not available at the moment")
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class WalletUnreachable(WalletError):
    """Nobody answered, or it is still starting; nothing happened."""


class OutcomeUnknown(WalletError):
    """The answer was lost: what was asked for may have happened."""


class WalletRefused(WalletError):
    """It answered and said no: credentials, permissions, or a request that it does not like."""


class PaymentFailed(GatewayError):
    """An invoice was not paid and will not be by this attempt: expired, paid before, no route, not enough money."""

    status, kind, code = 402, "payment_failed", "payment_failed"


class State(StrEnum):
    """What a wallet says about an invoice."""

    PENDING = "pending"
    SETTLED = "settled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"  # it knows no such invoice
    UNTOLD = "untold"  # it cannot tell at all: the preimage is the only proof


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice of ours, checked. Keep `handle` with the payment: `status` wants it. Empty: nobody can be asked."""

    bolt11: str
    payment_hash: str
    handle: str
    amount_msat: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Status:
    """An invoice's state, and what came in for it, in msat, where it is settled."""

    state: State
    amount_msat: int = 0


@dataclass(frozen=True, slots=True)
class Payment:
    """An invoice that we paid. `fee_msat` is None where the wallet does not say."""

    payment_hash: str
    preimage: str
    amount_msat: int
    fee_msat: int | None = None

    def __repr__(self) -> str:
        return f"Payment(payment_hash={self.payment_hash!r}, amount_msat={self.amount_msat})"


Told = dict[str, str | int | bool]
"""What a wallet says about itself."""


class Wallet(Protocol):
    """A Lightning wallet. All methods raise `WalletError` when the backend fails."""

    name: str
    network: str
    """mainnet, testnet, signet or regtest: an invoice of another one is refused."""
    can_tell: bool
    """Whether it can say that an invoice is SETTLED. One that cannot sells by the call, and takes no top-ups."""
    pushes: bool = False
    """Whether `watch` yields anything."""

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        """A new invoice. `ref` is a name for the operator's books; it need not be unique and is not a secret.

        An answer that got lost is looked up where the backend can, so that no second invoice is made blindly.
        Raises `InvoiceMismatch` if the backend made another one than was asked for.
        """
        ...

    async def status(self, handle: str) -> Status:
        """The state of an invoice by its handle."""
        ...

    async def watch(self) -> AsyncGenerator[str, None]:
        """Payment hashes of invoices as they settle, until the connection is lost.

        Then it ends or raises `WalletError`, and the caller calls again. Some may come twice, and some be missed
        between two calls: keep asking for `status` too.
        """
        for nothing in list[str]():
            yield nothing

    async def pay(self, bolt11: str, max_fee_msat: int) -> Payment:
        """Pay an invoice. Raises `PaymentFailed` if it certainly was not paid, `OutcomeUnknown` if it may have been."""
        raise PaymentFailed(f"the wallet {self.name} is only used for receiving")

    async def info(self) -> Told:
        """What `wallet info` shows. Raises `WalletError` if the backend cannot be used."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        return


def accept(
    bolt11: str,
    *,
    wallet: Wallet,
    amount_msat: int,
    expiry_seconds: int,
    asked_at: int,
    payment_hash: str | None = None,
    handle: str | None = None,
) -> Invoice:
    """The backend's invoice if it is the one that was asked for. `handle` defaults to the payment hash.

    An invoice may end a little early, as the node's clock and ours differ.
    Raises `InvoiceMismatch`.
    """
    found = check(
        bolt11,
        payment_hash=payment_hash,
        amount_msat=amount_msat,
        network=wallet.network,
        lives_until=asked_at + expiry_seconds * 9 // 10,
    )
    known_as = found.payment_hash if handle is None else handle
    return Invoice(bolt11, found.payment_hash, known_as, amount_msat, found.expires_at)


def now() -> int:
    """Unix seconds."""
    return int(time.time())
