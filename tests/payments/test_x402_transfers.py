"""Paying by a transaction that the buyer sends itself and shows afterwards, on a real chain."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.gateway.wire import Answer
from tests.gateway.world import eventually
from tests.payments.x402_shop import Market, Order, asked_body, market_on, price, remaining, use
from tests.peers.anvil import DOLLAR, Anvil, anvil, why_not
from tests.peers.x402_buyer import Buyer, encoded, offered, told

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]

# The models of the upstream double are too cheap for a call of more than ten dollars.
DEAR = {
    "id": "test/dear",
    "type": "chat",
    "context": 1_000_000,
    "max_output": 4096,
    "margin": "0",
    "upstreams": [{"upstream": "default", "model": "story"}],
    "prices": [{"of": "input", "unit": "mtok", "usd": "1"}, {"of": "output", "unit": "mtok", "usd": "100000"}],
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    with anvil(tmp_path_factory.mktemp("anvil")) as running:
        yield running


@pytest.fixture(scope="module")
def market_of_module(tmp_path_factory: pytest.TempPathFactory, chain: Anvil) -> Iterator[Market]:
    market = market_on(tmp_path_factory.mktemp("x402"), chain)
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
    yield market_of_module

    async def agree() -> bool:
        return market_of_module.earned()

    assert await eventually(agree, 15), "guests have another credit than what was paid"


async def paid_by_transaction(
    market: Market, order: Order, buyer: Buyer, units: int | None = None, to: str = ""
) -> tuple[Answer, str]:
    """A 402, and the hash of a transaction for it."""
    asked = await order.ask()
    return asked, market.chain.transfer(buyer.account, to or market.pay_to, price(asked) if units is None else units)


async def test_GB_009_GB_011_GB_019_a_transaction_pays_for_its_request_once(market: Market) -> None:
    order, buyer = market.order(), market.buyer()
    asked, sent = await paid_by_transaction(market, order, buyer)
    quote = offered(asked)["extra"]["quoteId"]
    answer = await order.ask(buyer.transfer(sent, quote, asked_body(order)))
    assert answer.status == 200, answer.body
    assert told(answer)["transaction"] == sent
    assert remaining(answer) == Decimal(price(asked)).scaleb(-6) - answer.cost
    other = market.order()
    again = await other.ask()
    body = asked_body(other)
    assert (await other.ask(buyer.transfer(sent, offered(again)["extra"]["quoteId"], body))).status == 402
    assert (await other.ask(buyer.transfer(sent.upper().replace("0X", "0x"), quote, body))).status == 402


async def test_a_transaction_shown_many_times_at_once_is_credited_once(market: Market) -> None:
    order, buyer = market.order(), market.buyer()
    asked, sent = await paid_by_transaction(market, order, buyer)
    shown = buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order))
    answers = await asyncio.gather(*(order.ask(shown) for _ in range(10)))
    assert {one.status for one in answers} <= {200, 402, 429}
    assert any(one.status == 200 for one in answers)


async def test_GB_016_what_was_sent_over_the_price_is_credit_too(market: Market) -> None:
    order, buyer = market.order(), market.buyer()
    asked, sent = await paid_by_transaction(market, order, buyer, DOLLAR)
    shown = buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order))
    answer = await order.ask(shown)
    assert (answer.status, remaining(answer)) == (200, 1 - answer.cost)
    assert (await order.ask(shown)).status == 200, "the same proof for the same request, until it is spent"


async def test_only_its_sender_can_show_a_transaction(market: Market) -> None:
    """Everybody can read the hash and the sender from the chain."""
    order, buyer, thief = market.order(), market.buyer(), market.buyer()
    asked, sent = await paid_by_transaction(market, order, buyer)
    quote, body = offered(asked)["extra"]["quoteId"], asked_body(order)
    stolen = [
        {"x-payment": encoded({"txHash": sent, "from": buyer.address})},
        {"x-payment": encoded({"txHash": sent, "from": buyer.address, "quoteId": quote})},
        thief.transfer(sent, quote, body, **{"from": buyer.address}),
        thief.transfer(sent, quote, body),
        buyer.transfer(sent, quote, b"{}"),
        buyer.transfer(sent, quote, body, quoteId=quote + "x"),
    ]
    for number, shown in enumerate(stolen):
        answer = await market.order(**order.fields).ask(shown)
        assert answer.status == 402, number
        assert "x-credit-remaining-usd" not in answer.headers
    signature = buyer.transfer(sent, quote, body)
    assert (await market.order(**order.fields | {"max_tokens": 10}).ask(signature)).status == 402, "another body"
    assert (await order.ask(signature)).status == 200


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("too little", "payment-insufficient"),
        ("to somebody else", "verification-failed"),
        ("of another token", "verification-failed"),
        ("reverted", "verification-failed"),
        ("of another sender", "verification-failed"),
        ("unknown", "verification-failed"),
    ],
)
async def test_transactions_that_do_not_pay(market: Market, name: str, problem: str) -> None:
    order, buyer, chain = market.order(), market.buyer(), market.chain
    asked = await order.ask()
    units = price(asked)
    match name:
        case "too little":
            market.unearned += units - 1
            sent = chain.transfer(buyer.account, market.pay_to, units - 1)
        case "to somebody else":
            sent = chain.transfer(buyer.account, Buyer().address, units)
        case "of another token":
            token = chain.another_token(buyer.account, units)
            sent = chain.transfer(buyer.account, market.pay_to, units, token=token)
        case "reverted":
            sent = chain.transfer(buyer.account, market.pay_to, 101 * DOLLAR)
        case "of another sender":
            market.unearned += units
            sent = chain.transfer(market.buyer().account, market.pay_to, units)
        case _:
            sent = "0x" + secrets.token_hex(32)
    answer = await order.ask(buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order)))
    assert (answer.status, answer.json["type"].rpartition("/")[2]) == (402, problem), answer.json["detail"]
    assert offered(answer)


async def test_what_was_paid_by_authorization_is_not_counted_again_by_its_transaction(market: Market) -> None:
    """Neither as the transaction of the gateway's own key, nor where the buyer brought its authorization to the chain."""
    order, buyer = market.order(), market.buyer()
    paid = await order.ask(buyer.v2(await order.ask()))
    assert paid.status == 200
    own = market.order()
    asked = await own.ask()
    shown = buyer.transfer(told(paid)["transaction"], offered(asked)["extra"]["quoteId"], asked_body(own))
    answer = await own.ask(shown)
    assert answer.status == 402
    assert "made itself" in answer.json["detail"]
    market.unearned += await use(market, buyer.document(asked), buyer)
    sent = market.chain.rpc("eth_getBlockByNumber", "latest", False)["transactions"][0]
    again = await own.ask(buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(own)))
    assert again.status == 402
    assert "made itself" in again.json["detail"]


async def test_a_transaction_that_is_in_no_block_yet_is_waited_for(market: Market) -> None:
    order, buyer = market.order(), market.buyer()
    asked = await order.ask()
    market.chain.automine(False)
    try:
        sent = market.chain.transfer(buyer.account, market.pay_to, price(asked), wait=False)
        shown = buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order))
        answer = await order.ask(shown)
        assert (answer.status, answer.error["code"]) == (503, "payment_pending")
        market.chain.mine()
        assert (await order.ask(shown)).status == 200
    finally:
        market.chain.automine(True)


async def test_GB_018_more_than_ten_dollars_need_five_confirmations(tmp_path: Path) -> None:
    """And a transaction that a reorganisation takes back before that is not credited."""
    with anvil(tmp_path / "anvil") as chain:
        market = market_on(tmp_path, chain, rows=[DEAR])
        await market.world.start()
        try:
            order, buyer = market.order(model="test/dear", max_tokens=150), market.buyer()
            asked, sent = await paid_by_transaction(market, order, buyer)
            assert price(asked) > 10 * DOLLAR
            shown = buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order))
            for count in (1, 2, 3):
                answer = await order.ask(shown)
                assert (answer.status, answer.error["code"]) == (503, "payment_pending")
                assert f"{count} of 5 confirmations" in answer.error["message"]
                chain.mine()
            chain.rpc("anvil_reorg", 4, [])
            answer = await order.ask(shown)
            assert answer.status in (402, 503), "it is gone, or waits to come into a block again"
            assert market.credited() == 0
            again = chain.transfer(buyer.account, market.pay_to, price(asked))
            chain.mine(4)
            paid = await order.ask(buyer.transfer(again, offered(asked)["extra"]["quoteId"], asked_body(order)))
            assert paid.status == 200, paid.body
            assert market.credited() >= 1000 * price(asked)
        finally:
            await market.world.stop()


async def test_GB_017_a_transaction_older_than_five_minutes_is_not_taken(tmp_path: Path) -> None:
    with anvil(tmp_path / "anvil", seconds_ago=400) as chain:
        market = market_on(tmp_path, chain)
        await market.world.start()
        try:
            order, buyer = market.order(), market.buyer()
            asked, sent = await paid_by_transaction(market, order, buyer)
            answer = await order.ask(buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order)))
            assert (answer.status, answer.json["type"].rpartition("/")[2]) == (402, "payment-expired")
            assert "300 s" in answer.json["detail"]
            assert market.credited() == 0
        finally:
            await market.world.stop()


@pytest.mark.parametrize("by", ["transaction", "authorization"])
async def test_GB_020_a_sanctioned_address_does_not_pay(market: Market, by: str) -> None:
    order, buyer = market.order(), market.buyer()
    asked = await order.ask()
    market.chain.sanction(buyer.address)
    if by == "transaction":
        market.unearned += price(asked)
        sent = market.chain.transfer(buyer.account, market.pay_to, price(asked))
        payment = buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order))
    else:
        payment = buyer.v2(asked)
    answer = await order.ask(payment)
    assert answer.status == 402
    assert "address are not taken" in answer.json["detail"]
    assert "x-credit-remaining-usd" not in answer.headers


async def test_GB_020_an_oracle_that_does_not_answer_takes_no_money(tmp_path: Path, chain: Anvil) -> None:
    market = market_on(tmp_path, chain, PPQ_X402_SANCTIONS_ORACLE="0x00000000000000000000000000000000000fffff")
    await market.world.start()
    try:
        order, buyer = market.order(), market.buyer()
        asked, sent = await paid_by_transaction(market, order, buyer)
        shown = buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order))
        for payment in (shown, buyer.v2(asked)):
            answer = await order.ask(payment)
            assert (answer.status, answer.error["code"]) == (503, "payment_unavailable")
        assert market.credited() == 0
        assert market.rows() == {}
    finally:
        await market.world.stop()


async def test_GB_009_transactions_without_a_signature_are_taken_where_the_operator_wants_it(
    tmp_path: Path, chain: Anvil
) -> None:
    market = market_on(tmp_path, chain, PPQ_X402_UNSIGNED_TRANSFERS="true")
    await market.world.start()
    try:
        order, buyer = market.order(), market.buyer()
        _, sent = await paid_by_transaction(market, order, buyer)
        bare = {"x-payment": encoded({"txHash": sent, "from": buyer.address})}
        assert (await market.order(max_tokens=7).ask(bare)).status == 402, "another request"
        assert (await order.ask(bare)).status == 200
        other = market.order()
        await other.ask()
        assert (await other.ask(bare)).status == 402, "one job only"
        assert market.earned()
    finally:
        await market.world.stop()


async def test_kill_9_after_a_transaction_was_shown_credits_it_once(tmp_path: Path, chain: Anvil) -> None:
    market = market_on(tmp_path, chain)
    await market.world.start()
    try:
        order, buyer = market.order(max_tokens=400), market.buyer()
        asked, sent = await paid_by_transaction(market, order, buyer)
        shown = buyer.transfer(sent, offered(asked)["extra"]["quoteId"], asked_body(order))
        waiting = asyncio.create_task(order.ask(shown))

        async def kept() -> bool:
            return bool(market.rows())

        assert await eventually(kept, 10, 0.001)
        await market.world.kill()
        await asyncio.gather(waiting, return_exceptions=True)
        await market.world.start()

        async def credited() -> bool:
            return set(market.rows().values()) == {"credited"}

        assert await eventually(credited, 20), "though nobody shows it again"
        assert market.earned()
        assert (await order.ask(shown)).status in (200, 402), "what the call that was cut has used is gone"
        await market.world.doctor()
    finally:
        await market.world.stop()
