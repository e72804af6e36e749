"""What a call costs when it is not plain. The numbers in the names are the cases of the rulings on money."""

import asyncio
import time
from decimal import Decimal
from typing import Any

import pytest

from tests.gateway.wire import Answer
from tests.gateway.world import (
    COUNTED_PROMPT,
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
from tests.peers.upstream import CUT, ENDING, PROMPT_TOKENS

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])

EVENTS = 8
TRUE = cost(PROMPT_TOKENS, EVENTS)
COUNTED = cost(COUNTED_PROMPT, EVENTS)
CLASSES = {
    "input": "1", "cache_read": "0.1", "cache_write_5m": "1.25", "audio_in": "5", "output": "2", "reasoning": "3", "audio_out": "7"
}  # fmt: skip
Table = Outcomes[tuple[str, bool], Result]


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"PPQ_UPSTREAM_IDLE_SECONDS": "1"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [
        row("fraction", "story", prices={"input": "0.0015", "output": "0.0025"}),
        row("margin", "story", prices={"input": "1.01", "output": "2.03"}, margin="0.055"),
        row("classes", "story", prices=CLASSES),
        row("plain", "story", prices={"input": "1", "output": "2"}),
    ]


def table(world: World, calls: dict[str, dict[str, Any]], streams: tuple[bool, ...] = (False, True)) -> Table:
    """Every call of a table, streamed and not, all at once."""

    names = [(name, stream) for name in calls for stream in streams]
    return all_at_once({(name, stream): world.examined(stream=stream, **calls[name]) for name, stream in names})


def good(answer: Answer, stream: bool) -> None:
    """A whole answer that says so."""
    assert answer.status == 200 and answer.whole
    assert answer.done if stream else answer.json["choices"]
    assert not stream or answer.broken is None


# 1: nothing delivered


NOTHING = {
    "status-400": {400}, "status-413": {413}, "status-422": {422}, "status-404": {404, 502, 503}, "status-408": {503, 504},
    "status-418": {502}, "status-429": {429, 503}, "status-500": {502, 503}, "status-502": {502, 503}, "status-503": {503},
    "status-504": {504}, "status-529": {502, 503}, "status-401": {503}, "status-402": {503}, "status-403": {503}, "quota": {503},
    "reset": {502, 503}, "hang-up": {502, 503}, "half-head": {502, 503}, "html": {502, 503}, "error-200": {502, 503}, "empty": {502, 503},
    "no-choices": {502, 503}, "null": {502, 503}, "not-json": {502, 503}, "short-body": {502, 503}, "role-only": {502, 503},
    "role-then-error": {502, 503}, "done-only": {502, 503}, "comments-only": {502, 503},
}  # fmt: skip


@pytest.fixture(scope="module")
def nothing(world: World) -> Table:
    return table(world, {model: {"model": model} for model in (*NOTHING, *CUT)})


@BOTH
@pytest.mark.parametrize("model", NOTHING)
def test_case01_nothing_delivered_costs_nothing(nothing: Table, model: str, stream: bool) -> None:
    result = nothing[model, stream]
    answer = result.answer
    assert result.charged == result.books.lost == 0 and result.books.rows == []
    assert "x-cost-usd" not in answer.headers
    if answer.status == 200:  # an error inside a streamed 200 may come as an event
        assert stream and answer.broken and not answer.done
    else:
        assert answer.status in NOTHING[model]
        assert answer.error["message"] and answer.error["request_id"] == answer.request_id


@pytest.mark.parametrize("model", CUT)
def test_case01_a_cut_json_body_costs_nothing(nothing: Table, model: str) -> None:
    result = nothing[model, False]
    assert result.answer.status in (502, 503) and result.charged == 0 and result.books.rows == []


@BOTH
async def test_case01_what_was_held_on_a_thin_balance_is_free_again(world: World, stream: bool) -> None:
    """A balance for one call: after each failure it still pays for it."""
    customer = await world.customer("0.00004")
    for model in ("status-500", "status-400", "reset", "html", "error-200", "no-choices", "status-401"):
        assert (await customer.chat(model, stream=stream, max_tokens=EVENTS)).status != 402
    assert (await customer.books(seconds=4)).balance == Decimal("0.00004")
    good(await customer.chat(stream=stream, max_tokens=EVENTS), stream)
    assert (await customer.books()).charged == TRUE


async def test_case01_what_cost_nothing_has_no_receipt(world: World) -> None:
    customer = await world.customer()
    answer = await customer.chat("status-500")
    assert (await world.http("GET", f"/v1/requests/{answer.request_id}", key=customer.key)).status == 404
    assert (await world.command("explain", answer.request_id))[0] == 3


@BOTH
async def test_case01_a_finish_is_a_delivery_and_costs_its_prompt(world: World, stream: bool) -> None:
    result = await world.examined("finished-empty", stream=stream)
    good(result.answer, stream)
    assert result.charged == cost(PROMPT_TOKENS, 0)


@BOTH
async def test_case01_a_finish_without_usage_costs_its_counted_prompt(world: World, stream: bool) -> None:
    result = await world.examined("finished-empty", stream=stream, play={"usage": "omit"})
    good(result.answer, stream)
    assert result.charged == cost(COUNTED_PROMPT, 0) and result.receipt["usage_source"] == "counted"


# 2: plain


@BOTH
async def test_case02_believable_usage_is_charged_exactly(world: World, stream: bool) -> None:
    customer = await world.customer()
    answer = await customer.chat("story", stream=stream)
    good(answer, stream)
    assert (await world.show(customer.credit_id))["charged_usd"] == TRUE, (
        "the charge was not on disk before the last byte"
    )
    assert (await customer.books()).charged == TRUE
    receipt = await customer.receipt(answer.request_id)
    assert receipt["units"] == {"input": PROMPT_TOKENS, "output": EVENTS}
    assert receipt["usage_source"] == "upstream" and receipt["stream"] is stream
    assert (await world.cli("explain", answer.request_id))["cost_usd"] == receipt["cost_usd"]


@BOTH
async def test_case02_rounded_up_once(world: World, stream: bool) -> None:
    # 15 × 1.5 + 7 × 2.5 = 40 nano-dollars: each class rounded by itself would make 41; one token more makes 42.5
    whole, half = await asyncio.gather(*(world.examined("fraction", stream=stream, max_tokens=made) for made in (7, 8)))
    assert [whole.charged, half.charged] == [usd(40), usd(43)]


@BOTH
async def test_case02_margin_is_in_the_price(world: World, stream: bool) -> None:
    result = await world.examined("margin", stream=stream)
    assert result.charged == usd(-(-(15 * 1010 + 8 * 2030) * 1055 // 1000))


# 3: usage that cannot be true


def block(prompt: Any, completion: Any, total: Any = 23) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


UNBELIEVABLE: dict[str, Any] = {
    "missing": "omit",
    "null": None,
    "zero": block(0, 0, 0),
    "no output though content came": block(PROMPT_TOKENS, 0, 15),
    "negative output": block(PROMPT_TOKENS, -5, 10),
    "negative prompt": block(-1, EVENTS, 7),
    "strings": block("15", "8", "23"),
    "string output": block(PROMPT_TOKENS, "8"),
    "no prompt tokens": {"completion_tokens": EVENTS, "total_tokens": 23},
    "no completion tokens": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": 23},
    "null prompt tokens": block(None, EVENTS),
    "only a total": {"total_tokens": 23},
    "booleans": block(True, True),
    "halves": block(15.5, 8.5, 24),
    "lists": block([15], [8]),
    "a list": [15, 8],
    "a text": "many",
    "a number": 23,
    "nothing in it": {},
    "more output than asked for": block(PROMPT_TOKENS, EVENTS + 1, 24),
    "absurd output": block(PROMPT_TOKENS, 10**9, 10**9),
    "astronomic output": block(PROMPT_TOKENS, 1e300, 1e300),
    "fifty times the prompt": block(50 * COUNTED_PROMPT + 1, EVENTS, 900),
    "astronomic prompt": block(1e300, EVENTS, 1e300),
}


@pytest.fixture(scope="module")
def unbelievable(world: World) -> Table:
    return table(
        world, {name: {"max_tokens": EVENTS, "play": {"usage": usage}} for name, usage in UNBELIEVABLE.items()}
    )


@BOTH
@pytest.mark.parametrize("name", UNBELIEVABLE)
def test_case03_usage_that_cannot_be_true_is_counted(unbelievable: Table, name: str, stream: bool) -> None:
    result = unbelievable[name, stream]
    good(result.answer, stream)
    assert result.charged == COUNTED and result.receipt["usage_source"] == "counted"


@BOTH
async def test_case03_the_limit_of_believable_output_counts_every_choice(world: World, stream: bool) -> None:
    usage = block(PROMPT_TOKENS, 3 * EVENTS, 39)
    result = await world.examined(stream=stream, max_tokens=EVENTS, n=3, play={"usage": usage})
    assert result.charged == cost(PROMPT_TOKENS, 3 * EVENTS) and result.receipt["usage_source"] == "upstream"


# 4: usage in odd shapes


@BOTH
async def test_case04_whole_floats_are_numbers(world: World, stream: bool) -> None:
    result = await world.examined(stream=stream, play={"usage": block(120.0, 8.0, 128.0)})
    assert result.charged == cost(120, 8) and result.receipt["usage_source"] == "upstream"


TOTALS = {str(total): total for total in (0, -1, 10**12, "many", None)}


@pytest.fixture(scope="module")
def totals(world: World) -> Table:
    plays = {name: {"usage": block(PROMPT_TOKENS, EVENTS, total)} for name, total in TOTALS.items()}
    return table(world, {name: {"play": play} for name, play in plays.items()})


@BOTH
@pytest.mark.parametrize("name", TOTALS)
def test_case04_a_total_that_contradicts_its_parts_is_ignored(totals: Table, name: str, stream: bool) -> None:
    assert totals[name, stream].charged == TRUE


@BOTH
@pytest.mark.parametrize("model", ["usage-each", "usage-null", "usage-twice", "usage-with-finish"])
async def test_case04_of_several_usage_blocks_the_last_counts(world: World, stream: bool, model: str) -> None:
    result = await world.examined(model, stream=stream)
    good(result.answer, stream)
    assert result.charged == TRUE and result.receipt["usage_source"] == "upstream"


async def test_case04_usage_after_the_end_marker(world: World) -> None:
    result = await world.examined("usage-late", stream=True, play={"late": 0.1})
    good(result.answer, True)
    assert result.charged == TRUE


async def test_case04_usage_too_long_after_the_end_marker_is_not_waited_for(world: World) -> None:
    began = time.monotonic()
    result = await world.examined("usage-late", stream=True, play={"late": 5})
    assert time.monotonic() - began < 2.5
    good(result.answer, True)
    assert result.charged == COUNTED


# 5: classes, choices


DETAILS: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "cached": ({"cached_tokens": 4}, {}, {"input": 11, "cache_read": 4, "output": 8}),
    "all cached": ({"cached_tokens": 15}, {}, {"cache_read": 15, "output": 8}),
    "more cached than there is": ({"cached_tokens": 99}, {}, {"cache_read": 15, "output": 8}),
    "less than nothing cached": ({"cached_tokens": -5}, {}, {"input": 15, "output": 8}),
    "cached in words": ({"cached_tokens": "4"}, {}, {"input": 15, "output": 8}),
    "cached as a float": ({"cached_tokens": 4.0}, {}, {"input": 11, "cache_read": 4, "output": 8}),
    "cached and sound overlap": (
        {"cached_tokens": 10, "audio_tokens": 10},
        {},
        {"cache_read": 10, "audio_in": 5, "output": 8},
    ),
    "reasoning": ({}, {"reasoning_tokens": 5}, {"input": 15, "output": 3, "reasoning": 5}),
    "more reasoning than output": ({}, {"reasoning_tokens": 99}, {"input": 15, "reasoning": 8}),
    "sound": ({"audio_tokens": 5}, {"audio_tokens": 6}, {"input": 10, "audio_in": 5, "output": 2, "audio_out": 6}),
    "nulls": ({"cached_tokens": None}, {"reasoning_tokens": None}, {"input": 15, "output": 8}),
    "no details": (None, None, {"input": 15, "output": 8}),
    "lists": ([], [4], {"input": 15, "output": 8}),
    "texts": ("x", "y", {"input": 15, "output": 8}),
    "numbers": (7, 7, {"input": 15, "output": 8}),
}


@pytest.fixture(scope="module")
def details(world: World) -> Table:
    return table(
        world, {name: {"model": "classes", "play": {"usage": detailed(*found[:2])}} for name, found in DETAILS.items()}
    )


def detailed(incoming: Any, outgoing: Any) -> dict[str, Any]:
    return block(15, 8) | {"prompt_tokens_details": incoming, "completion_tokens_details": outgoing}


@BOTH
@pytest.mark.parametrize("name", DETAILS)
def test_case05_details_lie_inside_the_totals(details: Table, name: str, stream: bool) -> None:
    units = DETAILS[name][2]
    result = details[name, stream]
    assert result.receipt["units"] == units
    assert result.charged == sum(count * Decimal(CLASSES[of]) for of, count in units.items()) / 10**6


@BOTH
async def test_case05_a_class_without_a_price_costs_what_contains_it(world: World, stream: bool) -> None:
    usage = detailed({"cached_tokens": 9, "audio_tokens": 2}, {"reasoning_tokens": 5, "audio_tokens": 1})
    assert (await world.examined("plain", stream=stream, play={"usage": usage})).charged == TRUE


@BOTH
@pytest.mark.parametrize(
    ("model", "made"), [("reasoning", EVENTS), ("tools", EVENTS + 1)]
)  # a function's name is a token
async def test_case05_reasoning_and_tool_calls_count_as_output(
    world: World, stream: bool, model: str, made: int
) -> None:
    result = await world.examined(model, stream=stream, play={"usage": "omit"})
    good(result.answer, stream)
    assert result.charged == cost(COUNTED_PROMPT, made)


@BOTH
async def test_case05_every_choice_is_counted(world: World, stream: bool) -> None:
    result = await world.examined(stream=stream, n=3, play={"usage": "omit"})
    assert result.charged == cost(COUNTED_PROMPT, 3 * EVENTS)


@BOTH
@pytest.mark.parametrize("credit", ["0.002", "10"], ids=["thin", "rich"])
async def test_case05_every_choice_is_held_for(world: World, stream: bool, credit: str) -> None:
    customer, tag = await world.customer(credit), new_tag()
    calling = asyncio.create_task(customer.chat(stream=stream, n=3, max_tokens=100, tag=tag, play={"pause": "request"}))
    await world.upstream.reached(tag)
    held, promised = (await world.show(customer.credit_id))["held_usd"], usd(await promised_nano(world))
    await world.upstream.go(tag)
    good(await calling, stream)
    # a rich account is drawn from ahead, so that more is held in the books than is promised to this call
    assert cost(COUNTED_PROMPT, 3 * 100) <= promised < cost(1000, 3 * 100)
    assert held >= promised and (held == promised or credit == "10")
    assert (await customer.books()).charged == cost(PROMPT_TOKENS, 3 * EVENTS)


async def promised_nano(world: World) -> int:
    """What the gateway says is promised to open calls."""
    lines = (await world.http("GET", "/metrics")).body.decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("ppq_held_nano_usd "))))


# 6 and 7: streams without a proper end


@pytest.fixture(scope="module")
def cut(world: World) -> Table:
    calls = {f"{model} {at}": {"model": model, "play": {"at": at}} for model in CUT for at in (1, 3, 7)}
    return table(world, calls | {model: {"model": model} for model in ENDING}, (True,))


@pytest.mark.parametrize("at", [1, 3, 7])
@pytest.mark.parametrize("model", CUT)
def test_case06_cut_by_upstream_after_content_is_counted(cut: Table, model: str, at: int) -> None:
    result = cut[f"{model} {at}", True]
    answer = result.answer
    assert answer.status == 200 and answer.whole and answer.text == " word" * at
    assert answer.broken and not answer.done
    assert result.charged == cost(COUNTED_PROMPT, at) and result.receipt["usage_source"] == "counted"
    assert len(result.upstream_calls) == 1, "case 9: no retry after content"


@pytest.mark.parametrize("model", ENDING)
def test_case07_a_finish_without_a_clean_end_is_complete(cut: Table, model: str) -> None:
    result = cut[model, True]
    good(result.answer, True)
    assert result.answer.text == " word" * EVENTS
    # what ended before its usage came is counted
    assert result.charged == (TRUE if model.startswith("done-") else COUNTED)


async def test_case07_the_end_marker_ends_the_answer_whatever_the_transport_does(world: World) -> None:
    began = time.monotonic()
    customer = await world.customer()
    good(await customer.chat("done-silent", stream=True), True)
    assert time.monotonic() - began < 1


# 9: retries


@BOTH
@pytest.mark.parametrize("status", [500, 503, 529])
async def test_case09_one_charge_for_the_attempt_that_delivered(world: World, stream: bool, status: int) -> None:
    result = await world.examined("flaky", stream=stream, play={"status": status})
    good(result.answer, stream)
    assert result.charged == TRUE and len(result.upstream_calls) == 2
    assert [bool(one.get("error")) for one in result.receipt["attempts"]] == [True, False]


@BOTH
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_case09_no_retry_once_the_client_has_left(world: World, stream: bool, reset: bool) -> None:
    customer, tag = await world.customer(), new_tag()
    async with customer.talk("flaky", stream=stream, tag=tag, play={"pause": "request"}) as talk:
        await world.upstream.reached(tag)
        talk.leave(reset=reset)
    await asyncio.sleep(0.1)
    await world.upstream.go(tag)
    await asyncio.sleep(0.4)
    assert len(await world.upstream.journal(tag)) == 1
    assert (await customer.books()).charged == 0


# 14: upstreams that overrun


@BOTH
async def test_case14_an_overrun_costs_between_the_limit_and_the_truth(world: World, stream: bool) -> None:
    result = await world.examined("overrun", stream=stream, max_tokens=40, play={"events": 60})
    good(result.answer, stream)
    assert cost(PROMPT_TOKENS, 40) <= result.charged <= cost(COUNTED_PROMPT, 60) and result.books.lost == 0


@BOTH
async def test_case14_an_account_that_cannot_pay_an_overrun_goes_to_zero(world: World, stream: bool) -> None:
    customer = await world.customer("0.0001")
    answer = await customer.chat("overrun", stream=stream, max_tokens=40, play={"events": 100})
    good(answer, stream)
    books = await customer.books()
    assert books.balance == 0 and books.charged == usd(100_000)
    assert cost(PROMPT_TOKENS, 40) < books.charged + books.lost <= cost(COUNTED_PROMPT, 100)
    assert Decimal((await customer.receipt(answer.request_id))["lost_usd"]) == books.lost > 0
    assert (await customer.chat("story", stream=stream)).status == 402


@BOTH
async def test_case14_an_overrun_never_takes_what_another_call_holds(world: World, stream: bool) -> None:
    """Two calls at once on a balance for two: the overrun of one is not paid out of the other's hold."""
    customer = await world.customer("0.0002")
    tag = new_tag()
    play = {"events": 40, "pause": "request"}
    held = asyncio.create_task(customer.chat(stream=stream, max_tokens=40, tag=tag, play=play))
    await world.upstream.reached(tag)
    over = await customer.chat("overrun", stream=stream, max_tokens=40, play={"events": 300})
    assert over.status == 200
    await world.upstream.go(tag)
    first = await held
    good(first, stream)
    assert Decimal((await customer.receipt(first.request_id))["cost_usd"]) == cost(PROMPT_TOKENS, 40)
    books = await customer.books()
    assert books.balance >= 0 and books.lost > 0


# 17


@BOTH
async def test_case17_calls_that_cost_nothing_leave_no_row(world: World, stream: bool) -> None:
    customer = await world.customer()
    for model in ("story", "status-500", "story", "html", "error-200", "story"):
        await customer.chat(model, stream=stream)
    books = await customer.books()
    assert len(books.rows) == 3 and books.charged == 3 * TRUE

    async def balance() -> Decimal | None:
        found = await customer.balance()
        return found["balance"] if not found["held"] and found["available"] == found["balance"] else None

    assert await eventually(balance, 4) == 1 - 3 * TRUE
