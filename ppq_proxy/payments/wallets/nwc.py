"""A wallet reached by Nostr Wallet Connect: the operator's own, to be paid into, or a customer's, to be paid from."""

from collections.abc import AsyncGenerator
from typing import Any

from ppq_proxy.payments.invoice import InvalidInvoice, read
from ppq_proxy.payments.wallets.base import (
    Invoice,
    OutcomeUnknown,
    Payment,
    PaymentFailed,
    State,
    Status,
    Told,
    Wallet,
    accept,
    now,
)
from ppq_proxy.payments.wallets.nwc_connection import NwcConnection, NwcError

_PAY_SECONDS = 60
_STATES = {
    "pending": State.PENDING,
    "accepted": State.PENDING,
    "settled": State.SETTLED,
    "expired": State.EXPIRED,
    "failed": State.EXPIRED,
}
# After these a wallet may have sent the payment all the same.
_UNCLEAR = {"INTERNAL", "OTHER"}


class NwcWallet(Wallet):
    """NIP-47, with NIP-44 encryption where the wallet has it and NIP-04 where it has not."""

    name = "nwc"
    can_tell = True
    pushes = True

    def __init__(self, url: str, network: str, *, trusted: bool = True) -> None:
        """`trusted` is false for a customer's connection string, whose relay must be a public one over TLS."""
        self.network = network
        self._connection = NwcConnection(url, trusted=trusted)

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        asked_at = now()
        params = {"amount": amount_msat, "description": memo, "expiry": expiry_seconds}
        made = await self._connection.request("make_invoice", params)
        return accept(
            str(made.get("invoice")),
            wallet=self,
            amount_msat=amount_msat,
            expiry_seconds=expiry_seconds,
            asked_at=asked_at,
            payment_hash=made.get("payment_hash"),
        )

    async def status(self, handle: str) -> Status:
        try:
            found = await self._connection.request("lookup_invoice", {"payment_hash": handle})
        except NwcError as problem:
            if problem.reason == "NOT_FOUND":
                return Status(State.UNKNOWN)
            raise
        state = _state(found)
        return Status(state, int(found.get("amount") or 0) if state == State.SETTLED else 0)

    async def watch(self) -> AsyncGenerator[str, None]:
        async for event in self._connection.notifications():
            told = event.get("notification")
            if event.get("notification_type") == "payment_received" and isinstance(told, dict):
                yield str(told.get("payment_hash"))

    async def pay(self, bolt11: str, max_fee_msat: int) -> Payment:
        # NIP-47 has no limit on fees: budgets are set in the wallet.
        try:
            invoice = read(bolt11)
        except InvalidInvoice as problem:
            raise PaymentFailed(str(problem)) from None
        try:
            paid = await self._connection.request("pay_invoice", {"invoice": bolt11}, _PAY_SECONDS)
        except NwcError as problem:
            if problem.reason in _UNCLEAR:
                raise OutcomeUnknown(problem.detail) from None
            raise PaymentFailed(f"the wallet did not pay: {problem.reason} {problem.said[:200]}") from None
        fee = paid.get("fees_paid")
        preimage = str(paid.get("preimage") or "")
        return Payment(invoice.payment_hash, preimage, invoice.amount_msat or 0, fee if isinstance(fee, int) else None)

    async def info(self) -> Told:
        found = await self._connection.request("get_info", {})
        methods = found.get("methods")
        named = " ".join(str(m) for m in methods) if isinstance(methods, list) else ""
        told: Told = {"wallet": self.name, "network": self.network, "can_tell": True, "methods": named}
        return told | {"alias": str(found.get("alias") or "")}

    async def close(self) -> None:
        await self._connection.close()


def _state(found: dict[str, Any]) -> State:
    # `state` came late to NIP-47; before it, a time of settlement was the sign.
    if named := _STATES.get(str(found.get("state") or "").lower()):
        return named
    if found.get("settled_at"):
        return State.SETTLED
    expires_at = found.get("expires_at")
    return State.EXPIRED if isinstance(expires_at, int) and expires_at <= now() else State.PENDING
