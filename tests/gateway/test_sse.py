"""Event streams in every shape that the format allows: the client gets the bytes, the meter reads them right (case 8)."""

import hashlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppq_proxy.errors import UpstreamNonsense
from ppq_proxy.metering.sse import LARGEST_EVENT, Passage
from ppq_proxy.providers.openai import ChatEvents
from tests.gateway.world import COUNTED_PROMPT, Outcomes, Result, World, all_at_once, cost
from tests.peers.upstream import PROMPT_TOKENS, SSE

WITH_USAGE = {"include_usage": True}
Table = Outcomes[tuple[str, bool], Result]
SHAPES = (*SSE, "usage-each", "usage-null", "umlauts", "tools", "reasoning", "story")


# over the wire


@pytest.fixture(scope="module")
def passed(world: World) -> Table:
    """Each shape, with the usage event asked for and without."""
    names = [(model, asked) for model in SHAPES for asked in (False, True)]
    return all_at_once(
        {
            (model, asked): world.examined(model, stream=True, stream_options=WITH_USAGE if asked else None)
            for model, asked in names
        }
    )


@pytest.mark.parametrize("model", SHAPES)
def test_case08_the_client_gets_every_byte(passed: Table, model: str) -> None:
    result = passed[model, True]
    [call] = result.upstream_calls
    assert result.answer.status == 200 and result.answer.whole
    assert len(result.answer.body) == call["sent_bytes"]
    assert hashlib.sha256(result.answer.body).hexdigest() == call["sent_sha256"]


@pytest.mark.parametrize("asked", [False, True], ids=["usage-hidden", "usage-shown"])
@pytest.mark.parametrize("model", SHAPES)
def test_case08_the_meter_reads_it_right(passed: Table, model: str, asked: bool) -> None:
    result = passed[model, asked]
    assert result.charged == cost(PROMPT_TOKENS, 8)
    assert result.receipt["usage_source"] == "upstream"
    assert result.upstream_calls[0]["body"]["stream_options"]["include_usage"] is True


@pytest.mark.parametrize("model", SHAPES)
def test_case08_what_was_not_asked_for_is_not_shown(passed: Table, model: str) -> None:
    """The extra event with the usage is the gateway's own wish; all else is the client's."""
    hidden, shown = (
        passed[model, asked].answer.body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for asked in (False, True)
    )
    events = shown.split(b"\n\n")
    rest = [event for event in events if b'"choices":[]' not in event.replace(b"\ndata: ", b"")]
    if model == "usage-each":  # has content in every event with usage
        assert len(rest) == len(events)
    else:
        assert len(rest) == len(events) - 1
    assert hidden.split(b"\n\n") == rest


@pytest.mark.parametrize(
    "model", ["sse-crlf", "sse-no-space", "sse-comments", "sse-multi-line", "sse-bytes", "sse-packed"]
)
async def test_case08_content_is_counted_in_every_shape(world: World, model: str) -> None:
    result = await world.examined(model, stream=True, play={"usage": "omit"})
    assert result.charged == cost(COUNTED_PROMPT, 8) and result.receipt["usage_source"] == "counted"


async def test_case08_half_a_character_is_whole_again(world: World) -> None:
    result = await world.examined("sse-half-character", stream=True)
    assert result.answer.text == " ä€🙂" * 8


# the reader by itself


def read(pieces: list[bytes], *, wants_usage: bool = True) -> tuple[bytes, Any, str, bool]:
    """What came out of a stream that came in such pieces: bytes, usage, delivered text, and whether it ended."""
    events = ChatEvents(wants_usage)
    passage = Passage(events)
    out = b"".join(passage.feed(piece) for piece in pieces) + passage.finish()
    return out + passage.end, events.usage, passage.delivered(), events.done


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """A stream in pieces."""
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges) if start < end]


USAGES = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 1000), "completion_tokens": st.integers(0, 1000)})
TEXTS = st.text(min_size=1, max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[str], Any, bool]:
    """A stream, the texts in it, its last usage, and whether it has an end marker."""
    end_of_line = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    space = draw(st.sampled_from(["", " "]))
    texts, usage, lines = [], None, []
    for _ in range(draw(st.integers(1, 8))):
        text = draw(TEXTS)
        value: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        shape = draw(st.sampled_from(["plain", "plain", "null", "usage", "details"]))
        if shape == "null":
            value["usage"] = None
        elif shape == "usage":
            value["usage"] = usage = draw(USAGES)
        elif shape == "details":
            value["x"] = {"usage": "no", "error": None, "text": "[DONE] and data: {} \n\n"}
        texts.append(text)
        lines += draw(st.sampled_from([[], [": comment", ""], ["event: message", "id: 1"], ["retry: 5"]]))
        lines += [f"data:{space}{part}" for part in draw(st.sampled_from([one_line, many_lines]))(value)]
        lines += [*draw(st.sampled_from([[], [": behind"]])), ""]
    if draw(st.booleans()):
        usage = draw(USAGES)
        lines += [f"data:{space}{json.dumps({'choices': [], 'usage': usage})}", ""]
    done = draw(st.booleans())
    if done:
        lines += [f"data:{space}[DONE]", ""]
    return "".join(line + end_of_line for line in lines).encode(), texts, usage, done


def one_line(value: Any) -> list[str]:
    return [json.dumps(value, ensure_ascii=False)]


def many_lines(value: Any) -> list[str]:
    return json.dumps(value, indent=1).split("\n")


@settings(max_examples=150, deadline=None)
@given(stream=streams(), places=st.lists(st.integers(0, 5000), max_size=40))
def test_case08_any_cutting_gives_the_same_bytes_usage_and_text(
    stream: tuple[bytes, list[str], Any, bool], places: list[int]
) -> None:
    data, texts, usage, done = stream
    out, found, text, ended = read(cut(data, places))
    assert out == data
    assert found == usage and ended == done
    assert sorted(text) == sorted("".join(texts)), "a piece of content was lost or counted twice"


@settings(max_examples=30, deadline=None)
@given(stream=streams())
def test_case08_byte_by_byte(stream: tuple[bytes, list[str], Any, bool]) -> None:
    data, texts, usage, done = stream
    out, found, text, ended = read([data[at : at + 1] for at in range(len(data))])
    assert (out, found, ended) == (data, usage, done)
    assert sorted(text) == sorted("".join(texts))


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=300), places=st.lists(st.integers(0, 300), max_size=10))
def test_case08_rubbish_passes_and_means_nothing(noise: bytes, places: list[int]) -> None:
    """Whatever an upstream sends between two events does not stop the meter."""
    clean = noise.replace(b"data", b"atad")
    before = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    after = b'\n\ndata: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}\n\ndata: [DONE]\n\n'
    out, usage, text, done = read(cut(before + b": " + clean + after, places))
    assert usage == {"prompt_tokens": 3, "completion_tokens": 1} and done and text == "a"
    assert out.startswith(before) and out.endswith(b"data: [DONE]\n\n")


def test_case08_the_word_usage_in_an_answer_is_no_usage() -> None:
    text = 'The field "usage": {"prompt_tokens": 1} and data: [DONE] and "error": {}'
    event = b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"
    out, usage, delivered, done = read([event, event, event])
    assert (out, usage, delivered, done) == (event * 3, None, text * 3, False)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=repr)
def test_case08_a_last_event_without_its_blank_line(end: str) -> None:
    first = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    last = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}' + end.encode()
    out, usage, text, _ = read([first, last])
    assert usage == {"prompt_tokens": 3, "completion_tokens": 1} and text == "a"
    assert out.startswith(first + last.rstrip()) and out.endswith(b"\n\n")
    assert read([first, b"data: [DONE]" + end.encode()])[3] is True


@pytest.mark.parametrize("half", [b'data: {"choices": [{"del', b"data: {", b"da", b": comm", b"event: mess"])
def test_case08_half_an_event_at_the_end_is_dropped(half: bytes) -> None:
    """A client's parser would stumble over it before it reads the error event behind."""
    first = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    assert read([first, half]) == (first, None, "a", False)


def test_case08_an_event_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    passage = Passage(ChatEvents(True))
    piece = b"x" * (1 << 20)
    with pytest.raises(UpstreamNonsense):
        for _ in range(2 + LARGEST_EVENT // len(piece)):
            passage.feed(piece)


def test_case08_a_long_line_in_small_pieces_is_read_in_linear_time() -> None:
    """Ten million bytes in pieces of 16 kB: the search for its end must not start anew with each."""
    event = b"data: " + json.dumps({"choices": [{"delta": {"content": "x" * 10_000_000}}]}).encode() + b"\n\n"
    pieces = [event[at : at + 16384] for at in range(0, len(event), 16384)]
    out, _, text, _ = read(pieces)
    assert out == event and len(text) == 10_000_000
