"""Thin balances and key limits under many calls at once, with two processes on one database (cases 13 and 15 to 17)."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ppq_proxy.money.ledger import Ledger
from ppq_proxy.store.base import Entry
from ppq_proxy.store.sqlite import SqliteStore
from tests.gateway.conftest import MONGO, database_for
from tests.gateway.wire import Answer
from tests.gateway.world import (
    COUNTED_PROMPT,
    Customer,
    Gateway,
    Outcomes,
    Result,
    World,
    all_at_once,
    cost,
    eventually,
    new_tag,
    row,
    usd,
)
from tests.peers.upstream import PROMPT_TOKENS

TOKENS = 400
CALL = cost(PROMPT_TOKENS, TOKENS)
"""A call whose hold is hardly more than its cost."""
HOLD_ABOVE = usd(4000)
"""So much more is held for it than it costs: the counted prompt and a tenth, instead of what the usage says."""
DEAR = Decimal("0.003015")  # 15 tokens at 1 USD and 3 at 1,000 USD per million


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"PPQ_ALLOTMENT_IDLE_SECONDS": "1"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [row("dear", "story", prices={"input": "1", "output": "1000"})]


@pytest.fixture(scope="module", params=["sqlite", MONGO])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return database_for(request, tmp_path_factory.mktemp("database"))


@pytest.fixture(scope="module")
def second(world: World) -> Iterator[Gateway]:
    """Another process on the same database."""
    yield world.start_now()


async def call(gateway: Gateway, key: str, tokens: int = TOKENS, seconds: float = 0.2, **fields: Any) -> Answer:
    play = {"events": tokens, "tick": seconds / tokens}
    return await gateway.chat(key, max_tokens=tokens, play=play, seconds=60, **fields)


async def watch(customer: Customer, gateways: list[Gateway], stop: asyncio.Event) -> int:
    """Look at the balance until told to stop: at every moment 0 ≤ held ≤ balance, and what is left is available."""
    for looks, gateway in enumerate(itertools.cycle(gateways)):
        if stop.is_set():
            return looks
        answer = await gateway.http("POST", "/credits/balance", {"credit_id": customer.credit_id})
        found = {name: Decimal(str(value)) for name, value in answer.json.items()}
        assert 0 <= found["held"] <= found["balance"], found
        assert found["available"] == found["balance"] - found["held"]
        await asyncio.sleep(0.01)
    raise AssertionError


# 13: refused, or lowered


async def test_case13_refused_with_the_amounts(world: World) -> None:
    customer = await world.customer("0.00004")
    answer = await customer.chat(max_tokens=4000)
    assert answer.status == 402
    error = answer.error
    required, available = Decimal(error["required"]), Decimal(error["available"])
    assert available == Decimal("0.00004") < required
    assert error["required"] in error["message"] and error["available"] in error["message"]
    assert await world.upstream.journal(answer.tag) == []
    assert (await customer.books()).charged == 0


CREDIT = Decimal("0.001")
CLAMPS: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 4000},
    "max_completion_tokens": {"max_completion_tokens": 4000},
    "both": {"max_tokens": 4000, "max_completion_tokens": 3000},
    "both, the other way round": {"max_tokens": 3000, "max_completion_tokens": 4000},
    "only one of both too high": {"max_tokens": 30, "max_completion_tokens": 4000},
    "several answers": {"max_tokens": 4000, "n": 4},
    "none given": {},
    "none given, several answers": {"n": 4},
}


@pytest.fixture(scope="module")
def clamped(world: World) -> Outcomes[tuple[str, bool], Result]:
    options: dict[str, Any] = {"credit": str(CREDIT), "play": {"events": 100_000}}
    names = [(name, stream) for name in CLAMPS for stream in (False, True)]
    return all_at_once(
        {(name, stream): world.examined(stream=stream, **options, **CLAMPS[name]) for name, stream in names}
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", CLAMPS)
def test_case13_served_with_what_the_hold_pays(
    clamped: Outcomes[tuple[str, bool], Result], name: str, stream: bool
) -> None:
    """The hold is for what is sent upstream, so an upstream that keeps to it never makes more than the balance pays."""
    fields, n = CLAMPS[name], CLAMPS[name].get("n", 1)
    result = clamped[name, stream]
    assert result.answer.status == 200 and result.answer.whole
    [sent] = result.upstream_calls
    limits = {field: sent["body"][field] for field in ("max_tokens", "max_completion_tokens") if field in sent["body"]}
    assert limits, "no limit was sent to the upstream"
    asked = {field: fields[field] for field in limits if field in fields}
    assert all(limits[field] <= most for field, most in asked.items())
    assert max(limits.values()) * n * usd(2000) + usd(1000 * PROMPT_TOKENS) <= CREDIT
    assert int(result.answer.headers["x-max-tokens-clamped"]) == min(limits.values())
    assert result.charged == cost(PROMPT_TOKENS, sent["tokens"]) and result.books.lost == 0
    if name != "only one of both too high":
        assert result.charged > CREDIT * Decimal("0.9"), "less was sold than the balance pays"


async def test_case13_no_limit_and_no_clamp_where_the_balance_pays_for_everything(world: World) -> None:
    customer = await world.customer("1")
    answer = await customer.chat()
    [sent] = await world.upstream.journal(answer.tag)
    assert "max_tokens" not in sent["body"] and "max_completion_tokens" not in sent["body"]
    assert "x-max-tokens-clamped" not in answer.headers


async def test_case13_a_zero_balance_is_refused(world: World) -> None:
    customer = await world.customer("0")
    for stream in (False, True):
        assert (await customer.chat(stream=stream)).status == 402


async def test_case13_a_balance_is_spent_to_its_end(world: World) -> None:
    """Call after call, lowered where need be, until it is refused: never below zero, and what is left buys nothing useful."""
    customer = await world.customer("0.001")
    answers: list[Answer] = []
    while not answers or answers[-1].status == 200:
        answers.append(await customer.chat(max_tokens=100, play={"events": 100_000}))
        assert len(answers) < 50
    assert answers[-1].status == 402
    books = await customer.books()
    assert 0 <= books.balance < cost(COUNTED_PROMPT + 2, 16) and books.lost == 0


# 15: many at once, in two processes


async def test_case15_a_thousand_at_once_on_a_balance_for_ten(world: World) -> None:
    customer = await world.customer(10 * (CALL + HOLD_ABOVE))
    stop = asyncio.Event()
    watching = asyncio.create_task(watch(customer, [world.gateway], stop))
    answers = await asyncio.gather(*(call(world.gateway, customer.key) for _ in range(1000)))
    stop.set()
    assert await watching > 1
    served = [answer for answer in answers if answer.status == 200]
    assert Counter(answer.status for answer in answers) == {200: len(served), 402: 1000 - len(served)}
    books = await customer.books()
    assert 8 <= len(served) <= 10 and len(books.rows) == len(served)
    assert books.charged == sum((answer.cost for answer in served), Decimal(0)) == len(served) * CALL
    assert books.balance >= 0 and books.lost == 0


async def test_case15_one_after_the_other_in_two_processes_on_a_balance_for_six(world: World, second: Gateway) -> None:
    customer = await world.customer(6 * CALL + HOLD_ABOVE)
    for gateway in (world.gateway, second) * 3:
        answer = await call(gateway, customer.key, seconds=0.01)
        assert answer.status == 200, answer.body
    assert (await call(world.gateway, customer.key)).status == 402
    books = await customer.books()
    assert books.charged == 6 * CALL and len(books.rows) == 6


async def test_case15_small_calls_in_two_processes_spend_everything(world: World, second: Gateway) -> None:
    """What one process has drawn ahead and does not use is found by the other."""
    each = cost(PROMPT_TOKENS, 8)
    customer = await world.customer(300 * each + usd(6000))
    gateways = itertools.cycle((world.gateway, second))

    async def spend() -> int:
        served = 0
        while (await next(gateways).chat(customer.key, max_tokens=8, seconds=60)).status == 200:
            served += 1
        return served

    served = sum(await asyncio.gather(*(spend() for _ in range(4))))
    while (await world.gateway.chat(customer.key, max_tokens=8)).status == 200:
        served += 1
    books = await customer.books()
    assert books.charged == served * each == 300 * each and len(books.rows) == 300


async def test_case15_a_hundred_at_once_in_two_processes_on_a_balance_for_ten(world: World, second: Gateway) -> None:
    customer = await world.customer(10 * (CALL + HOLD_ABOVE))
    stop = asyncio.Event()
    watching = asyncio.create_task(watch(customer, [world.gateway, second], stop))
    gateways = itertools.cycle((world.gateway, second))
    answers = await asyncio.gather(*(call(next(gateways), customer.key) for _ in range(100)))
    stop.set()
    assert await watching > 1
    served = [answer for answer in answers if answer.status == 200]
    assert {answer.status for answer in answers} <= {200, 402}
    assert 8 <= len(served) <= 10
    books = await customer.books()
    assert books.charged == len(served) * CALL <= books.credited and len(books.rows) == len(served)


@pytest.mark.parametrize("where", ["here", "everywhere"])
async def test_case15_money_idle_at_another_key_is_found(world: World, second: Gateway, where: str) -> None:
    """Each key of each process may hold a share ahead; a call for nearly all there is still gets it."""
    customer = await world.customer("0.01")
    keys = [(await world.cli("keys", "create", customer.credit_id, f"key {at}"))["api_key"] for at in range(3)]
    small = await asyncio.gather(
        *(gateway.chat(key, max_tokens=8) for gateway in gateways_of(world, second, where) for key in keys)
    )
    assert all(answer.status == 200 for answer in small)
    assert (await world.show(customer.credit_id))["held_usd"] > 0, "nothing lies idle, so this shows nothing"
    rest = Decimal("0.01") - len(small) * cost(PROMPT_TOKENS, 8)
    tokens = int((rest - usd(30_000)) / usd(2000))
    answer = await world.chat(customer.key, max_tokens=tokens, play={"events": tokens})
    assert answer.status == 200
    if where == "here":
        assert "x-max-tokens-clamped" not in answer.headers, (
            "an answer was cut short while the account's money lay idle"
        )
        assert answer.cost == cost(PROMPT_TOKENS, tokens)
    await customer.books()


def gateways_of(world: World, second: Gateway, where: str) -> list[Gateway]:
    return [world.gateway] if where == "here" else [world.gateway, second]


# 16: key limits, revocation


async def limited(world: World, customer: Customer, limit: str = "0.01", **more: Any) -> tuple[str, str]:
    """A key with a spending limit: its id and value."""
    body = {"name": "limited", "usage_limit_usd": float(limit), **more}
    answer = await world.http("POST", "/keys", body, headers={"x-credit-id": customer.credit_id})
    assert answer.status == 200, answer.body
    return answer.json["data"]["_id"], answer.json["data"]["api_key"]


async def used(world: World, customer: Customer, key_id: str) -> Decimal:
    [one] = [key for key in await world.cli("keys", "list", customer.credit_id) if key["_id"] == key_id]
    return Decimal(str(one["current_period_usage_usd"]))


@pytest.mark.parametrize("period", [None, "daily"])
async def test_case16_forty_at_once_on_a_limit_for_three(world: World, second: Gateway, period: str | None) -> None:
    customer = await world.customer("10")
    key_id, key = await limited(world, customer, reset_period=period) if period else await limited(world, customer)
    gateways = itertools.cycle((world.gateway, second))
    calls = (next(gateways).chat(key, "dear", max_tokens=3, play={"tick": 0.05}, seconds=60) for _ in range(40))
    answers = await asyncio.gather(*calls)
    served = [answer for answer in answers if answer.status == 200]
    assert {answer.status for answer in answers} <= {200, 403}
    refused = next(answer for answer in answers if answer.status == 403)
    assert "limit" in refused.error["message"] and "0.01" in refused.error["message"]
    assert period is None or "reset" in refused.error["message"]
    assert 2 <= len(served) <= 3
    books = await customer.books()
    assert books.charged == len(served) * DEAR
    assert await used(world, customer, key_id) == books.charged <= Decimal("0.01")
    assert (await customer.chat("dear", max_tokens=3)).status == 200, "the account's other key has no limit"


async def test_case16_an_overrun_does_not_exceed_the_limit(world: World) -> None:
    customer = await world.customer("10")
    key_id, key = await limited(world, customer)
    answer = await world.chat(key, "dear", max_tokens=3)
    assert answer.status == 200
    over = await world.chat(key, "overrun", max_tokens=3000, play={"events": 20_000})  # 0.04 USD on a rest of 0.007
    assert over.status == 200
    books = await customer.books()
    assert await used(world, customer, key_id) == books.charged == Decimal("0.01")
    assert books.lost > 0


async def test_case16_limits_of_several_keys_of_one_account(world: World, second: Gateway) -> None:
    """Every limit holds by itself, and the account's balance over all of them."""
    customer = await world.customer(5 * DEAR + usd(10_000))
    keys = []
    for at in range(4):
        body = {"name": f"limited {at}", "usage_limit_usd": 0.01}
        made = await world.http("POST", "/keys", body, headers={"x-credit-id": customer.credit_id})
        keys.append((made.json["data"]["_id"], made.json["data"]["api_key"]))
    gateways = itertools.cycle((world.gateway, second))
    calls = (next(gateways).chat(key, "dear", max_tokens=3, play={"tick": 0.03}, seconds=60) for _, key in keys * 8)
    answers = await asyncio.gather(*calls)
    served = sum(answer.status == 200 for answer in answers)
    assert {answer.status for answer in answers} <= {200, 402, 403} and 4 <= served <= 5
    books = await customer.books()
    assert books.charged == served * DEAR
    for key_id, _ in keys:
        assert await used(world, customer, key_id) <= Decimal("0.01")


@pytest.mark.parametrize("by", ["http", "command"])
async def test_case16_a_revocation_holds_everywhere_once_answered(world: World, second: Gateway, by: str) -> None:
    customer = await world.customer("1")
    key_id, key = await limited(world, customer, "0.5")
    assert all(answer.status == 200 for answer in await asyncio.gather(world.chat(key), second.chat(key)))
    if by == "http":
        done = await second.http("DELETE", f"/keys/{key_id}", headers={"x-credit-id": customer.credit_id})
        assert done.status == 200
    else:
        await world.cli("keys", "revoke", customer.credit_id, key_id)
    answers = await asyncio.gather(
        *(gateway.chat(key, stream=stream) for gateway in (world.gateway, second) for stream in (False, True))
    )
    assert [answer.status for answer in answers] == [401] * 4
    assert (await customer.books()).charged == 2 * cost(PROMPT_TOKENS, 8)


async def test_case16_a_lowered_limit_holds_everywhere_once_answered(world: World, second: Gateway) -> None:
    customer = await world.customer("10")
    key_id, key = await limited(world, customer, "5")
    assert all(answer.status == 200 for answer in await asyncio.gather(world.chat(key), second.chat(key)))
    lowered = await world.http(
        "PATCH", f"/keys/{key_id}", {"usage_limit_usd": 0.01}, headers={"x-credit-id": customer.credit_id}
    )
    assert lowered.status == 200
    gateways = itertools.cycle((world.gateway, second))
    answers = await asyncio.gather(*(next(gateways).chat(key, "dear", max_tokens=3, seconds=60) for _ in range(20)))
    assert sum(answer.status == 200 for answer in answers) <= 3
    await customer.books()
    assert await used(world, customer, key_id) <= Decimal("0.01")


# 17: balances


async def test_case17_an_idle_account_is_back_at_nothing_held(world: World, second: Gateway) -> None:
    customer = await world.customer("1")
    await asyncio.gather(
        *(gateway.chat(customer.key, stream=stream) for gateway in (world.gateway, second) for stream in (False, True))
    )
    began = time.monotonic()

    async def idle() -> bool:
        return (await customer.balance())["held"] == 0

    assert await eventually(idle, 4), "still held after four seconds"
    assert time.monotonic() - began < 4
    found = await customer.balance()
    assert found["available"] == found["balance"] == 1 - 4 * cost(PROMPT_TOKENS, 8)


async def test_case17_an_open_call_is_held_and_not_taken_off_the_balance(world: World, second: Gateway) -> None:
    customer, tag = await world.customer("0.001"), new_tag()
    calling = asyncio.create_task(customer.chat(tag=tag, max_tokens=100, play={"pause": "request"}))
    await world.upstream.reached(tag)
    for gateway in (world.gateway, second):
        answer = await gateway.http("POST", "/credits/balance", {"credit_id": customer.credit_id})
        assert Decimal(str(answer.json["balance"])) == Decimal("0.001")
        assert Decimal(str(answer.json["held"])) >= cost(PROMPT_TOKENS, 100)
    await world.upstream.go(tag)
    assert (await calling).status == 200
    assert (await customer.balance())["balance"] == Decimal("0.001") - cost(PROMPT_TOKENS, 8)


async def test_case17_an_allotment_that_was_forgotten_still_goes_back(tmp_path: Path) -> None:
    """A payer is remembered longer than its allotment: what is drawn through it later must not stay drawn for ever."""
    store = SqliteStore(str(tmp_path / "books.db"))
    await store.open()
    try:
        await store.create_account("a", b"digest", "prepaid", 0)
        await store.credit("opening", Entry("a", None, 0, "credit", 10**9))
        ledger = Ledger(store, "owner")
        await store.join("owner", "", 0, 0, 1 << 60)
        remembered = ledger.allotment("a", None)
        for _ in range(2):
            ledger.return_idle(0.3)  # not used for long: forgotten
            assert not ledger.allotments
            hold = await ledger.hold_ahead(remembered, 1000)
            assert hold
            ledger.release(hold)
            ledger.return_idle(-1)
            await ledger.flushed()
            account = await store.account("a")
            assert account and account.reserved == 0
            remembered.touched = 0
    finally:
        await store.close()
