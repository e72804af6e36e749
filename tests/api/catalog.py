"""What the gateway of these tests sells beside the plain rows: every kind of model, and the names of the documented examples."""

from typing import Any

from tests.gateway.world import row


def other(name: str, kind: str, of: str, unit: str, usd: str, **more: Any) -> dict[str, Any]:
    """A row of another kind than chat."""
    return {"id": f"test/{name}", "type": kind, "margin": "0", "prices": [{"of": of, "unit": unit, "usd": usd}], **more}


ROWS: list[dict[str, Any]] = [
    {
        **row("unused", "story"),
        "id": "anthropic/claude-sonnet-4.6",
        "name": "Claude Sonnet 4.6",
        "provider": "anthropic",
        "created": "2026-02-17",
        "max_output": 64_000,
        "context": 1_000_000,
        "capabilities": ["tools", "json_schema", "sampling"],
        "modalities": {"in": ["text", "image"], "out": ["text"]},
    },
    {
        **row("unused", "story"),
        "id": "anthropic/claude-sonnet-4.5",
        "provider": "anthropic",
        "aliases": ["sonnet-of-old"],
    },
    row("dear", "story", prices={"input": "10000", "output": "20000"}),
    row("gift", "story", prices={"input": "0", "output": "0"}, free=True),
    row("mid", "story", prices={"input": "100", "output": "500"}),
    row("gpt", "story", provider="openai"),
    row("no-price", "story", prices={}),
    row("hidden", "story", private=True) | {"id": "private/story"},
    row("margined", "story") | {"margin": "0.055"},
    other("words", "embedding", "input", "mtok", "0.02", context=8191),
    other(
        "picture", "image", "image", "image", "0.04", parameters={"size": {"values": ["1:1", "16:9"], "default": "1:1"}}
    ),
    other("clip", "video", "second", "second", "0.05"),
    other("voice", "audio", "character", "character", "0.00002", capabilities=["speech"]),
    other("search", "data", "call", "call", "0.01", method="POST"),
]
