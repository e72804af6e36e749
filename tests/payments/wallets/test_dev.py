"""The development wallet: real invoices, paid once, in time, and settled when it was said."""

import asyncio
import hashlib
from pathlib import Path

import bolt11
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import sign_regtest
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import PaymentFailed, State, WalletRefused
from ppq_proxy.payments.wallets.dev import DevWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from ppq_proxy.store.sqlite import SqliteStore


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_795_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wallet(rows: Rows, clock: Clock) -> DevWallet:
    return DevWallet(rows, clock)


async def test_an_invoice_is_a_real_one_of_regtest(wallet: DevWallet, clock: Clock) -> None:
    made = await wallet.create(21_000, "a call", 600, "quote-1")
    found = bolt11.decode(made.bolt11)
    assert made.bolt11.startswith("lnbcrt")
    assert (found.payment_hash, found.amount_msat, found.description) == (made.payment_hash, 21_000, "a call")
    assert found.date + found.expiry == made.expires_at == clock.now + 600
    assert (await wallet.status(made.handle)).state == State.PENDING


async def test_paying_gives_the_preimage_and_settles(wallet: DevWallet) -> None:
    made = await wallet.create(21_000, "", 600, "")
    paid = await wallet.pay(made.bolt11)
    assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == made.payment_hash == paid.payment_hash
    assert paid.amount_msat == 21_000
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_000)
    assert paid.preimage not in repr(paid)


async def test_a_payment_can_settle_later_than_its_preimage_is_out(wallet: DevWallet, clock: Clock) -> None:
    made = await wallet.create(21_000, "", 600, "")
    assert (await wallet.pay(made.bolt11, settle_after_seconds=700)).preimage
    assert (await wallet.status(made.handle)).state == State.PENDING
    clock.now += 699
    assert (await wallet.status(made.handle)).state == State.PENDING
    clock.now += 1
    assert (await wallet.status(made.handle)).state == State.SETTLED


async def test_an_expired_invoice_is_not_paid(wallet: DevWallet, clock: Clock) -> None:
    made = await wallet.create(21_000, "", 3, "")
    clock.now += 3
    assert (await wallet.status(made.handle)).state == State.EXPIRED
    with pytest.raises(PaymentFailed, match="expired"):
        await wallet.pay(made.bolt11)
    clock.now -= 1
    assert (await wallet.pay(made.bolt11)).preimage


async def test_an_invoice_is_paid_once_by_whoever_comes_first(wallet: DevWallet) -> None:
    made = await wallet.create(21_000, "", 600, "")
    results = await asyncio.gather(*(wallet.pay(made.bolt11) for _ in range(20)), return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert {type(result) for result in results if isinstance(result, BaseException)} == {PaymentFailed}
    with pytest.raises(PaymentFailed, match="already"):
        await wallet.pay(made.bolt11)


async def test_other_peoples_invoices_are_not_paid(wallet: DevWallet, clock: Clock) -> None:
    made = await wallet.create(21_000, "", 600, "")
    cheaper = sign_regtest(b"k" * 32, made.payment_hash, 1000, "", clock.now, 600)
    for invoice in (cheaper, sign_regtest(b"k" * 32, "00" * 32, 1000, "", clock.now, 600), "rubbish"):
        with pytest.raises(PaymentFailed):
            await wallet.pay(invoice)
    assert (await wallet.status(made.handle)).state == State.PENDING
    assert (await wallet.pay(made.bolt11.upper())).amount_msat == 21_000


async def test_an_unknown_hash_is_unknown(wallet: DevWallet) -> None:
    assert (await wallet.status("00" * 32)).state == State.UNKNOWN


@pytest.mark.parametrize(("msat", "seconds"), [(0, 600), (-1, 600), (1000, 0)])
async def test_senseless_invoices_are_refused(wallet: DevWallet, msat: int, seconds: int) -> None:
    with pytest.raises(WalletRefused):
        await wallet.create(msat, "", seconds, "")


async def test_a_second_process_pays_what_the_first_made(tmp_path: Path) -> None:
    stores = [SqliteStore(str(tmp_path / "both.db")) for _ in range(2)]
    for store in stores:
        await store.open()
    serving, command = (DevWallet(store.rows) for store in stores)
    made = await serving.create(5000, "", 60, "")
    await command.pay(made.bolt11)
    assert (await serving.status(made.handle)).state == State.SETTLED
    another = await command.create(5000, "", 60, "")
    assert bolt11.decode(another.bolt11).payee == bolt11.decode(made.bolt11).payee
    for store in stores:
        await store.close()


def test_it_is_opened_by_the_settings(rows: Rows) -> None:
    assert open_wallet(Settings(), rows) is None
    opened = open_wallet(Settings(wallet="dev"), rows)
    assert isinstance(opened, DevWallet)
    assert opened.network == "regtest"
    assert isinstance(
        open_wallet(Settings(wallet="dev", network="regtest", x402_network="eip155:84532"), rows), DevWallet
    )


@pytest.mark.parametrize(
    "settings",
    [
        Settings(wallet="dev", network="mainnet"),
        Settings(wallet="dev", network="signet"),
        Settings(wallet="dev", x402_network="eip155:8453"),
        Settings(wallet="dev", x402_network="base"),
    ],
    ids=str,
)
def test_it_refuses_to_start_beside_a_mainnet_setting(settings: Settings, rows: Rows) -> None:
    with pytest.raises(SettingsError, match="dev"):
        open_wallet(settings, rows)
