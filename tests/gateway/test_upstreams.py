"""Upstreams that refuse, fail, stall or are down: what customers see, who is tried next, and what stays secret (case 20)."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.gateway.wire import Answer
from tests.gateway.world import (
    COUNTED_PROMPT,
    Customer,
    Outcomes,
    Result,
    Upstream,
    World,
    all_at_once,
    cost,
    eventually,
    new_tag,
    row,
)
from tests.peers.upstream import OPERATORS_KEY, PROMPT_TOKENS

CALL = cost(PROMPT_TOKENS, 8)
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
Table = Outcomes[tuple[str, bool], Result]
Timed = Outcomes[tuple[str, bool], tuple[Result, float]]
KEY_OF_B = "sk-operator-at-b-9876543210"


FAILING = (
    "status-401", "status-402", "status-403", "status-404", "status-408", "status-429", "status-500", "status-503", "status-529", "quota",
    "reset", "hang-up", "half-head", "html", "error-200", "empty", "no-choices", "not-json", "short-body", "role-then-error",
)  # fmt: skip
FIRST = (*FAILING, "status-400", "status-413", "status-422", "die", "story", "silent", "flaky")


@pytest.fixture(scope="module")
def deaf() -> Iterator[int]:
    """A port that never takes a connection: its queue is full and nobody empties it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port: int = listener.getsockname()[1]
    waiting = []
    for _ in range(3):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        waiting.append(one)
    yield port
    for one in (*waiting, listener):
        one.close()


@pytest.fixture(scope="module")
def mortal() -> Iterator[Upstream]:
    """An upstream that is stopped and started."""
    peer = Upstream().start()
    yield peer
    peer.stop()


@pytest.fixture(scope="module")
def settings(upstream: Upstream, mortal: Upstream, deaf: int) -> dict[str, str]:
    table = {
        "b": {"url": upstream.url, "key": KEY_OF_B},
        "mortal": {"url": mortal.url, "key": "sk-mortal"},
        "deaf": {"url": f"http://127.0.0.1:{deaf}/v1", "connect_seconds": 0.3},
        "narrow": {"url": upstream.url, "concurrency": 2},
        "full": {"url": upstream.url, "concurrency": 1, "connect_seconds": 0.3},
        "hasty": {"url": upstream.url, "first_byte_seconds": 0.5, "idle_seconds": 5},
        "restless": {"url": upstream.url, "first_byte_seconds": 5, "idle_seconds": 0.5},
        "steady": {"url": upstream.url, "first_byte_seconds": 5, "idle_seconds": 1},
        "once": {"url": upstream.url, "retries": 0},
        "patient": {"url": upstream.url, "retries": 3},
        "plain": {"url": upstream.url, "usage": "never"},
        # one for each way to fail, as one that fails in a row is asked last
        **{f"a-{model}": {"url": upstream.url, "key": OPERATORS_KEY} for model in FIRST},
    }
    return {"PPQ_UPSTREAMS": json.dumps(table)}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [
        *(row(f"{model}-then-b", f"a-{model}:{model}", "b:story") for model in FIRST),
        row("deaf-then-b", "deaf:story", "b:story"),
        row("patient-story", "steady:story"),
        row("hasty-then-b", "hasty:silent", "b:story"),
        row("both-fail", "a-status-500:status-500", "a-status-401:status-401"),
        row("mortal", "mortal:story"),
        row("mortal-then-b", "mortal:story", "b:story"),
        row("b", "b:story"),
        *(
            row(f"{name}-{model}", f"{name}:{model}")
            for name in ("hasty", "restless")
            for model in ("story", "silent", "silent-mid")
        ),
        *(row(f"{name}", f"{name}:story") for name in ("deaf", "narrow", "full", "plain")),
        *(row(f"{name}-flaky", f"{name}:flaky") for name in ("once", "patient")),
    ]


async def attempts(customer: Customer, answer: Answer) -> list[tuple[str, bool]]:
    """Who was tried, and whether it delivered."""
    made = (await customer.receipt(answer.request_id))["attempts"]
    return [(one["upstream"], "error" not in one) for one in made]


# what customers see


@STREAMS
@pytest.mark.parametrize("model", ["status-401", "status-402", "status-403", "quota"])
async def test_case20_the_operators_trouble_is_not_the_customers(world: World, model: str, stream: bool) -> None:
    customer = await world.customer()
    answer = await customer.chat(model, stream=stream)
    assert answer.status == 503 and "retry-after" in answer.headers
    told = answer.body.decode()
    assert OPERATORS_KEY not in told and "org-operator" not in told and "kaputt" not in told
    assert answer.error["request_id"] == answer.request_id
    assert (await customer.books()).charged == 0


@STREAMS
async def test_case20_too_many_requests_there(world: World, stream: bool) -> None:
    customer = await world.customer()
    answer = await customer.chat("status-429", stream=stream, play={"retry_after": 7})
    assert answer.status in (429, 503)
    assert answer.headers["retry-after"] == "7"
    assert (await customer.books()).charged == 0


@STREAMS
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_case20_the_customers_own_fault_is_told_in_the_upstreams_words(
    world: World, status: int, stream: bool
) -> None:
    customer = await world.customer()
    answer = await customer.chat(f"status-{status}-then-b", stream=stream)
    assert answer.status == status
    assert "not right" in answer.error["message"]
    assert len(await world.upstream.journal(answer.tag)) == 1, "asked again elsewhere"
    assert (await customer.books()).charged == 0


@STREAMS
async def test_case20_every_upstream_failed(world: World, stream: bool) -> None:
    customer = await world.customer()
    answer = await customer.chat("both-fail", stream=stream)
    assert answer.status == 503
    assert (await customer.books()).charged == 0


async def test_case20_secrets_stay_where_they_belong(world: World) -> None:
    """Upstreams get their own key and nothing of the customer's; answers and logs get neither."""
    customer = await world.customer()
    secret = "do-not-pass-this-on"
    headers = {"x-credit-id": customer.credit_id, "cookie": f"a={secret}", "x-secret": secret, "x-api-key": secret}
    answers = []
    for model in ("story", "b", "status-401", "status-401-then-b"):
        answers.append(await customer.chat(model, headers=headers | {"idempotency-key": f"{secret}-{model}"}))
    for answer in answers:
        assert OPERATORS_KEY not in str(answer.lines) + str(answer.body) and KEY_OF_B not in str(answer.lines) + str(
            answer.body
        )
        for call in await world.upstream.journal(answer.tag):
            sent = json.dumps(call["headers"])
            assert customer.key not in sent and customer.credit_id not in sent and secret not in sent
            assert call["headers"]["authorization"] in (f"Bearer {OPERATORS_KEY}", f"Bearer {KEY_OF_B}")
    [first], [second] = [await world.upstream.journal(answer.tag) for answer in answers[:2]]
    assert first["headers"]["authorization"].endswith(OPERATORS_KEY) and second["headers"]["authorization"].endswith(
        KEY_OF_B
    )
    log = world.gateway.log.read_text()
    assert not any(
        one in log
        for one in (OPERATORS_KEY, KEY_OF_B, customer.key, customer.credit_id, secret, "Tell me a story", " word word")
    )


# who is tried


@pytest.fixture(scope="module")
def fallen_back(world: World) -> Table:
    names = [(model, stream) for model in FAILING for stream in (False, True)]
    return all_at_once({(model, stream): world.examined(f"{model}-then-b", stream=stream) for model, stream in names})


@STREAMS
@pytest.mark.parametrize("model", FAILING)
def test_case09_the_next_upstream_delivers_and_there_is_one_charge(
    fallen_back: Table, model: str, stream: bool
) -> None:
    result = fallen_back[model, stream]
    assert result.answer.status == 200 and result.answer.text == " word" * 8
    assert result.charged == CALL
    made = [(one["upstream"], "error" not in one) for one in result.receipt["attempts"]]
    assert made[-1] == ("b", True) and all(one == (f"a-{model}", False) for one in made[:-1]) and len(made) <= 3


@STREAMS
async def test_upstreams_are_tried_in_order_of_preference(world: World, stream: bool) -> None:
    customer = await world.customer()
    for _ in range(5):
        answer = await customer.chat("story-then-b", stream=stream)
        assert await attempts(customer, answer) == [("a-story", True)]
    assert (await customer.books()).charged == 5 * CALL


async def test_case09_none_after_the_first_content(world: World) -> None:
    customer = await world.customer()
    answer = await customer.chat("die-then-b", stream=True)
    assert answer.broken and answer.text == " word" * 3
    assert len(await world.upstream.journal(answer.tag)) == 1
    assert (await customer.books()).charged == cost(COUNTED_PROMPT, 3)


async def test_case09_none_elsewhere_once_the_client_has_left(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    async with customer.talk("flaky-then-b", tag=tag, play={"pause": "request", "times": 9}) as talk:
        await world.upstream.reached(tag)
        talk.leave(reset=True)
    await asyncio.sleep(0.1)
    await world.upstream.go(tag)
    await asyncio.sleep(0.4)
    assert len(await world.upstream.journal(tag)) == 1
    assert (await customer.books()).charged == 0


@STREAMS
async def test_retries_are_bounded_by_the_setting(world: World, stream: bool) -> None:
    customer = await world.customer()
    refused = await customer.chat("once-flaky", stream=stream)
    assert refused.status in (502, 503) and len(await world.upstream.journal(refused.tag)) == 1
    served = await customer.chat("patient-flaky", stream=stream, play={"times": 3})
    assert served.status == 200 and len(await world.upstream.journal(served.tag)) == 4
    assert (await customer.books()).charged == CALL


async def test_an_upstream_that_must_not_be_asked_for_usage_is_counted(world: World) -> None:
    customer = await world.customer()
    answer = await customer.chat("plain", stream=True)
    [call] = await world.upstream.journal(answer.tag)
    assert "stream_options" not in call["body"]
    assert (await customer.books()).charged == cost(COUNTED_PROMPT, 8)


# down and back


@pytest.fixture
async def down(mortal: Upstream) -> AsyncIterator[Upstream]:
    """The mortal upstream, up again afterwards."""
    yield mortal
    if mortal.process is None:
        await asyncio.to_thread(mortal.start)


@STREAMS
async def test_case20_down_is_an_error_and_free_and_served_again_soon(
    world: World, down: Upstream, stream: bool
) -> None:
    customer = await world.customer()
    assert (await customer.chat("mortal", stream=stream)).status == 200
    await asyncio.to_thread(down.stop)
    for _ in range(10):
        answer = await customer.chat("mortal", stream=stream)
        assert answer.status in (502, 503) and answer.error["message"]
    await asyncio.to_thread(down.start)
    back = await customer.chat("mortal", stream=stream)
    assert back.status == 200, "the last upstream was kept from being tried"
    assert (await customer.books()).charged == 2 * CALL


async def test_case20_a_restart_between_two_calls_goes_unnoticed(world: World, down: Upstream) -> None:
    """Connections that were kept open are dead; the next call must not pay for that with an error."""
    customer = await world.customer()
    for stream in (False, True):
        assert all(
            answer.status == 200
            for answer in await asyncio.gather(*(customer.chat("mortal", stream=stream) for _ in range(4)))
        )
        await asyncio.to_thread(down.stop)
        await asyncio.to_thread(down.start)
        answers = await asyncio.gather(*(customer.chat("mortal", stream=stream) for _ in range(4)))
        assert [answer.status for answer in answers] == [200] * 4
    assert (await customer.books()).charged == 16 * CALL


async def test_case20_the_breaker_keeps_calls_away_and_lets_them_back(world: World, down: Upstream) -> None:
    customer = await world.customer("5")
    await asyncio.to_thread(down.stop)
    failed = 0
    for _ in range(8):
        answer = await customer.chat("mortal-then-b")
        assert answer.status == 200
        made = await attempts(customer, answer)
        assert made[-1] == ("b", True)
        failed += len(made) - 1
    assert made == [("b", True)], "an upstream that fails in a row is still asked first"
    assert failed >= 3
    metrics = (await world.http("GET", "/metrics")).body.decode()
    assert 'ppq_upstream_breaker_open{upstream="mortal"} 1.0' in metrics
    await asyncio.to_thread(down.start)

    async def preferred_again() -> bool:
        return await attempts(customer, await customer.chat("mortal-then-b")) == [("mortal", True)]

    assert await eventually(preferred_again, 5, 0.1)
    await customer.books()


async def test_case20_an_upstream_that_dies_under_streams(world: World, down: Upstream) -> None:
    """Killed under fifty streams: each is charged for what its client saw, none is free, none stays held."""
    customer = await world.customer("5")
    tags = [new_tag() for _ in range(50)]
    play = {"events": 100, "tick": 0.02}
    streams = [
        asyncio.create_task(customer.chat("mortal", stream=True, tag=tag, play=play, headers={"x-request-id": tag}))
        for tag in tags
    ]
    await asyncio.sleep(0.8)
    await asyncio.to_thread(down.stop)
    answers = await asyncio.gather(*streams)
    books = await customer.books()
    seen = 0
    for answer in answers:
        if answer.status != 200:
            continue
        assert answer.whole and answer.broken and not answer.done
        words = answer.text.count(" word")
        assert (await customer.receipt(answer.tag))["cost_usd"] == format(cost(COUNTED_PROMPT, words).normalize(), "f")
        seen += 1
    assert seen > 25 and len(books.rows) == seen


# timeouts


@pytest.fixture(scope="module")
def timed(world: World) -> Timed:
    """Calls that run into a timeout or must not, all at once, and how many seconds each took."""

    async def one(model: str, stream: bool, play: dict[str, Any]) -> tuple[Result, float]:
        began = time.monotonic()
        return await world.examined(model, stream=stream, play=play), time.monotonic() - began

    plays: dict[str, dict[str, Any]] = {
        **{model: {} for model in ("deaf", "deaf-then-b", "hasty-silent", "hasty-then-b", "restless-silent-mid")},
        "restless-story": {"delay": 1.2},
        "hasty-story": {"tick": 0.25},
        "patient-story": {"tick": 0.25},
    }

    names = [(model, stream) for model in plays for stream in (False, True)]
    return all_at_once({(model, stream): one(model, stream, plays[model]) for model, stream in names})


@STREAMS
def test_connecting_takes_too_long(timed: Timed, stream: bool) -> None:
    result, seconds = timed["deaf", stream]
    assert result.answer.status in (503, 504) and seconds < 4
    assert result.charged == 0
    assert timed["deaf-then-b", stream][0].answer.status == 200 and timed["deaf-then-b", stream][0].charged == CALL


@STREAMS
def test_the_first_byte_takes_too_long(timed: Timed, stream: bool) -> None:
    """It may be at work still: it is not asked again, the next one is."""
    result, seconds = timed["hasty-silent", stream]
    assert result.answer.status == 504 and 0.4 < seconds < 3
    assert result.charged == 0 and len(result.upstream_calls) == 1
    other = timed["hasty-then-b", stream][0]
    assert other.answer.status == 200 and other.charged == CALL and len(other.upstream_calls) == 2


@STREAMS
def test_a_long_first_byte_is_waited_for_where_the_setting_says_so(timed: Timed, stream: bool) -> None:
    """A model that thinks before it speaks: silence before the first byte is no silence within the answer."""
    result, _ = timed["restless-story", stream]
    assert result.answer.status == 200 and result.answer.text == " word" * 8 and result.charged == CALL


def test_case06_silence_within_a_stream_ends_it(timed: Timed) -> None:
    result, seconds = timed["restless-silent-mid", True]
    assert result.answer.broken and result.answer.text == " word" * 3 and 0.4 < seconds < 4
    assert result.charged == cost(COUNTED_PROMPT, 3)


@pytest.mark.parametrize("model", ["hasty-story", "patient-story"])
def test_a_stream_may_take_longer_than_any_timeout(timed: Timed, model: str) -> None:
    """Timeouts are for silence, not for the length of an answer."""
    result, seconds = timed[model, True]
    assert seconds > 1.5 and result.answer.done and result.charged == CALL


# concurrency


async def test_an_upstream_gets_no_more_calls_at_once_than_it_may(world: World) -> None:
    customer = await world.customer()
    tags = [new_tag() for _ in range(8)]
    answers = await asyncio.gather(
        *(customer.chat("narrow", stream=at % 2 == 0, tag=tag, play={"tick": 0.02}) for at, tag in enumerate(tags))
    )
    assert [answer.status for answer in answers] == [200] * 8
    calls = [call for tag in tags for call in await world.upstream.settled(tag)]
    for call in calls:
        assert sum(other["at"] <= call["at"] < other["ended"] - 0.01 for other in calls) <= 2
    assert (await customer.books()).charged == 8 * CALL


async def test_who_waits_too_long_for_a_busy_upstream_is_told_so(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    async with customer.talk("full", tag=tag, play={"pause": "event:2"}) as talk:
        await world.upstream.reached(tag, "event:2")
        for stream in (False, True):
            answer = await customer.chat("full", stream=stream)
            assert answer.status in (429, 503) and "retry-after" in answer.headers
            assert await world.upstream.journal(answer.tag) == []
        await world.upstream.go(tag)
        assert (await talk.rest()).done
    assert (await customer.chat("full")).status == 200, "the place was not given back"
    assert (await customer.books()).charged == 2 * CALL


async def test_failed_calls_give_their_place_back(world: World) -> None:
    customer = await world.customer()
    for _ in range(3):
        async with customer.talk("full", tag=(tag := new_tag()), play={"tick": 0.02}) as talk:
            await talk.head()
            talk.leave(reset=True)
        await world.upstream.settled(tag)
    assert await eventually(lambda: served(customer), 5)
    await customer.books()


async def served(customer: Customer) -> bool:
    return (await customer.chat("full")).status == 200
