"""LNbits over its REST interface, with the invoice key of one wallet; the admin key where it also has to pay.

Anybody who knows a payment hash can ask LNbits for the preimage once the invoice is paid, without a key. A credential
therefore has to name its token, too, and a bare preimage proves nothing.
"""

import asyncio
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
    WalletRefused,
    accept,
    now,
)
from ppq_proxy.payments.wallets.http import Answer, Backend

_PAY_SECONDS = 60


class LnbitsWallet(Wallet):
    """One wallet of an LNbits server. Whole sats only."""

    name = "lnbits"
    can_tell = True
    pushes = True

    def __init__(self, url: str, key: str, network: str) -> None:
        self.network = network
        self._key = key
        self._backend = Backend(self.name, url, {"X-Api-Key": key})

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        if amount_msat % 1000:
            raise WalletRefused("LNbits makes invoices of whole sats only")
        asked_at = now()
        wanted = {
            "out": False,
            "amount": amount_msat // 1000,
            "unit": "sat",
            "memo": memo,
            "expiry": expiry_seconds,
            "extra": {"ref": ref},
        }
        answer = await self._backend.call("POST", "/api/v1/payments", json=wanted)
        made = self._document(answer)
        return accept(
            str(made.get("bolt11") or made.get("payment_request")),
            wallet=self,
            amount_msat=amount_msat,
            expiry_seconds=expiry_seconds,
            asked_at=asked_at,
            payment_hash=str(made.get("payment_hash")),
        )

    async def status(self, handle: str) -> Status:
        answer = await self._backend.call("GET", f"/api/v1/payments/{handle}")
        if answer.status == 404:
            return Status(State.UNKNOWN)
        found = self._document(answer)
        details = found.get("details")
        details = details if isinstance(details, dict) else {}
        if found.get("paid") is True:
            return Status(State.SETTLED, int(details.get("amount") or 0))
        try:
            ended = read(str(details.get("bolt11"))).expires_at <= now()
        except InvalidInvoice:
            ended = False
        return Status(State.EXPIRED if ended or found.get("status") == "failed" else State.PENDING)

    async def watch(self) -> AsyncGenerator[str, None]:
        async for event in self._backend.events(f"/api/v1/ws/{self._key}"):
            payment = event.get("payment")
            if isinstance(payment, dict) and int(payment.get("amount") or 0) > 0:
                yield str(payment["payment_hash"])

    async def pay(self, bolt11: str, max_fee_msat: int) -> Payment:
        # LNbits has no limit on fees to hand over: it keeps to the reserve that is set on the server.
        wanted = {"out": True, "bolt11": bolt11}
        answer = await self._backend.call("POST", "/api/v1/payments", json=wanted, answer_seconds=_PAY_SECONDS)
        if not answer.ok:
            said = answer.document if isinstance(answer.document, dict) else {}
            raise PaymentFailed(f"not paid: {said.get('detail')}")
        payment_hash = str(self._document(answer).get("payment_hash"))
        for _ in range(_PAY_SECONDS):
            found = self._document(await self._backend.call("GET", f"/api/v1/payments/{payment_hash}"))
            if found.get("paid") is True:
                details = found.get("details") or {}
                amount, fee = abs(int(details.get("amount") or 0)), abs(int(details.get("fee") or 0))
                return Payment(payment_hash, str(found.get("preimage")), amount, fee)
            if found.get("status") == "failed":
                raise PaymentFailed("not paid: the payment failed on its way")
            await asyncio.sleep(1)
        raise OutcomeUnknown("lnbits has not finished the payment")

    async def info(self) -> Told:
        found = self._document(await self._backend.call("GET", "/api/v1/wallet"))
        told: Told = {"wallet": self.name, "network": self.network, "can_tell": True}
        return told | {"balance_msat": int(found.get("balance") or 0)}

    async def close(self) -> None:
        await self._backend.close()

    def _document(self, answer: Answer) -> dict[str, Any]:
        document = answer.document if isinstance(answer.document, dict) else {}
        if not answer.ok or not document:
            raise self._backend.refused(answer, document.get("detail"))
        return document
