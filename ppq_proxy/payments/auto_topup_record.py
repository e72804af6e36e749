"""A customer's wallet as it is kept for automatic top-ups: what was wished for, what is being paid, how it goes."""

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ppq_proxy.errors import BadRequest
from ppq_proxy.money.amounts import NANO, usd_from_nano, usd_number
from ppq_proxy.payments.topup_methods import LIGHTNING, positive
from ppq_proxy.store.base import Row

LEAST_THRESHOLD = 5 * NANO
DEFAULT_USD = Decimal(10)
DAYS_WORTH = 10
"""How many top-ups a day may bring where the customer sets no cap."""
DAY = 24 * 3600
CHECK_MS = 10_000
FIRST_BACK_OFF_MS, LONGEST_BACK_OFF_MS = 60_000, 6 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Wish:
    """What a customer asks for. Amounts are nano-USD."""

    url: str
    threshold: int
    amount: int
    daily: int


@dataclass(slots=True)
class Link:
    """A connected wallet as it is kept, by account. Amounts are nano-USD, times unix seconds.

    `sealed` is the connection string, encrypted; empty once it was disconnected while `topup`, the one that is being
    paid, was not over. `day` and `spent` count towards the daily cap.
    """

    account: str
    sealed: str
    shown: str
    threshold: int
    amount: int
    daily: int
    connected_at: int
    topup: str = ""
    day: int = 0
    spent: int = 0
    failures: int = 0
    error: str = ""
    last_topup: str = ""
    last_at: int = 0

    @classmethod
    def of(cls, row: Row) -> "Link":
        """The link that a row holds."""
        return cls(**row.doc)

    def doc(self) -> dict[str, Any]:
        """The document to keep."""
        return asdict(self)

    def left_today(self, at: int) -> int:
        """What the daily cap leaves."""
        return self.daily - (self.spent if self.day == at // DAY else 0)

    def count(self, at: int, amount: int) -> None:
        """Towards the cap of the day; what was not paid is taken off again."""
        self.spent = max(0, amount + (self.spent if self.day == at // DAY else 0))
        self.day = at // DAY

    def succeeded(self, at: int) -> None:
        """The one that was being paid is credited."""
        self.last_topup, self.last_at, self.topup = self.topup, at, ""
        self.failures, self.error = 0, ""

    def failed(self, at: int, error: str) -> None:
        """The one that was being paid was certainly not paid."""
        self.count(at, -self.amount)
        self.topup, self.failures, self.error = "", self.failures + 1, error[:300]

    def back_off(self) -> int:
        """Milliseconds until the next try after so many failures in a row."""
        if not self.failures:
            return CHECK_MS
        return min(FIRST_BACK_OFF_MS << min(self.failures - 1, 16), LONGEST_BACK_OFF_MS)


def parse_wish(body: Any) -> Wish:
    """The body of POST /nwc-auto-topup/connect, whose numbers were read as `Decimal`. Raises `BadRequest`."""
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object with nwc_url.")
    url = body.get("nwc_url")
    if not isinstance(url, str) or not 1 <= len(url) <= 4096:
        raise BadRequest("nwc_url must be a connection string, nostr+walletconnect://….", param="nwc_url")
    threshold, amount = _dollars(body, "threshold_usd", DEFAULT_USD), _dollars(body, "topup_amount_usd", DEFAULT_USD)
    if threshold < LEAST_THRESHOLD:
        raise BadRequest(f"threshold_usd must be at least {usd_from_nano(LEAST_THRESHOLD)}.", param="threshold_usd")
    if not LIGHTNING.least <= amount <= LIGHTNING.most:
        least, most = usd_from_nano(LIGHTNING.least), usd_from_nano(LIGHTNING.most)
        raise BadRequest(f"topup_amount_usd must be {least} to {most}.", param="topup_amount_usd")
    daily = _dollars(body, "daily_limit_usd", usd_number(DAYS_WORTH * amount))
    if daily < amount:
        raise BadRequest("daily_limit_usd must be at least topup_amount_usd.", param="daily_limit_usd")
    return Wish(url, threshold, amount, daily)


def _dollars(body: dict[str, Any], name: str, default: Decimal) -> int:
    """Nano-USD of an optional amount, no finer than that."""
    number = positive(default if body.get(name) is None else body[name], name)
    if number != round(number, 9) or number >= 10**9:
        raise BadRequest(f"{name} is out of range.", param=name)
    return int(number * NANO)


def without_secret(url: str) -> str:
    """A connection string as it may be shown: wallet and relays."""
    parts = urlsplit(url)
    relays = "&".join(f"relay={relay}" for relay in parse_qs(parts.query).get("relay", ()))
    return f"{parts.scheme}://{parts.netloc or parts.path.strip('/')}?{relays}"


def shown(link: Link | None, due: int | None) -> dict[str, Any]:
    """The settings as GET /nwc-auto-topup shows them, the connection string without its secret."""
    if link is None or not link.sealed:
        names = ("nwc_url", "threshold_usd", "topup_amount_usd", "daily_limit_usd")
        return {"connected": False, "enabled": False, **dict.fromkeys(names)}
    status = "paying" if link.topup else "failing" if link.failures else "waiting" if link.error else "ready"
    return {
        "connected": True,
        "enabled": True,
        "nwc_url": link.shown,
        "threshold_usd": usd_number(link.threshold),
        "topup_amount_usd": usd_number(link.amount),
        "daily_limit_usd": usd_number(link.daily),
        "connected_at": link.connected_at,
        "status": status,
        "failures": link.failures,
        "last_error": link.error or None,
        "last_topup_id": link.last_topup or None,
        "last_topup_at": link.last_at or None,
        "next_check_at": due // 1000 if due is not None and not link.topup else None,
    }
