"""A top-up as it is kept: what was asked for, what is due, what came, and what was credited for it."""

from dataclasses import asdict, dataclass, field
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Any

from ppq_proxy.money.amounts import usd_number
from ppq_proxy.store.base import Row

_FINEST = {"SATS": 3, "BTC": 11, "USD": 9}  # decimals of amounts that are shown: a millisatoshi, a nano-dollar
_SOONEST, _LATEST_LIVE, _LATEST_OVER = 1, 12, 900  # seconds between two looks
_SETTLED_PAUSE = 600
_UNCONFIRMED = 14 * 24 * 3600


class Phase(StrEnum):
    """What the gateway has done about it."""

    ASKED = "asked"  # the wallet is being asked for an invoice; nobody has seen one
    OPEN = "open"  # to be looked at until it is paid or over
    PAID = "paid"  # how much is credited is decided; each credit is made once, by whoever comes
    SETTLED = "settled"  # credited
    EXPIRED = "expired"  # not looked at any more, unless somebody asks


class Progress(StrEnum):
    """What the processor says of the payment, in the words of the API (requirements §1.9)."""

    NEW = "New"
    PROCESSING = "Processing"
    SETTLED = "Settled"
    EXPIRED = "Expired"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a processor says: what came, and how much of it is beyond doubt, both in the unit of `TopUp.asked`.

    `late`: it came after the end. `dead`: the processor says itself that nothing can come any more.
    """

    progress: Progress
    paid: Decimal = Decimal(0)
    confirmed: Decimal = Decimal(0)
    late: bool = False
    dead: bool = False


@dataclass(slots=True)
class TopUp:
    """The document of a row. Times are unix seconds, `value` and `credits` nano-USD, other amounts decimal strings.

    `value` is what the whole of it is worth at the rate of its creation, without the bonus. `asked` and `paid` are in
    the processor's own unit (msat, or the currency of BTCPay's invoice): what came is a share of what was asked.
    `owner` is the process that asks for the bill, `order` our name of it at the processor, `handle` its own.
    """

    id: str
    account: str
    method: str
    amount: str
    currency: str
    value: int
    bonus_percent: int
    created_at: int
    request: str
    phase: str = Phase.ASKED
    processor: str = ""
    owner: str = ""
    order: str = ""
    handle: str = ""
    asked: str = "0"
    expires_at: int = 0
    watch_until: int = 0
    coin_due: str = "0"
    checkout_url: str = ""
    lightning_invoice: str = ""
    address: str = ""
    payment_link: str = ""
    progress: str = Progress.NEW
    paid: str = "0"
    late: bool = False
    dead: bool = False
    credits: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, row: Row) -> "TopUp":
        """The top-up that a row holds."""
        return cls(**row.doc)

    def doc(self) -> dict[str, Any]:
        """The document to keep."""
        return {name: str(value) if isinstance(value, StrEnum) else value for name, value in asdict(self).items()}

    def worth(self, came: Decimal) -> int:
        """What is credited for `came`: its share of the value, with the bonus, rounded down."""
        return int((self.value * Fraction(came) * (100 + self.bonus_percent)) // (Fraction(Decimal(self.asked)) * 100))

    @property
    def credited(self) -> int:
        return sum(self.credits)

    def is_over(self, at: int) -> bool:
        """Whether looking for a payment has come to its end: one that is known and stays unconfirmed gets longer."""
        return at > self.watch_until + (_UNCONFIRMED if self.progress == Progress.PROCESSING else 0)

    def pause(self, at: int) -> int:
        """Seconds until it is worth another look: soon at first, then every few, and after its end ever more rarely."""
        if self.phase == Phase.SETTLED:
            return _SETTLED_PAUSE
        if at < self.expires_at or (self.progress == Progress.PROCESSING and at < self.watch_until):
            return min(max((at - self.created_at) // 8, _SOONEST), _LATEST_LIVE)
        return min(max((at - self.expires_at) // 4, _LATEST_LIVE), _LATEST_OVER)

    # what is shown

    def created(self) -> dict[str, Any]:
        """The answer of POST /topup/create: times and numbers as strings, as PPQ writes them there."""
        shown = {
            "created_at": str(self.created_at),
            "invoice_id": self.id,
            "amount": self.amount,
            "currency": self.currency,
            "expires_at": str(self.expires_at),
            "checkout_url": self.checkout_url,
            "crypto_amount_due": self.coin_due,
            "payment_method": self.method,
        }
        return shown | self._where()

    def status(self) -> dict[str, Any]:
        """The answer of GET /topup/status."""
        amount, paid = Decimal(self.amount), self._in_currency(Decimal(self.paid))
        shown = {
            "invoice_id": self.id,
            "status": self._status(),
            "amount": amount,
            "currency": self.currency,
            "payment_method": self.method,
            "amount_paid": paid,
            "amount_due": max(amount - paid, Decimal(0)),
            "credited_usd": usd_number(self.credited if self.phase == Phase.SETTLED else 0),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
        }
        note = self._note()
        return shown | self._where() | ({"note": note} if note else {})

    def _where(self) -> dict[str, str]:
        """Where to pay."""
        if self.lightning_invoice:
            return {"lightning_invoice": self.lightning_invoice}
        return {"address": self.address, "payment_link": self.payment_link}

    def _status(self) -> str:
        if self.phase == Phase.SETTLED:
            return Progress.SETTLED
        # Paid, but not credited yet: clients take Settled for the word that the money is theirs.
        return Progress.PROCESSING if self.progress == Progress.SETTLED or self.phase == Phase.PAID else self.progress

    def _in_currency(self, came: Decimal) -> Decimal:
        finest = _FINEST[self.currency]
        asked = Fraction(Decimal(self.asked))
        whole = Fraction(Decimal(self.amount)) * Fraction(came) * 10**finest
        return Decimal(int(whole // asked)).scaleb(-finest) if asked else Decimal(0)

    def _note(self) -> str:
        paid, asked = Decimal(self.paid), Decimal(self.asked)
        if self.phase == Phase.SETTLED:
            told = ["It was paid after it had expired."] if self.late else []
            if paid < asked:
                told.append("It was paid in part; what came is credited.")
            elif paid > asked:
                told.append("More was paid than asked for; all of it is credited.")
            return " ".join(told)
        if 0 < paid < asked and self.progress == Progress.NEW:
            return "A part has come; pay the rest before it expires, or that part alone is credited."
        if self.progress == Progress.PROCESSING:
            return "The payment is known and not confirmed yet."
        return ""
