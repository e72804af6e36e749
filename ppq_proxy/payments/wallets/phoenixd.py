"""phoenixd over its HTTP interface. The password with limited access is enough: this never pays.

Its look-ups show the preimage of unpaid invoices too, so nothing of an answer is passed on but state and amount.
Sources: phoenixd's Api.kt and JsonSerializers.kt of May 2026.
"""

import base64
import secrets
from collections.abc import AsyncGenerator
from typing import Any

from ppq_proxy.payments.wallets.base import (
    Invoice,
    OutcomeUnknown,
    State,
    Status,
    Told,
    Wallet,
    WalletRefused,
    WalletUnreachable,
    accept,
    now,
)
from ppq_proxy.payments.wallets.http import Backend

_LONGEST_MEMO = 128


class PhoenixdWallet(Wallet):
    """A phoenixd of the operator. Whole sats only."""

    name = "phoenixd"
    can_tell = True
    pushes = True

    def __init__(self, url: str, password: str, network: str) -> None:
        self.network = network
        basic = base64.b64encode(f":{password}".encode()).decode()
        self._backend = Backend(self.name, url, {"Authorization": f"Basic {basic}"})

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        if amount_msat % 1000:
            raise WalletRefused("phoenixd makes invoices of whole sats only")
        asked_at = now()
        wanted = {
            "amountSat": str(amount_msat // 1000),
            "description": memo[:_LONGEST_MEMO],
            "expirySeconds": str(expiry_seconds),
            "externalId": f"ppq-{ref}-{secrets.token_hex(8)}",
        }
        return accept(
            await self._make(wanted),
            wallet=self,
            amount_msat=amount_msat,
            expiry_seconds=expiry_seconds,
            asked_at=asked_at,
        )

    async def status(self, handle: str) -> Status:
        answer = await self._backend.call("GET", f"/payments/incoming/{handle}")
        if answer.status in (204, 404):
            return Status(State.UNKNOWN)
        if not answer.ok or not isinstance(answer.document, dict):
            raise self._backend.refused(answer)
        found = answer.document
        if found.get("isPaid"):
            return Status(State.SETTLED, _paid_msat(found))
        return Status(State.EXPIRED if found.get("isExpired") else State.PENDING)

    async def watch(self) -> AsyncGenerator[str, None]:
        async for event in self._backend.events("/websocket"):
            if event.get("type") == "payment_received":
                yield str(event["paymentHash"])

    async def info(self) -> Told:
        answer = await self._backend.call("GET", "/getinfo")
        if not answer.ok or not isinstance(answer.document, dict):
            raise self._backend.refused(answer)
        chain, channels = str(answer.document.get("chain")), answer.document.get("channels") or []
        told: Told = {"wallet": self.name, "network": self.network, "can_tell": True}
        return told | {"chain": chain, "channels": len(channels)}

    async def close(self) -> None:
        await self._backend.close()

    async def _make(self, wanted: dict[str, str]) -> str:
        """Make the invoice, or find it when the answer to that got lost."""
        try:
            answer = await self._backend.call("POST", "/createinvoice", data=wanted)
            if not answer.ok or not isinstance(answer.document, dict):
                raise self._backend.refused(answer)
            return str(answer.document.get("serialized"))
        except OutcomeUnknown as problem:
            lost = problem
        query = {"externalId": wanted["externalId"], "all": "true"}
        answer = await self._backend.call("GET", "/payments/incoming", params=query)
        if not answer.ok or not answer.document:
            raise WalletUnreachable(f"no invoice was made: {lost.detail}")
        return str(answer.document[0].get("invoice"))


def _paid_msat(found: dict[str, Any]) -> int:
    # What the payer paid, for which it is owed service: `receivedSat` is what is left of that after the fees of opening
    # a channel, in whole sats. An invoice only counts as paid once all of it has come.
    received = 1000 * int(found.get("receivedSat") or 0) + int(found.get("fees") or 0)
    return max(received, 1000 * int(found.get("requestedSat") or 0))
