"""What bad input gets: the envelope, the right status, a sentence that helps, the request id, and no charge."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from tests.api.refusals import costs_nothing, refused
from tests.gateway.wire import Answer, ask, request_bytes
from tests.gateway.world import Customer, World, cost

POST = "/v1/chat/completions"
GOOD: dict[str, Any] = {"model": "test/story", "messages": [{"role": "user", "content": "hi"}]}
TEXT = json.dumps(GOOD)
DEEP = "[" * 100_000 + "]" * 100_000


def with_(**fields: Any) -> bytes:
    """A good body with other fields."""
    return json.dumps(GOOD | fields).encode()


def without(name: str) -> bytes:
    """A good body without a field."""
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def message(**fields: Any) -> bytes:
    """A good body whose one message is this."""
    return with_(messages=[fields])


NO_COUNTS: list[Any] = [0, -1, 1.5, 1.0, True, False, "many", "5", [], {}, 10**30, -(10**30)]
NO_FLAGS: list[Any] = ["yes", 1, 0, [], {}]
NO_OPTIONS: list[Any] = [[1], "usage", 5, True, {"include_usage": "yes"}, {"include_usage": 1}]

# what is wrong: body, words of the sentence, the field it names
MALFORMED: dict[str, tuple[bytes, tuple[str, ...], str | None]] = {
    "no body": (b"", ("empty", "model", "messages"), None),
    "blanks": (b"  \r\n\t ", ("empty",), None),
    "cut off": (TEXT[:-1].encode(), ("JSON",), None),
    "more behind": (TEXT.encode() + b"{}", ("JSON",), None),
    "single quotes": (TEXT.replace('"', "'").encode(), ("JSON",), None),
    "form": (b"model=test%2Fstory&messages=hi", ("JSON",), None),
    "NaN": (TEXT[:-1].encode() + b', "temperature": NaN}', ("JSON",), None),
    "Infinity": (TEXT[:-1].encode() + b', "temperature": -Infinity}', ("JSON",), None),
    "a trailing comma": (TEXT[:-1].encode() + b",}", ("JSON",), None),
    "not UTF-8": (TEXT.replace("hi", "\xff\xfe").encode("latin-1"), ("JSON",), None),
    "UTF-16": (TEXT.encode("utf-16"), ("JSON",), None),
    "a byte order mark": (b"\xef\xbb\xbf" + TEXT.encode(), ("JSON",), None),
    "half a surrogate": (TEXT.replace("hi", "\\ud800").encode(), ("JSON",), None),
    "NUL": (TEXT.replace("hi", "\x00").encode(), ("JSON",), None),
    "binary": (bytes(range(256)), ("JSON",), None),
    "deep": (DEEP.encode(), ("JSON",), None),
    "deep inside": (TEXT[:-1].encode() + b', "x": ' + DEEP.encode() + b"}", ("JSON",), None),
    "an array": (b"[1]", ("object",), None),
    "a string": (b'"hello"', ("object",), None),
    "null": (b"null", ("object",), None),
    "no model": (without("model"), ("model", "/v1/models"), "model"),
    "model null": (with_(model=None), ("model",), "model"),
    "model empty": (with_(model=""), ("model",), "model"),
    "model a number": (with_(model=5), ("model",), "model"),
    "model a list": (with_(model=["test/story"]), ("model",), "model"),
    "two models": (b'{"model": "test/story", ' + TEXT[1:].encode(), ("model", "more than once"), "model"),
    "two models, one escaped": (
        b'{"mod\\u0065l": "test/dear", ' + TEXT[1:].encode(),
        ("model", "more than once"),
        "model",
    ),
    "two models, one escaped in capitals": (
        TEXT[:-1].encode() + b', "\\u006Dodel": "test/dear"}',
        ("model", "more than once"),
        "model",
    ),
    "a model for pictures": (with_(model="test/picture"), ("image", "not for chat"), "model"),
    "a private model": (with_(model="private/story"), ("private", "proxy"), "model"),
    "no messages": (without("messages"), ("messages",), "messages"),
    "messages null": (with_(messages=None), ("messages",), "messages"),
    "messages empty": (with_(messages=[]), ("at least one",), "messages"),
    "messages a string": (with_(messages="hi"), ("messages",), "messages"),
    "messages an object": (with_(messages={"role": "user"}), ("messages",), "messages"),
    "messages of numbers": (with_(messages=[5]), ("messages[0]", "role"), "messages[0]"),
    "messages of null": (with_(messages=[GOOD["messages"][0], None]), ("messages[1]",), "messages[1]"),
    "no role": (message(content="hi"), ("messages[0]", "role"), "messages[0]"),
    "a role that is no string": (message(role=5, content="hi"), ("role",), "messages[0]"),
    "content a number": (message(role="user", content=5), ("content",), "messages[0].content"),
    "content an object": (message(role="user", content={"text": "hi"}), ("content",), "messages[0].content"),
    "content true": (message(role="user", content=True), ("content",), "messages[0].content"),
    **{
        f"{field} {value!r}": (with_(**{field: value}), (field, "whole number", "1"), field)
        for field in ("max_tokens", "max_completion_tokens", "n")
        for value in NO_COUNTS
    },
    "too many choices": (with_(n=1000), ("n must be", "128"), "n"),
    **{f"stream {value!r}": (with_(stream=value), ("stream", "true or false"), "stream") for value in NO_FLAGS},
    **{
        f"stream_options {value!r}": (with_(stream=True, stream_options=value), ("include_usage",), "stream_options")
        for value in NO_OPTIONS
    },
}


@pytest.mark.parametrize("path", [POST, "/chat/completions"])
async def test_case19_malformed_requests_are_400_and_free(world: World, customer: Customer, path: str) -> None:
    before = len(await world.upstream.journal())
    answers = await asyncio.gather(*(world.http("POST", path, body, customer.key) for body, _, _ in MALFORMED.values()))
    for (what, (_, words, param)), answer in zip(MALFORMED.items(), answers, strict=True):
        try:
            refused(answer, 400, *words, param=param)
        except AssertionError as problem:
            raise AssertionError(f"{what}: {problem}") from None
    assert len(await world.upstream.journal()) == before, "something malformed went upstream"
    await costs_nothing(customer)


async def test_case19_a_field_twice_that_is_not_the_model_is_passed_on(world: World, customer: Customer) -> None:
    nested = (
        b'{"model":"test/story","metadata":{"model":"x"},"messages":[{"role":"user","content":"a \\"model\\": b"}]}'
    )
    assert (await world.http("POST", POST, nested, customer.key)).status == 200


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("test/stroy", "test/story"),
        ("claude-sonet-4.6", "anthropic/claude-sonnet-4.6"),
        ("STORI", "test/story"),
        ("test/storyy", "test/story"),
    ],
)
async def test_an_unknown_model_names_the_nearest(world: World, customer: Customer, name: str, near: str) -> None:
    answer = await world.http("POST", POST, with_(model=name), customer.key)
    refused(answer, 404, name, near, code="model_not_found", param="model")


@pytest.mark.parametrize(
    "name", ["q", "\u0000", "../../etc/passwd", "a" * 100_000, "💥", "test/story\n", " test/story", "test"]
)
async def test_an_unknown_model_of_any_shape(world: World, customer: Customer, name: str) -> None:
    answer = await world.http("POST", POST, with_(model=name), customer.key)
    refused(answer, 404, "does not exist", code="model_not_found", param="model")
    assert len(answer.body) < 2000
    await costs_nothing(customer)


async def test_a_model_without_a_price_is_not_sold(world: World, customer: Customer) -> None:
    refused(
        await world.http("POST", POST, with_(model="test/no-price"), customer.key),
        404,
        "no price",
        code="model_not_found",
    )
    await costs_nothing(customer)


WRONG_KEYS: dict[str, dict[str, str]] = {
    "none": {},
    "empty": {"authorization": ""},
    "no key behind bearer": {"authorization": "Bearer"},
    "blanks behind bearer": {"authorization": "Bearer   "},
    "unknown": {"authorization": "Bearer sk-nonsense"},
    "no word": {"authorization": "sk-nonsense"},
    "basic": {"authorization": "Basic dXNlcjpwYXNz"},
    "bytes": {"authorization": "Bearer \xff\xfe"},
    "very long": {"authorization": "Bearer " + "k" * 30_000},
    "api-key": {"api-key": "sk-nonsense"},
    "x-api-key": {"x-api-key": "sk-nonsense"},
    "x-credit-id": {"x-credit-id": "00000000-0000-4000-8000-000000000000"},
    "x-credit-id that is none": {"x-credit-id": "' OR 1=1 --"},
}


@pytest.mark.parametrize("what", WRONG_KEYS)
async def test_no_or_a_wrong_key_is_401_and_says_how_to_get_one(world: World, what: str) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in WRONG_KEYS[what].items())
    head = f"POST {POST} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(TEXT)}\r\n{lines}\r\n".encode(
        "latin-1"
    )
    answer = await ask(world.gateway.port, head + TEXT.encode())
    error = refused(answer, 401, code="invalid_api_key")
    assert error["type"] == "authentication_error"
    assert any(word in error["message"] for word in ("Bearer", "/accounts/create", "credit id"))
    assert "www-authenticate" not in answer.headers, "there is no wallet, so no challenge"


async def test_a_good_key_with_a_letter_changed_is_wrong(world: World, customer: Customer) -> None:
    for key in (customer.key[:-1], customer.key + "x", customer.key.swapcase(), customer.key.replace("sk-", "SK-")):
        refused(await world.http("POST", POST, GOOD, key), 401)


async def test_revoked_and_expired_keys_say_so(world: World, customer: Customer) -> None:
    made = await world.cli("keys", "create", customer.credit_id, "gone")
    await world.cli("keys", "revoke", customer.credit_id, made["_id"])
    refused(await world.http("POST", POST, GOOD, made["api_key"]), 401, "revoked", code="invalid_api_key")


async def test_an_empty_account_is_402_and_says_how_much(world: World) -> None:
    poor = await world.customer("0.000001")
    answer = await world.http("POST", POST, with_(max_tokens=1000), poor.key)
    error = refused(answer, 402, "balance", "0.000001", "USD", code="insufficient_balance")
    assert error["type"] == "insufficient_quota"
    assert Decimal(error["available"]) == Decimal("0.000001") < Decimal(error["required"])
    assert error["required"] in error["message"]
    assert "www-authenticate" not in answer.headers
    assert "x-cost-usd" not in answer.headers
    await costs_nothing(poor)


async def test_a_key_over_its_limit_is_403_and_says_which(world: World, customer: Customer) -> None:
    made = await world.cli("keys", "create", customer.credit_id, "small", "--limit", "0.01", "--period", "weekly")
    body = with_(model="test/dear", max_tokens=100)
    error = refused(await world.http("POST", POST, body, made["api_key"]), 403, "weekly", "limit", "0.01", "resets at")
    assert (error["type"], error["code"]) == ("permission_error", "key_limit_reached")
    assert Decimal(error["available"]) == Decimal("0.01")
    await costs_nothing(customer)


async def test_a_body_over_the_limit_is_413_however_it_comes(world: World, customer: Customer) -> None:
    most = 1_000_000
    body = with_(padding="x" * most)
    refused(await world.http("POST", POST, body, customer.key), 413, str(most), code="request_too_large")
    for length in (str(1 << 32), str(1 << 62), str(most + 1)):
        answer = await world.http("POST", POST, b"", customer.key, headers={"content-length": length})
        refused(answer, 413, str(most))
    head = request_bytes("POST", POST, world.gateway.port, None, customer.key, {"transfer-encoding": "chunked"})
    head = head.replace(b"content-length: 0\r\n", b"")
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:70_000], body[70_000:])) + b"0\r\n\r\n"
    refused(await ask(world.gateway.port, head + chunks), 413, str(most))
    await costs_nothing(customer)


async def test_small_bodies_have_a_small_limit_even_in_one_chunk(world: World, customer: Customer) -> None:
    small = b'{"name": "x", "padding": "' + b"x" * 65_600 + b'"}'
    head = request_bytes(
        "POST",
        "/keys",
        world.gateway.port,
        None,
        None,
        {"transfer-encoding": "chunked", "x-credit-id": customer.credit_id},
    )
    head = head.replace(b"content-length: 0\r\n", b"")
    refused(await ask(world.gateway.port, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(small), small)), 413)


async def test_a_body_of_just_the_limit_is_served(world: World) -> None:
    rich = await world.customer("100")
    start = with_(padding="")
    body = with_(padding="x" * (1_000_000 - len(start)))
    assert len(body) == 1_000_000
    assert (await world.http("POST", POST, body, rich.key)).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/nothing"), ("GET", "/"), ("POST", "/v2/chat/completions"), ("GET", "//health"), ("GET",
        "/health/"), ("GET", "/keys/a/b"),
        ("POST", "/v1/chat/completions/"), ("GET", "/%2e%2e/%2e%2e/etc/passwd"), ("GET", "/%00"), ("GET", "/%ff%fe"), ("DELETE", "/v1"),
        ("OPTIONS", "/nothing"), ("GET", "/v1/requests/"), ("GET", "/a" * 5000),
    ],
)  # fmt: skip
async def test_an_unknown_path_is_404(world: World, method: str, path: str) -> None:
    refused(await world.http(method, path), 404, method, "/openapi.json", code="not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", POST, "HEAD, OPTIONS, POST"), ("PUT", POST, "HEAD, OPTIONS, POST"), ("DELETE", "/chat/completions", "HEAD, OPTIONS, POST"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"), ("PATCH", "/keys", "GET, HEAD, OPTIONS, POST"), ("TRACE",
        "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/keys/aaaaaaaaaaaaaaaaaaaaaaaa", "DELETE, GET, HEAD, OPTIONS, PATCH"), ("GET", "/accounts/create", "HEAD, OPTIONS, POST"),
    ],
)  # fmt: skip
async def test_a_wrong_method_is_405_and_says_which_are_right(
    world: World, method: str, path: str, allowed: str
) -> None:
    answer = await world.http(method, path)
    refused(answer, 405, method, code="method_not_allowed")
    assert answer.headers["allow"] == allowed


async def test_what_the_upstream_refuses_is_passed_on_without_a_charge(world: World, customer: Customer) -> None:
    for model, status in (("status-400", 400), ("status-413", 413), ("status-422", 422)):
        answer = await customer.chat(model)
        refused(answer, status, "parameter is not right")
    await costs_nothing(customer, settled=True)


async def test_odd_fields_that_an_upstream_may_judge_reach_it(world: World, customer: Customer) -> None:
    odd = {
        "temperature": "hot",
        "tools": "none",
        "stop": {"a": 1},
        "response_format": 5,
        "user": 5,
        "seed": [],
        "logprobs": "x",
    }
    for name, value in odd.items():
        answer: Answer = await world.http("POST", POST, with_(**{name: value}), customer.key)
        assert answer.status == 200, f"{name}: {answer.body!r}"
    assert (await customer.books()).charged == len(odd) * cost(15, 8)


@pytest.mark.parametrize(
    "content",
    [
        [5], [None], ["text"], [{}], [{"type": 5}], [{"type": "text"}], [{"type": "text", "text": 5}], [{"type": "image_url"}],
        [{"type": "image_url", "image_url": 5}], [{"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}}],
        [{"type": "image_url", "image_url": {"url": 5}}], [{"type": "input_audio", "input_audio": {"data": 5}}], [[[]]], [],
        [{"type": "file", "file": {"file_data": "x"}}], [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("money", ["1", "0.0001"])
async def test_odd_parts_of_a_message_never_break_the_count(world: World, content: list[Any], money: str) -> None:
    """With little money the prompt is counted before the call."""
    someone = await world.customer(money)
    answer = await world.http("POST", POST, message(role="user", content=content), someone.key)
    assert answer.status in (200, 400, 402), answer.body
    if answer.status != 200:
        refused(answer, answer.status)
    await someone.books()


ODD_TOOLS: list[Any] = [
    *(5, "x", [5], [None], [{}], [{"type": "function"}], [{"function": 5}]),
    *([{"function": {"name": 5, "parameters": "x"}}], {"a": 1}),
]


@pytest.mark.parametrize("money", ["1", "0.0001"])
async def test_odd_tools_never_break_the_count(world: World, money: str) -> None:
    for odd in ODD_TOOLS:
        someone = await world.customer(money)
        for field in ("tools", "functions", "response_format"):
            answer = await world.http("POST", POST, with_(**{field: odd}), someone.key)
            assert answer.status in (200, 400, 402), f"{field} {odd}: {answer.body!r}"
        for name in ("tool_calls", "function_call", "name"):
            answer = await world.http(
                "POST", POST, message(**{"role": "assistant", "content": None, name: odd}), someone.key
            )
            assert answer.status in (200, 400, 402), f"{name} {odd}: {answer.body!r}"
        await someone.books()
