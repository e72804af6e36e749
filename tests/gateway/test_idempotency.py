"""Idempotency-Key: one key, one upstream call, one charge, the same answer again (case 18, requirement Z12)."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.gateway.conftest import MONGO, database_for
from tests.gateway.wire import Answer
from tests.gateway.world import Gateway, World, cost, eventually, new_tag
from tests.peers.upstream import PROMPT_TOKENS

EVENTS = 8
CALL = cost(PROMPT_TOKENS, EVENTS)
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module", params=["sqlite", MONGO])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return database_for(request, tmp_path_factory.mktemp("database"))


@pytest.fixture(scope="module")
def second(world: World) -> Iterator[Gateway]:
    """Another process on the same database."""
    yield world.start_now()


def named(name: str) -> dict[str, str]:
    return {"idempotency-key": name}


def same(answer: Answer, again: Answer) -> None:
    """The repetition is the answer, byte for byte."""
    assert again.status == answer.status == 200 and again.whole
    assert again.body == answer.body
    assert again.headers["content-type"].split(";")[0] == answer.headers["content-type"].split(";")[0]


async def calls(world: World, tag: str) -> int:
    return len(await world.upstream.journal(tag))


@STREAMS
async def test_case18_finished_is_answered_again_without_call_or_charge(world: World, stream: bool) -> None:
    customer, tag = await world.customer(), new_tag()
    first = await customer.chat(stream=stream, tag=tag, headers=named("a"))
    for _ in range(3):
        same(first, await customer.chat(stream=stream, tag=tag, headers=named("a")))
    assert await calls(world, tag) == 1
    books = await customer.books()
    assert books.charged == CALL and len(books.rows) == 1


@STREAMS
async def test_case18_in_every_process(world: World, second: Gateway, stream: bool) -> None:
    customer, tag = await world.customer(), new_tag()
    first = await customer.chat(stream=stream, tag=tag, headers=named("a"))
    same(first, await second.chat(customer.key, stream=stream, tag=tag, headers=named("a")))
    assert await calls(world, tag) == 1 and (await customer.books()).charged == CALL


@STREAMS
async def test_case18_running_is_a_conflict(world: World, second: Gateway, stream: bool) -> None:
    customer, tag = await world.customer(), new_tag()
    play = {"pause": "request"}
    running = asyncio.create_task(customer.chat(stream=stream, tag=tag, headers=named("a"), play=play))
    await world.upstream.reached(tag)
    for gateway in (world.gateway, second):
        early = await gateway.chat(customer.key, stream=stream, tag=tag, headers=named("a"), play=play)
        assert early.status == 409 and early.error["request_id"]
    await world.upstream.go(tag)
    first = await running
    same(first, await customer.chat(stream=stream, tag=tag, headers=named("a"), play=play))
    assert await calls(world, tag) == 1 and (await customer.books()).charged == CALL


@STREAMS
@pytest.mark.parametrize("state", ["running", "finished"])
async def test_case18_another_body_is_refused(world: World, stream: bool, state: str) -> None:
    customer, tag = await world.customer(), new_tag()
    play = {"pause": "request"}
    running = asyncio.create_task(customer.chat(stream=stream, tag=tag, headers=named("a"), play=play))
    await world.upstream.reached(tag)
    if state == "finished":
        await world.upstream.go(tag)
        await running
    other = await customer.chat(stream=stream, tag=tag, headers=named("a"), play=play, temperature=0.5)
    assert other.status == 422
    await world.upstream.go(tag)
    assert (await running).status == 200
    assert await calls(world, tag) == 1 and (await customer.books()).charged == CALL


@STREAMS
async def test_case18_a_failed_call_is_not_kept(world: World, stream: bool) -> None:
    customer, tag = await world.customer(), new_tag()
    play = {"times": 2}  # both attempts of the first call fail
    failed = await customer.chat("flaky", stream=stream, tag=tag, headers=named("a"), play=play)
    assert failed.status in (502, 503)
    again = await customer.chat("flaky", stream=stream, tag=tag, headers=named("a"), play=play)
    assert again.status == 200
    same(again, await customer.chat("flaky", stream=stream, tag=tag, headers=named("a"), play=play))
    assert await calls(world, tag) == 3 and (await customer.books()).charged == CALL


async def test_case18_a_stream_that_was_cut_is_not_kept(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    for _ in range(2):
        cut = await customer.chat("die", stream=True, tag=tag, headers=named("a"))
        assert cut.broken
    assert await calls(world, tag) == 2
    assert len((await customer.books()).rows) == 2, "each was delivered in part and is charged for it"


async def test_case18_a_refusal_is_not_kept(world: World) -> None:
    """A call that could not be paid for is a new call once it can."""
    customer, tag = await world.customer("0"), new_tag()
    assert (await customer.chat(tag=tag, headers=named("a"))).status == 402
    await world.cli("accounts", "credit", customer.credit_id, "1")
    assert (await customer.chat(tag=tag, headers=named("a"))).status == 200
    assert (await customer.books()).charged == CALL


@STREAMS
async def test_case18_eight_at_once(world: World, second: Gateway, stream: bool) -> None:
    customer, tag = await world.customer(), new_tag()
    play = {"tick": 0.02}
    gateways = itertools.cycle((world.gateway, second))
    eight = [next(gateways).chat(customer.key, stream=stream, tag=tag, headers=named("a"), play=play) for _ in range(8)]
    answers = await asyncio.gather(*eight)
    count = Counter(answer.status for answer in answers)
    assert set(count) <= {200, 409} and count[200] >= 1
    assert len({answer.body for answer in answers if answer.status == 200}) == 1
    assert await calls(world, tag) == 1
    books = await customer.books()
    assert books.charged == CALL and len(books.rows) == 1


async def test_case18_a_hundred_keys_four_times_each(world: World, second: Gateway) -> None:
    customer = await world.customer()
    gateways = itertools.cycle((world.gateway, second))
    tags = [new_tag() for _ in range(100)]

    async def until_served(tag: str) -> Answer:
        while (answer := await next(gateways).chat(customer.key, tag=tag, headers=named(tag))).status == 409:
            await asyncio.sleep(0.05)
        return answer

    answers = await asyncio.gather(*(until_served(tag) for tag in tags * 4))
    assert {answer.status for answer in answers} == {200}
    made = Counter(call["user"] for call in await world.upstream.journal())
    assert all(made[tag] == 1 for tag in tags)
    books = await customer.books()
    assert books.charged == 100 * CALL and len(books.rows) == 100


async def test_case18_scoped_to_the_account(world: World) -> None:
    one, other, tag = await world.customer(), await world.customer(), new_tag()
    await one.chat(tag=tag, headers=named("a"))
    await other.chat(tag=tag, headers=named("a"))
    assert await calls(world, tag) == 2
    assert (await one.books()).charged == (await other.books()).charged == CALL
    key = (await world.cli("keys", "create", one.credit_id, "second"))["api_key"]
    assert (await world.chat(key, tag=tag, headers=named("a"))).status == 200
    assert await calls(world, tag) == 2, "another key of the account is no other scope"


async def test_case18_a_repetition_needs_no_money_but_a_good_key(world: World) -> None:
    customer, tag = await world.customer("0.00006"), new_tag()
    first = await customer.chat(tag=tag, headers=named("a"), max_tokens=EVENTS)
    assert first.status == 200
    assert (await customer.chat(max_tokens=EVENTS)).status == 402, "there is money left, so this shows nothing"
    same(first, await customer.chat(tag=tag, headers=named("a"), max_tokens=EVENTS))
    assert (await world.chat("sk-nobody", tag=tag, headers=named("a"), max_tokens=EVENTS)).status == 401
    assert (await customer.books()).charged == CALL


async def test_case18_both_paths_are_one(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    first = await customer.chat(tag=tag, headers=named("a"))
    talk = customer.talk(tag=tag, stream=False, headers=named("a"))
    talk.request = talk.request.replace(b"POST /v1/chat", b"POST /chat", 1)
    async with talk:
        same(first, await talk.rest())
    assert await calls(world, tag) == 1


@STREAMS
async def test_case18_the_answer_is_kept_for_a_client_that_left(world: World, stream: bool) -> None:
    """What the header is for: the connection broke, the client asks again."""
    customer, tag = await world.customer(), new_tag()
    play = {"tick": 0.02}
    async with customer.talk(tag=tag, stream=stream, headers=named("a"), play=play) as talk:
        await world.upstream.reached(tag, "event:2" if stream else "request")
        talk.leave(reset=True)
    [_] = await world.upstream.settled(tag)

    async def again() -> Answer | None:
        answer = await customer.chat(stream=stream, tag=tag, headers=named("a"), play=play)
        return answer if answer.status != 409 else None

    answer = await eventually(again)
    assert answer.status == 200 and answer.text == " word" * EVENTS
    assert await calls(world, tag) == 1 and (await customer.books()).charged == CALL


async def test_case18_an_x_request_id_names_and_never_deduplicates(world: World) -> None:
    one, other = await world.customer(), await world.customer()
    tag = new_tag()
    for customer in (one, one, other):
        answer = await customer.chat(tag=tag, headers={"x-request-id": tag})
        assert answer.request_id == tag
    assert await calls(world, tag) == 3
    shown = await world.settled(one.credit_id)
    assert shown["charged_usd"] == 2 * CALL and (await world.show(other.credit_id))["charged_usd"] == CALL
    assert (await one.receipt(tag))["api_key_id"] != (await other.receipt(tag))["api_key_id"]


@pytest.mark.parametrize("key", ["", "x" * 256, " "])
async def test_case18_a_key_that_is_none_is_refused(world: World, key: str) -> None:
    customer = await world.customer()
    answer = await customer.chat(headers=named(key))
    assert answer.status == 400
    assert (await customer.books()).charged == 0


@STREAMS
async def test_case18_a_killed_holder_does_not_block_its_key(world: World, stream: bool) -> None:
    third = await world.start()
    customer, tag = await world.customer(), new_tag()
    play = {"pause": "request"}
    lost = asyncio.create_task(third.chat(customer.key, stream=stream, tag=tag, headers=named("a"), play=play))
    await world.upstream.reached(tag)
    assert (await customer.chat(stream=stream, tag=tag, headers=named("a"), play=play)).status == 409
    await world.kill(third)
    assert not (await lost).whole
    await world.upstream.go(tag)

    async def again() -> Answer | None:
        found = await customer.chat(stream=stream, tag=tag, headers=named("a"), play=play)
        return found if found.status != 409 else None

    answer = await eventually(again, 30)
    assert answer and answer.status == 200
    same(answer, await customer.chat(stream=stream, tag=tag, headers=named("a"), play=play))
    books = await customer.books(seconds=30)
    assert CALL <= books.charged <= 2 * CALL
