"""Automatic top-ups over a real Nostr relay, from a wallet that can refuse, forget to answer, or pay late."""

import asyncio
import base64
import importlib.util
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ppq_proxy.errors import BadRequest, NotFound, Unavailable
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.money.amounts import NANO
from ppq_proxy.money.ledger import Ledger, now_ms
from ppq_proxy.money.owner import owner_name
from ppq_proxy.payments.auto_topup import KIND, AutoTopUps
from ppq_proxy.payments.auto_topup_record import Link, parse_wish, without_secret
from ppq_proxy.payments.rates import Rates
from ppq_proxy.payments.topup_methods import LIGHTNING, Amount
from ppq_proxy.payments.topups import KIND as TOPUP
from ppq_proxy.payments.topups import TopUps
from ppq_proxy.payments.wallets.nwc import NwcWallet
from ppq_proxy.settings import Settings
from ppq_proxy.store.sqlite import SqliteStore
from tests.gateway.world import World, eventually
from tests.peers.fake_server import Peer, running

pytest.importorskip("nostr_sdk", reason="needs the extra nwc")
pytest.importorskip("wsproto", reason="needs the extra nwc")
METHODS = ["make_invoice", "lookup_invoice", "pay_invoice", "get_info"]
USUAL: dict[str, Any] = {"error": None, "errors": {}, "lost": [], "ignored": [], "methods": METHODS}
TEN = 10 * NANO
WITH_BONUS = TEN * 105 // 100


@pytest.fixture(scope="module")
def service() -> Iterator[Peer]:
    """A relay and a wallet on it: the gateway is paid into it and the customer pays from it."""
    with running("tests.peers.nostr", "nip44") as peer:
        yield peer


@pytest.fixture(scope="module")
def url(service: Peer) -> str:
    return str(httpx2.get(f"{service.url}/_url").json()["url"])


class House:
    """One process of the gateway, as far as automatic top-ups are concerned."""

    def __init__(self, path: Path, url: str) -> None:
        self.store = SqliteStore(str(path))
        self.accounts = Accounts(self.store, Ledger(self.store, owner_name()), b"secret")
        self.wallet = NwcWallet(url, "regtest")
        self.topups = TopUps(Settings(), self.accounts, self.wallet, Rates({}, fixed_usd="100000"))
        self.auto = AutoTopUps(self.accounts, self.topups)
        self.url = url

    async def open(self) -> "House":
        await self.store.open()
        return self

    async def close(self) -> None:
        await self.auto.stop()
        await self.topups.close()
        await self.wallet.close()
        await self.topups.rates.close()
        await self.store.close()

    async def account(self, credit: int = 0, **wish: Any) -> str:
        """An account with credit and a connected wallet."""
        account_id = (await self.accounts.create())[2]
        if credit:
            await self.accounts.credit(account_id, credit, f"test:{account_id}")
        await self.auto.connect(account_id, {"nwc_url": self.url} | {k: Decimal(v) for k, v in wish.items()})
        return account_id

    async def round(self, account_id: str) -> dict[str, Any]:
        """Let its time come, as the clock does; what is shown then."""
        row = await self.store.rows.get(KIND, account_id)
        assert row and await self.store.rows.replace(row, row.doc, due=now_ms())
        await self.auto.sweep()
        return await self.auto.settings(account_id)

    async def link(self, account_id: str) -> Link:
        row = await self.store.rows.get(KIND, account_id)
        assert row
        return Link.of(row)

    async def credited(self, account_id: str) -> int:
        return (await self.accounts.account(account_id)).credited


@pytest.fixture
async def house(tmp_path: Path, service: Peer, url: str) -> AsyncIterator[House]:
    service.set(**USUAL)
    one = await House(tmp_path / "a.db", url).open()
    yield one
    service.set(**USUAL)
    await one.close()


@pytest.fixture
async def other(tmp_path: Path, house: House, url: str) -> AsyncIterator[House]:
    """A second process on the same database."""
    one = await House(tmp_path / "a.db", url).open()
    yield one
    await one.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a lost answer only a moment."""
    monkeypatch.setattr("ppq_proxy.payments.wallets.nwc._PAY_SECONDS", 1)


def asked(service: Peer, method: str) -> int:
    return int(httpx2.get(f"{service.url}/_asked").json().count(method))


async def test_PPQ_165_166_168_connected_with_the_defaults(house: House, url: str) -> None:
    account_id = (await house.accounts.create())[2]
    nothing = {
        "connected": False,
        "enabled": False,
        "nwc_url": None,
        "threshold_usd": None,
        "topup_amount_usd": None,
        "daily_limit_usd": None,
    }
    assert await house.auto.settings(account_id) == nothing
    shown = await house.auto.connect(account_id, {"nwc_url": url})
    assert (shown["threshold_usd"], shown["topup_amount_usd"], shown["daily_limit_usd"]) == (10, 10, 100)
    assert (shown["connected"], shown["enabled"], shown["status"], shown["last_error"]) == (True, True, "ready", None)
    found = await house.auto.settings(account_id)
    assert found | {"next_check_at": 0} == shown | {"next_check_at": 0}
    await house.auto.disconnect(account_id)
    assert await house.auto.settings(account_id) == nothing
    with pytest.raises(NotFound):
        await house.auto.disconnect(account_id)


async def test_PPQ_161_the_connection_is_sealed_and_never_shown(house: House, url: str, tmp_path: Path) -> None:
    secret = url.split("secret=")[1]
    account_id = await house.account()
    assert secret not in str(await house.auto.settings(account_id))
    assert (await house.auto.settings(account_id))["nwc_url"] == url.replace(f"&secret={secret}", "")
    row = await house.store.rows.get(KIND, account_id)
    assert row and secret not in str(row.doc)
    files = await asyncio.to_thread(lambda: b"".join(one.read_bytes() for one in tmp_path.glob("a.db*")))
    assert files and secret.encode() not in files
    assert (
        without_secret("nostr+walletconnect:ab?secret=5&relay=ws://r&relay=ws://s")
        == "nostr+walletconnect://ab?relay=ws://r&relay=ws://s"
    )


async def test_PPQ_171_below_the_threshold_one_invoice_is_paid_and_credited(
    house: House, other: House, service: Peer
) -> None:
    account_id, before = await house.account(TEN - 1), asked(service, "pay_invoice")
    row = await house.store.rows.get(KIND, account_id)
    assert row and await house.store.rows.replace(row, row.doc, due=now_ms())
    await asyncio.gather(*(one.auto.sweep() for one in (house, other) * 3))
    assert asked(service, "pay_invoice") - before == 1
    assert await house.credited(account_id) == TEN - 1 + WITH_BONUS
    shown = await house.auto.settings(account_id)
    assert (shown["status"], shown["failures"], shown["last_error"]) == ("ready", 0, None)
    assert shown["last_topup_at"] and shown["last_topup_id"]
    made = await house.topups.status(account_id, shown["last_topup_id"])
    assert (made.status()["status"], made.amount, made.currency, made.method) == (
        "Settled",
        "10",
        "USD",
        "btc-lightning",
    )
    for _ in range(3):
        assert (await house.round(account_id))["status"] == "ready"
    assert asked(service, "pay_invoice") - before == 1, "there is enough now"
    assert await house.store.audit() == []


async def test_PPQ_171_at_the_threshold_nothing_is_paid(house: House, service: Peer) -> None:
    account_id, before = await house.account(TEN), asked(service, "pay_invoice")
    await house.round(account_id)
    assert asked(service, "pay_invoice") == before


async def test_PPQ_171_two_who_want_to_pay_at_once_choose_one(house: House, other: House, service: Peer) -> None:
    account_id, before = await house.account(), asked(service, "pay_invoice")
    link = await house.link(account_id)
    await asyncio.gather(*(one.auto._begin(link) for one in (house, other) * 2))
    assert asked(service, "pay_invoice") - before == 1
    assert await house.credited(account_id) == WITH_BONUS


async def test_PPQ_171_the_task_does_it_by_itself(house: House) -> None:
    account_id = await house.account(threshold_usd="5", topup_amount_usd="7.5")
    house.auto.start()
    async with asyncio.timeout(15):
        while not await house.credited(account_id):
            await asyncio.sleep(0.1)
    assert await house.credited(account_id) == 7_875_000_000


async def test_PPQ_171_a_lost_answer_is_no_reason_to_pay_again(house: House, service: Peer, quick: None) -> None:
    service.set(lost=["pay_invoice"])
    account_id, before = await house.account(), asked(service, "pay_invoice")
    await house.round(account_id)
    assert asked(service, "pay_invoice") - before == 1
    assert await house.credited(account_id) == WITH_BONUS, "our own wallet knows that it was paid"
    for _ in range(3):
        await house.round(account_id)
    assert asked(service, "pay_invoice") - before == 1


async def test_PPQ_171_none_while_one_is_pending_or_unknown(
    house: House, other: House, service: Peer, quick: None
) -> None:
    service.set(ignored=["pay_invoice"])
    account_id, before = await house.account(), asked(service, "pay_invoice")
    for one in (house, other, house):
        assert (await one.round(account_id))["status"] == "paying"
    pending = (await house.link(account_id)).topup
    service.set(**USUAL)
    await house.auto.disconnect(account_id)  # and connect anew, while it is under way
    with pytest.raises(NotFound):
        await house.auto.disconnect(account_id)
    assert not (await house.auto.settings(account_id))["connected"]
    await house.round(account_id)
    await house.auto.connect(account_id, {"nwc_url": house.url})
    assert (await house.round(account_id))["status"] == "paying"
    assert asked(service, "pay_invoice") - before == 1
    made = await house.topups.find(pending)
    assert made
    httpx2.post(f"{service.url}/_pay", json={"invoice": made.lightning_invoice}).raise_for_status()
    assert (await house.round(account_id))["status"] == "ready"
    assert await house.credited(account_id) == WITH_BONUS
    assert asked(service, "pay_invoice") - before == 1


async def test_PPQ_171_once_the_invoice_is_dead_the_next_may_be_paid(
    house: House, service: Peer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppq_proxy.payments.auto_topup.INVOICE_SECONDS", 4)
    service.set(ignored=["pay_invoice"])
    account_id, before = await house.account(), asked(service, "pay_invoice")
    assert (await house.round(account_id))["status"] == "paying"
    service.set(**USUAL)
    await asyncio.sleep(4)
    shown = await house.round(account_id)
    assert (shown["status"], shown["failures"]) == ("failing", 1)
    assert "not paid while it lived" in shown["last_error"]
    await house.round(account_id)
    assert asked(service, "pay_invoice") - before == 2
    assert await house.credited(account_id) == WITH_BONUS


async def test_PPQ_171_a_process_that_dies_while_it_pays_leaves_nothing_to_pay_twice(
    house: House, service: Peer
) -> None:
    account_id, before = await house.account(), asked(service, "pay_invoice")
    link = await house.link(account_id)
    # as it is left behind by one that died before the invoice was there
    await house.auto._change(account_id, lambda found: _with(found, topup="00" * 16), 0)
    shown = await house.round(account_id)
    assert (shown["status"], shown["failures"]) == ("failing", 1)
    # and by one that died when it was, whether or not the wallet was told
    made = await house.topups.create(account_id, LIGHTNING, Amount(Decimal(10), "USD"))
    await house.auto._change(account_id, lambda found: _with(link, topup=made.id), 0)
    assert (await house.round(account_id))["status"] == "paying"
    await house.wallet.pay(made.lightning_invoice, 0)
    before = asked(service, "pay_invoice")
    assert (await house.round(account_id))["status"] == "ready"
    assert await house.credited(account_id) == WITH_BONUS
    await house.round(account_id)
    assert asked(service, "pay_invoice") == before


def _with(link: Link | None, **changes: Any) -> Link | None:
    return None if link is None else Link(**link.doc() | changes)


async def test_PPQ_171_failures_are_shown_and_backed_off(house: House, service: Peer) -> None:
    service.set(errors={"pay_invoice": "INSUFFICIENT_BALANCE"})
    account_id = await house.account()
    waits = []
    for count in range(1, 5):
        shown = await house.round(account_id)
        assert (shown["status"], shown["failures"]) == ("failing", count)
        assert "INSUFFICIENT_BALANCE" in shown["last_error"]
        row = await house.store.rows.get(KIND, account_id)
        assert row and row.due
        waits.append(round((row.due - now_ms()) / 1000))
    assert [abs(wait - wanted) <= 2 for wait, wanted in zip(waits, (60, 120, 240, 480), strict=True)] == [True] * 4
    assert (await house.link(account_id)).spent == 0, "what was not paid does not count"
    assert Link("", "", "", 0, 0, 0, 0, failures=99).back_off() == 6 * 3600 * 1000
    service.set(**USUAL)
    assert (await house.round(account_id))["status"] == "ready"
    assert await house.credited(account_id) == WITH_BONUS


async def test_PPQ_171_no_more_than_the_daily_limit(house: House, service: Peer) -> None:
    account_id, before = await house.account(threshold_usd="1000", daily_limit_usd="25"), asked(service, "pay_invoice")
    for _ in range(4):
        shown = await house.round(account_id)
    assert asked(service, "pay_invoice") - before == 2
    assert shown["status"] == "waiting" and "daily limit of 25 USD" in shown["last_error"]
    await house.auto._change(account_id, lambda found: _with(found, day=found.day - 1) if found else None, 0)
    await house.round(account_id)
    assert asked(service, "pay_invoice") - before == 3, "a new day"


async def test_PPQ_171_a_connection_that_can_no_more_be_read_is_told(house: House, service: Peer) -> None:
    account_id, before = await house.account(), asked(service, "pay_invoice")
    house.accounts.unlock(b"another secret")
    assert "connect the wallet again" in (await house.round(account_id))["last_error"]
    assert asked(service, "pay_invoice") == before


async def test_PPQ_162_the_wallet_must_be_able_to_pay(house: House, service: Peer, url: str) -> None:
    account_id = (await house.accounts.create())[2]
    service.set(methods=["make_invoice", "get_info"])
    with pytest.raises(BadRequest, match="pay_invoice"):
        await house.auto.connect(account_id, {"nwc_url": url})
    service.set(errors={"get_info": "UNAUTHORIZED"}, methods=METHODS)
    with pytest.raises(BadRequest, match="does not answer"):
        await house.auto.connect(account_id, {"nwc_url": url})
    service.set(errors={"get_info": "NOT_IMPLEMENTED"})
    assert (await house.auto.connect(account_id, {"nwc_url": url}))["connected"], "it may pay, and not tell"
    gone = url.replace(url.split("relay=")[1].split("&")[0], "ws://127.0.0.1:1")
    with pytest.raises(BadRequest, match="cannot be reached"):
        await house.auto.connect(account_id, {"nwc_url": gone})


async def test_PPQ_163_a_customers_relay_must_be_public_where_money_is_real(house: House, url: str) -> None:
    account_id = (await house.accounts.create())[2]
    house.wallet.network = "mainnet"
    with pytest.raises(BadRequest, match="does not answer"):
        await house.auto.connect(account_id, {"nwc_url": url})


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"nwc_url": 5}, {"nwc_url": ""}, {"nwc_url": "x" * 5000}, {"nwc_url": "https://example.com"},
        {"nwc_url": "nostr+walletconnect://your-wallet-pubkey?relay=wss://relay.example.com&secret=your-secret"},
        {"threshold_usd": "4.99"}, {"threshold_usd": "0"}, {"threshold_usd": "-5"}, {"threshold_usd": "1e400"},
        {"threshold_usd": "5.0000000001"}, {"topup_amount_usd": "0.09"}, {"topup_amount_usd": "1000.01"},
        {"topup_amount_usd": "0"}, {"daily_limit_usd": "9.99"}, {"threshold_usd": "NaN"}, {"daily_limit_usd": "1e12"},
    ],
)  # fmt: skip
async def test_PPQ_164_165_bad_wishes_are_refused(house: House, url: str, wrong: dict[str, Any]) -> None:
    account_id = (await house.accounts.create())[2]
    numbers = {name: Decimal(value) for name, value in wrong.items() if name != "nwc_url"}
    with pytest.raises(BadRequest):
        await house.auto.connect(account_id, ({"nwc_url": url} if numbers else {}) | wrong | numbers)
    assert await house.store.rows.get(KIND, account_id) is None


@pytest.mark.parametrize("wrong", [None, [], "x", True, {"nwc_url": "nostr+walletconnect://a", "threshold_usd": True}])
def test_PPQ_164_what_is_no_wish_is_refused(wrong: Any) -> None:
    with pytest.raises(BadRequest):
        parse_wish(wrong)


async def test_without_the_extra_it_says_which(house: House, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    account_id, known = (await house.accounts.create())[2], importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nostr_sdk" else known(name))
    with pytest.raises(Unavailable, match=r"ppq-proxy\[nwc\]"):
        await house.auto.connect(account_id, {"nwc_url": url})
    house.auto.start()
    assert house.auto._task is None


async def test_PPQ_171_a_wallet_that_was_never_reached_was_not_asked(house: House, url: str) -> None:
    account_id = await house.account()
    gone = url.replace(url.split("relay=")[1].split("&")[0], "ws://127.0.0.1:1")
    sealed = base64.b64encode(house.accounts.seal.close(gone, f"nwc:{account_id}")).decode()
    await house.auto._change(account_id, lambda found: _with(found, sealed=sealed), 0)
    shown = await house.round(account_id)
    assert (shown["status"], shown["failures"]) == ("failing", 1), "nothing is pending"
    assert "cannot be reached" in shown["last_error"]


async def test_a_wallet_of_the_gateway_that_is_down_is_no_payment(house: House, service: Peer) -> None:
    account_id, before = await house.account(), asked(service, "pay_invoice")
    service.set(errors={"make_invoice": "INTERNAL"})
    shown = await house.round(account_id)
    assert shown["failures"] == 1 and "no invoice could be made" in shown["last_error"]
    assert asked(service, "pay_invoice") == before
    assert await house.store.rows.find(TOPUP) == []


# over HTTP


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[World]:
    """A gateway whose own wallet is reached by Nostr Wallet Connect too."""
    folder = tmp_path_factory.mktemp("auto")
    env = {"PPQ_WALLET": "nwc", "PPQ_NWC_URL": url, "PPQ_NETWORK": "regtest", "PPQ_BTC_USD": "100000"}
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=None, rows=(), **env)
    one.start_now()
    try:
        yield one
    finally:
        one.stop_now()


async def test_PPQ_163_to_171_connected_paid_shown_and_disconnected_over_http(
    world: World, service: Peer, url: str
) -> None:
    service.set(**USUAL)
    credit_id, key = await world.account("0")
    holder = {"x-credit-id": credit_id}
    body = {"nwc_url": url, "threshold_usd": 5, "topup_amount_usd": 10}
    answer = await world.http("POST", "/nwc-auto-topup/connect", body, headers=holder)
    assert answer.status == 200, answer.body
    assert (answer.json["threshold_usd"], answer.json["topup_amount_usd"], answer.json["enabled"]) == (5, 10, True)

    async def topped_up() -> bool:
        shown = await world.show(credit_id)
        return bool(shown["credited_usd"] == Decimal("10.5"))

    assert await eventually(topped_up, 20), "the balance was below the threshold, and nothing came"
    assert (await world.chat(key)).status == 200
    answer = await world.http("GET", "/nwc-auto-topup", headers=holder)
    assert (answer.status, answer.json["status"]) == (200, "ready")
    made = await world.http("GET", f"/topup/status/{answer.json['last_topup_id']}", key=key)
    assert (made.json["status"], made.json["amount"]) == ("Settled", 10)
    answer = await world.http("DELETE", "/nwc-auto-topup/connection", headers=holder)
    assert (answer.status, answer.json["status"]) == (200, "success")
    answer = await world.http("GET", "/nwc-auto-topup", headers=holder)
    assert (answer.status, answer.json["connected"]) == (200, False)
    assert (await world.http("DELETE", "/nwc-auto-topup/connection", headers=holder)).status == 404
    log = world.gateway.log.read_text()
    for secret in (credit_id, key, url.split("secret=")[1]):
        assert secret not in log


async def test_PPQ_007_the_paths_take_the_credit_id_alone(world: World, url: str) -> None:
    _, key = await world.account("0")
    for method, path in (
        ("POST", "/nwc-auto-topup/connect"),
        ("GET", "/nwc-auto-topup"),
        ("DELETE", "/nwc-auto-topup/connection"),
    ):
        body = {"nwc_url": url} if method == "POST" else None
        for headers in ({}, {"x-credit-id": ""}, {"x-credit-id": "nobody"}, {"authorization": f"Bearer {key}"}):
            answer = await world.http(method, path, body, headers=headers)
            assert answer.status == 401 and answer.error["message"]


async def test_PPQ_167_the_documented_body_is_read_and_its_wallet_refused(world: World) -> None:
    credit_id, _ = await world.account("0")
    url = "nostr+walletconnect://your-wallet-pubkey?relay=wss://relay.example.com&secret=your-secret"
    body = {"nwc_url": url, "threshold_usd": 5, "topup_amount_usd": 10}
    answer = await world.http("POST", "/nwc-auto-topup/connect", body, headers={"x-credit-id": credit_id})
    assert (answer.status, answer.error["param"]) == (400, "nwc_url")
    assert "your-secret" not in answer.body.decode()


@pytest.mark.slow
async def test_PPQ_171_killed_while_it_pays_it_pays_once(world: World, service: Peer, url: str) -> None:
    service.set(**USUAL | {"ignored": ["pay_invoice"]})
    before = asked(service, "pay_invoice")
    credit_id, _ = await world.account("0")
    answer = await world.http("POST", "/nwc-auto-topup/connect", {"nwc_url": url}, headers={"x-credit-id": credit_id})
    assert answer.status == 200, answer.body

    async def told() -> bool:
        return asked(service, "pay_invoice") > before

    assert await eventually(told, 20)
    await world.kill()
    service.set(**USUAL)
    invoice = httpx2.get(f"{service.url}/_open").json()[-1]
    httpx2.post(f"{service.url}/_pay", json={"invoice": invoice}).raise_for_status()
    await world.start()

    async def topped_up() -> bool:
        shown = await world.show(credit_id)
        return bool(shown["credited_usd"] == Decimal("10.5"))

    assert await eventually(topped_up, 20), "paid while the gateway was dead"
    await asyncio.sleep(15)
    assert asked(service, "pay_invoice") - before == 1
    assert await topped_up()
