"""Paying by x402 on a real chain: signed payments that the gateway settles itself, and a chain at its worst."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.gateway.world import eventually
from tests.payments.x402_shop import Market, market_on, price, remaining, timed, use
from tests.peers.anvil import DOLLAR, Anvil, anvil, why_not
from tests.peers.x402_buyer import Buyer, encoded, offered, told

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    with anvil(tmp_path_factory.mktemp("anvil")) as running:
        yield running


@pytest.fixture(scope="module")
def market_of_module(tmp_path_factory: pytest.TempPathFactory, chain: Anvil) -> Iterator[Market]:
    market = market_on(tmp_path_factory.mktemp("x402"), chain, PPQ_WALLET="dev", PPQ_BTC_USD="100000")
    market.world.start_now()
    try:
        yield market
        code, out, err = market.world.desk.run(["doctor", "--models", str(market.world.models), "--json"])
        assert code == 0, out + err
    finally:
        market.world.stop_now()


@pytest.fixture
async def market(market_of_module: Market) -> AsyncIterator[Market]:
    """Guests' credit has to be what came in."""
    market_of_module.chain.automine(True)
    yield market_of_module
    market_of_module.chain.automine(True)

    async def agree() -> bool:
        return market_of_module.earned()

    assert await eventually(agree, 15), "guests have another credit than what was paid"


# signed payments


@pytest.mark.parametrize("version", [1, 2])
async def test_GB_007_GB_022_a_payment_buys_a_call_and_moves_the_dollars(market: Market, version: int) -> None:
    order, buyer = market.order(), market.buyer()
    asked = await order.ask()
    assert [name for name, _ in asked.lines if name == "www-authenticate"] == ["www-authenticate"] * 2
    assert asked.lines.index(("x-payment-version", "1")) > 0
    answer = await order.ask(buyer.v1(asked) if version == 1 else buyer.v2(asked))
    assert answer.status == 200, answer.body
    assert market.spent(buyer) == price(asked)
    assert remaining(answer) == Decimal(price(asked)).scaleb(-6) - answer.cost
    receipt = market.chain.receipt(told(answer)["transaction"])
    assert (int(receipt["status"], 16), receipt["from"].lower()) == (1, market.sender.lower())


@pytest.mark.parametrize("version", [1, 2])
async def test_a_settled_payment_is_not_settled_again(market: Market, version: int) -> None:
    order, buyer = market.order(max_tokens=500), market.buyer()
    asked = await order.ask()
    payment = buyer.v1(asked) if version == 1 else buyer.v2(asked)
    assert (await order.ask(payment)).status == 200
    again = await order.ask(payment, max_tokens=20)
    assert again.status == 200, "from its credit"
    assert market.spent(buyer) == price(asked)


async def test_an_authorization_that_was_used_before_is_worth_nothing(market: Market) -> None:
    """Its nonce is spent on the chain: by somebody who copied it, or by the buyer."""
    order, buyer, other = market.order(), market.buyer(), market.buyer()
    payment = buyer.document(await order.ask())
    market.unearned += await use(market, payment, other)
    answer = await order.ask({"payment-signature": encoded(payment)})
    assert answer.status == 402
    assert market.state(buyer) == ""


@pytest.mark.parametrize("by", [-1, 1])
async def test_GB_016_another_amount_is_not_taken(market: Market, by: int) -> None:
    order, buyer = market.order(), market.buyer()
    asked = await order.ask()
    document = buyer.document(asked, change=lambda one: one.update(amount=str(int(one["amount"]) + by)))
    document["accepted"] = offered(asked)
    assert (await order.ask({"payment-signature": encoded(document)})).status == 402
    assert market.spent(buyer) == 0


async def test_a_buyer_without_money_is_told_so(market: Market) -> None:
    order, buyer = market.order(), market.buyer(0)
    answer = await order.ask(buyer.v2(await order.ask()))
    assert answer.status == 402
    assert "does not verify" in answer.json["detail"]


async def test_one_payment_shown_many_times_at_once_moves_once(market: Market) -> None:
    order, buyer = market.order(), market.buyer()
    asked = await order.ask()
    payment = buyer.v2(asked)
    answers = await asyncio.gather(*(order.ask(payment) for _ in range(12)))
    assert {one.status for one in answers} <= {200, 402, 429}
    assert any(one.status == 200 for one in answers)
    assert market.spent(buyer) == price(asked)


async def test_many_payments_at_once_from_one_sender_are_all_settled(market: Market) -> None:
    orders = [market.order() for _ in range(12)]
    buyers = [market.buyer(1) for _ in orders]
    asked = await asyncio.gather(*(order.ask() for order in orders))
    payments = [buyer.v2(answer) for buyer, answer in zip(buyers, asked, strict=True)]
    answers = await asyncio.gather(
        *(order.until_served(paid, 30) for order, paid in zip(orders, payments, strict=True))
    )
    assert [one.status for one in answers] == [200] * len(orders)
    assert [market.spent(buyer, 1) for buyer in buyers] == [price(one) for one in asked]


# outcomes that are not known at once


@pytest.mark.parametrize("version", [1, 2])
async def test_a_block_that_does_not_come_is_waited_for_and_nothing_else_stalls(market: Market, version: int) -> None:
    order, buyer = market.order(), market.buyer()
    asked = await order.ask()
    payment = buyer.v1(asked) if version == 1 else buyer.v2(asked)
    market.chain.automine(False)
    waiting = asyncio.create_task(order.ask(payment))
    await asyncio.sleep(0.5)
    took = [await timed(market) for _ in range(10)]
    assert max(took) < 0.5, "the library waits in a thread"
    answer = await waiting
    assert (answer.status, answer.error["code"]) == (503, "payment_pending")
    assert (await order.ask(payment)).status == 503, "shown again, and still not asked for anew"
    market.chain.mine()
    market.chain.automine(True)

    async def credited() -> bool:
        return market.state(buyer) == "credited"

    assert await eventually(credited, 20), "late, and though nobody shows it"
    assert (await order.ask(payment)).status == 200
    assert market.spent(buyer) == price(asked), "it moved once"


async def test_a_payment_that_never_happened_is_forgotten_when_it_has_expired(tmp_path: Path) -> None:
    with anvil(tmp_path / "anvil") as chain:
        market = market_on(tmp_path, chain)
        await market.world.start()
        try:
            order, buyer = market.order(), market.buyer()
            payment = buyer.v2(await order.ask())
            chain.automine(False)
            assert (await order.ask(payment)).status == 503
            chain.rpc("anvil_dropAllTransactions")
            chain.transfer(buyer.account, Buyer().address, 100 * DOLLAR, wait=False)
            chain.mine(1)
            assert chain.balance(buyer.address) == 0, "so that it cannot be made any more"
            await asyncio.sleep(5)
            assert market.state(buyer) == "unknown", "it could be, until it has expired"
            chain.mine(1, seconds=500)

            async def forgotten() -> bool:
                return market.state(buyer) == ""

            assert await eventually(forgotten, 40)
            assert (await order.ask(payment)).status == 402
            assert market.credited() == chain.balance(market.pay_to) == 0
        finally:
            await market.world.stop()


async def test_a_reverted_settlement_took_nothing(market: Market) -> None:
    """The buyer spends the money elsewhere after it was verified, and before it is settled."""
    order, buyer = market.order(), market.buyer()
    payment = buyer.v2(await order.ask())
    market.chain.automine(False)
    market.chain.transfer(buyer.account, Buyer().address, 100 * DOLLAR, wait=False)
    waiting = asyncio.create_task(order.ask(payment))
    await asyncio.sleep(1)
    market.chain.mine(1)
    answer = await waiting
    assert answer.status == 402, answer.body
    assert told(answer)["success"] is False
    assert market.state(buyer) == ""


async def test_somebody_who_settles_in_our_place_changes_nothing(market: Market) -> None:
    order, buyer, other = market.order(), market.buyer(), market.buyer()
    asked = await order.ask()
    document = buyer.document(asked)
    payment = {"payment-signature": encoded(document)}
    market.chain.automine(False)
    used = asyncio.create_task(use(market, document, other))  # pays more for gas, and so comes first
    await asyncio.sleep(0.3)
    waiting = asyncio.create_task(order.ask(payment))
    await asyncio.sleep(1)
    market.chain.mine(1)
    await used
    answer = await waiting
    assert answer.status == 200, (answer.body, market.world.gateway.log.read_text()[-1500:])
    assert market.spent(buyer) == price(asked)
    market.chain.automine(True)


async def test_a_node_that_stops_takes_nothing_and_comes_back(market: Market) -> None:
    order, buyer = market.order(), market.buyer()
    asked = await order.ask()
    payment = buyer.v2(asked)
    market.chain.pause()
    try:
        answer = await order.ask(payment)
        assert (answer.status, answer.error["code"]) == (503, "payment_unavailable")
        assert (await order.ask()).status == 402, "offers need no node"
    finally:
        market.chain.resume()
    assert (await order.until_served(payment)).status == 200
    assert market.spent(buyer) == price(asked)


async def test_a_sender_without_gas_holds_nothing_up_for_ever(tmp_path: Path, chain: Anvil) -> None:
    chain.automine(True)
    market = market_on(tmp_path, chain)
    chain.rpc("anvil_setBalance", market.sender, "0x0")
    await market.world.start()
    try:
        orders, buyers = [market.order() for _ in range(3)], [market.buyer() for _ in range(3)]
        asked = [await order.ask() for order in orders]
        payments = [buyer.v2(one) for buyer, one in zip(buyers, asked, strict=True)]
        for order, payment in zip(orders, payments, strict=True):
            answer = await order.ask(payment)
            assert (answer.status, answer.error["code"]) == (503, "payment_pending")
        chain.rpc("anvil_setBalance", market.sender, hex(10**18))
        for order, payment in zip(orders, payments, strict=True):
            assert (await order.until_served(payment, 40)).status == 200
        assert [market.spent(buyer) for buyer in buyers] == [price(one) for one in asked]
        assert market.credited() == 1000 * sum(price(one) for one in asked)
        log = market.world.gateway.log.read_text()
        assert "not settled" in log and chain.url.removeprefix("http://") not in log, "told, without the node's address"
    finally:
        await market.world.stop()


@pytest.mark.parametrize("mined", [True, False])
async def test_kill_9_while_it_is_settled_loses_nothing(tmp_path: Path, chain: Anvil, mined: bool) -> None:
    """Killed between the reservation and the credit, with the transaction in a block or lost."""
    chain.automine(True)
    market = market_on(tmp_path, chain)
    await market.world.start()
    try:
        order, buyer = market.order(), market.buyer()
        asked = await order.ask()
        payment = buyer.v2(asked)
        chain.automine(False)
        waiting = asyncio.create_task(order.ask(payment))

        async def sent() -> bool:
            return int(chain.rpc("txpool_status")["pending"], 16) > 0

        assert await eventually(sent, 10)
        assert market.state(buyer) == "reserved"
        await market.world.kill()
        await asyncio.gather(waiting, return_exceptions=True)
        if mined:
            chain.mine(1)
        else:
            chain.rpc("anvil_dropAllTransactions")
        chain.automine(True)
        await market.world.start()
        assert (await order.ask(payment)).status == 503

        async def credited() -> bool:
            return market.state(buyer) == "credited"

        assert await eventually(credited, 60)
        assert market.credited() == 1000 * price(asked)
        assert (await order.ask(payment)).status == 200
        assert market.spent(buyer) == price(asked)
        await market.world.doctor()
    finally:
        chain.automine(True)
        await market.world.stop()
