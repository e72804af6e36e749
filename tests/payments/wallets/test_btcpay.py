"""The Lightning side of a BTCPay store against a stand-in."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import OutcomeUnknown, State, WalletRefused
from ppq_proxy.payments.wallets.btcpay import BtcpayWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from tests.payments.wallets.forwarder import forwarding
from tests.peers.fake_server import Peer, running


@pytest.fixture(scope="module")
def server() -> Iterator[Peer]:
    with running("tests.peers.fake_btcpay") as peer:
        yield peer


@pytest.fixture
async def wallet(server: Peer) -> AsyncIterator[BtcpayWallet]:
    server.set(lie_msat=None)
    wallet = BtcpayWallet(server.url, "a-key", "a-store", "regtest")
    yield wallet
    await wallet.close()


async def test_an_invoice_is_made_paid_and_settled(server: Peer, wallet: BtcpayWallet) -> None:
    made = await wallet.create(21_123, "a call", 600, "quote-1")
    assert made.handle != made.payment_hash
    assert (await wallet.status(made.handle)).state == State.PENDING
    httpx2.post(f"{server.url}/_pay/{made.handle}").raise_for_status()
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_123)


async def test_expired_and_unknown_are_told(wallet: BtcpayWallet) -> None:
    made = await wallet.create(1000, "", 1, "")
    await asyncio.sleep(1.1)
    assert (await wallet.status(made.handle)).state == State.EXPIRED
    assert (await wallet.status("../../../server/info")).state == State.UNKNOWN


async def test_a_lying_server_is_caught(server: Peer, wallet: BtcpayWallet) -> None:
    server.set(lie_msat=5000)
    with pytest.raises(InvoiceMismatch, match="amount"):
        await wallet.create(1000, "", 600, "")


async def test_a_lost_answer_is_told_and_not_repeated(server: Peer) -> None:
    async with forwarding(int(server.url.rsplit(":", 1)[1])) as middle:
        wallet = BtcpayWallet(f"http://127.0.0.1:{middle.port}", "a-key", "a-store", "regtest")
        await wallet.info()
        asked = len(server.seen())
        middle.swallow = True
        with pytest.raises(OutcomeUnknown):
            await wallet.create(3000, "", 600, "lost")
        assert len(server.seen()) == asked + 1
        await wallet.close()


async def test_a_wrong_key_says_so_and_stays_secret(server: Peer) -> None:
    wallet = BtcpayWallet(server.url, "another-key", "a-store", "regtest")
    for attempt in (wallet.create(1000, "", 600, ""), wallet.status("ln-1"), wallet.info()):
        with pytest.raises(WalletRefused, match="unauthenticated") as refusal:
            await attempt
        assert "another-key" not in str(refusal.value)
    await wallet.close()


async def test_it_is_opened_by_the_settings(server: Peer, rows: Rows) -> None:
    settings = Settings(
        wallet="btcpay", network="regtest", btcpay_url=server.url, btcpay_key="a-key", btcpay_store="a-store"
    )
    opened = open_wallet(settings, rows)
    assert opened
    assert (await opened.info())["wallet"] == "btcpay"
    assert not opened.pushes
    assert [settled async for settled in opened.watch()] == []
    await opened.close()
    with pytest.raises(SettingsError, match="PPQ_BTCPAY_KEY and PPQ_BTCPAY_STORE"):
        open_wallet(Settings(wallet="btcpay", btcpay_url=server.url), rows)
