"""The phoenixd wallet against a stand-in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import PaymentFailed, State, WalletRefused, WalletUnreachable
from ppq_proxy.payments.wallets.phoenixd import PhoenixdWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from tests.payments.wallets.forwarder import forwarding
from tests.peers.fake_server import Peer, running


@pytest.fixture(scope="module")
def node() -> Iterator[Peer]:
    with running("tests.peers.fake_phoenixd") as peer:
        yield peer


@pytest.fixture
async def wallet(node: Peer) -> AsyncIterator[PhoenixdWallet]:
    node.set(lie_msat=None)
    wallet = PhoenixdWallet(node.url, "a-password", "regtest")
    yield wallet
    await wallet.close()


def pay(node: Peer, payment_hash: str, fee_msat: int = 0) -> int:
    answer = httpx2.post(f"{node.url}/_pay/{payment_hash}", params={"fee_msat": fee_msat})
    return int(answer.json()["listeners"])


async def test_an_invoice_is_made_paid_and_settled(node: Peer, wallet: PhoenixdWallet) -> None:
    made = await wallet.create(21_000, "a call", 600, "quote-1")
    assert (await wallet.status(made.handle)).state == State.PENDING
    pay(node, made.payment_hash)
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_000)


@pytest.mark.parametrize("fee_msat", [500, 1000, 20_999])
async def test_fees_for_a_channel_are_the_operators_and_not_the_payers(
    node: Peer, wallet: PhoenixdWallet, fee_msat: int
) -> None:
    made = await wallet.create(21_000, "", 600, "")
    pay(node, made.payment_hash, fee_msat)
    assert (await wallet.status(made.handle)).amount_msat == 21_000


async def test_expired_and_unknown_are_told(node: Peer, wallet: PhoenixdWallet) -> None:
    made, paid = await wallet.create(1000, "", 1, ""), await wallet.create(1000, "", 1, "")
    pay(node, paid.payment_hash)
    await asyncio.sleep(1.1)
    assert (await wallet.status(made.handle)).state == State.EXPIRED
    assert (await wallet.status(paid.handle)).state == State.SETTLED, "paid in time, and looked at later"
    assert (await wallet.status("00" * 32)).state == State.UNKNOWN


async def test_fractions_of_a_sat_are_refused(wallet: PhoenixdWallet) -> None:
    with pytest.raises(WalletRefused, match="whole sats"):
        await wallet.create(1500, "", 600, "")


async def test_a_long_memo_is_cut(wallet: PhoenixdWallet) -> None:
    assert await wallet.create(1000, "x" * 500, 600, "")


async def test_a_lying_node_is_caught(node: Peer, wallet: PhoenixdWallet) -> None:
    node.set(lie_msat=5000)
    with pytest.raises(InvoiceMismatch, match="amount"):
        await wallet.create(1000, "", 600, "")


async def test_a_lost_answer_is_looked_up_by_its_external_id(node: Peer) -> None:
    node.set(lie_msat=None)
    async with forwarding(int(node.url.rsplit(":", 1)[1])) as middle:
        wallet = PhoenixdWallet(f"http://127.0.0.1:{middle.port}", "a-password", "regtest")
        await wallet.info()
        asked = len(node.seen())
        middle.swallow = True
        assert (await wallet.create(3000, "", 600, "lost")).amount_msat == 3000
        assert [request["path"] for request in node.seen()[asked:]] == ["/createinvoice", "/payments/incoming"]
        await wallet.close()


async def test_settlements_are_pushed_until_the_connection_is_lost(node: Peer, wallet: PhoenixdWallet) -> None:
    first, second = [await wallet.create(1000, "", 600, "") for _ in range(2)]
    async with asyncio.timeout(10), contextlib.aclosing(wallet.watch()) as watched:
        waiting = asyncio.ensure_future(anext(watched))
        while not await asyncio.to_thread(pay, node, first.payment_hash):
            await asyncio.sleep(0.05)
        assert await waiting == first.payment_hash
        assert await asyncio.to_thread(pay, node, second.payment_hash) == 1
        assert await anext(watched) == second.payment_hash
        await asyncio.to_thread(httpx2.post, f"{node.url}/_cut")
        assert await anext(watched, None) is None


async def test_a_wrong_password_says_so_and_stays_secret(node: Peer) -> None:
    wallet = PhoenixdWallet(node.url, "another-password", "regtest")
    for attempt in (wallet.create(1000, "", 600, ""), wallet.status("00" * 32), wallet.info(), anext(wallet.watch())):
        with pytest.raises(WalletRefused) as refusal:
            await attempt
        assert "another-password" not in str(refusal.value)
    await wallet.close()


async def test_it_never_pays(wallet: PhoenixdWallet) -> None:
    with pytest.raises(PaymentFailed):
        await wallet.pay("lnbcrt1", 0)


async def test_nobody_listening_is_unreachable() -> None:
    wallet = PhoenixdWallet("http://127.0.0.1:1", "a-password", "regtest")
    for attempt in (wallet.create(1000, "", 600, ""), wallet.status("00" * 32), anext(wallet.watch())):
        with pytest.raises(WalletUnreachable):
            await attempt
    await wallet.close()


async def test_it_is_opened_by_the_settings(node: Peer, rows: Rows) -> None:
    settings = Settings(wallet="phoenixd", network="regtest", phoenixd_url=node.url, phoenixd_password="a-password")
    opened = open_wallet(settings, rows)
    assert opened
    assert (await opened.info())["chain"] == "regtest"
    await opened.close()
    with pytest.raises(SettingsError, match="PPQ_PHOENIXD_PASSWORD"):
        open_wallet(Settings(wallet="phoenixd", phoenixd_url=node.url), rows)
