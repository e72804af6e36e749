"""What goes over the wire: the request, the fixed answer, the stream, and what they cost.

Every target gets the same bytes: a difference between two rows of the table is a difference between two gateways.
"""

from __future__ import annotations

import json
from decimal import ROUND_CEILING, Decimal
from typing import Any

MODEL = "bench"
PROMPT_TOKENS = 40  # below any honest count of PROMPT, so that no hold is overrun
COMPLETION_TOKENS = 24
MAX_TOKENS = 256
EVENT_SECONDS = 0.02
WORD = " lorem"  # once in each content event and nowhere else: counting it counts events, however they are re-encoded
MARGIN = Decimal("0.055")
INPUT_USD_PER_MTOK = Decimal("1.00")
OUTPUT_USD_PER_MTOK = Decimal("2.00")

PROMPT = (
    "You are a careful clerk. Summarise in one short paragraph what a gateway in front of several model providers has "
    "to keep a record of, and name the two figures that matter most to its operator."
)
_SAID = "It keeps who called, what was used and what that cost; spend and latency matter most to whoever runs it."
_BASE = {"created": 1700000000, "model": MODEL, "system_fingerprint": "fp_44709d6fcb"}


def compact(document: Any) -> bytes:
    """JSON without spaces, as the official clients and servers write it."""
    return json.dumps(document, separators=(",", ":")).encode()


def usage(completion_tokens: int) -> dict[str, int]:
    """The usage object of an answer with so many output tokens."""
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion_tokens,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
    }


def chat_body(model: str, *, stream: bool = False) -> bytes:
    """The chat request that is posted, about 300 bytes."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return compact(body)


def completion() -> bytes:
    """The one answer to every request that does not stream."""
    message = {"role": "assistant", "content": _SAID, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {"id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "object": "chat.completion"}
    return compact(head | _BASE | {"choices": [choice], "usage": usage(COMPLETION_TOKENS)})


def model_list() -> bytes:
    """The answer to GET /v1/models."""
    row = {"id": MODEL, "object": "model", "created": 1700000000, "owned_by": "bench"}
    return compact({"object": "list", "data": [row]})


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    head = {"id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "object": "chat.completion.chunk"}
    return b"data: " + compact(head | _BASE | {"choices": choices} | more) + b"\n\n"


def content_event() -> bytes:
    """One event of a stream, about 230 bytes, with one word of content."""
    return _event([{"index": 0, "delta": {"content": WORD}, "finish_reason": None}])


def closing_events(completion_tokens: int, *, include_usage: bool) -> bytes:
    """What ends a stream: the finish event, the usage chunk if it was asked for, and `[DONE]`."""
    events = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    if include_usage:
        events += _event([], usage=usage(completion_tokens))
    return events + b"data: [DONE]\n\n"


def price_list() -> dict[str, Any]:
    """A `--models` file that sells MODEL with a margin."""
    prices = [
        {"of": "input", "unit": "mtok", "usd": str(INPUT_USD_PER_MTOK)},
        {"of": "output", "unit": "mtok", "usd": str(OUTPUT_USD_PER_MTOK)},
    ]
    row = {"id": MODEL, "type": "chat", "name": "Bench", "context": 8192, "max_output": 4096, "prices": prices}
    return {"margin": str(MARGIN), "models": [row]}


def charge_usd(completion_tokens: int) -> Decimal:
    """What one answer costs a customer: tokens x price x (1 + margin), rounded up once to 1e-9 USD."""
    cost = PROMPT_TOKENS * INPUT_USD_PER_MTOK + completion_tokens * OUTPUT_USD_PER_MTOK
    return (cost / 1_000_000 * (1 + MARGIN)).quantize(Decimal("1e-9"), rounding=ROUND_CEILING)
