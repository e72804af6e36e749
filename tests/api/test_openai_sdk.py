"""The official OpenAI SDK, changed in nothing but `base_url` and `api_key`."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.api.test_operating import scrape
from tests.gateway.world import PROMPT, Customer, World, cost

MESSAGES: Any = [{"role": "user", "content": PROMPT}]


def client_of(customer: Customer, key: str | None = None, root: str = "/v1", **options: Any) -> openai.AsyncOpenAI:
    """A client of the gateway; it tries once unless told otherwise."""
    base = f"http://127.0.0.1:{customer.world.gateway.port}{root}"
    return openai.AsyncOpenAI(base_url=base, api_key=key or customer.key, **{"max_retries": 0, **options})


@pytest.fixture
async def client(customer: Customer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(customer) as one:
        yield one


async def test_PPQ_001_USR_008_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    models = {one.id: one async for one in client.models.list()}
    assert models["test/story"].object == "model" and models["test/story"].owned_by == "test"
    assert (await client.models.retrieve("claude-sonnet-4-6")).id == "anthropic/claude-sonnet-4.6"


@pytest.mark.parametrize("root", ["/v1", "", "/"])
async def test_PPQ_003_PPQ_004_a_chat_from_both_base_urls(customer: Customer, root: str) -> None:
    async with client_of(customer, root=root) as client:
        answer = await client.chat.completions.create(model="claude-sonnet-4.6", messages=MESSAGES, max_tokens=8)
    assert answer.choices[0].message.content == " word" * 8 and answer.choices[0].finish_reason == "stop"
    assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (15, 8)
    assert answer._request_id
    books = await customer.books()
    assert books.charged == cost(15, 8) and books.rows[0]["request_id"] == answer._request_id


async def test_PPQ_026_a_streamed_chat(client: openai.AsyncOpenAI, customer: Customer) -> None:
    stream = await client.chat.completions.create(model="test/story", messages=MESSAGES, stream=True)
    chunks = [one async for one in stream]
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == " word" * 8
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert (await customer.books()).charged == cost(15, 8)


async def test_PPQ_026_a_streamed_chat_with_its_usage(client: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = await client.chat.completions.create(
        model="test/story", messages=MESSAGES, stream=True, stream_options=options
    )
    *_, last = [one async for one in stream]
    assert last.choices == [] and last.usage and last.usage.completion_tokens == 8


async def test_PPQ_001_the_streaming_helper_accumulates(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="test/story", messages=MESSAGES) as stream:
        whole = await stream.get_final_completion()
    assert whole.choices[0].message.content == " word" * 8


async def test_PPQ_001_tools_both_ways(client: openai.AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    answer = await client.chat.completions.create(model="test/tools", messages=MESSAGES, tools=tools)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "f" and call.id == "call_1"
    streamed = await client.chat.completions.create(model="test/tools", messages=MESSAGES, tools=tools, stream=True)
    parts = [one.choices[0].delta.tool_calls async for one in streamed]
    assert "".join(part[0].function.arguments or "" for part in parts if part and part[0].function) == " word" * 8


async def test_PPQ_001_several_choices(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="test/story", messages=MESSAGES, n=3)
    assert [one.index for one in answer.choices] == [0, 1, 2]


async def test_PPQ_001_extra_headers_bodies_and_raw_answers(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="test/story", messages=MESSAGES, extra_headers={"x-request-id": "from-the-sdk"}, extra_body={"made_up": 1}
    )
    assert raw.headers["x-request-id"] == raw.request_id == "from-the-sdk"
    assert raw.headers["x-cost-usd"] == "0.000031"


async def raised(call: Any, kind: type[openai.APIStatusError], status: int) -> openai.APIStatusError:
    """The exception of a call; it has the sentence, the code and the request id."""
    with pytest.raises(kind) as caught:
        await call
    problem = caught.value
    assert type(problem) is kind and problem.status_code == status
    assert isinstance(problem.body, dict) and problem.body["message"] in str(problem)
    assert problem.request_id == problem.body["request_id"]
    assert problem.code == problem.body["code"] and problem.type == problem.body["type"]
    return problem


async def test_PPQ_001_every_error_is_the_exception_it_should_be(
    client: openai.AsyncOpenAI, customer: Customer
) -> None:
    chat: Any = client.chat.completions.create
    found = await raised(chat(model="test/stroy", messages=MESSAGES), openai.NotFoundError, 404)
    assert found.code == "model_not_found" and found.param == "model" and "test/story" in found.message
    await raised(chat(model="test/story", messages=[]), openai.BadRequestError, 400)
    await raised(chat(model="test/story", messages=MESSAGES, max_tokens=-1), openai.BadRequestError, 400)
    await raised(client.models.retrieve("nothing-like-that"), openai.NotFoundError, 404)
    await raised(chat(model="test/status-500", messages=MESSAGES), openai.InternalServerError, 503)
    await raised(chat(model="test/html", messages=MESSAGES), openai.InternalServerError, 502)
    await raised(chat(model="test/status-422", messages=MESSAGES), openai.UnprocessableEntityError, 422)
    async with client_of(customer, "sk-wrong") as stranger:
        await raised(
            stranger.chat.completions.create(model="test/story", messages=MESSAGES), openai.AuthenticationError, 401
        )
    assert (await customer.books()).charged == 0


async def test_PPQ_001_an_empty_account_is_a_402_that_is_not_tried_again(world: World) -> None:
    poor = await world.customer("0")
    before = await scrape(world)
    async with client_of(poor, max_retries=3) as client:
        call = client.chat.completions.create(model="test/story", messages=MESSAGES)
        problem = await raised(call, openai.APIStatusError, 402)
    assert problem.code == "insufficient_balance" and problem.type == "insufficient_quota"
    assert isinstance(problem.body, dict) and problem.body["required"] and problem.body["available"] == "0"
    labels = {"route": "/v1/chat/completions", "status": "402"}
    assert (await scrape(world))("ppq_requests_total", **labels) == before("ppq_requests_total", **labels) + 1


async def test_PPQ_207_limits_are_the_exceptions_they_should_be(world: World, customer: Customer) -> None:
    capped = await world.cli("keys", "create", customer.credit_id, "capped", "--limit", "0.01")
    async with client_of(customer, capped["api_key"]) as client:
        call = client.chat.completions.create(model="test/dear", messages=MESSAGES, max_tokens=8)
        problem = await raised(call, openai.PermissionDeniedError, 403)
        assert problem.code == "key_limit_reached"
    slow = await world.cli("keys", "create", customer.credit_id, "slow", "--requests", "1")
    async with client_of(customer, slow["api_key"]) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            for _ in range(3):  # the minute may turn once
                await client.chat.completions.create(model="test/story", messages=MESSAGES)
    assert caught.value.code == "rate_limit_exceeded" and 1 <= int(caught.value.response.headers["retry-after"]) <= 60


async def test_PPQ_001_a_stream_that_breaks_off_raises(client: openai.AsyncOpenAI, customer: Customer) -> None:
    stream = await client.chat.completions.create(model="test/die", messages=MESSAGES, stream=True)
    words = []
    with pytest.raises(openai.APIError, match="not whole"):
        async for one in stream:
            words.append(one.choices[0].delta.content)
    assert words == [" word"] * 3
    assert (await customer.books()).charged > 0


async def test_PPQ_001_an_idempotency_key_is_one_charge(client: openai.AsyncOpenAI, customer: Customer) -> None:
    head = {"Idempotency-Key": f"sdk-{customer.credit_id}"}
    first = await client.chat.completions.create(model="test/story", messages=MESSAGES, extra_headers=head)
    again = await client.chat.completions.create(model="test/story", messages=MESSAGES, extra_headers=head)
    assert again.id == first.id and again.choices == first.choices
    assert (await customer.books()).charged == cost(15, 8)
    other: Any = client.chat.completions.create(model="test/story", messages=MESSAGES, seed=1, extra_headers=head)
    await raised(other, openai.UnprocessableEntityError, 422)


def test_PPQ_001_the_synchronous_client_too(world: World, customer: Customer) -> None:
    base = f"http://127.0.0.1:{world.gateway.port}/v1"
    with openai.OpenAI(base_url=base, api_key=customer.key, max_retries=0) as client:
        answer = client.chat.completions.create(model="test/story", messages=MESSAGES)
        assert answer.choices[0].message.content == " word" * 8
        stream = client.chat.completions.create(model="test/story", messages=MESSAGES, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in stream) == " word" * 8
