"""The price of bitcoin in dollars: the median of several public sources, never an old one, or what the operator says.

A rate is an integer, nano-USD for one BTC, which is exact for a price of up to nine decimals. Only `Decimal` and
integers touch it.
"""

import asyncio
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import httpx2

from ppq_proxy.errors import SettingsError, Unavailable
from ppq_proxy.money.amounts import AmountError, ceil_div, nano_from_usd

SATS = 10**8
_PLAUSIBLE = range(10**9, 10**18)
"""A dollar to a thousand million dollars: what lies outside is a source's mistake."""
_SPREAD_PERCENT = 5
_QUORUM = 2
_TIMEOUT = httpx2.Timeout(8, connect=4)

log = logging.getLogger(__name__)


class RateUnavailable(Unavailable):
    """No price of bitcoin that can be trusted: nothing is quoted in sats until there is one."""

    code: ClassVar[str] = "rate_unavailable"


@dataclass(frozen=True, slots=True)
class Rate:
    """A price of bitcoin: nano-USD for one BTC, when it was fetched (unix ms), and where."""

    nano_per_btc: int
    at: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A public ticker: its address, and where in its JSON the last price stands."""

    url: str
    path: tuple[str | int, ...]


SOURCES: Mapping[str, Source] = {
    "coinbase": Source("https://api.coinbase.com/v2/prices/BTC-USD/spot", ("data", "amount")),
    "kraken": Source("https://api.kraken.com/0/public/Ticker?pair=XBTUSD", ("result", "XXBTZUSD", "c", 0)),
    "bitstamp": Source("https://www.bitstamp.net/api/v2/ticker/btcusd/", ("last",)),
    "bitfinex": Source("https://api-pub.bitfinex.com/v2/ticker/tBTCUSD", (6,)),
}


def sats_for(nano_usd: int, nano_per_btc: int) -> int:
    """The whole sats that pay for an amount, rounded up, at least 1."""
    return max(1, ceil_div(nano_usd * SATS, nano_per_btc))


def nano_for(sats: int, nano_per_btc: int) -> int:
    """What sats are worth in nano-USD, rounded down, so that a conversion never makes money."""
    return sats * nano_per_btc // SATS


def parse_sources(text: str) -> dict[str, Source]:
    """`PPQ_RATE_SOURCES`: names of known sources, or `name=URL` for a known one's format at another address, by commas.

    Empty text means all known sources.

    Raises:
        SettingsError: an unknown name.
    """
    chosen: dict[str, Source] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, url = part.partition("=")
        if name not in SOURCES:
            raise SettingsError(f"PPQ_RATE_SOURCES: {name[:40]!r} is none of {', '.join(SOURCES)}")
        chosen[name] = Source(url or SOURCES[name].url, SOURCES[name].path)
    return chosen or dict(SOURCES)


class Rates:
    """Keeps the rate fresh in the background; `rate()` answers from memory."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        fixed_usd: str = "",
        max_age_seconds: int = 900,
        refresh_seconds: int = 60,
        clock: Callable[[], int] = lambda: time.time_ns() // 10**6,
    ) -> None:
        """`fixed_usd` is the operator's own price, a decimal string: then nobody is asked."""
        self._sources = sources
        self._fixed = _nano(fixed_usd) if fixed_usd else None
        if fixed_usd and self._fixed is None:
            raise SettingsError(f"PPQ_BTC_USD must be a price in dollars, not {fixed_usd[:40]!r}")
        self._max_age_ms = max_age_seconds * 1000
        self._refresh_seconds = refresh_seconds
        self._clock = clock
        self._seen: dict[str, tuple[int, int]] = {}
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT, follow_redirects=False)
        self._task: asyncio.Task[None] | None = None

    def rate(self) -> Rate:
        """The rate now.

        Raises:
            RateUnavailable: too few sources answered within the age limit, or they contradict each other.
        """
        at = self._clock()
        if self._fixed is not None:
            return Rate(self._fixed, at, ("operator",))
        fresh = {name: seen for name, seen in self._seen.items() if seen[1] > at - self._max_age_ms}
        if len(fresh) < min(_QUORUM, len(self._sources)):
            raise RateUnavailable("the price of bitcoin is not known at the moment")
        median = int(statistics.median_low([price for price, _ in fresh.values()]))
        near = {n: s for n, s in fresh.items() if abs(s[0] - median) * 100 <= median * _SPREAD_PERCENT}
        if 2 * len(near) <= len(fresh):
            raise RateUnavailable("the sources of the price of bitcoin contradict each other")
        return Rate(median, min(seen[1] for seen in near.values()), tuple(sorted(near)))

    async def start(self) -> None:
        """Begin refreshing; the first answers come a moment later."""
        if self._fixed is None and self._task is None:
            self._task = asyncio.create_task(self._keep_fresh(), name="btc-usd")

    async def refresh(self) -> None:
        """Ask every source once, at the same time. One that fails keeps its last answer until that is too old."""
        await asyncio.gather(*(self._ask(name, source) for name, source in self._sources.items()))

    async def close(self) -> None:
        """Stop refreshing."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._client.aclose()

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(self._refresh_seconds)

    async def _ask(self, name: str, source: Source) -> None:
        try:
            answer = await self._client.get(source.url)
            answer.raise_for_status()
            price = _nano(_at(json.loads(answer.content, parse_float=Decimal), source.path))
        except (httpx2.HTTPError, ValueError, LookupError, TypeError, RecursionError) as problem:
            log.warning("rate source %s failed: %s", name, type(problem).__name__)
            return
        if price is None:
            log.warning("rate source %s gave no plausible price", name)
            return
        self._seen[name] = (price, self._clock())


def _at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def _nano(price: Any) -> int | None:
    """Nano-USD for one BTC, or None if this is no plausible price. Decimals beyond the ninth are dropped."""
    if isinstance(price, bool) or not isinstance(price, str | int | Decimal):
        return None
    try:
        nano = nano_from_usd(round(Decimal(price), 9))
    except (AmountError, InvalidOperation):
        return None
    return nano if nano in _PLAUSIBLE else None
