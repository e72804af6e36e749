"""The LNbits wallet, and the Lightning address wallet, against a real LNbits."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator

import bolt11
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import OutcomeUnknown, PaymentFailed, State, WalletRefused, WalletUnreachable
from ppq_proxy.payments.wallets.lightning_address import LightningAddressWallet
from ppq_proxy.payments.wallets.lnbits import LnbitsWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from tests.payments.wallets.forwarder import forwarding
from tests.peers.lnbits import Server, lnbits

pytestmark = pytest.mark.slow

# Its FakeWallet makes invoices of mainnet, whatever it is told.
NETWORK = "mainnet"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with lnbits(tmp_path_factory.mktemp("lnbits")) as server:
        yield server


@pytest.fixture
async def wallet(server: Server) -> AsyncIterator[LnbitsWallet]:
    wallet = LnbitsWallet(server.url, server.merchant.invoice_key, NETWORK)
    yield wallet
    await wallet.close()


async def test_an_invoice_is_made_paid_and_settled(server: Server, wallet: LnbitsWallet) -> None:
    made = await wallet.create(21_000, "a call", 600, "quote-1")
    found = bolt11.decode(made.bolt11)
    assert (found.payment_hash, found.amount_msat, found.description) == (made.payment_hash, 21_000, "a call")
    assert found.expiry == 600
    assert (await wallet.status(made.handle)).state == State.PENDING
    await asyncio.to_thread(server.pay, made.bolt11)
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_000)


async def test_it_pays_with_the_admin_key(server: Server, wallet: LnbitsWallet) -> None:
    payer = LnbitsWallet(server.url, server.payer.admin_key, NETWORK)
    made = await wallet.create(5000, "", 600, "")
    paid = await payer.pay(made.bolt11, 10_000)
    assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == made.payment_hash
    assert (paid.amount_msat, paid.fee_msat) == (5000, 0)
    with pytest.raises(PaymentFailed):
        await payer.pay(made.bolt11, 10_000)
    await payer.close()


async def test_expired_and_unknown_are_told(wallet: LnbitsWallet) -> None:
    made = await wallet.create(1000, "", 1, "")
    await asyncio.sleep(1.5)
    assert (await wallet.status(made.handle)).state == State.EXPIRED
    assert (await wallet.status("00" * 32)).state == State.UNKNOWN


async def test_fractions_of_a_sat_are_refused(wallet: LnbitsWallet) -> None:
    with pytest.raises(WalletRefused, match="whole sats"):
        await wallet.create(1500, "", 600, "")


async def test_settlements_are_pushed(server: Server, wallet: LnbitsWallet) -> None:
    made = await wallet.create(1000, "", 600, "")
    async with asyncio.timeout(20), contextlib.aclosing(wallet.watch()) as watched:
        waiting = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(1)
        await asyncio.to_thread(server.pay, made.bolt11)
        assert await waiting == made.payment_hash


async def test_an_invoice_of_another_network_is_refused(server: Server) -> None:
    wallet = LnbitsWallet(server.url, server.merchant.invoice_key, "regtest")
    with pytest.raises(InvoiceMismatch, match="network"):
        await wallet.create(1000, "", 600, "")
    await wallet.close()


async def test_a_lost_answer_is_told_and_not_repeated(server: Server) -> None:
    async with forwarding(int(server.url.rsplit(":", 1)[1])) as middle:
        wallet = LnbitsWallet(f"http://127.0.0.1:{middle.port}", server.merchant.invoice_key, NETWORK)
        await wallet.info()
        middle.swallow = True
        with pytest.raises(OutcomeUnknown):
            await wallet.create(3000, "", 600, "lost")
        await wallet.close()


async def test_a_wrong_key_says_so_and_stays_secret(server: Server) -> None:
    wallet = LnbitsWallet(server.url, "another-key", NETWORK)
    for attempt in (wallet.create(1000, "", 600, ""), wallet.info()):
        with pytest.raises(WalletRefused) as refusal:
            await attempt
        assert "another-key" not in str(refusal.value)
    await wallet.close()


async def test_the_invoice_key_cannot_pay(wallet: LnbitsWallet, server: Server) -> None:
    made = await wallet.create(1000, "", 600, "")
    with pytest.raises(PaymentFailed):
        await wallet.pay(made.bolt11, 0)


async def test_a_real_lightning_address_makes_invoices(server: Server) -> None:
    url = await asyncio.to_thread(server.lightning_address, "gateway")
    wallet = LightningAddressWallet(url, NETWORK)
    made = await wallet.create(21_000, "a call", 600, "")
    assert bolt11.decode(made.bolt11).description_hash
    assert (await wallet.status(made.handle)).state == State.UNTOLD, "LNbits offers no verification"
    await asyncio.to_thread(server.pay, made.bolt11)
    assert not (await wallet.info())["can_tell"]
    await wallet.close()


async def test_it_is_opened_by_the_settings(server: Server, rows: Rows) -> None:
    opened = open_wallet(Settings(wallet="lnbits", lnbits_url=server.url, lnbits_key=server.merchant.invoice_key), rows)
    assert opened
    assert opened.network == "mainnet"
    assert isinstance((await opened.info())["balance_msat"], int)
    await opened.close()
    with pytest.raises(SettingsError, match="PPQ_LNBITS_KEY"):
        open_wallet(Settings(wallet="lnbits", lnbits_url=server.url), rows)


async def test_nobody_listening_is_unreachable() -> None:
    wallet = LnbitsWallet("http://127.0.0.1:1", "key", NETWORK)
    for attempt in (wallet.create(1000, "", 600, ""), wallet.status("00" * 32), anext(wallet.watch())):
        with pytest.raises(WalletUnreachable):
            await attempt
    await wallet.close()
