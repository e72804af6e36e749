"""OpenAI's chat completions as an upstream speaks them: what is sent, and how answers and events are read.

Shapes: OpenAI API reference, chat completions; what servers really do is in money-cases 1-9.
"""

from typing import Any

import orjson

from ppq_proxy.catalog.offerings import Offering
from ppq_proxy.catalog.tokens import count_chat_async, count_inputs_async
from ppq_proxy.metering.usage import Units, openai_usage

NULL_USAGE = (b'"usage":null', b'"usage": null')
MARKS = (b'"usage"', b'"error"', b"[DONE]")
TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def text_of(part: Any) -> str:
    """Everything in a message or delta that an upstream makes token by token: text, reasoning, refusal, tool calls."""
    if not isinstance(part, dict):
        return ""
    texts = [value for name in TEXTS if isinstance(value := part.get(name), str)]
    if isinstance(content := part.get("content"), list):
        texts += [piece["text"] for piece in content if isinstance(piece, dict) and isinstance(piece.get("text"), str)]
    calls = part.get("tool_calls")
    for call in [*(calls if isinstance(calls, list) else ()), {"function": part.get("function_call")}]:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts += [value for name in ("name", "arguments") if isinstance(value := function.get(name), str)]
    if isinstance(audio := part.get("audio"), dict) and isinstance(transcript := audio.get("transcript"), str):
        texts.append(transcript)
    return "".join(texts)


def delivers(part: Any) -> bool:
    """True if a message or delta holds something for the client."""
    return isinstance(part, dict) and any(value for name, value in part.items() if name != "role")


def choices_of(parsed: Any) -> list[dict[str, Any]]:
    """The choices of an answer or event, those that are objects."""
    choices = parsed.get("choices") if isinstance(parsed, dict) else None
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


class ChatEvents:
    """The events of one streamed chat completion (`metering.sse.Reader`)."""

    __slots__ = ("done", "failed", "finished", "marks", "usage", "wants_usage")

    def __init__(self, wants_usage: bool) -> None:
        self.wants_usage = wants_usage
        self.marks: tuple[bytes, ...] = MARKS
        self.done = self.finished = False
        self.failed: Any = None
        self.usage: Any = None

    def interesting(self, chunk: bytes) -> bool:
        if b'"usage"' in chunk and chunk.count(b'"usage"') != sum(map(chunk.count, NULL_USAGE)):
            return True
        return b"[DONE]" in chunk or b'"error"' in chunk

    def event(self, data: bytes, parsed: Any) -> bool:
        if data == b"[DONE]":
            self.done = True
            return False
        if not isinstance(parsed, dict):
            return True
        choices = choices_of(parsed)
        if (error := parsed.get("error")) and not choices:
            self.failed = error
            return False
        for choice in choices:
            if choice.get("finish_reason"):
                self.finished = True
        if isinstance(usage := parsed.get("usage"), dict):
            self.usage = usage
            return bool(choices) or self.wants_usage
        return True

    def content(self, parsed: Any) -> bool:
        return any(choice.get("finish_reason") or delivers(choice.get("delta")) for choice in choices_of(parsed))

    def text(self, parsed: Any) -> str:
        return "".join(text_of(choice.get("delta")) for choice in choices_of(parsed))


class ChatCompletions:
    """The protocol of `POST /chat/completions`."""

    path = "/chat/completions"
    query_type = "chat"
    end = b"data: [DONE]\n\n"
    outputs = True

    @staticmethod
    def prepare(body: dict[str, Any], model: str, stream: bool, usage: str, limits: dict[str, int] | None) -> bytes:
        """The body for an upstream: its own model name, usage always asked for, output limits as far as the hold pays."""
        sent = dict(body, model=model)
        if stream and usage == "always":
            options = body.get("stream_options")
            sent["stream_options"] = dict(options, include_usage=True) if options else {"include_usage": True}
        if limits:
            sent.update(limits)
        return orjson.dumps(sent)

    @staticmethod
    def events(body: dict[str, Any]) -> ChatEvents:
        options = body.get("stream_options")
        return ChatEvents(bool(options and options.get("include_usage")))

    @staticmethod
    def delivered(parsed: Any) -> bool:
        """True if a whole answer delivers something: content, or a finish."""
        return any(choice.get("finish_reason") or delivers(choice.get("message")) for choice in choices_of(parsed))

    @staticmethod
    def text(parsed: Any) -> str:
        return "".join(text_of(choice.get("message")) for choice in choices_of(parsed))

    @staticmethod
    def usage(block: Any) -> tuple[int, int, Units] | None:
        return openai_usage(block)

    @staticmethod
    async def count(body: dict[str, Any], offering: Offering, size: int) -> int:
        return await count_chat_async(body, offering, size)


class Embeddings:
    """The protocol of `POST /embeddings`: whole answers, no output tokens."""

    path = "/embeddings"
    query_type = "embedding"
    end = b""
    outputs = False

    @staticmethod
    def prepare(body: dict[str, Any], model: str, stream: bool, usage: str, limits: dict[str, int] | None) -> bytes:
        return orjson.dumps(dict(body, model=model))

    @staticmethod
    def events(body: dict[str, Any]) -> ChatEvents:
        return ChatEvents(False)

    @staticmethod
    def delivered(parsed: Any) -> bool:
        """True if there is at least one vector."""
        data = parsed.get("data") if isinstance(parsed, dict) else None
        return isinstance(data, list) and any(isinstance(one, dict) and one.get("embedding") for one in data)

    @staticmethod
    def text(parsed: Any) -> str:
        return ""

    @staticmethod
    def usage(block: Any) -> tuple[int, int, Units] | None:
        read = openai_usage(block)
        return (read[0], 0, {"input": read[0]}) if read else None

    @staticmethod
    async def count(body: dict[str, Any], offering: Offering, size: int) -> int:
        return await count_inputs_async(body.get("input"), offering, size)
