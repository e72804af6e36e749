"""The Core Lightning wallet against a stand-in for clnrest, over TLS with the node's own certificate."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import OutcomeUnknown, PaymentFailed, State, WalletRefused, WalletUnreachable
from ppq_proxy.payments.wallets.cln import ClnWallet
from ppq_proxy.payments.wallets.http import Backend
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from tests.payments.wallets.forwarder import forwarding
from tests.peers.fake_server import Peer, running

USUAL = {"lie_msat": None, "lie_hash": None, "fail": None, "old": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cln")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Peer]:
    with running("tests.peers.fake_cln", str(folder)) as peer:
        yield peer


@pytest.fixture
async def wallet(node: Peer, folder: Path) -> AsyncIterator[ClnWallet]:
    node.set(**USUAL)
    wallet = ClnWallet(node.url, "a-rune", str(folder / "ca.pem"), "regtest")
    yield wallet
    await wallet.close()


def pay(node: Peer, payment_hash: str) -> None:
    httpx2.post(f"{node.url}/_pay/{payment_hash}", verify=False).raise_for_status()


@pytest.mark.parametrize("old", [False, True])
async def test_an_invoice_is_made_paid_and_settled(node: Peer, wallet: ClnWallet, old: bool) -> None:
    node.set(old=old)
    made = await wallet.create(21_123, "a call", 600, "quote-1")
    assert made.amount_msat == 21_123
    assert (await wallet.status(made.handle)).state == State.PENDING
    pay(node, made.payment_hash)
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_123)


async def test_expired_and_unknown_are_told(wallet: ClnWallet) -> None:
    made = await wallet.create(1000, "", 1, "")
    await asyncio.sleep(1.1)
    assert (await wallet.status(made.handle)).state == State.EXPIRED
    assert (await wallet.status("00" * 32)).state == State.UNKNOWN


async def test_labels_are_unique_whatever_the_reference(wallet: ClnWallet) -> None:
    made = await asyncio.gather(*(wallet.create(1000, "", 600, "same") for _ in range(10)))
    assert len({invoice.payment_hash for invoice in made}) == 10


async def test_a_lying_node_is_caught(node: Peer, wallet: ClnWallet) -> None:
    node.set(lie_msat=5000)
    with pytest.raises(InvoiceMismatch, match="amount"):
        await wallet.create(1000, "", 600, "")
    node.set(lie_msat=None, lie_hash="00" * 32)
    with pytest.raises(InvoiceMismatch, match="payment hash"):
        await wallet.create(1000, "", 600, "")


async def test_a_lost_answer_is_looked_up_by_its_label(node: Peer, folder: Path) -> None:
    node.set(**USUAL)
    async with forwarding(int(node.url.rsplit(":", 1)[1])) as middle:
        wallet = ClnWallet(f"https://127.0.0.1:{middle.port}", "a-rune", str(folder / "ca.pem"), "regtest")
        await wallet.info()
        asked = len(node.seen())
        middle.swallow = True
        made = await wallet.create(3000, "", 600, "lost")
        assert made.amount_msat == 3000
        assert [request["path"] for request in node.seen()[asked:]] == ["/v1/invoice", "/v1/listinvoices"]
        await wallet.close()


async def test_settlements_are_pushed_and_none_is_missed(node: Peer, wallet: ClnWallet) -> None:
    first, second, third = [await wallet.create(1000, "", 600, "") for _ in range(3)]

    async def settled(count: int, *paying: str) -> list[str]:
        async with asyncio.timeout(10), contextlib.aclosing(wallet.watch()) as watched:
            waiting = asyncio.ensure_future(anext(watched))
            await asyncio.sleep(0.2)
            for payment_hash in paying:
                await asyncio.to_thread(pay, node, payment_hash)
            return [await waiting, *[await anext(watched) for _ in range(count - 1)]]

    assert await settled(1, first.payment_hash) == [first.payment_hash]
    await asyncio.to_thread(pay, node, second.payment_hash)
    await asyncio.to_thread(pay, node, third.payment_hash)
    assert await settled(2) == [second.payment_hash, third.payment_hash]


async def test_it_pays(wallet: ClnWallet) -> None:
    made = await wallet.create(1000, "", 600, "")
    paid = await wallet.pay(made.bolt11, 100)
    assert (paid.payment_hash, paid.amount_msat, paid.fee_msat) == (made.payment_hash, 1000, 5)
    with pytest.raises(PaymentFailed):
        await wallet.pay(made.bolt11, 100)
    with pytest.raises(PaymentFailed):
        await wallet.pay("rubbish", 100)


async def test_an_unclear_failure_to_pay_may_be_a_payment(node: Peer, wallet: ClnWallet) -> None:
    made = await wallet.create(1000, "", 600, "")
    for code, expected in ((205, PaymentFailed), (200, OutcomeUnknown), (-1, OutcomeUnknown)):
        node.set(fail=code)
        with pytest.raises(expected):
            await wallet.pay(made.bolt11, 100)


async def test_a_wrong_rune_says_so_and_stays_secret(node: Peer, folder: Path) -> None:
    wallet = ClnWallet(node.url, "another-rune", str(folder / "ca.pem"), "regtest")
    with pytest.raises(WalletRefused, match="Not authorized") as refusal:
        await wallet.create(1000, "", 600, "")
    assert "another-rune" not in str(refusal.value)
    await wallet.close()


async def test_an_unknown_certificate_is_not_trusted(node: Peer) -> None:
    wallet = ClnWallet(node.url, "a-rune", "", "regtest")
    with pytest.raises(WalletUnreachable):
        await wallet.create(1000, "", 600, "")
    await wallet.close()


async def test_a_slow_answer_is_an_unknown_outcome(node: Peer, folder: Path) -> None:
    node.set(**USUAL)
    backend = Backend("cln", node.url, {"Rune": "a-rune"}, certificate=str(folder / "ca.pem"))
    request = {"subsystem": "invoices", "indexname": "updated", "nextvalue": 10**6}
    with pytest.raises(OutcomeUnknown):
        await backend.call("POST", "/v1/wait", json=request, answer_seconds=1)
    await backend.close()


async def test_it_is_opened_by_the_settings(node: Peer, folder: Path, rows: Rows) -> None:
    node.set(**USUAL)
    cert = str(folder / "ca.pem")
    opened = open_wallet(
        Settings(wallet="cln", network="regtest", cln_url=node.url, cln_rune="a-rune", cln_cert=cert), rows
    )
    assert opened
    assert (await opened.info())["wallet"] == "cln"
    await opened.close()
    assert urlsplit(node.url).scheme == "https"
    with pytest.raises(SettingsError, match="PPQ_CLN_RUNE"):
        open_wallet(Settings(wallet="cln", cln_url=node.url), rows)
