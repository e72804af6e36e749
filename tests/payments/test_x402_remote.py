"""Paying by x402 through a gateway with a remote facilitator, whose answers also come late, wrong, or never."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.wire import Answer
from tests.gateway.world import World, eventually
from tests.payments.x402_shop import Shop, price, remaining
from tests.peers import facilitator as double
from tests.peers.fake_server import Peer, running
from tests.peers.mongod import MongodError, start_mongod
from tests.peers.x402_buyer import Buyer, decoded, encoded, offered, told

PAY_TO = "0xB0FdC6030B9f30652e8B221B8090d443Dd3C6381"
SETTLE_SECONDS = 1
PLAIN = {"settle": "ok", "verify": "ok", "slow": 0, "again": "same", "balance": 10**9}


class RemoteShop(Shop):
    """A shop that leaves its payments to a facilitator."""

    def __init__(self, world: World, facilitator: Peer) -> None:
        super().__init__(world)
        self.facilitator = facilitator

    def moved(self) -> list[dict[str, Any]]:
        """What has moved on the facilitator's chain."""
        found: list[dict[str, Any]] = httpx2.get(f"{self.facilitator.url}/_moved").json()
        return found

    def moved_by(self, buyer: Buyer) -> list[int]:
        return [one["amount"] for one in self.moved() if one["payer"] == buyer.address.lower()]

    def settlings(self) -> int:
        return sum(one["path"] == "/settle" for one in self.facilitator.seen())


@pytest.fixture(scope="module")
def facilitator() -> Iterator[Peer]:
    with running("tests.peers.facilitator") as peer:
        yield peer


@pytest.fixture(scope="module")
def shop_of_module(tmp_path_factory: pytest.TempPathFactory, facilitator: Peer) -> Iterator[RemoteShop]:
    folder = tmp_path_factory.mktemp("x402")
    facilitator.set(key=double.KEY)
    world = gateway_on(folder, facilitator)
    world.start_now()
    try:
        yield RemoteShop(world, facilitator)
        code, out, err = world.desk.run(["doctor", "--models", str(world.models), "--json"])
        assert code == 0, out + err
    finally:
        world.stop_now()


@pytest.fixture
async def shop(shop_of_module: RemoteShop) -> AsyncIterator[RemoteShop]:
    """A shop whose facilitator works, and whose books grow by what moved."""
    shop_of_module.facilitator.set(**PLAIN)
    yield shop_of_module
    shop_of_module.facilitator.set(**PLAIN)

    async def agree() -> bool:
        paid: int = sum(one["amount"] for one in shop_of_module.moved())
        return shop_of_module.credited() == 1000 * paid

    assert await eventually(agree, 12), "guests have another credit than what was paid"


def gateway_on(folder: Path, facilitator: Peer, database: str = "", **more: str) -> World:
    """A gateway's world on a new database, not started."""
    settings: dict[str, Any] = {
        "PPQ_X402_PAY_TO": PAY_TO,
        "PPQ_X402_NETWORK": "base-sepolia",
        "PPQ_X402_FACILITATOR": facilitator.url,
        "PPQ_X402_FACILITATOR_KEY": double.KEY,
        "PPQ_X402_SETTLE_SECONDS": str(SETTLE_SECONDS),
        "PPQ_X402_UPTO": "true",
    }
    return World(database or f"sqlite:///{folder}/gateway.db", folder, **settings | more)


# the offer


async def test_GB_012_GB_015_XF_009_XF_013_one_402_has_both_versions(shop: RemoteShop) -> None:
    answer = await shop.order().ask()
    assert answer.status == 402
    assert answer.headers["x-payment-version"] == "1"
    assert answer.headers["cache-control"] == "no-store"
    assert "www-authenticate" not in answer.headers, "without a wallet there is neither L402 nor Payment"
    new, body = decoded(answer.headers["payment-required"]), answer.json
    (old,) = body["accepts"]
    assert (body["x402Version"], new["x402Version"]) == (1, 2)
    assert body["error"]["code"] == "payment_required"
    assert old["network"] == "base-sepolia"
    assert old["maxAmountRequired"] == new["accepts"][0]["amount"]
    assert old["extra"]["quoteId"] == new["accepts"][0]["extra"]["quoteId"]
    assert old["maxTimeoutSeconds"] >= 60
    assert (
        old["resource"] == f"http://127.0.0.1:{shop.world.gateway.port}/v1/chat/completions" == new["resource"]["url"]
    )
    assert "test/story" in old["description"], "XF-010: the request is named"
    assert f"{int(old['maxAmountRequired']) / 10**6:.6f} USDC" in old["description"]
    assert [one["scheme"] for one in new["accepts"]] == ["exact", "upto"]
    assert new["accepts"][1]["extra"]["facilitatorAddress"] == double.ADDRESS
    assert old["outputSchema"]["input"] == {"type": "http", "method": "POST", "bodyType": "json"}


async def test_GB_014_the_price_is_the_quote_in_units_rounded_up(shop: RemoteShop) -> None:
    answer = await shop.order(max_tokens=1).ask()
    usd = Decimal(answer.json["price"]["usd"])
    units = Decimal(answer.json["accepts"][0]["maxAmountRequired"])
    assert 0 <= units - usd * 10**6 < 1
    assert price(await shop.order(max_tokens=200).ask()) > units


async def test_the_same_request_has_one_quote_under_ids_of_its_own(shop: RemoteShop) -> None:
    order = shop.order()
    before = len(shop.rows("x402_quote"))
    first, second = await order.ask(), await order.ask()
    assert len(shop.rows("x402_quote")) == before + 1
    ids = {offered(one)["extra"]["quoteId"] for one in (first, second)}
    assert len(ids) == 2
    assert len({one.partition(".")[0] for one in ids}) == 1
    assert all(one.partition(".")[0] in shop.rows("x402_quote") for one in ids)


async def test_a_host_header_that_is_none_does_not_reach_the_offer(shop: RemoteShop) -> None:
    answer = await shop.order().ask({"host": 'x"><y'})
    assert answer.json["accepts"][0]["resource"] == f"http://127.0.0.1:{shop.world.gateway.port}/v1/chat/completions"


# paying


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
async def test_GB_007_GB_022_a_payment_buys_a_call(shop: RemoteShop, version: int, stream: bool) -> None:
    order, buyer = shop.order(stream=stream), Buyer()
    asked = await order.ask()
    answer = await order.ask(buyer.v1(asked) if version == 1 else buyer.v2(asked))
    assert answer.status == 200, answer.body
    assert answer.text.strip()
    assert shop.moved_by(buyer) == [price(asked)], "settled once, for the quote to the unit"
    (moved,) = (one for one in shop.moved() if one["payer"] == buyer.address.lower())
    name = "x-payment-response" if version == 1 else "payment-response"
    network = "base-sepolia" if version == 1 else "eip155:84532"
    said = decoded(answer.headers[name])
    assert said == {
        "success": True,
        "transaction": moved["transaction"],
        "network": network,
        "payer": buyer.address.lower(),
    }
    if not stream:
        assert remaining(answer) == Decimal(price(asked)).scaleb(-6) - answer.cost
    assert shop.state(buyer) == "credited"


async def test_what_a_call_does_not_use_is_credit_on_the_same_payment(shop: RemoteShop) -> None:
    order, buyer = shop.order(max_tokens=500), Buyer()
    payment = buyer.v2(await order.ask())
    first = await order.ask(payment)
    left = remaining(first)
    assert first.status == 200
    second = await shop.order(max_tokens=50).ask(payment)
    assert second.status == 200, "another request, from another peer"
    assert remaining(second) == left - second.cost
    assert told(second) == told(first)
    assert len(shop.moved_by(buyer)) == 1


async def test_credit_that_is_too_little_is_a_fresh_402_and_stays(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    first = await order.ask(payment)
    again = await order.ask(payment)
    assert again.status == 402
    assert again.json["type"].endswith("/payment-insufficient")
    assert remaining(again) == remaining(first)
    assert offered(again)
    assert told(again)["success"] is True, "the settlement is told whatever the status"
    assert len(shop.moved_by(buyer)) == 1
    assert (await order.ask(payment, max_tokens=20)).status == 200


async def test_what_is_left_of_a_payment_of_version_1_is_not_for_strangers(shop: RemoteShop) -> None:
    """All of it stands on the chain for everybody to copy: they would have to know the request, or the buyer's address."""
    order, buyer = shop.order(max_tokens=500), Buyer()
    payment = buyer.v1(await order.ask())
    assert (await order.ask(payment)).status == 200
    thief = shop.order(**order.fields)
    stolen = await thief.ask(payment, max_tokens=20)
    assert stolen.status == 402
    assert "x-credit-remaining-usd" not in stolen.headers
    assert (await order.ask(payment, max_tokens=20)).status == 200, "another request of the same buyer"
    assert len(shop.moved_by(buyer)) == 1


async def test_a_settled_payment_cannot_be_shown_in_another_dress(shop: RemoteShop) -> None:
    """From the chain anybody can put together a payment of either version, but not the id of its quote."""
    order, buyer = shop.order(max_tokens=500), Buyer()
    asked = await order.ask()
    document = buyer.document(asked)
    assert (await order.ask({"payment-signature": encoded(document)})).status == 200
    thief = shop.order(**order.fields)
    old = {"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": document["payload"]}
    stolen = await thief.ask({"x-payment": encoded(old)}, max_tokens=20)
    assert stolen.status == 402
    mine = await thief.ask(max_tokens=20)
    dressed = document | {"accepted": offered(mine)}
    assert (await thief.ask({"payment-signature": encoded(dressed)}, max_tokens=20)).status == 402
    assert (await order.ask({"payment-signature": encoded(document)}, max_tokens=20)).status == 200
    assert len(shop.moved_by(buyer)) == 1


async def test_upto_is_settled_for_the_quote_and_the_rest_is_credit(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    asked = await order.ask()
    required = decoded(asked.headers["payment-required"])
    only = Answer(402, [("payment-required", encoded(required | {"accepts": required["accepts"][1:]}))])
    answer = await order.ask(buyer.v2(only, upto=True))
    assert answer.status == 200, answer.body
    assert shop.moved_by(buyer) == [price(asked)]
    assert remaining(answer) == Decimal(price(asked)).scaleb(-6) - answer.cost


async def test_payment_goes_before_a_key(shop: RemoteShop) -> None:
    customer = await shop.world.customer("1")
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    assert (await order.ask(payment | {"authorization": f"Bearer {customer.key}"})).status == 200
    assert (await customer.books()).charged == 0
    assert len(shop.moved_by(buyer)) == 1


async def test_an_upstream_that_fails_keeps_the_money_on_the_payment(shop: RemoteShop) -> None:
    order, buyer = shop.order(model="flaky", play={"times": 2}), Buyer()
    asked = await order.ask()
    payment = buyer.v1(asked)
    failed = await order.ask(payment)
    assert failed.status in (502, 503), failed.body
    assert told(failed)["success"] is True
    assert remaining(failed) == Decimal(price(asked)).scaleb(-6)
    assert (await order.until_served(payment)).status == 200
    assert len(shop.moved_by(buyer)) == 1


# refusals: nothing is settled


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("version", [1, 2])
async def test_GB_016_another_amount_than_the_quote_is_refused_and_not_settled(
    shop: RemoteShop, by: int, version: int
) -> None:
    order, buyer = shop.order(), Buyer()
    name = "maxAmountRequired" if version == 1 else "amount"

    def change(one: dict[str, Any]) -> None:
        one[name] = str(int(one[name]) + by)

    asked, settlings = await order.ask(), shop.settlings()
    payment = buyer.v1(asked, change=change) if version == 1 else buyer.v2(asked, change=change)
    answer = await order.ask(payment)
    assert answer.status == 402
    assert offered(answer)
    assert told(answer)["success"] is False
    assert (shop.settlings(), shop.moved_by(buyer)) == (settlings, [])


@pytest.mark.parametrize("member", ["payTo", "asset", "network", "maxTimeoutSeconds", "extra"])
async def test_terms_that_were_not_offered_are_refused(shop: RemoteShop, member: str) -> None:
    order, buyer = shop.order(), Buyer()
    wrong: dict[str, Any] = {
        "payTo": buyer.address, "asset": buyer.address, "network": "eip155:84532", "maxTimeoutSeconds": 3000,
        "extra": {"name": "USDC", "version": "2", "quoteId": "x"},
    }  # fmt: skip
    asked, settlings = await order.ask(), shop.settlings()
    document = buyer.document(asked, change=lambda one: one.update({member: wrong[member]}))
    if member == "network":
        document["accepted"]["network"] = "eip155:8453"
    answer = await order.ask({"payment-signature": encoded(document)})
    assert answer.status == 402
    assert shop.settlings() == settlings
    assert shop.state(buyer) == ""


async def test_a_cheap_calls_payment_does_not_buy_a_dear_one(shop: RemoteShop) -> None:
    cheap, dear, buyer = shop.order(max_tokens=10), shop.order(max_tokens=1000), Buyer()
    asked, settlings = await cheap.ask(), shop.settlings()
    for payment in (buyer.v1(asked), buyer.v2(asked)):
        answer = await dear.ask(payment)
        assert answer.status == 402
        assert price(answer) > price(asked)
    assert shop.settlings() == settlings, "nothing is taken for what it does not buy"
    assert (await cheap.ask(buyer.v2(asked))).status == 200


async def test_a_forged_signature_is_refused(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    document = buyer.document(await order.ask())
    document["payload"]["authorization"]["from"] = Buyer().address
    answer = await order.ask({"payment-signature": encoded(document)})
    assert answer.status == 402
    assert "invalid_exact_evm_payload_signature" in answer.json["detail"]
    assert "invalid_exact_evm_payload_signature" in decoded(answer.headers["payment-required"])["error"]


@pytest.mark.parametrize("window", [{"validAfter": "9999999999"}, {"validBefore": "1740672154"}])
async def test_an_authorization_outside_its_time_is_refused(shop: RemoteShop, window: dict[str, str]) -> None:
    order, buyer = shop.order(), Buyer()
    document = buyer.document(await order.ask())
    document["payload"]["authorization"] |= window
    answer = await order.ask({"payment-signature": encoded(document)})
    assert (answer.status, answer.json["type"].rpartition("/")[2]) == (402, "payment-expired")


@pytest.mark.parametrize("text", ["x", "e30=", "A" * 20_000, encoded({"x402Version": 9, "payload": {}})])
@pytest.mark.parametrize("name", ["payment-signature", "x-payment"])
async def test_what_cannot_be_read_is_answered_with_a_fresh_challenge(shop: RemoteShop, name: str, text: str) -> None:
    answer = await shop.order().ask({name: text})
    assert (answer.status, answer.json["type"].rpartition("/")[2]) == (402, "malformed-credential")
    assert offered(answer)


async def test_a_loop_of_refused_payments_is_stopped_and_a_good_one_served(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    statuses = [(await order.ask({"x-payment": "x"})).status for _ in range(4)]
    assert statuses == [402, 402, 402, 429]
    assert (await order.ask(payment)).status == 200


async def test_transactions_are_not_taken_without_a_node(shop: RemoteShop) -> None:
    answer = await shop.order().ask(Buyer().transfer("0x" + "ab" * 32, "x", b""))
    assert (answer.status, answer.json["type"].rpartition("/")[2]) == (402, "method-unsupported")


# the facilitator at its worst


async def test_a_refusal_takes_nothing_and_the_payment_may_come_again(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    shop.facilitator.set(settle="refuse")
    answer = await order.ask(payment)
    assert answer.status == 402
    assert told(answer) == {
        "success": False, "transaction": "", "network": "eip155:84532", "payer": buyer.address.lower(),
        "errorReason": "the payment was not settled: insufficient_funds",
    }  # fmt: skip
    assert shop.state(buyer) == ""
    shop.facilitator.set(settle="ok")
    assert (await order.ask(payment)).status == 200


@pytest.mark.parametrize("how", [{"verify": "500"}, {"settle": "401"}])
async def test_a_facilitator_out_of_order_takes_nothing(shop: RemoteShop, how: dict[str, str]) -> None:
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    shop.facilitator.set(**how)
    answer = await order.ask(payment)
    assert (answer.status, answer.error["code"]) == (503, "payment_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert shop.state(buyer) == ""
    shop.facilitator.set(**PLAIN)
    assert (await order.ask(payment)).status == 200


@pytest.mark.parametrize(
    ("how", "version"),
    [
        ("hang", 2),
        *(pytest.param(how, 2, marks=pytest.mark.slow) for how in ("cut", "hang-undone", "500", "pending", "failed")),
        *(pytest.param(how, 1, marks=pytest.mark.slow) for how in ("hang", "hang-undone")),
    ],
)
async def test_an_unknown_outcome_is_looked_for_and_never_asked_for_again(
    shop: RemoteShop, how: str, version: int
) -> None:
    order, buyer = shop.order(), Buyer()
    asked = await order.ask()
    payment = buyer.v1(asked) if version == 1 else buyer.v2(asked)
    shop.facilitator.set(settle=how)
    for _ in range(2):
        answer = await order.ask(payment)
        assert (answer.status, answer.error["code"]) == (503, "payment_pending"), answer.body
        assert "Do not pay again" in answer.error["message"]
        assert int(answer.headers["retry-after"]) > 0
        assert "payment-required" not in answer.headers and "accepts" not in answer.json
    assert shop.state(buyer) == "unknown"
    shop.facilitator.set(settle="ok")

    async def credited() -> bool:
        return shop.state(buyer) == "credited"

    assert await eventually(credited, 15), "credited though nobody shows the payment"
    answer = await order.ask(payment)
    assert answer.status == 200
    assert shop.moved_by(buyer) == [price(asked)], "it moved once"
    assert told(answer)["success"] is True


@pytest.mark.slow
async def test_what_a_facilitator_will_not_say_stays_open(shop: RemoteShop) -> None:
    """Without a node nobody can tell whether "already used" was us, so that no money is made of it."""
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    shop.facilitator.set(settle="cut", again="used")
    assert (await order.ask(payment)).status == 503
    shop.facilitator.set(settle="ok")
    before = shop.settlings()

    async def asked_again() -> bool:
        return shop.settlings() > before

    assert await eventually(asked_again, 10)
    assert (await order.ask(payment)).status == 503
    assert shop.state(buyer) == "unknown"
    shop.facilitator.set(again="same")
    assert (await order.until_served(payment)).status == 200


# at once


async def test_one_payment_shown_many_times_at_once_is_settled_once(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    asked, settlings = await order.ask(), shop.settlings()
    payment = buyer.v2(asked)
    shop.facilitator.set(slow=0.3)
    answers = await asyncio.gather(*(order.ask(payment) for _ in range(20)))
    assert shop.settlings() == settlings + 1
    assert {one.status for one in answers} <= {200, 402, 429}, "what its credit does not pay for is refused"
    served = [one for one in answers if one.status == 200]
    assert sum(one.cost for one in served) <= Decimal(price(asked)).scaleb(-6)
    assert shop.moved_by(buyer) == [price(asked)]


async def test_one_authorization_under_two_quotes_at_once_is_one_payment(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    first, second = await order.ask(), await order.ask()
    document = buyer.document(first)
    other = document | {"accepted": offered(second)}
    shop.facilitator.set(slow=0.3)
    answers = await asyncio.gather(*(order.ask({"payment-signature": encoded(one)}) for one in (document, other)))
    assert sorted(one.status for one in answers) == [200, 402]
    assert len(shop.moved_by(buyer)) == 1


async def test_a_buyer_who_leaves_while_it_is_settled_finds_the_credit(shop: RemoteShop) -> None:
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    shop.facilitator.set(slow=0.5)
    with pytest.raises(TimeoutError):
        await order.ask(payment, seconds=0.2)

    async def served_by_what_is_left() -> bool:
        return (await order.ask(payment, max_tokens=20)).status == 200

    assert await eventually(served_by_what_is_left, 10, 1), "the call that it left was charged, and no more"
    assert len(shop.moved_by(buyer)) == 1


# processes


@pytest.mark.slow
async def test_workers_settle_one_payment_once(tmp_path: Path, facilitator: Peer) -> None:
    facilitator.set(**PLAIN, key=double.KEY)
    world = gateway_on(tmp_path, facilitator)
    shop = RemoteShop(world, facilitator)
    await world.start("--workers", "2")
    try:
        for _ in range(3):
            order, buyer = shop.order(), Buyer()
            payment = buyer.v2(await order.ask())
            facilitator.set(slow=0.2)
            before = shop.settlings()
            answers = await asyncio.gather(*(order.ask(payment) for _ in range(16)))
            assert shop.settlings() == before + 1
            assert {one.status for one in answers} <= {200, 402, 429}
            assert any(one.status == 200 for one in answers)
        await world.doctor()
    finally:
        facilitator.set(**PLAIN)
        await world.stop()


@pytest.mark.slow
@pytest.mark.mongo
async def test_kill_9_on_mongodb_loses_nothing(tmp_path: Path, facilitator: Peer) -> None:
    try:
        mongod = await asyncio.to_thread(start_mongod, tmp_path / "db", replica_set="rs0")
    except MongodError as problem:
        pytest.skip(f"no mongod here: {problem}")
    facilitator.set(**PLAIN, key=double.KEY)
    base, _, options = mongod.url.partition("?")
    world = gateway_on(tmp_path, facilitator, f"{base.rstrip('/')}/x402?{options}", PPQ_X402_SETTLE_SECONDS="4")
    shop = RemoteShop(world, facilitator)
    await world.start()
    try:
        order, buyer = shop.order(), Buyer()
        asked = await order.ask()
        payment = buyer.v2(asked)
        facilitator.set(settle="hang")
        before = shop.settlings()
        waiting = asyncio.create_task(order.ask(payment))

        async def settling() -> bool:
            return shop.settlings() > before

        assert await eventually(settling, 10)
        await asyncio.sleep(0.3)
        await world.kill()
        await asyncio.gather(waiting, return_exceptions=True)
        facilitator.set(settle="ok")
        await world.start()
        assert (await order.ask(payment)).status == 503
        answer = await order.until_served(payment, 60)
        assert answer.status == 200
        assert remaining(answer) + answer.cost == Decimal(price(asked)).scaleb(-6)
        assert shop.moved_by(buyer) == [price(asked)]
        payments = await asyncio.gather(*(paying(shop) for _ in range(5)))
        assert payments == [200] * 5
        await world.doctor()
    finally:
        facilitator.set(**PLAIN)
        await world.stop()
        await asyncio.to_thread(mongod.stop)


async def paying(shop: RemoteShop) -> int:
    """One payment, shown eight times at once; the best status."""
    order, buyer = shop.order(), Buyer()
    payment = buyer.v2(await order.ask())
    answers = await asyncio.gather(*(order.ask(payment) for _ in range(8)))
    assert len(shop.moved_by(buyer)) == 1
    return min(one.status for one in answers)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "hang-undone"])
async def test_kill_9_between_reserving_and_crediting_loses_nothing(
    tmp_path: Path, facilitator: Peer, how: str
) -> None:
    facilitator.set(**PLAIN, key=double.KEY)
    world = gateway_on(tmp_path, facilitator, PPQ_X402_SETTLE_SECONDS="4")
    shop = RemoteShop(world, facilitator)
    await world.start()
    try:
        order, buyer = shop.order(), Buyer()
        asked = await order.ask()
        payment = buyer.v2(asked)
        facilitator.set(settle=how)
        before = shop.settlings()
        waiting = asyncio.create_task(order.ask(payment))

        async def settling() -> bool:
            return shop.settlings() > before

        assert await eventually(settling, 5)
        await asyncio.sleep(0.3)
        assert shop.state(buyer) == "reserved"
        await world.kill()
        await asyncio.gather(waiting, return_exceptions=True)
        facilitator.set(settle="ok")
        await world.start()
        pending = await order.ask(payment)
        assert (pending.status, pending.error["code"]) == (503, "payment_pending"), "not paid for anew"

        async def credited() -> bool:
            return shop.state(buyer) == "credited"

        began = time.monotonic()
        assert await eventually(credited, 40), shop.rows()
        assert time.monotonic() - began < 30
        assert shop.credited() == 1000 * price(asked)
        assert (await order.ask(payment)).status == 200
        assert shop.moved_by(buyer) == [price(asked)]
        await world.doctor()
    finally:
        facilitator.set(**PLAIN)
        await world.stop()
