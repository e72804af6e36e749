"""The Lightning address wallet against a stand-in for somebody's address service."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import parse_qsl

import httpx2
import lnurl
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import State, WalletRefused, WalletUnreachable
from ppq_proxy.payments.wallets.lightning_address import LightningAddressWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from tests.peers.fake_server import Peer, running


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="module")
def running_service() -> Iterator[Peer]:
    with running("tests.peers.fake_lnurl") as peer:
        yield peer


@pytest.fixture
def service(running_service: Peer) -> Peer:
    httpx2.post(f"{running_service.url}/_reset")
    return running_service


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def wallet(service: Peer, clock: Clock) -> AsyncIterator[LightningAddressWallet]:
    wallet = LightningAddressWallet(f"{service.url}/.well-known/lnurlp/gateway", "regtest", clock)
    yield wallet
    await wallet.close()


def pay(service: Peer, payment_hash: str) -> str:
    return str(httpx2.post(f"{service.url}/_pay/{payment_hash}").json()["preimage"])


def asked(service: Peer) -> list[str]:
    return [request["path"] for request in service.seen()]


async def test_an_invoice_is_made_paid_and_verified(service: Peer, wallet: LightningAddressWallet) -> None:
    made = await wallet.create(21_000, "a call for a very long reason", 600, "")
    assert made.amount_msat == 21_000
    assert wallet.can_tell
    assert (await wallet.status(made.handle)).state == State.PENDING
    pay(service, made.payment_hash)
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_000)
    query = dict(parse_qsl(next(r["query"] for r in reversed(service.seen()) if r["path"] == "/pay")))
    assert query == {"user": "gateway", "amount": "21000", "comment": "a call for a very lo"}


async def test_without_verification_the_preimage_alone_is_proof(service: Peer, wallet: LightningAddressWallet) -> None:
    service.set(verify=False)
    made = await wallet.create(21_000, "", 600, "")
    assert made.handle == ""
    assert not wallet.can_tell
    assert (await wallet.status(made.handle)).state == State.UNTOLD
    assert hashlib.sha256(bytes.fromhex(pay(service, made.payment_hash))).hexdigest() == made.payment_hash


async def test_the_first_step_is_remembered_for_ten_minutes(
    service: Peer, wallet: LightningAddressWallet, clock: Clock
) -> None:
    before = len(asked(service))
    for _ in range(3):
        await wallet.create(1000, "", 600, "")
    assert asked(service)[before:] == ["/.well-known/lnurlp/gateway", "/pay", "/pay", "/pay"]
    clock.now += 601
    await wallet.create(1000, "", 600, "")
    assert asked(service)[before + 4 :] == ["/.well-known/lnurlp/gateway", "/pay"]
    clock.now += 601
    service.set(down=True)
    assert await wallet.create(1000, "", 600, ""), "an old answer is better than none"
    fresh = LightningAddressWallet(f"{service.url}/.well-known/lnurlp/gateway", "regtest")
    with pytest.raises(WalletRefused):
        await fresh.create(1000, "", 600, "")
    await fresh.close()


async def test_expired_and_unknown_are_told(service: Peer, wallet: LightningAddressWallet) -> None:
    service.set(life=2)
    made = await wallet.create(1000, "", 1, "")
    await asyncio.sleep(2.1)
    assert (await wallet.status(made.handle)).state == State.EXPIRED
    nowhere = f"{'00' * 32} {service.url}/verify/{'00' * 32}"
    assert (await wallet.status(nowhere)).state == State.UNKNOWN


async def test_an_invoice_that_ends_at_once_is_refused(service: Peer, wallet: LightningAddressWallet) -> None:
    service.set(life=10)
    with pytest.raises(InvoiceMismatch, match="expiry"):
        await wallet.create(1000, "", 600, "")


async def test_a_lying_service_is_caught(service: Peer, wallet: LightningAddressWallet) -> None:
    service.set(lie_msat=5000)
    with pytest.raises(InvoiceMismatch, match="amount"):
        await wallet.create(1000, "", 600, "")
    service.set(lie_msat=None, lie_metadata=True)
    with pytest.raises(WalletRefused, match="description"):
        await wallet.create(1000, "", 600, "")
    service.set(lie_metadata=False, other_invoice=True)
    made = [await wallet.create(1000, "", 600, "") for _ in range(2)][1]
    with pytest.raises(WalletRefused, match="another invoice"):
        await wallet.status(made.handle)


async def test_a_description_without_a_hash_is_no_fault(service: Peer, wallet: LightningAddressWallet) -> None:
    service.set(metadata_hash=False)
    assert (await wallet.create(1000, "", 600, "")).amount_msat == 1000


async def test_the_services_limits_are_kept(wallet: LightningAddressWallet) -> None:
    for msat in (999, 100_000_001):
        with pytest.raises(WalletRefused, match="1000 to 100000000"):
            await wallet.create(msat, "", 600, "")


@pytest.mark.parametrize(
    "raw", ["", "rubbish", "[]", "{}", '{"pr":5}', '{"status":"ERROR","reason":"busy"}', "x" * 100_000]
)
async def test_rubbish_is_an_error_and_no_invoice(service: Peer, wallet: LightningAddressWallet, raw: str) -> None:
    service.set(raw=raw)
    with pytest.raises((WalletRefused, InvoiceMismatch)):
        await wallet.create(1000, "", 600, "")


@pytest.mark.parametrize("user", ["nobody", "moved", "withdraw"])
async def test_an_address_that_takes_no_payments_says_so(service: Peer, user: str) -> None:
    wallet = LightningAddressWallet(f"{service.url}/.well-known/lnurlp/{user}", "regtest")
    with pytest.raises(WalletRefused):
        await wallet.create(1000, "", 600, "")
    await wallet.close()


INSIDE = [
    "http://127.0.0.1:6379/",
    "http://localhost/",
    "https://169.254.169.254/latest",
    "https://[::1]/",
    "ftp://a/",
    "http://example.com/",
]


@pytest.mark.parametrize("url", INSIDE)
async def test_the_service_cannot_lead_into_the_operators_network(
    service: Peer, wallet: LightningAddressWallet, url: str
) -> None:
    service.set(callback=url)
    with pytest.raises(WalletRefused):
        await wallet.create(1000, "", 600, "")
    httpx2.post(f"{service.url}/_reset")
    service.set(verify_url=url)
    fresh = LightningAddressWallet(f"{service.url}/.well-known/lnurlp/gateway", "regtest")
    made = await fresh.create(1000, "", 600, "")
    with pytest.raises(WalletRefused):
        await fresh.status(made.handle)
    await fresh.close()


async def test_nobody_listening_is_unreachable() -> None:
    wallet = LightningAddressWallet("http://127.0.0.1:1/.well-known/lnurlp/gateway", "regtest")
    with pytest.raises(WalletUnreachable):
        await wallet.create(1000, "", 600, "")
    await wallet.close()


async def test_info_tells_whether_it_can_tell(service: Peer, wallet: LightningAddressWallet) -> None:
    assert (await wallet.info())["can_tell"] is True
    service.set(verify=False)
    assert await wallet.info() == {
        "wallet": "lightning-address",
        "network": "regtest",
        "can_tell": False,
        "least_msat": 1000,
        "most_msat": 100_000_000,
    }


async def test_it_is_opened_by_the_settings(service: Peer, rows: Rows) -> None:
    url = f"{service.url}/.well-known/lnurlp/gateway"
    for given in (url, str(lnurl.url_encode(url))):
        opened = open_wallet(Settings(wallet="lightning-address", network="regtest", lightning_address=given), rows)
        assert opened
        assert (await opened.create(1000, "", 600, "")).amount_msat == 1000
        await opened.close()
    known = open_wallet(Settings(wallet="lightning-address", lightning_address="user@example.com"), rows)
    assert known
    assert known.network == "mainnet"
    for wrong in ("", "user", "user@", "http://example.com/x", "a b@example.com", "lnurl1qqqq"):
        with pytest.raises(SettingsError, match="PPQ_LIGHTNING_ADDRESS"):
            open_wallet(Settings(wallet="lightning-address", lightning_address=wrong), rows)
