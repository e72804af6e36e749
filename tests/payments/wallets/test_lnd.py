"""The lnd wallet against two real nodes."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import bolt11
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import (
    OutcomeUnknown,
    PaymentFailed,
    State,
    WalletRefused,
    WalletUnreachable,
)
from ppq_proxy.payments.wallets.lnd import LndWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from tests.payments.wallets.forwarder import forwarding
from tests.peers.lnd import Network, free_port, lnd_network, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "")]

LEAST = [f"/lnrpc.Lightning/{name}" for name in ("AddInvoice", "LookupInvoice", "SubscribeInvoices")]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with lnd_network(tmp_path_factory.mktemp("lnd")) as network:
        yield network


@pytest.fixture(scope="module")
def macaroon(network: Network) -> str:
    """One that can do no more than the wallet needs."""
    return network.merchant.bake(*LEAST)


def wallet_for(network: Network, macaroon: str, url: str | None = None) -> LndWallet:
    return LndWallet(url or network.merchant.url, macaroon, str(network.merchant.certificate), "regtest")


@pytest.fixture
async def wallet(network: Network, macaroon: str) -> AsyncIterator[LndWallet]:
    wallet = wallet_for(network, macaroon)
    yield wallet
    await wallet.close()


@pytest.fixture
async def payer(network: Network) -> AsyncIterator[LndWallet]:
    node = network.payer
    wallet = LndWallet(node.url, node.macaroon, str(node.certificate), "regtest")
    yield wallet
    await wallet.close()


async def test_an_invoice_is_made_paid_and_settled(wallet: LndWallet, payer: LndWallet) -> None:
    made = await wallet.create(21_000, "a call", 600, "quote-1")
    found = bolt11.decode(made.bolt11)
    assert (found.payment_hash, found.amount_msat, found.description) == (made.payment_hash, 21_000, "a call")
    assert (await wallet.status(made.handle)).state == State.PENDING
    paid = await payer.pay(made.bolt11, 10_000)
    assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == made.payment_hash
    assert paid.amount_msat == 21_000
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_000)
    with pytest.raises(PaymentFailed, match="already"):
        await payer.pay(made.bolt11, 10_000)


async def test_amounts_below_a_sat_are_kept(wallet: LndWallet) -> None:
    made = await wallet.create(21_123, "", 600, "")
    assert bolt11.decode(made.bolt11).amount_msat == 21_123


async def test_an_expired_invoice_is_told(wallet: LndWallet, payer: LndWallet) -> None:
    made = await wallet.create(1000, "", 1, "")
    await asyncio.sleep(4)
    assert (await wallet.status(made.handle)).state == State.EXPIRED
    with pytest.raises(PaymentFailed):
        await payer.pay(made.bolt11, 0)


async def test_an_unknown_invoice_is_unknown(wallet: LndWallet) -> None:
    assert (await wallet.status("00" * 32)).state == State.UNKNOWN


async def test_settlements_are_pushed_and_none_is_missed_over_a_broken_connection(
    network: Network, wallet: LndWallet, payer: LndWallet
) -> None:
    async def next_settled(paying: str | None) -> str:
        async with asyncio.timeout(20), contextlib.aclosing(wallet.watch()) as watched:
            waiting = asyncio.ensure_future(anext(watched))
            await asyncio.sleep(0.5)
            if paying:
                await payer.pay(paying, 10_000)
            return await waiting

    first, second = await wallet.create(1000, "", 600, ""), await wallet.create(2000, "", 600, "")
    assert await next_settled(first.bolt11) == first.payment_hash
    await payer.pay(second.bolt11, 10_000)
    assert await next_settled(None) == second.payment_hash


async def test_a_lost_answer_is_looked_up_and_not_asked_again(network: Network, macaroon: str) -> None:
    async with forwarding(network.merchant.rest) as middle:
        wallet = wallet_for(network, macaroon, f"https://127.0.0.1:{middle.port}")
        await wallet.create(1000, "", 600, "")
        before = len(network.merchant.call("GET", "/v1/invoices?num_max_invoices=1000&reversed=true")["invoices"])
        middle.swallow = True
        made = await wallet.create(7000, "lost", 600, "")
        assert not middle.swallow
        assert bolt11.decode(made.bolt11).amount_msat == 7000
        after = network.merchant.call("GET", "/v1/invoices?num_max_invoices=1000&reversed=true")["invoices"]
        assert len(after) == before + 1
        assert after[-1]["payment_request"] == made.bolt11
        await wallet.close()


async def test_many_at_once(wallet: LndWallet) -> None:
    made = await asyncio.gather(*(wallet.create(1000 * n, "", 600, "") for n in range(1, 101)))
    assert len({invoice.payment_hash for invoice in made}) == 100
    assert [invoice.amount_msat for invoice in made] == [1000 * n for n in range(1, 101)]


async def test_a_long_memo_is_cut_to_what_lnd_takes(wallet: LndWallet) -> None:
    made = await wallet.create(1000, "ö" * 1000, 600, "")
    assert len((bolt11.decode(made.bolt11).description or "").encode()) <= 639


async def test_a_wallet_of_another_network_is_refused(network: Network, macaroon: str) -> None:
    wallet = LndWallet(network.merchant.url, macaroon, str(network.merchant.certificate), "mainnet")
    with pytest.raises(InvoiceMismatch, match="network"):
        await wallet.create(1000, "", 600, "")
    await wallet.close()


async def test_wrong_credentials_say_so_and_are_not_repeated(network: Network, macaroon: str) -> None:
    for wrong in ("", "00", macaroon[:-2] + "00", network.merchant.bake("/lnrpc.Lightning/GetInfo")):
        wallet = wallet_for(network, wrong)
        with pytest.raises(WalletRefused) as refusal:
            await wallet.create(1000, "", 600, "")
        assert "500" in refusal.value.detail
        assert len(wrong) < 10 or wrong not in str(refusal.value)
        assert refusal.value.message == "the operator's wallet is not available at the moment"
        with pytest.raises(WalletRefused):
            await wallet.info()
        await wallet.close()


async def test_info_needs_no_more_than_the_least_macaroon(wallet: LndWallet) -> None:
    assert (await wallet.info())["state"] == "SERVER_ACTIVE"


async def test_another_certificate_is_not_trusted(network: Network, macaroon: str) -> None:
    wallet = LndWallet(network.merchant.url, macaroon, str(network.payer.certificate), "regtest")
    with pytest.raises(WalletUnreachable):
        await wallet.create(1000, "", 600, "")
    await wallet.close()


async def test_it_is_opened_by_the_settings(network: Network, macaroon: str, rows: Rows, tmp_path: Path) -> None:
    file = tmp_path / "invoice.macaroon"
    file.write_bytes(bytes.fromhex(macaroon))
    for given in (macaroon, str(file)):
        settings = Settings(
            wallet="lnd",
            network="regtest",
            lnd_url=network.merchant.url + "/",
            lnd_macaroon=given,
            lnd_cert=str(network.merchant.certificate),
        )
        opened = open_wallet(settings, rows)
        assert opened
        assert (await opened.create(1000, "", 600, "")).amount_msat == 1000
        await opened.close()


async def test_a_node_that_is_down_or_starting_is_unreachable(network: Network, macaroon: str) -> None:
    # The last test of this file: the merchant is another process afterwards.
    merchant, wallet = network.merchant, wallet_for(network, macaroon)
    made = await wallet.create(1000, "", 600, "")
    await asyncio.to_thread(merchant.program.stop)
    with pytest.raises(WalletUnreachable):
        await wallet.create(1000, "", 600, "")
    merchant.start()
    problems: set[type[Exception]] = set()
    async with asyncio.timeout(60):
        while True:
            try:
                await wallet.create(1000, "", 600, "")
                break
            except (WalletUnreachable, OutcomeUnknown) as problem:
                problems.add(type(problem))
                await asyncio.sleep(0.05)
    assert WalletUnreachable in problems
    assert (await wallet.status(made.handle)).state == State.PENDING
    await wallet.close()


async def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    wallet = LndWallet(f"http://127.0.0.1:{free_port()}", "00", "", "regtest")
    with pytest.raises(WalletUnreachable):
        await wallet.create(1000, "", 600, "")
    await wallet.close()


def test_settings_that_cannot_be_are_refused(rows: Rows, tmp_path: Path) -> None:
    for settings, said in (
        (Settings(wallet="lnd"), "PPQ_LND_URL and PPQ_LND_MACAROON"),
        (Settings(wallet="lnd", lnd_url="127.0.0.1:8080", lnd_macaroon="00"), "PPQ_LND_URL"),
        (Settings(wallet="lnd", lnd_url="https://a", lnd_macaroon=str(tmp_path / "none")), "PPQ_LND_MACAROON"),
        (Settings(wallet="lnd", lnd_url="https://a", lnd_macaroon="00", lnd_cert="/none"), "PPQ_LND_CERT"),
        (Settings(wallet="lnd", network="main"), "PPQ_NETWORK"),
        (Settings(wallet="ldn"), "PPQ_WALLET"),
    ):
        with pytest.raises(SettingsError, match=said):
            open_wallet(settings, rows)
