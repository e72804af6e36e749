"""Who takes the money of a top-up: the Lightning wallet, or BTCPay for chains. Each makes a bill and is watched then."""

import logging
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from ppq_proxy.errors import Unavailable
from ppq_proxy.payments.btcpay import BtcpayClient, BtcpayInvoice
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.topup_methods import Amount, Method
from ppq_proxy.payments.topup_record import Progress, Seen, TopUp
from ppq_proxy.payments.wallets.base import State, Wallet, WalletRefused, now

log = logging.getLogger(__name__)

_DAY = 24 * 3600
_UNKNOWN_IS_DEAD = 3600  # a wallet that has not heard of an invoice so long after its end will not


@dataclass(frozen=True, slots=True)
class Bill:
    """What the customer has to pay, and where. `asked` is in the processor's own unit, `coin_due` in the coin."""

    handle: str
    asked: Decimal
    coin_due: Decimal
    expires_at: int
    checkout_url: str
    lightning_invoice: str = ""
    payment_hash: str = ""
    address: str = ""
    payment_link: str = ""


class Processor(Protocol):
    """A way for money to come in. All methods raise `WalletError`."""

    @property
    def name(self) -> str:
        """What is kept with a top-up, so that nobody else is asked about it."""
        ...

    watch_seconds: int
    """How long after its end a top-up may still be paid, or be seen to have been."""

    async def bill(self, method: Method, amount: Amount, sats: int | None, seconds: int, order: str) -> Bill:
        """A bill of `amount`, which is `sats` where that depends on the rate. `order` is ours, and new."""
        ...

    async def look(self, topup: TopUp) -> Seen | None:
        """How it stands; None if the processor does not know it."""
        ...


class LightningProcessor(Processor):
    """The operator's Lightning wallet. Its unit is the millisatoshi."""

    watch_seconds = _DAY

    def __init__(self, wallet: Wallet, memo: str) -> None:
        self.wallet, self._memo = wallet, memo

    @property
    def name(self) -> str:
        return self.wallet.name

    async def bill(self, method: Method, amount: Amount, sats: int | None, seconds: int, order: str) -> Bill:
        assert sats is not None
        at = now()
        try:
            made = await self.wallet.create(1000 * sats, self._memo, seconds, order)
        except InvoiceMismatch as problem:
            raise WalletRefused(str(problem)) from None
        if not self.wallet.can_tell or not made.handle:
            raise WalletRefused("the wallet cannot tell whether its invoices are paid: it takes no top-ups")
        return Bill(
            handle=made.handle,
            asked=Decimal(made.amount_msat),
            coin_due=Decimal(sats).scaleb(-8),
            expires_at=min(at + seconds, made.expires_at),
            checkout_url=f"lightning:{made.bolt11}",
            lightning_invoice=made.bolt11,
            payment_hash=made.payment_hash,
        )

    async def look(self, topup: TopUp) -> Seen | None:
        status = await self.wallet.status(topup.handle)
        over = now() - topup.expires_at
        if status.state is State.SETTLED:
            came = Decimal(status.amount_msat)
            if not came:
                log.warning("the wallet %s says that an invoice is settled, and not with how much", self.name)
            return Seen(Progress.SETTLED if came else Progress.PROCESSING, came, came)
        if status.state is State.UNTOLD:
            return None
        dead = status.state is State.EXPIRED or (status.state is State.UNKNOWN and over > _UNKNOWN_IS_DEAD)
        return Seen(Progress.EXPIRED if dead or over >= 0 else Progress.NEW, dead=dead and over >= 0)


class BtcpayProcessor(Processor):
    """A store of BTCPay Server, for payments on chains. Its unit is the currency of the invoice, dollars or BTC."""

    name = "btcpay-invoices"
    watch_seconds = _DAY + 3600  # BTCPay watches addresses for a day after an invoice has ended

    def __init__(self, client: BtcpayClient) -> None:
        self.client = client

    async def bill(self, method: Method, amount: Amount, sats: int | None, seconds: int, order: str) -> Bill:
        price = amount.number if amount.in_dollars else Decimal(amount.sats(1)).scaleb(-8)
        currency = "USD" if amount.in_dollars else "BTC"
        made = await self.client.create_invoice(price, currency, [method.btcpay], seconds // 60, order)
        if (made.order_id, made.amount, made.currency) != (order, price, currency):
            raise WalletRefused(f"btcpay made an invoice of {made.amount} {made.currency}, not {price} {currency}")
        ways = [way for way in await self.client.methods(made.id) if way.id == method.btcpay and way.destination]
        if not ways:
            raise Unavailable(f"{method.name} cannot be paid at the moment; choose another method.")
        return Bill(
            handle=made.id,
            asked=price,
            coin_due=ways[0].due,
            expires_at=made.expires_at,
            checkout_url=made.checkout_url,
            address=ways[0].destination,
            payment_link=ways[0].link,
        )

    async def look(self, topup: TopUp) -> Seen | None:
        invoice = await self.client.invoice(topup.handle)
        if invoice is None:
            return None
        asked = Decimal(topup.asked)
        if invoice.amount != asked or invoice.order_id != topup.order:
            log.error("btcpay's invoice %s is not the one that was made for a top-up", invoice.id)
            return None
        if invoice.status == "Settled":
            came = await self._settled(invoice, asked)
            late = invoice.additional_status == "PaidLate"
            return Seen(Progress.SETTLED if came else Progress.PROCESSING, came, came, late=late)
        if invoice.status in ("Expired", "Invalid"):
            return await self._ended(invoice)
        return Seen(Progress.PROCESSING if invoice.status == "Processing" else Progress.NEW, _near(invoice.paid, asked))

    async def _settled(self, invoice: BtcpayInvoice, asked: Decimal) -> Decimal:
        """What came of a settled invoice. What is beyond it may have come just now: only its confirmed part counts."""
        if 0 < invoice.paid <= asked:
            paid = _near(invoice.paid, asked)
        else:
            ways = await self.client.methods(invoice.id)
            paid = sum([way.settled * way.rate for way in ways], Decimal(0))
            paid = max(asked, _near(paid, asked)) if invoice.paid > asked else paid
        # An operator who marks an invoice as settled knows why.
        return max(asked, paid) if invoice.additional_status == "Marked" else paid

    async def _ended(self, invoice: BtcpayInvoice) -> Seen:
        """Ended without all of it in time: what is confirmed counts, but for what the operator has declared invalid."""
        if invoice.paid == 0 and invoice.additional_status in ("None", "Marked"):
            return Seen(Progress.EXPIRED)
        if invoice.status == "Invalid" and invoice.additional_status == "Marked":
            return Seen(Progress.EXPIRED)
        ways = await self.client.methods(invoice.id)
        confirmed = sum([way.settled * way.rate for way in ways], Decimal(0))
        paid = max(invoice.paid, confirmed)
        waiting = invoice.status == "Expired" and _near(paid, confirmed) != confirmed
        late = invoice.additional_status == "PaidLate"
        return Seen(Progress.PROCESSING if waiting else Progress.EXPIRED, paid, confirmed, late=late)


def _near(paid: Decimal, asked: Decimal) -> Decimal:
    """What was paid, or what was asked if only the rounding of coins and rates lies between the two."""
    return asked if abs(paid - asked) * 1000 <= asked else paid
