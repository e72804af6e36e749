"""Requests and tokens a minute, for each key."""

import asyncio
import time
from typing import Any

import pytest

from tests.api.refusals import refused
from tests.gateway.wire import Answer
from tests.gateway.world import Customer, World, cost

MINUTE = 60


async def within_a_minute(seconds: float) -> None:
    """Wait for the next calendar minute if this one ends too soon: windows are calendar minutes."""
    left = MINUTE - time.time() % MINUTE
    if left < seconds:
        await asyncio.sleep(left + 0.05)


async def limited(customer: Customer, **fields: Any) -> tuple[str, str]:
    """A key with limits, and its id."""
    head = {"x-credit-id": customer.credit_id}
    made = await customer.world.http("POST", "/keys", {"name": "limited", **fields}, headers=head)
    assert made.status == 200, made.body
    for name, value in fields.items():
        assert made.json["data"][name] == value
    return made.json["data"]["api_key"], made.json["data"]["_id"]


def too_many(answer: Answer, limit: int, what: str) -> None:
    """A 429 that says which limit and when it resets."""
    error = refused(answer, 429, str(limit), what, "minute", "resets in", code="rate_limit_exceeded")
    wait = int(answer.headers["retry-after"])
    assert 1 <= wait <= MINUTE
    assert abs(wait - (MINUTE - time.time() % MINUTE)) <= 2
    assert answer.headers[f"x-ratelimit-limit-{what}"] == str(limit)
    assert answer.headers[f"x-ratelimit-remaining-{what}"] == "0"
    assert error["limit"] == limit and error["resets_in_seconds"] == wait


async def test_requests_per_minute(world: World, customer: Customer) -> None:
    key, _ = await limited(customer, requests_per_minute=3)
    await within_a_minute(3)
    answers = [await world.chat(key, stream=bool(turn % 2)) for turn in range(5)]
    assert [one.status for one in answers] == [200, 200, 200, 429, 429]
    left = [int(one.headers["x-ratelimit-remaining-requests"]) for one in answers[:3]]
    assert left == sorted(left, reverse=True) and left[-1] == 0
    assert {one.headers["x-ratelimit-limit-requests"] for one in answers[:3]} == {"3"}
    too_many(answers[-1], 3, "requests")
    assert (await customer.books()).charged == 3 * cost(15, 8)
    assert (await customer.chat()).status == 200, "another key of the account has no limit"


async def test_a_hundred_at_once_are_as_many_as_the_limit(world: World, customer: Customer) -> None:
    key, _ = await limited(customer, requests_per_minute=20)
    await within_a_minute(5)
    answers = await asyncio.gather(*(world.chat(key) for _ in range(100)))
    assert sum(one.status == 200 for one in answers) == 20
    assert {one.status for one in answers} == {200, 429}
    assert (await customer.books()).charged == 20 * cost(15, 8)


async def test_tokens_per_minute_count_what_was_used(world: World, customer: Customer) -> None:
    key, _ = await limited(customer, tokens_per_minute=500)
    await within_a_minute(5)
    answers: list[Answer] = []
    while len(answers) < 40 and (not answers or answers[-1].status == 200):
        answers.append(await world.chat(key, max_tokens=8))
    served = len(answers) - 1
    # a call reserves a bound of its prompt and its output, and gives back what it did not use (23 tokens are used)
    assert 10 <= served <= 500 // 23
    too_many(answers[-1], 500, "tokens")
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "500"
    assert (await customer.books()).charged == served * cost(15, 8)


async def test_a_call_that_may_use_more_than_a_minutes_tokens_is_served_alone(world: World, customer: Customer) -> None:
    key, _ = await limited(customer, tokens_per_minute=50)
    await within_a_minute(3)
    assert (await world.chat(key, max_tokens=4000, play={"events": 60})).status == 200
    too_many(await world.chat(key, max_tokens=4000), 50, "tokens")


async def test_a_refused_call_is_free_and_never_reaches_the_upstream(world: World, customer: Customer) -> None:
    key, _ = await limited(customer, requests_per_minute=1)
    await within_a_minute(3)
    assert (await world.chat(key)).status == 200
    answer = await world.chat(key)
    too_many(answer, 1, "requests")
    assert await world.upstream.journal(answer.tag) == []
    assert (await customer.books()).charged == cost(15, 8)


async def test_a_raised_limit_holds_at_once(world: World, customer: Customer) -> None:
    key, key_id = await limited(customer, requests_per_minute=1)
    await within_a_minute(5)
    assert [(await world.chat(key)).status for _ in range(2)] == [200, 429]
    head = {"x-credit-id": customer.credit_id}
    for limit, statuses in ((3, [200, 200, 429]), (None, [200, 200, 200])):
        changed = await world.http("PATCH", f"/keys/{key_id}", {"requests_per_minute": limit}, headers=head)
        assert changed.json["data"]["requests_per_minute"] == limit
        assert [(await world.chat(key)).status for _ in range(3)] == statuses


async def test_other_paths_are_not_counted(world: World, customer: Customer) -> None:
    key, _ = await limited(customer, requests_per_minute=1)
    await within_a_minute(3)
    for _ in range(5):
        assert (await world.http("GET", "/queries/history", key=key)).status == 200
        assert (await world.http("POST", "/credits/balance", key=key)).status == 200
    assert (await world.chat(key)).status == 200


@pytest.mark.slow
async def test_the_next_minute_serves_again(world: World, customer: Customer) -> None:
    key, _ = await limited(customer, requests_per_minute=2)
    await within_a_minute(5)
    assert [(await world.chat(key)).status for _ in range(3)] == [200, 200, 429]
    answer = await world.chat(key)
    await asyncio.sleep(int(answer.headers["retry-after"]) + 0.1)
    assert [(await world.chat(key)).status for _ in range(3)] == [200, 200, 429]
