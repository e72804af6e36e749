"""BTCPay Server's Greenfield API, as far as it is needed: invoices for on-chain top-ups, and the signature of webhooks.

A webhook is only a hint to read the invoice again; what counts is what `invoice` returns. The server has no key of
idempotency, so an invoice whose answer got lost is looked for by its order id. Amounts are `Decimal` in the invoice's
currency, times unix seconds.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import quote

import orjson

from ppq_proxy.payments.wallets.base import OutcomeUnknown, WalletError, WalletRefused, WalletUnreachable
from ppq_proxy.payments.wallets.http import Answer, Backend


@dataclass(frozen=True, slots=True)
class BtcpayInvoice:
    """An invoice. `status` is New, Processing, Settled, Expired or Invalid; `paid` may differ from `amount`."""

    id: str
    order_id: str
    status: str
    additional_status: str
    amount: Decimal
    paid: Decimal
    currency: str
    checkout_url: str
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class BtcpayMethod:
    """One way of paying an invoice; amounts in its own coin, `rate` the coin's price in the invoice's currency.

    `settled` is that part of `paid` which has the confirmations that the store asks for.
    """

    id: str
    coin: str
    destination: str
    link: str
    rate: Decimal
    amount: Decimal
    due: Decimal
    paid: Decimal
    settled: Decimal
    active: bool


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """What a delivery is about."""

    kind: str
    invoice_id: str
    store_id: str
    delivery_id: str


class BtcpayClient:
    """One store of a BTCPay Server. The API key needs cancreateinvoice and canviewinvoices, and for Lightning
    cancreatelightninginvoice and canviewlightninginvoice. All methods raise `WalletError`.
    """

    def __init__(self, url: str, key: str, store: str) -> None:
        self.backend = Backend("btcpay", url, {"Authorization": f"token {key}"})
        self._store = f"/api/v1/stores/{quote(store, safe='')}"

    async def create_invoice(
        self, amount: Decimal, currency: str, methods: Sequence[str], minutes: int, order_id: str
    ) -> BtcpayInvoice:
        """A new invoice that `methods` (BTC-CHAIN, BTC-LN, LTC-CHAIN …) can pay. `order_id` must be new."""
        checkout = {
            "paymentMethods": list(methods),
            "defaultPaymentMethod": methods[0],
            "expirationMinutes": minutes,
            "lazyPaymentMethods": False,
        }
        wanted = {
            "amount": f"{amount:f}",
            "currency": currency,
            "metadata": {"orderId": order_id},
            "checkout": checkout,
        }
        try:
            return _invoice(self.read(await self.backend.call("POST", f"{self._store}/invoices", json=wanted)))
        except OutcomeUnknown as problem:
            lost = problem
        found = await self.find(order_id)
        if found is None:
            raise WalletUnreachable(f"no invoice was made: {lost.detail}")
        return found

    async def invoice(self, invoice_id: str) -> BtcpayInvoice | None:
        """An invoice as it stands now; None if the store has none of that id."""
        answer = await self.backend.call("GET", f"{self._store}/invoices/{quote(invoice_id, safe='')}")
        return None if answer.status == 404 else _invoice(self.read(answer))

    async def find(self, order_id: str) -> BtcpayInvoice | None:
        """The invoice made for an order, if there is one."""
        answer = await self.backend.call("GET", f"{self._store}/invoices", params={"orderId": order_id})
        found = [_invoice(document) for document in self.read(answer)]
        return next((invoice for invoice in found if invoice.order_id == order_id), None)

    async def methods(self, invoice_id: str) -> list[BtcpayMethod]:
        """How an invoice can be paid: addresses, amounts and rates."""
        path = f"{self._store}/invoices/{quote(invoice_id, safe='')}/payment-methods"
        return [_method(document) for document in self.read(await self.backend.call("GET", path))]

    async def payment_method_ids(self) -> list[str]:
        """The payment methods that the store has switched on."""
        documents = self.read(await self.backend.call("GET", f"{self._store}/payment-methods"))
        return [str(d["paymentMethodId"]) for d in documents if d.get("enabled")]

    async def lightning(self, method: str, path: str, **request: Any) -> Answer:
        """A call of the store's own Lightning node."""
        return await self.backend.call(method, f"{self._store}/lightning/BTC{path}", **request)

    async def close(self) -> None:
        await self.backend.close()

    def read(self, answer: Answer) -> Any:
        """The document of a good answer. Raises `WalletError` with what the server said otherwise."""
        if answer.ok and answer.document is not None:
            return answer.document
        raise self.error(answer)

    def error(self, answer: Answer) -> WalletError:
        """BTCPay says one message, or of an invalid request a list of paths and messages."""
        said = answer.document if isinstance(answer.document, list) else [answer.document]
        words = [f"{s.get('path') or s.get('code') or ''}: {s.get('message')}" for s in said if isinstance(s, dict)]
        return self.backend.refused(answer, *words)


def verify_webhook(secret: str, body: bytes, signature: str | None) -> WebhookEvent | None:
    """The event of a delivery whose `BTCPay-Sig` is right for these very bytes, None if it is not.

    Raises:
        WalletRefused: signed, and yet no event.
    """
    expected = "sha256=" + hmac.digest(secret.encode(), body, hashlib.sha256).hex()
    if not secret or not signature or not hmac.compare_digest(expected.encode(), signature.encode()):
        return None
    try:
        event = orjson.loads(body)
        names = ("type", "invoiceId", "storeId", "deliveryId")
        return WebhookEvent(*(str(event.get(name) or "") for name in names))
    except (orjson.JSONDecodeError, AttributeError):
        raise WalletRefused("the webhook's body is no event") from None


def _decimal(value: Any) -> Decimal:
    try:
        return Decimal(str(value or 0))
    except InvalidOperation:
        raise WalletRefused("btcpay sent something that is no amount") from None


def _invoice(document: Any) -> BtcpayInvoice:
    try:
        return BtcpayInvoice(
            id=str(document["id"]),
            order_id=str((document.get("metadata") or {}).get("orderId") or ""),
            status=str(document["status"]),
            additional_status=str(document.get("additionalStatus") or "None"),
            amount=_decimal(document.get("amount")),
            paid=_decimal(document.get("paidAmount")),
            currency=str(document["currency"]),
            checkout_url=str(document.get("checkoutLink") or ""),
            created_at=int(document["createdTime"]),
            expires_at=int(document["expirationTime"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise WalletRefused("btcpay sent something that is no invoice") from None


def _method(document: Any) -> BtcpayMethod:
    try:
        return BtcpayMethod(
            id=str(document["paymentMethodId"]),
            coin=str(document.get("currency") or ""),
            destination=str(document.get("destination") or ""),
            link=str(document.get("paymentLink") or ""),
            rate=_decimal(document.get("rate")),
            amount=_decimal(document.get("amount")),
            due=_decimal(document.get("due")),
            paid=_decimal(document.get("totalPaid")),
            settled=sum(
                (
                    _decimal(one.get("value"))
                    for one in document.get("payments") or ()
                    if one.get("status") == "Settled"
                ),
                Decimal(0),
            ),
            active=bool(document.get("activated", True)),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise WalletRefused("btcpay sent something that is no payment method") from None
