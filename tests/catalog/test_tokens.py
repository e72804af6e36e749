"""Counting what a request holds and what an answer was."""

import asyncio
import base64
import json
import threading
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppq_proxy.catalog import Catalog, Offering, tokens
from ppq_proxy.catalog.encodings import encoding

PRICES = [{"of": of, "unit": "mtok", "usd": "1"} for of in ("input", "output")]


def offering(model: str, **fields: Any) -> Offering:
    return Catalog.load({"models": [{"id": model, "type": "chat", "prices": PRICES, **fields}]}).offerings[0]


GPT = offering("openai/gpt-4o")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
CONTENT = st.text(max_size=200) | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=80)}), max_size=4
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": CONTENT},
        optional={
            "name": st.text(max_size=10),
            "tool_calls": st.lists(JSON, max_size=2),
            "refusal": st.text(max_size=9),
        },
    ),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(MESSAGES, st.lists(JSON, max_size=2))
def test_the_bytes_of_a_request_without_media_bound_its_tokens(messages: list[Any], tools: list[Any]) -> None:
    body = {"model": "m", "messages": messages, "tools": tools}
    for raw in (orjson.dumps(body), json.dumps(body).encode()):
        assert tokens.count_chat(orjson.loads(raw), GPT) <= len(raw)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "tools", "functions", "response_format"]), JSON))
def test_no_shape_of_a_request_makes_counting_fail(body: dict[str, Any]) -> None:
    assert tokens.count_chat(body, GPT) >= 3


PART = st.fixed_dictionaries(
    {},
    optional={
        key: JSON
        | st.fixed_dictionaries({}, optional=dict.fromkeys(["url", "data", "format", "file_data", "detail"], JSON))
        for key in ("text", "image_url", "input_image", "input_audio", "file", "video_url")
    },
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(JSON | st.fixed_dictionaries({}, optional={"content": st.lists(PART | JSON, max_size=4), "audio": JSON}))
)
def test_no_shape_of_a_message_makes_counting_fail(messages: list[Any]) -> None:
    for model in (GPT, offering("google/gemini-2.5-pro", context=1000), offering("anthropic/claude-opus-5")):
        assert tokens.count_chat({"messages": messages}, model) >= 3


@settings(deadline=None)
@given(JSON | st.lists(st.fixed_dictionaries({}, optional={"message": JSON, "text": JSON})))
def test_no_shape_of_an_answer_or_an_input_makes_counting_fail(value: Any) -> None:
    assert tokens.count_choices(value, GPT) >= 0
    assert tokens.count_inputs(value, GPT) >= 0


def test_a_message_counts_three_its_role_and_its_text() -> None:
    text = "The quick brown fox jumps over the lazy dog."
    words = len(encoding("o200k").encode_ordinary(text))
    body = {"messages": [{"role": "user", "content": text}]}
    assert tokens.count_chat(body, GPT) == 3 + 3 + 1 + words
    named = {"messages": [{"role": "user", "content": text, "name": "bob"}]}
    assert tokens.count_chat(named, GPT) == 3 + 3 + 1 + words + 1 + 1
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": text}] * 2}]}
    assert tokens.count_chat(parts, GPT) == 3 + 3 + 1 + 2 * words


def test_tools_calls_schemas_and_reasoning_count() -> None:
    plain = {"messages": [{"role": "user", "content": "x"}]}
    base = tokens.count_chat(plain, GPT)
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "description": "word " * 50}},
    }
    assert tokens.count_chat({**plain, "tools": [tool]}, GPT) > base + 50
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"description": "word " * 50}}}
    assert tokens.count_chat({**plain, "response_format": schema}, GPT) > base + 50
    assert tokens.count_chat({**plain, "response_format": {"type": "text"}}, GPT) == base
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "word " * 50}}
    called = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "word " * 50}
    assert tokens.count_chat({"messages": [called]}, GPT) > 100


def test_a_schema_too_deep_to_write_is_counted_by_its_texts() -> None:
    deep: Any = "word " * 100
    for _ in range(2_000):
        deep = [deep]
    assert tokens.count_chat({"messages": [], "tools": deep}, GPT) > 100


def test_an_answer_counts_its_text_reasoning_and_tool_calls() -> None:
    call = {"function": {"name": "f", "arguments": "word " * 10}}
    message = {"role": "assistant", "content": "word " * 10, "reasoning_content": "word " * 10, "tool_calls": [call]}
    one = tokens.count_choices([{"message": message}], GPT)
    assert 30 <= one <= 40
    assert tokens.count_choices([{"message": message}] * 3, GPT) == 3 * one
    assert tokens.count_choices([{"text": "word " * 10}], GPT) == tokens.count_completion("word " * 10, GPT)


def test_inputs_of_embeddings_count_texts_and_token_ids() -> None:
    model = offering("openai/text-embedding-3-small")
    assert tokens.tokenizer(model) == "cl100k"
    one = tokens.count_inputs("hello world", model)
    assert tokens.count_inputs(["hello world"] * 3, model) == 3 * one
    assert tokens.count_inputs([1, 2, 3], model) == 3
    assert tokens.count_inputs([[1, 2, 3], [4]], model) == 4
    assert tokens.count_inputs(None, model) == 0


@pytest.mark.parametrize("run", [" ", "a", "\n", "=", "\u00a0", "ab", "\u0301", " \n", "1"])
def test_a_megabyte_of_anything_is_counted_within_a_second(run: str) -> None:
    tokens.count_text("warm")
    text = run * (1_000_000 // len(run))
    start = time.process_time()
    count = tokens.count_text(text)
    assert time.process_time() - start < 1
    assert 0 < count <= len(text.encode())


def test_long_texts_are_cut_where_it_does_not_change_the_count() -> None:
    text = "Seven words stand here, more or less. " * 9_000
    assert len(text) > 300_000
    assert tokens.count_text(text) == len(encoding("o200k").encode_ordinary(text))


def test_special_tokens_are_text() -> None:
    assert tokens.count_text("<|endoftext|>") > 1


def test_half_a_surrogate_is_counted() -> None:
    assert tokens.count_text("\ud800") >= 1
    assert tokens.count_chat({"messages": [{"content": "\ud800"}], "tools": ["\ud800"]}, GPT) >= 5


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("openai/gpt-4o", "o200k"),
        ("openai/gpt-5-mini", "o200k"),
        ("openai/gpt-4.1", "o200k"),
        ("openai/gpt-4", "cl100k"),
        ("openai/gpt-4-turbo", "cl100k"),
        ("openai/gpt-4-1106-preview", "cl100k"),
        ("openai/gpt-3.5-turbo", "cl100k"),
        ("anthropic/claude-opus-5", "o200k"),
        ("smollm2-135m", "o200k"),
    ],
)
def test_a_model_is_counted_by_its_familys_encoding(model: str, name: str) -> None:
    assert tokens.tokenizer(offering(model)) == name
    assert tokens.tokenizer(offering(model, tokenizer="cl100k")) == "cl100k"


def test_holds_cover_encodings_that_are_not_known() -> None:
    assert tokens.hold_factor(offering("anthropic/claude-opus-5")) == (27, 20)
    assert tokens.hold_factor(offering("house/claude-opus-5")) == (27, 20)
    assert tokens.hold_factor(GPT) == (11, 10)


def picture(url: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **more}}]}]}


def png(width: int, height: int) -> str:
    head = (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
        + width.to_bytes(4, "big")
        + height.to_bytes(4, "big")
        + b"\x08\x06\0\0\0"
    )
    return "data:image/png;base64," + base64.b64encode(head).decode()


def test_pictures_count_by_their_size_and_remote_ones_as_the_largest() -> None:
    empty = tokens.count_chat({"messages": [{"role": "user", "content": []}]}, GPT)
    assert tokens.count_chat(picture(png(1024, 1024)), GPT) - empty == 765
    assert tokens.count_chat(picture(png(1024, 1024), detail="low"), GPT) - empty == 85
    assert tokens.count_chat(picture("https://example.com/a.png"), GPT) - empty == 85 + 8 * 170
    assert tokens.count_chat(picture("data:image/png;base64,%%%"), GPT) - empty == 85 + 8 * 170
    claude = offering("anthropic/claude-sonnet-4.5")
    assert tokens.count_chat(picture(png(1000, 1000)), claude) - empty == 1296


def test_sound_and_documents_count_by_their_length() -> None:
    def count(part: dict[str, Any], model: Offering = GPT) -> int:
        empty = tokens.count_chat({"messages": [{"role": "user", "content": []}]}, model)
        return tokens.count_chat({"messages": [{"role": "user", "content": [part]}]}, model) - empty

    minute = base64.b64encode(bytes(4_000 * 60)).decode()
    sound = {"type": "input_audio", "input_audio": {"data": minute, "format": "mp3"}}
    assert count(sound) == 600
    assert count(sound, offering("google/gemini-2.5-pro")) == 1920
    pdf = base64.b64encode(b"%PDF-1.4 /Type /Page /Type /Pages /Type/Page").decode()
    assert count({"type": "file", "file": {"file_data": "data:application/pdf;base64," + pdf}}) == 2 * 3_000
    assert count({"type": "file", "file": {"file_id": "file-1"}}) == 300_000
    assert count({"type": "file", "file": {"file_id": "file-1"}}, offering("a/b", context=8_000)) == 8_000
    assert count({"type": "video_url", "video_url": {"url": "https://example.com"}}) == 300_000


@pytest.mark.parametrize(
    "body",
    [
        picture("https://example.com/a.png"),
        {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": ""}}]}]},
        {"messages": [{"content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"messages": [{"content": [{"type": "video_url", "video_url": {"url": "u"}}]}]},
    ],
)
def test_requests_with_media_are_told_from_others(body: dict[str, Any]) -> None:
    raw = orjson.dumps(body)
    assert tokens.needs_rules(raw)
    hidden = raw.replace(b"image_url", b"im\\u0061ge_url").replace(b"_", b"\\u005F")
    assert tokens.needs_rules(hidden)
    assert not tokens.needs_rules(orjson.dumps({"messages": [{"role": "user", "content": "plain, é and ü"}]}))
    assert not tokens.needs_rules(json.dumps({"messages": [{"role": "user", "content": "plain, é and 漢"}]}).encode())


async def test_long_requests_are_counted_in_a_thread() -> None:
    body = {"messages": [{"role": "user", "content": "word " * 40_000}]}
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(tick())
    count = await tokens.count_chat_async(body, GPT, size=200_000)
    beside.cancel()
    assert count == tokens.count_chat(body, GPT)
    assert ticks > 1
    before = threading.active_count()
    assert await tokens.count_chat_async({"messages": []}, GPT, size=20) == 3
    assert threading.active_count() == before
