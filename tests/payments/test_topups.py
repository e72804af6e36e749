"""Top-ups on the development wallet and a real store: credited once, whoever looks, dies or comes late."""

import asyncio
import os
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from ppq_proxy.errors import GatewayError, IdempotencyMismatch, NotFound, RateLimited, StillRunning, Unavailable
from ppq_proxy.exchange import Exchange, RequestIds
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.money.amounts import NANO
from ppq_proxy.money.ledger import Ledger, now_ms
from ppq_proxy.money.owner import host_name, owner_name
from ppq_proxy.payments.guests import Guests
from ppq_proxy.payments.rates import Rates, RateUnavailable
from ppq_proxy.payments.reconcile import Reconciler
from ppq_proxy.payments.topup_methods import LIGHTNING, Amount
from ppq_proxy.payments.topup_record import Phase, TopUp
from ppq_proxy.payments.topups import ASK_MS, KIND, LIVE, TopUps
from ppq_proxy.payments.wallets.dev import DevWallet
from ppq_proxy.payments.wallets.lnd import LndWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.sqlite import SqliteStore

SETTINGS = Settings(wallet="dev", btc_usd="100000", challenges_per_minute="off")
THOUSAND = Amount(Decimal(1000), "SATS")


class House:
    """One process of the gateway, as far as top-ups are concerned, on a database that others may share."""

    def __init__(self, path: Path, settings: Settings = SETTINGS) -> None:
        self.store = SqliteStore(str(path))
        self.accounts = Accounts(self.store, Ledger(self.store, owner_name()), b"secret")
        self.wallet = DevWallet(self.store.rows)
        self.rates = Rates({}, fixed_usd=settings.btc_usd)
        self.topups = TopUps(settings, self.accounts, self.wallet, self.rates)
        self.guests = Guests(settings, self.accounts, self.wallet, self.rates, [])
        self.reconciler = Reconciler(self.topups)

    async def open(self) -> "House":
        await self.store.open()
        at = now_ms()
        await self.store.join(self.accounts.ledger.owner, host_name(), os.getpid(), at, at + 3_600_000)
        self.topups.unlock(b"secret")
        return self

    async def close(self) -> None:
        await self.reconciler.stop()
        await self.topups.close()
        await self.rates.close()
        await self.store.sweep(self.accounts.ledger.owner)
        await self.store.close()

    async def account(self) -> str:
        return (await self.accounts.create())[2]

    async def credited(self, account_id: str) -> int:
        return (await self.accounts.account(account_id)).credited

    async def phase(self, made: TopUp) -> str:
        found = await self.topups.find(made.id)
        assert found
        return found.phase

    async def due_now(self, made: TopUp) -> None:
        """Let its time come, as the clock does."""
        row = await self.store.rows.get(KIND, made.id)
        assert row and await self.store.rows.replace(row, row.doc, due=now_ms())


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    one = await House(tmp_path / "a.db").open()
    yield one
    await one.close()


@pytest.fixture
async def other(tmp_path: Path, house: House) -> AsyncIterator[House]:
    """A second process on the same database, with another idea of the rate."""
    one = await House(tmp_path / "a.db", Settings(wallet="dev", btc_usd="50000")).open()
    yield one
    await one.close()


async def made(house: House, account_id: str, amount: Amount = THOUSAND, seconds: int = 0) -> TopUp:
    return await house.topups.create(account_id, LIGHTNING, amount, seconds=seconds)


async def test_PPQ_160_a_paid_invoice_credits_its_account_once(house: House) -> None:
    account_id = await house.account()
    topup = await made(house, account_id)
    await house.topups.look(topup.id)
    assert await house.credited(account_id) == 0
    await house.wallet.pay(topup.lightning_invoice)
    for _ in range(3):
        await house.topups.look(topup.id)
        assert await house.credited(account_id) == NANO * 105 // 100
    found = await house.topups.status(account_id, topup.id)
    assert (found.phase, found.status()["status"], found.status()["credited_usd"]) == (
        "settled",
        "Settled",
        Decimal("1.05"),
    )
    row = await house.store.rows.get(KIND, topup.id)
    assert row and (row.state, row.due) == ("over", None), "nobody looks at it any more"


async def test_PPQ_160_the_rate_is_that_of_its_creation(house: House, other: House) -> None:
    account_id = await house.account()
    for amount, value in ((THOUSAND, NANO), (Amount(Decimal("1.5"), "USD"), NANO * 3 // 2)):
        before, topup = await house.credited(account_id), await made(house, account_id, amount)
        await house.wallet.pay(topup.lightning_invoice)
        await other.topups.look(topup.id)
        assert await house.credited(account_id) - before == value * 105 // 100


async def test_PPQ_160_dollars_are_credited_as_asked_for_whatever_sats_round_to(house: House, tmp_path: Path) -> None:
    odd = await House(tmp_path / "a.db", Settings(wallet="dev", btc_usd="97123.45")).open()
    account_id = await odd.account()
    topup = await made(odd, account_id, Amount(Decimal("1.5"), "USD"))
    assert Decimal(topup.asked) == 1_545_000, "1544.4 sats, rounded up"
    await odd.wallet.pay(topup.lightning_invoice)
    status = (await odd.topups.status(account_id, topup.id)).status()
    assert (status["amount_paid"], status["amount_due"]) == (Decimal("1.5"), 0)
    assert await odd.credited(account_id) == NANO * 1575 // 1000
    await odd.close()


async def test_PPQ_160_many_who_look_at_once_in_two_processes_credit_once(house: House, other: House) -> None:
    account_id = await house.account()
    topups = [await made(house, account_id) for _ in range(4)]
    for topup in topups:
        await house.wallet.pay(topup.lightning_invoice)
    looks = [one.topups.look(topup.id) for topup in topups for one in (house, other) * 10]
    sweeps = [one.reconciler.sweep() for one in (house, other) * 3]
    await asyncio.gather(*looks, *sweeps)
    assert await house.credited(account_id) == 4 * NANO * 105 // 100
    assert [await house.phase(topup) for topup in topups] == ["settled"] * 4
    assert await house.store.audit() == []


async def test_PPQ_160_what_nobody_asks_about_is_found_by_the_rounds(house: House, other: House) -> None:
    account_id = await house.account()
    topup = await made(house, account_id)
    house.reconciler.start()
    other.reconciler.start()
    await house.wallet.pay(topup.lightning_invoice)
    async with asyncio.timeout(15):
        while not await house.credited(account_id):
            await asyncio.sleep(0.05)
    assert await house.credited(account_id) == NANO * 105 // 100


async def test_PPQ_160_a_credit_that_was_decided_and_not_made_is_made_once(house: House, other: House) -> None:
    """As a process leaves it that dies between the two."""
    account_id = await house.account()
    topup = await made(house, account_id)
    row = await house.store.rows.get(KIND, topup.id)
    assert row
    decided = row.doc | {"phase": "paid", "credits": [NANO], "progress": "Settled", "paid": row.doc["asked"]}
    assert await house.store.rows.replace(row, decided, state=LIVE, due=now_ms())
    await asyncio.gather(*(one.reconciler.sweep() for one in (house, other)))
    assert await house.credited(account_id) == NANO
    await house.due_now(topup)
    await house.reconciler.sweep()
    assert await house.phase(topup) == "settled"
    assert await house.credited(account_id) == NANO
    for again in (house, other):  # and one that died before it wrote that the credit was made
        row = await house.store.rows.get(KIND, topup.id)
        assert row and await house.store.rows.replace(row, decided, state=LIVE, due=now_ms())
        await again.reconciler.sweep()
        assert (await house.credited(account_id), await house.phase(topup)) == (NANO, "settled")


async def test_PPQ_160_a_payment_that_settles_after_the_end_is_credited(house: House) -> None:
    account_id = await house.account()
    topup = await made(house, account_id, seconds=2)
    await house.wallet.pay(topup.lightning_invoice, settle_after_seconds=6)
    await asyncio.sleep(3)
    found = await house.topups.status(account_id, topup.id)
    assert (found.status()["status"], found.dead) == ("Expired", False)
    assert await house.credited(account_id) == 0
    await asyncio.sleep(3.5)
    found = await house.topups.status(account_id, topup.id)
    assert found.status()["status"] == "Settled"
    assert await house.credited(account_id) == NANO * 105 // 100


async def test_PPQ_156_an_unpaid_one_expires_is_kept_a_while_and_forgotten(house: House) -> None:
    account_id = await house.account()
    topup = await made(house, account_id, seconds=1)
    await asyncio.sleep(1.2)
    found = await house.topups.status(account_id, topup.id)
    assert (found.status()["status"], found.dead, found.phase) == ("Expired", True, "open")
    row = await house.store.rows.get(KIND, topup.id)
    assert row and await house.store.rows.replace(row, row.doc | {"watch_until": 0}, due=now_ms())
    await house.reconciler.sweep()
    row = await house.store.rows.get(KIND, topup.id)
    assert row and row.due and row.doc["phase"] == "expired"
    assert 29 < (row.due - now_ms()) / 86_400_000 < 31
    assert (await house.topups.status(account_id, topup.id)).status()["status"] == "Expired"
    assert await house.store.rows.replace(row, row.doc | {"dead": False}, due=row.due)  # so that there is news to write
    house.topups._looked.clear()
    await house.topups.status(account_id, topup.id)
    again = await house.store.rows.get(KIND, topup.id)
    assert again and again.doc["dead"] and again.due == row.due, "asking does not make it look recent"
    await house.due_now(topup)
    await house.reconciler.sweep()
    with pytest.raises(NotFound):
        await house.topups.status(account_id, topup.id)


async def test_PPQ_156_only_the_owner_sees_it(house: House) -> None:
    mine, strange = await house.account(), await house.account()
    topup = await made(house, mine)
    for who, name in ((strange, topup.id), (mine, "BTCPayInvoiceId123"), (mine, topup.id.upper()), (mine, "")):
        with pytest.raises(NotFound):
            await house.topups.status(who, name)


async def test_PPQ_156_names_cannot_be_guessed_and_do_not_repeat(house: House) -> None:
    account_id = await house.account()
    names = {(await made(house, account_id)).id for _ in range(5)}
    names |= {(await house.topups.create(account_id, LIGHTNING, THOUSAND, key=b"%d" % n)).id for n in range(5)}
    assert len(names) == 10
    assert all(len(name) == 32 and int(name, 16) for name in names)
    known = await house.topups.create(account_id, LIGHTNING, THOUSAND, key=b"1")
    house.topups.unlock(b"another installation")
    assert (await house.topups.create(account_id, LIGHTNING, THOUSAND, key=b"1")).id != known.id


async def test_PPQ_150_the_same_idempotency_key_is_the_same_top_up(house: House, other: House) -> None:
    mine, strange = await house.account(), await house.account()
    first = await house.topups.create(mine, LIGHTNING, THOUSAND, key=b"k")
    for one in (house, other):
        again = await one.topups.create(mine, LIGHTNING, Amount(Decimal("1E+3"), "SATS"), key=b"k")
        assert again.created() == first.created()
    assert (await house.topups.create(strange, LIGHTNING, THOUSAND, key=b"k")).id != first.id
    with pytest.raises(IdempotencyMismatch):
        await house.topups.create(mine, LIGHTNING, Amount(Decimal(1001), "SATS"), key=b"k")
    for wrong in (b"", b"x" * 256):
        with pytest.raises(GatewayError, match="Idempotency-Key"):
            await house.topups.create(mine, LIGHTNING, THOUSAND, key=wrong)
    await house.wallet.pay(first.lightning_invoice)
    await house.topups.look(first.id)
    assert (await house.topups.create(mine, LIGHTNING, THOUSAND, key=b"k")).phase == Phase.SETTLED


async def test_PPQ_150_eight_at_once_with_one_key_ask_the_wallet_once(house: House, other: House) -> None:
    account_id = await house.account()
    calls = [one.topups.create(account_id, LIGHTNING, THOUSAND, key=b"k") for one in (house, other) * 4]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    invoices = {answer.lightning_invoice for answer in answers if isinstance(answer, TopUp)}
    assert len(invoices) == 1
    assert all(isinstance(answer, TopUp | StillRunning) for answer in answers)
    assert len(await house.store.rows.find("dev_invoice")) == 1


@pytest.mark.parametrize("dead", [True, False], ids=["known to be dead", "out of time"])
async def test_PPQ_150_one_whose_process_died_before_it_had_a_bill_is_made_by_the_next(
    house: House, dead: bool
) -> None:
    account_id = await house.account()
    first = await house.topups.create(account_id, LIGHTNING, THOUSAND, key=b"k")
    row = await house.store.rows.get(KIND, first.id)
    assert row
    asked = row.doc | {"phase": "asked", "lightning_invoice": "", "handle": ""}
    assert await house.store.rows.replace(row, asked, due=now_ms() + ASK_MS)
    with pytest.raises(StillRunning):
        await house.topups.create(account_id, LIGHTNING, THOUSAND, key=b"k")
    with pytest.raises(NotFound):
        await house.topups.status(account_id, first.id)
    if dead:
        await house.store.sweep(house.accounts.ledger.owner)
    else:
        await house.due_now(first)
    second = await house.topups.create(account_id, LIGHTNING, THOUSAND, key=b"k")
    assert second.id == first.id
    assert second.lightning_invoice not in ("", first.lightning_invoice)
    row = await house.store.rows.get(KIND, first.id)
    assert row and await house.store.rows.replace(row, asked, due=now_ms())
    await house.reconciler.sweep()
    assert await house.topups.find(first.id) is None, "nobody has seen a bill of it"


async def test_PPQ_150_a_wallet_that_is_down_leaves_nothing_behind(house: House, tmp_path: Path) -> None:
    down = await House(tmp_path / "a.db").open()
    down.topups = TopUps(SETTINGS, down.accounts, LndWallet("http://127.0.0.1:1", "00", "", "regtest"), down.rates)
    account_id = await house.account()
    with pytest.raises(Unavailable):
        await down.topups.create(account_id, LIGHTNING, THOUSAND, key=b"k")
    assert await house.store.rows.find(KIND) == []
    assert (await house.topups.create(account_id, LIGHTNING, THOUSAND, key=b"k")).phase == Phase.OPEN
    await down.close()


async def test_PPQ_160_another_wallet_is_not_asked_about_an_older_ones_invoices(house: House, tmp_path: Path) -> None:
    account_id = await house.account()
    topup = await made(house, account_id)
    moved = await House(tmp_path / "a.db").open()
    moved.topups = TopUps(SETTINGS, moved.accounts, LndWallet("http://127.0.0.1:1", "00", "", "regtest"), moved.rates)
    await moved.topups.look(topup.id)
    assert (await moved.topups.status(account_id, topup.id)).status()["status"] == "New"
    await moved.close()
    await house.wallet.pay(topup.lightning_invoice)
    assert (await house.topups.status(account_id, topup.id)).status()["status"] == "Settled"


async def test_PPQ_150_minting_is_limited_for_each_peer(house: House) -> None:
    limited = TopUps(Settings(challenges_per_minute="2"), house.accounts, house.wallet, house.rates)
    account_id = await house.account()
    for _ in range(2):
        await limited.create(account_id, LIGHTNING, THOUSAND, peer="198.51.100.7", key=b"k")  # the second is no new one
        await limited.create(account_id, LIGHTNING, THOUSAND, peer="198.51.100.8")
    with pytest.raises(RateLimited) as refusal:
        await limited.create(account_id, LIGHTNING, THOUSAND, peer="198.51.100.8")
    assert 1 <= int(refusal.value.headers["retry-after"]) <= 61
    await limited.create(account_id, LIGHTNING, THOUSAND, peer="198.51.100.7")
    await limited.create(account_id, LIGHTNING, THOUSAND)


async def test_PPQ_158_what_cannot_be_served_is_not_offered(house: House) -> None:
    assert [method.name for method in house.topups.methods()] == ["btc-lightning"]
    blind = DevWallet(house.store.rows)
    blind.can_tell = False  # as a Lightning address without a way to verify
    for wallet in (blind, None):
        without = TopUps(SETTINGS, house.accounts, wallet, house.rates)
        assert without.methods() == []
        with pytest.raises(Unavailable):
            without.method("btc-lightning")
    for name, problem in (("doge", NotFound), ("", NotFound), ("btc", Unavailable), ("xmr", Unavailable)):
        with pytest.raises(problem):
            house.topups.method(name)


async def test_PPQ_150_without_a_rate_there_is_no_top_up(house: House, tmp_path: Path) -> None:
    account_id = await house.account()
    blind = TopUps(SETTINGS, house.accounts, house.wallet, Rates({"a": None, "b": None}))  # type: ignore[dict-item]  # never asked
    with pytest.raises(RateUnavailable):
        await blind.create(account_id, LIGHTNING, THOUSAND)
    assert await house.store.rows.find(KIND) == []


async def test_PPQ_160_a_top_ups_preimage_pays_for_no_call_and_cannot_be_claimed(house: House) -> None:
    account_id, thief = await house.account(), await house.account()
    topup = await made(house, account_id)
    house.guests.unlock(b"secret")
    for stage in ("unpaid", "paid", "credited"):
        if stage == "paid":
            await house.wallet.pay(topup.lightning_invoice)
        if stage == "credited":
            await house.topups.look(topup.id)
        preimage = (await house.store.rows.find("dev_invoice"))[0].doc["preimage"]
        for who in (thief, account_id):
            with pytest.raises(NotFound):
                await house.guests.claim(preimage, who)
        for shown in (f"L402 whatever:{preimage}", f"LSAT :{preimage}", f'Payment preimage="{preimage}"'):
            scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"authorization", shown.encode())]}
            with pytest.raises(GatewayError):
                await house.guests.payer(Exchange(scope, None, None, RequestIds()))  # type: ignore[arg-type]  # never used
    assert await house.credited(account_id) == NANO * 105 // 100
    assert await house.credited(thief) == 0


async def test_PPQ_160_an_invoice_of_a_402_is_no_top_up(house: House) -> None:
    """A paid invoice that no top-up asked for credits no account, whatever the wallet tells of it."""
    account_id = await house.account()
    topup = await made(house, account_id)
    stranger = await house.wallet.create(5_000_000, "another", 600, "")
    await house.wallet.pay(stranger.bolt11)
    await house.topups.paid(stranger.payment_hash)
    await house.topups.look(topup.id)
    assert await house.credited(account_id) == 0
    await house.wallet.pay(topup.lightning_invoice)
    await house.topups.paid(topup.handle)
    assert await house.credited(account_id) == NANO * 105 // 100, "a push about ours is followed at once"
