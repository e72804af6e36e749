"""The Lightning node behind a BTCPay store (Greenfield API, `…/lightning/BTC/invoices`).

Invoices of this kind have no webhooks and no key of idempotency: they are polled, and one whose answer got lost is left
to expire unseen.
"""

from urllib.parse import quote

from ppq_proxy.payments.btcpay import BtcpayClient
from ppq_proxy.payments.wallets.base import Invoice, State, Status, Told, Wallet, accept, now

_STATES = {"Unpaid": State.PENDING, "Paid": State.SETTLED, "Expired": State.EXPIRED}


class BtcpayWallet(Wallet):
    """`handle` is BTCPay's own id of the invoice, which with some nodes differs from the payment hash."""

    name = "btcpay"
    can_tell = True

    def __init__(self, url: str, key: str, store: str, network: str) -> None:
        self.network = network
        self._client = BtcpayClient(url, key, store)

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        asked_at = now()
        wanted = {"amount": str(amount_msat), "description": memo, "expiry": expiry_seconds}
        made = self._client.read(await self._client.lightning("POST", "/invoices", json=wanted))
        return accept(
            str(made.get("BOLT11")),
            wallet=self,
            amount_msat=amount_msat,
            expiry_seconds=expiry_seconds,
            asked_at=asked_at,
            payment_hash=made.get("paymentHash"),
            handle=str(made.get("id")),
        )

    async def status(self, handle: str) -> Status:
        answer = await self._client.lightning("GET", f"/invoices/{quote(handle, safe='')}")
        if answer.status == 404:
            return Status(State.UNKNOWN)
        found = self._client.read(answer)
        state = _STATES.get(str(found.get("status")), State.PENDING)
        return Status(state, int(found.get("amountReceived") or 0) if state == State.SETTLED else 0)

    async def info(self) -> Told:
        answer = await self._client.lightning("GET", "/invoices/unknown")
        if answer.status != 404:
            self._client.read(answer)
        return {"wallet": self.name, "network": self.network, "can_tell": True}

    async def close(self) -> None:
        await self._client.close()
