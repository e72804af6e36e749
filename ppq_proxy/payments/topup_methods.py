"""The ways to top up, what each of them takes, and what an amount is worth (requirements PPQ-151, PPQ-152; §1.9)."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ppq_proxy.errors import BadRequest, SettingsError
from ppq_proxy.money.amounts import NANO, usd_from_nano, usd_number
from ppq_proxy.payments.rates import SATS, nano_for, sats_for

_DECIMALS: Mapping[str, int] = {"SATS": 0, "BTC": 8, "USD": 9}
_MOST_DIGITS = 28  # what decimal arithmetic keeps exactly
_LARGEST = 15  # digits before the point; far above every limit


@dataclass(frozen=True, slots=True)
class Method:
    """A way to top up. Limits are nano-USD of the value. `btcpay` is BTCPay's id of it; empty: Lightning."""

    name: str
    least: int
    most: int
    minutes: int
    bonus_percent: int = 0
    btcpay: str = ""

    def admit(self, amount: "Amount", value: int) -> None:
        """Raise `BadRequest` if an amount of this value cannot be paid in this way."""
        if not self.least <= value <= self.most:
            least, most, worth = usd_from_nano(self.least), usd_from_nano(self.most), usd_from_nano(value)
            is_worth = "" if amount.currency == "USD" else f", which is worth {worth} USD"
            raise BadRequest(
                f"A {self.name} top-up takes {least} to {most} USD, not {amount}{is_worth}.", param="amount"
            )
        if self.btcpay and amount.currency == "USD" and value % (NANO // 100):
            raise BadRequest(f"A {self.name} top-up in USD takes whole cents.", param="amount")

    def shown(self) -> dict[str, Any]:
        """The row of GET /topup/payment-methods."""
        return {
            "method": self.name,
            "currencies": list(_DECIMALS),
            "min_usd": usd_number(self.least),
            "max_usd": usd_number(self.most),
            "expiry_minutes": self.minutes,
            "bonus_percent": self.bonus_percent,
        }


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("btc-lightning", NANO // 10, 1000 * NANO, 15, 5),
        Method("btc", 10 * NANO, 10_000 * NANO, 60, btcpay="BTC-CHAIN"),
        Method("ltc", 2 * NANO, 1000 * NANO, 60, btcpay="LTC-CHAIN"),
        Method("lbtc", 2 * NANO, 10_000 * NANO, 60, btcpay="LBTC-CHAIN"),
        Method("xmr", 5 * NANO, 10_000 * NANO, 60, btcpay="XMR-CHAIN"),
    )
}
LIGHTNING = METHODS["btc-lightning"]


@dataclass(frozen=True, slots=True)
class Amount:
    """What a customer wants to pay, as it was asked for: exact, positive, no finer than the currency."""

    number: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.number:f} {self.currency}"

    @property
    def in_dollars(self) -> bool:
        return self.currency == "USD"

    def sats(self, nano_per_btc: int) -> int:
        """The whole sats that pay for it; of dollars rounded up."""
        if self.in_dollars:
            return sats_for(self._nano, nano_per_btc)
        return int(self.number * SATS) if self.currency == "BTC" else int(self.number)

    def value(self, nano_per_btc: int) -> int:
        """Its worth in nano-USD; of dollars that is what was asked for, whatever sats round to."""
        return self._nano if self.in_dollars else nano_for(self.sats(nano_per_btc), nano_per_btc)

    @property
    def _nano(self) -> int:
        return int(self.number * NANO)


def parse_amount(body: Any) -> Amount:
    """`amount` and `currency` of a JSON body whose numbers were read as `Decimal`. Raises `BadRequest`."""
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object with amount and currency.")
    currency = body.get("currency")
    if not isinstance(currency, str) or currency not in _DECIMALS:
        raise BadRequest(f"currency must be one of {', '.join(_DECIMALS)}.", param="currency")
    number = positive(body.get("amount"), "amount")
    decimals = _DECIMALS[currency]
    if number != round(number, decimals):
        whole = "a whole number" if decimals == 0 else f"no finer than {decimals} decimals"
        raise BadRequest(f"amount in {currency} must be {whole}.", param="amount")
    return Amount(number.normalize(), currency)


def positive(value: Any, param: str) -> Decimal:
    """A JSON number, read as `Decimal`, that is above zero and within reason. Raises `BadRequest`."""
    if not isinstance(value, Decimal) or not value.is_finite() or value <= 0:
        raise BadRequest(f"{param} must be a number above zero.", param=param)
    if len(value.as_tuple().digits) > _MOST_DIGITS or not -_MOST_DIGITS <= value.adjusted() < _LARGEST:
        raise BadRequest(f"{param} is out of range.", param=param)
    return value


def parse_methods(text: str) -> frozenset[str]:
    """`PPQ_BTCPAY_METHODS`: names of on-chain methods, by commas. Raises `SettingsError`."""
    names = frozenset(name.strip().lower() for name in text.split(",") if name.strip())
    known = {name for name, method in METHODS.items() if method.btcpay}
    if wrong := sorted(names - known):
        raise SettingsError(f"PPQ_BTCPAY_METHODS takes {', '.join(sorted(known))}, not {wrong[0][:40]!r}")
    return names
