"""POST /chat/completions: both paths, every credential, and fields that nobody here reads."""

import base64
import secrets
from decimal import Decimal
from typing import Any

import pytest

from tests.api.refusals import refused
from tests.gateway.wire import Answer
from tests.gateway.world import PROMPT, Customer, World, cost

FULL = cost(15, 8)
PATHS = ("/v1/chat/completions", "/chat/completions")


async def post(
    world: World, path: str, key: str | None, headers: dict[str, str] | None = None, **fields: Any
) -> Answer:
    """A chat call on a path."""
    body = {"model": "test/story", "messages": [{"role": "user", "content": PROMPT}], **fields}
    return await world.http("POST", path, body, key, headers=headers)


async def sent(world: World, customer: Customer, **fields: Any) -> dict[str, Any]:
    """What the upstream gets of a call."""
    answer = await customer.chat("story", **fields)
    assert answer.status == 200, answer.body
    body: dict[str, Any] = (await world.upstream.journal(answer.tag))[-1]["body"]
    return body


@pytest.mark.parametrize("path", PATHS)
async def test_PPQ_022_PPQ_023_PPQ_003_PPQ_004_same_behaviour_and_price_on_both_paths(
    world: World, customer: Customer, path: str
) -> None:
    answer = await post(world, path, customer.key)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert answer.json["object"] == "chat.completion"
    assert answer.json["choices"][0]["message"] == {"role": "assistant", "content": " word" * 8}
    assert answer.json["usage"] == {"prompt_tokens": 15, "completion_tokens": 8, "total_tokens": 23}
    assert answer.cost == FULL and (await customer.books()).charged == FULL


@pytest.mark.parametrize("path", PATHS)
async def test_PPQ_026_streams_on_both_paths(world: World, customer: Customer, path: str) -> None:
    answer = await post(world, path, customer.key, stream=True)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert answer.done and answer.text == " word" * 8
    assert all(event["object"] == "chat.completion.chunk" and event["choices"] for event in answer.events)
    assert (await customer.books()).charged == FULL


async def test_PPQ_026_a_stream_ends_with_usage_for_those_who_ask(customer: Customer) -> None:
    answer = await customer.chat("story", stream=True, stream_options={"include_usage": True})
    last = answer.events[-1]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 8
    for options in (None, {}, {"include_usage": False}, {"include_usage": None}):
        answer = await customer.chat("story", stream=True, stream_options=options)
        assert answer.done and all(event["choices"] and "usage" not in event for event in answer.events)


@pytest.mark.parametrize("header", ["authorization", "api-key", "x-api-key", "x-credit-id"])
async def test_PPQ_005_PPQ_006_PPQ_007_every_credential_pays(world: World, customer: Customer, header: str) -> None:
    value = {"authorization": f"Bearer {customer.key}", "x-credit-id": customer.credit_id}.get(header, customer.key)
    answer = await post(world, PATHS[0], None, {header: value})
    assert answer.status == 200
    assert (await customer.books()).charged == FULL


async def test_PPQ_005_keys_look_like_sk_and_the_word_bearer_has_any_case(world: World, customer: Customer) -> None:
    assert customer.key.startswith("sk-") and len(customer.key) > 40
    for value in (f"bearer {customer.key}", f"BEARER {customer.key}", f"Bearer  {customer.key} "):
        assert (await post(world, PATHS[0], None, {"authorization": value})).status == 200


async def test_PPQ_005_bearer_goes_before_the_other_headers(world: World, customer: Customer) -> None:
    other = await world.customer("1")
    answer = await post(world, PATHS[0], customer.key, {"api-key": other.key, "x-credit-id": other.credit_id})
    assert answer.status == 200
    assert (await customer.books()).charged == FULL and (await other.books()).charged == 0


@pytest.mark.parametrize(
    "name", ["claude-sonnet-4.6", "claude-sonnet-4-6", "anthropic/claude-sonnet-4.6", "ANTHROPIC/Claude-Sonnet-4.6"]
)
async def test_PPQ_025_dots_and_dashes_with_and_without_vendor(world: World, customer: Customer, name: str) -> None:
    answer = await post(world, PATHS[1], customer.key, model=name)
    assert answer.status == 200 and answer.cost == FULL
    assert (await customer.books()).rows[0]["model"] == "anthropic/claude-sonnet-4.6"


async def test_PPQ_025_the_other_form_and_a_declared_alias(world: World, customer: Customer) -> None:
    for name in ("claude-sonnet-4-5", "claude-sonnet-4.5", "sonnet-of-old"):
        assert (await post(world, PATHS[1], customer.key, model=name)).status == 200
    rows = (await customer.books()).rows
    assert {one["model"] for one in rows} == {"anthropic/claude-sonnet-4.5"}


PICTURE = "data:image/png;base64," + base64.b64encode(bytes(64)).decode()
PASSED_ON: dict[str, dict[str, Any]] = {
    "tools": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": True,
    },
    "tool results": {
        "messages": [
            {"role": "user", "content": "Call f."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ]
    },
    "json schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}},
        }
    },
    "logprobs": {"logprobs": True, "top_logprobs": 5, "logit_bias": {"50256": -100}},
    "sampling": {"temperature": 0.7, "top_p": 0.95, "seed": 7, "stop": ["\n", "END"], "presence_penalty": -0.5},
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PICTURE}},
                ],
            }
        ]
    },
    "audio": {
        "modalities": ["text", "audio"],
        "audio": {"voice": "alloy", "format": "wav"},
        "messages": [
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]}
        ],
    },
    "numbers": {"metadata": {"big": 9007199254740993, "small": 1e-300, "negative": -0.0, "exact": 0.1}},
    "unknown": {"made_up": {"x": [1, None, {"y": "ä€🙂\u2028"}]}, "another": False, "": "empty name"},
}


@pytest.mark.parametrize("what", PASSED_ON)
async def test_PPQ_001_fields_pass_untouched(world: World, customer: Customer, what: str) -> None:
    fields = PASSED_ON[what]
    got = await sent(world, customer, **fields)
    assert {name: got[name] for name in fields} == fields
    assert got["model"] == "story"


async def test_PPQ_001_a_streamed_call_passes_its_fields_too(world: World, customer: Customer) -> None:
    fields = PASSED_ON["tools"] | {"stream_options": {"include_usage": False, "more": 1}}
    got = await sent(world, customer, stream=True, **fields)
    assert got["stream_options"] == {"include_usage": True, "more": 1}, "usage is always asked for"
    assert got["tools"] == fields["tools"]


async def test_PPQ_001_tool_calls_come_back_whole_and_streamed(customer: Customer) -> None:
    whole = await customer.chat("tools")
    call = whole.json["choices"][0]["message"]["tool_calls"][0]
    assert call["function"] == {"name": "f", "arguments": " word" * 8}
    streamed = await customer.chat("tools", stream=True)
    parts = [event["choices"][0]["delta"].get("tool_calls") for event in streamed.events]
    assert "".join(one[0]["function"]["arguments"] for one in parts if one) == " word" * 8


async def test_PPQ_001_n_answers_are_charged_as_n(customer: Customer) -> None:
    answer = await customer.chat("story", n=3)
    assert [one["index"] for one in answer.json["choices"]] == [0, 1, 2]
    assert answer.cost == cost(15, 24)
    streamed = await customer.chat("story", n=3, stream=True)
    assert {one["choices"][0]["index"] for one in streamed.events} == {0, 1, 2}
    assert (await customer.books()).charged == 2 * cost(15, 24)


async def test_the_upstream_gets_the_operators_key_and_nothing_of_the_customer(
    world: World, customer: Customer
) -> None:
    answer = await customer.chat(
        "story",
        headers={
            "x-request-id": "abc",
            "cookie": "a=b",
            "x-forwarded-for": "10.9.8.7",
            "x-credit-id": customer.credit_id,
        },
    )
    call = (await world.upstream.journal(answer.tag))[-1]
    told = str(call["headers"])
    assert call["headers"]["authorization"].startswith("Bearer sk-operator")
    for secret in (customer.key, customer.credit_id, "a=b", "10.9.8.7"):
        assert secret not in told


async def test_the_answer_names_no_upstream_key(customer: Customer) -> None:
    for model in ("status-401", "status-403", "quota", "status-500"):
        answer = await customer.chat(model)
        refused(answer, 503)
        assert b"sk-operator" not in answer.body and b"org-operator" not in answer.body


async def test_a_body_without_a_content_type_or_with_a_wrong_one_is_json(world: World, customer: Customer) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", ""):
        assert (await post(world, PATHS[0], customer.key, {"content-type": kind})).status == 200


async def test_the_hold_shows_while_a_call_is_open_and_goes_with_it(world: World, customer: Customer) -> None:
    tag = f"t{secrets.token_hex(8)}"
    async with customer.talk("mid", tag=tag, max_tokens=8, play={"pause": "event:1"}) as talk:
        await world.upstream.reached(tag, "event:1")
        during = await customer.balance()
        assert during["balance"] == 1 and during["held"] >= Decimal("0.0055")
        assert during["available"] == during["balance"] - during["held"]
        await world.upstream.go(tag)
        assert (await talk.rest()).done
    assert (await customer.books()).charged == Decimal("0.0055")
