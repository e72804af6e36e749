"""BTC/USD: the median of sources that are up, believable and fresh; conversions that never make money."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.rates import SOURCES, Rates, RateUnavailable, nano_for, parse_sources, sats_for
from tests.peers.fake_server import Peer, running

NAMES = ("coinbase", "kraken", "bitstamp", "bitfinex")
MINUTE = 60_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="module")
def tickers() -> Iterator[Peer]:
    with running("tests.peers.fake_tickers") as peer:
        yield peer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def rates(tickers: Peer, clock: Clock) -> AsyncIterator[Rates]:
    tickers.set(**dict.fromkeys(NAMES, "100000"), coinbase_shape="coinbase")
    rates = Rates(parse_sources(",".join(f"{n}={tickers.url}/{n}" for n in NAMES)), max_age_seconds=900, clock=clock)
    yield rates
    await rates.close()


async def test_nothing_is_quoted_before_anybody_has_answered(rates: Rates) -> None:
    with pytest.raises(RateUnavailable):
        rates.rate()


async def test_every_source_is_read_exactly(rates: Rates, tickers: Peer) -> None:
    for i, name in enumerate(NAMES):
        tickers.set(**{n: "99999.123456789" if n == name else 500 for n in NAMES})
        one = Rates(parse_sources(f"{name}={tickers.url}/{name}"))
        await one.refresh()
        assert one.rate().nano_per_btc == 99_999_123_456_789, f"{i}: {name}"
        assert one.rate().sources == (name,)
        await one.close()


async def test_the_median_of_all_is_the_rate(rates: Rates, tickers: Peer) -> None:
    tickers.set(coinbase="100000", kraken="100200", bitstamp="99900", bitfinex="100100")
    await rates.refresh()
    assert rates.rate().nano_per_btc == 100_000 * 10**9
    assert rates.rate().sources == tuple(sorted(NAMES))


async def test_one_liar_does_not_move_the_rate(rates: Rates, tickers: Peer) -> None:
    tickers.set(coinbase="1.5", kraken="100200", bitstamp="99900", bitfinex="100100")
    await rates.refresh()
    assert 99_900 * 10**9 <= rates.rate().nano_per_btc <= 100_100 * 10**9
    assert "coinbase" not in rates.rate().sources
    tickers.set(coinbase="900000000")
    await rates.refresh()
    assert 99_900 * 10**9 <= rates.rate().nano_per_btc <= 100_200 * 10**9


async def test_sources_that_contradict_each_other_are_not_believed(rates: Rates, tickers: Peer) -> None:
    tickers.set(coinbase="50000", kraken="100000", bitstamp=503, bitfinex=503)
    await rates.refresh()
    with pytest.raises(RateUnavailable, match="contradict"):
        rates.rate()


async def test_two_sources_are_enough_and_one_of_four_is_not(rates: Rates, tickers: Peer) -> None:
    tickers.set(coinbase=503, kraken=429, bitstamp=500)
    await rates.refresh()
    with pytest.raises(RateUnavailable):
        rates.rate()
    tickers.set(kraken="100001")
    await rates.refresh()
    assert rates.rate().sources == ("bitfinex", "kraken")


async def test_a_stale_rate_is_refused(rates: Rates, tickers: Peer, clock: Clock) -> None:
    await rates.refresh()
    clock.now += 14 * MINUTE
    assert rates.rate().at == clock.now - 14 * MINUTE
    tickers.set(**dict.fromkeys(NAMES, 503))
    await rates.refresh()
    assert rates.rate()
    clock.now += MINUTE
    with pytest.raises(RateUnavailable):
        rates.rate()
    tickers.set(**dict.fromkeys(NAMES, "120000"))
    await rates.refresh()
    assert rates.rate().nano_per_btc == 120_000 * 10**9


@pytest.mark.parametrize(
    "said",
    ["0", "-5", "null", "true", '"NaN"', '"Infinity"', "{}", "[]", '"many"', "1e400", "0.5", "rubbish", "[" * 5000, ""],
)
async def test_nonsense_from_a_source_is_no_price(rates: Rates, tickers: Peer, said: str) -> None:
    await rates.refresh()
    good = rates.rate()
    tickers.set(
        coinbase_shape="raw", coinbase=said if said.startswith("[[") or not said else f'{{"data":{{"amount":{said}}}}}'
    )
    alone = Rates(parse_sources(f"coinbase={tickers.url}/coinbase"))
    await alone.refresh()
    with pytest.raises(RateUnavailable):
        alone.rate()
    await alone.close()
    await rates.refresh()
    assert rates.rate().nano_per_btc == good.nano_per_btc


async def test_nobody_listening_is_no_price() -> None:
    alone = Rates(parse_sources("coinbase=http://127.0.0.1:1/"))
    await alone.refresh()
    with pytest.raises(RateUnavailable):
        alone.rate()
    await alone.close()


async def test_it_refreshes_in_the_background(tickers: Peer) -> None:
    tickers.set(kraken="100000", bitstamp="100000")
    sources = parse_sources(f"kraken={tickers.url}/kraken,bitstamp={tickers.url}/bitstamp")
    rates = Rates(sources, refresh_seconds=0)
    await rates.start()
    for price in (100_000, 110_000):
        tickers.set(kraken=str(price), bitstamp=str(price))
        async with asyncio.timeout(10):
            while True:
                await asyncio.sleep(0.02)
                try:
                    if rates.rate().nano_per_btc == price * 10**9:
                        break
                except RateUnavailable:
                    continue
    await rates.close()


async def test_the_operators_own_rate_asks_nobody(clock: Clock) -> None:
    rates = Rates(SOURCES, fixed_usd="51234.5678", clock=clock)
    await rates.start()
    assert rates.rate().nano_per_btc == 51_234_567_800_000
    assert rates.rate().sources == ("operator",)
    assert rates.rate().at == clock.now
    await rates.close()


@pytest.mark.parametrize("text", ["0", "-1", "many", "nan", "1e30"])
def test_an_operators_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="PPQ_BTC_USD"):
        Rates(SOURCES, fixed_usd=text)


def test_sources_are_chosen_by_name() -> None:
    assert parse_sources("") == dict(SOURCES)
    assert list(parse_sources("kraken, coinbase")) == ["kraken", "coinbase"]
    assert parse_sources("kraken=http://127.0.0.1:9/k?a=b")["kraken"].url == "http://127.0.0.1:9/k?a=b"
    with pytest.raises(SettingsError, match="goldman"):
        parse_sources("goldman")


def test_sats_are_rounded_up_and_at_least_one() -> None:
    rate = 100_000 * 10**9
    assert sats_for(0, rate) == 1
    assert sats_for(1, rate) == 1
    assert sats_for(10**6, rate) == 1
    assert sats_for(10**6 + 1, rate) == 2
    assert nano_for(1, rate) == 10**6
    assert nano_for(1, 51_234_567_800_000) == 512_345


@given(st.integers(0, 10**18), st.integers(10**9, 10**18))
def test_a_conversion_never_makes_money(nano: int, rate: int) -> None:
    sats = sats_for(nano, rate)
    exact = Decimal(nano) * 10**8 / Decimal(rate)
    assert sats >= 1
    assert nano_for(sats, rate) >= nano or sats * rate >= nano * 10**8
    assert sats == 1 or sats * rate - nano * 10**8 < rate
    assert abs(sats - exact) <= 1
    assert nano_for(sats, rate) * 10**8 <= sats * rate
