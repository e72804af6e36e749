"""Clients that leave, half-close, or read slowly: what they pay, and that nothing stays held (cases 9 to 12)."""

import asyncio
import itertools
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from tests.gateway.wire import Answer
from tests.gateway.world import COUNTED_PROMPT, Books, Outcomes, World, all_at_once, cost, eventually, new_tag
from tests.peers.upstream import PROMPT_TOKENS

EVENTS = 20
READ_ON = 1.0
STALL = 1.0
LEAST = min(PROMPT_TOKENS, COUNTED_PROMPT)
MOST = max(PROMPT_TOKENS, COUNTED_PROMPT)
THIN = "0.0002"
PACED = {"events": EVENTS, "tick": 0.005}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "PPQ_CLIENT_GONE_READ_ON_SECONDS": str(READ_ON),
        "PPQ_CLIENT_GONE_READ_ON_BYTES": "100000",
        "PPQ_CLIENT_STALL_SECONDS": str(STALL),
        "PPQ_UPSTREAM_IDLE_SECONDS": "60",
        "PPQ_UPSTREAM_FIRST_BYTE_SECONDS": "60",
    }


@dataclass
class Left:
    """A call whose client left, or half-closed: what it saw, what the upstream made, what it cost, and how long that took."""

    answer: Answer
    books: Books
    calls: list[dict[str, Any]]
    source: str
    seconds: float

    @property
    def seen(self) -> int:
        """Words that the client has."""
        return self.answer.body.count(b'"content":" word"')

    @property
    def made(self) -> int:
        """Words that the upstream sent."""
        return int(self.calls[-1]["tokens"])


async def depart(
    world: World,
    how: str,
    after: int | str,
    *,
    model: str = "story",
    credit: str = "1",
    stream: bool = True,
    **fields: Any,
) -> Left:
    """Leave (`how`: closed, reset, half) `after` so many events, "request" (it reached the upstream), or "byte N"."""
    customer, tag = await world.customer(credit), new_tag()
    began = time.monotonic()
    async with customer.talk(model, tag=tag, stream=stream, headers={"x-request-id": tag}, **fields) as talk:
        if after == "request":
            await world.upstream.reached(tag)
        elif isinstance(after, int):
            await talk.head()
            await talk.events(after)
        elif after.startswith("byte "):
            await talk.reader.readexactly(int(after[5:]))
        if model in ("silent", "silent-mid"):
            assert (await world.show(customer.credit_id))["held_usd"] > 0
        if how == "half":
            talk.half_close()
            await talk.rest()
        else:
            talk.leave(reset=how == "reset")
    calls = await (world.upstream.journal if model == "silent" else world.upstream.settled)(tag)
    books = await customer.books(seconds=READ_ON + 5)
    source = (await customer.receipt(tag))["usage_source"] if books.rows else ""
    return Left(talk.answer, books, calls, source, time.monotonic() - began)


Lefts = Outcomes[tuple[Any, ...], Left]
HOW = ("closed", "reset")
BYTES = (1, 5, 20, 27, 40, 100, 163, 200, 350, 1000)


@pytest.fixture(scope="module")
def left(world: World) -> Lefts:
    """All departures at once."""
    work: dict[tuple[Any, ...], Coroutine[Any, Any, Left]] = {}
    omit = PACED | {"usage": "omit"}
    for how in HOW:
        for count in range(EVENTS + 2):
            work["event", how, count] = depart(world, how, count, play=PACED)
        for count in (0, 1, 7, EVENTS):
            work["uncounted", how, count] = depart(world, how, count, play=omit)
        work["long", how] = depart(world, how, 2, max_tokens=2000, play={"events": 2000, "tick": 0.05})
        work["flood", how] = depart(world, how, 2, model="endless", max_tokens=4000, play={"tick": 0})
        work["whole", how] = depart(world, how, "request", stream=False, play={"tick": 0.05})
        for stream in (False, True):
            work["early", how, stream] = depart(world, how, "request", stream=stream, play={"delay": 0.3})
        for credit in ("1", THIN):
            work["silent", how, credit] = depart(world, how, 3, model="silent-mid", credit=credit, max_tokens=20)
            for stream in (False, True):
                work["silent first", how, credit, stream] = depart(
                    world, how, "request", model="silent", credit=credit, stream=stream, max_tokens=20
                )
    for place in BYTES:
        work["byte", place] = depart(world, "reset", f"byte {place}", play=PACED)
    work["thin flood",] = depart(
        world, "reset", 2, model="endless", credit="0.0003", max_tokens=20, play={"tick": 0.002}
    )
    for stream, after in itertools.product((False, True), ("at once", "request")):
        work["half", stream, after] = depart(world, "half", after, stream=stream, play=PACED | {"delay": 0.1})
    work["half", "later"] = depart(world, "half", 2, play=PACED | {"tick": 0.02})
    work["half", "paused"] = depart(world, "half", "at once", play={"events": 4, "tick": READ_ON * 0.7})

    return all_at_once(work)


BY = pytest.mark.parametrize("how", HOW)
RICH = pytest.mark.parametrize("credit", ["1", THIN], ids=["rich", "thin"])
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@BY
@pytest.mark.parametrize("count", range(EVENTS + 2))
def test_case10_leaving_after_every_event_costs_what_was_made(left: Lefts, how: str, count: int) -> None:
    one = left["event", how, count]
    assert len(one.books.rows) == 1 and len(one.calls) == 1
    assert cost(LEAST, max(one.seen, min(count, EVENTS))) <= one.books.charged <= cost(MOST, one.made)


@BY
@pytest.mark.parametrize("count", [0, 1, 7, EVENTS])
def test_case10_leaving_without_usage_is_counted(left: Lefts, how: str, count: int) -> None:
    one = left["uncounted", how, count]
    assert one.source == "counted"
    assert cost(COUNTED_PROMPT, one.seen) <= one.books.charged <= cost(COUNTED_PROMPT, one.made)


@pytest.mark.parametrize("place", BYTES)
def test_case10_leaving_in_the_middle_of_an_event(left: Lefts, place: int) -> None:
    one = left["byte", place]
    assert cost(LEAST, 1) <= one.books.charged <= cost(MOST, one.made)


@BY
def test_case10_a_short_rest_is_read_for_its_usage(left: Lefts, how: str) -> None:
    one = left["event", how, 2]
    assert one.books.charged == cost(PROMPT_TOKENS, EVENTS) and one.source == "upstream"


@BY
def test_case10_a_long_rest_is_not_read_for_ever(left: Lefts, how: str) -> None:
    """By time: an upstream that takes minutes is hung up on; what it made until then is charged."""
    one = left["long", how]
    assert one.calls[0]["left"] and one.seconds < READ_ON + 4
    assert cost(COUNTED_PROMPT, one.seen) <= one.books.charged <= cost(COUNTED_PROMPT, one.made)


@BY
def test_case10_a_flood_is_not_read_for_ever(left: Lefts, how: str) -> None:
    """By bytes, here about five hundred events: an upstream that floods whoever has left."""
    one = left["flood", how]
    assert one.calls[0]["left"]
    assert one.books.charged < cost(COUNTED_PROMPT, 2000)
    assert cost(COUNTED_PROMPT, one.seen) <= one.books.charged <= cost(COUNTED_PROMPT, one.made)


def test_case10_reading_on_stops_where_the_hold_ends(left: Lefts) -> None:
    """By cost: what nobody reads is not bought beyond what is held for the call."""
    one = left["thin flood",]
    assert one.calls[0]["left"] and one.made < 150, "the house bought what nobody pays for and nobody reads"
    assert one.books.charged + one.books.lost <= cost(COUNTED_PROMPT, one.made)


@BY
@RICH
def test_case10_a_silent_upstream_keeps_no_hold(left: Lefts, how: str, credit: str) -> None:
    one = left["silent", how, credit]
    assert one.books.charged == cost(COUNTED_PROMPT, 3) and one.books.held == 0
    assert one.calls[0]["left"], "the upstream was not hung up on"


@BY
@RICH
@STREAMS
def test_case11_a_silent_upstream_before_the_first_byte_keeps_no_hold(
    left: Lefts, how: str, credit: str, stream: bool
) -> None:
    one = left["silent first", how, credit, stream]
    assert one.books.charged == 0 and one.books.held == 0 and len(one.calls) == 1


@BY
@STREAMS
def test_case11_left_before_the_first_byte(left: Lefts, how: str, stream: bool) -> None:
    one = left["early", how, stream]
    assert 0 <= one.books.charged <= cost(MOST, one.made)


@BY
def test_case11_a_whole_answer_is_read_on_and_charged(left: Lefts, how: str) -> None:
    one = left["whole", how]
    assert one.calls[0]["whole"] and one.books.charged == cost(PROMPT_TOKENS, 8)


HALVES = [*itertools.product((False, True), ("at once", "request")), ("later",), ("paused",)]


@pytest.mark.parametrize("case", HALVES, ids=str)
def test_case11_a_half_close_is_served_on(left: Lefts, case: tuple[Any, ...]) -> None:
    """Whenever the sending side is shut, and also where the upstream pauses for a moment."""
    one = left["half", *case]
    events = 4 if case == ("paused",) else EVENTS
    assert one.answer.status == 200 and one.answer.whole and one.answer.text == " word" * events
    assert one.books.charged == cost(PROMPT_TOKENS, events)


async def test_case11_a_request_that_is_not_whole_costs_nothing(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    talk = customer.talk(tag=tag)
    request = talk.request
    for end in (30, request.index(b"\r\n\r\n") + 4, request.index(b"\r\n\r\n") + 20, len(request) - 1):
        talk.request = request[:end]
        async with talk:
            talk.leave()
    assert (await customer.books()).charged == 0
    assert await world.upstream.journal(tag) == []


async def test_case12_a_slow_reader_gets_everything_and_is_charged_by_its_end(world: World) -> None:
    """10 MB, 100 kB at a time: the gateway cannot run ahead of the reader by much."""
    customer, tag = await world.customer(), new_tag()
    async with customer.talk("sse-long-line", tag=tag, receive_buffer=65536) as talk:
        await talk.head()
        seen = 0
        while piece := await talk.piece():
            if len(piece) + seen >= 1_000_000:
                await asyncio.sleep(0.1)
                seen = 0
            seen += len(piece)
            if piece.endswith(b"[DONE]\n\n"):
                assert (await world.show(customer.credit_id))["charged_usd"] == cost(PROMPT_TOKENS, 8)
    assert talk.answer.whole and talk.answer.done and len(talk.answer.body) > 10_000_000


async def test_case12_other_calls_do_not_wait_for_a_slow_reader(world: World) -> None:
    slow, quick, tag = await world.customer(), await world.customer(), new_tag()
    async with slow.talk("sse-long-line", tag=tag, receive_buffer=65536) as talk:
        await talk.head()
        began = time.monotonic()
        answers = await asyncio.gather(*(quick.chat("story", stream=True) for _ in range(10)))
        assert all(answer.done for answer in answers) and time.monotonic() - began < 2
        talk.leave(reset=True)
    assert (await quick.books()).charged == 10 * cost(PROMPT_TOKENS, 8)
    books = await slow.books()
    assert cost(COUNTED_PROMPT, 1) <= books.charged <= cost(COUNTED_PROMPT, 8)


async def test_case12_a_reader_that_has_stopped_counts_as_gone(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    async with customer.talk("sse-long-line", tag=tag, receive_buffer=4096) as talk:
        await talk.head()
        books = await customer.books(seconds=STALL + READ_ON + 5)
        assert cost(COUNTED_PROMPT, 1) <= books.charged <= cost(COUNTED_PROMPT, 8)
        [call] = await world.upstream.settled(tag)
        assert call["left"] or call["whole"]


async def test_case12_a_slow_reader_that_leaves_is_charged(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    async with customer.talk("sse-long-line", tag=tag, receive_buffer=65536, headers={"x-request-id": tag}) as talk:
        await talk.head()
        while len(talk.answer.body) < 3_000_000:
            await talk.piece()
            await asyncio.sleep(0)
        talk.leave(reset=True)
    books = await customer.books()
    [call] = await world.upstream.settled(tag)
    assert cost(COUNTED_PROMPT, 1) <= books.charged <= cost(MOST, call["tokens"])


async def test_case16_a_stream_that_runs_outlives_the_revocation_of_its_key(world: World) -> None:
    customer, tag = await world.customer(), new_tag()
    made = await world.cli("keys", "create", customer.credit_id, "second")
    key = made["api_key"]
    async with world.gateway.talk(key, tag=tag, headers={"x-request-id": tag}, play={"pause": "event:3"}) as talk:
        await world.upstream.reached(tag, "event:3")
        revoked = await world.http("DELETE", f"/keys/{made['_id']}", headers={"x-credit-id": customer.credit_id})
        assert revoked.status == 200
        assert (await world.chat(key)).status == 401
        await world.upstream.go(tag)
        answer = await talk.rest()
    assert answer.done and answer.text == " word" * 8
    books = await customer.books()
    assert books.charged == cost(PROMPT_TOKENS, 8)
    assert books.rows[0]["api_key_id"] == made["_id"]


async def test_nobody_is_left_behind(world: World) -> None:
    """After all of the above no call of the gateway is open any more."""

    async def idle() -> bool:
        metrics = (await world.http("GET", "/metrics")).body.decode().splitlines()
        return "ppq_active_calls 0.0" in metrics and "ppq_held_nano_usd 0.0" in metrics

    assert await eventually(idle, 5)
