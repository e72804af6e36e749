"""Counting tokens: exact for text by the model's encoding, by the published rules for pictures, sound and documents.

Counts serve two ends. A *hold* needs an upper bound: the bytes of a request bound its tokens from above (a token is at
least a byte), so counting is only needed where that bound does not fit a balance, and `hold_factor` covers encodings
that are not known. A *charge* needs a count only where the upstream's usage is missing or cannot be true; no factor is
applied there.

Whatever shape a request has, counting does not raise: it counts what is there.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from ppq_proxy.catalog import pictures, recordings
from ppq_proxy.catalog.aliases import normal
from ppq_proxy.catalog.encodings import encoding, loaded
from ppq_proxy.catalog.offerings import Offering

#: Tokens around each message and before the answer (OpenAI's chat format).
MESSAGE_TOKENS: Final = 3
PRIMING_TOKENS: Final = 3
NAME_TOKENS: Final = 1
PAGE_TOKENS: Final = 3_000
VIDEO_TOKENS: Final = 300_000
#: Longer texts are counted in a thread.
INLINE_BYTES: Final = 64 * 1024
#: The encoder's pattern fails on a run of a million blanks and is quadratic on other long runs, so that texts are cut.
_CHUNK: Final = 100_000
_LOOK_BACK: Final = 2_000
#: Parts of a request whose tokens do not follow from their bytes.
_NOT_TEXT: Final = (b"image_url", b"input_image", b"input_audio", b"video_url", b'"file', b"input_file")
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[2-7]")
_AUDIO_TOKENS_A_SECOND: Final = {"google": 32}
_OLD: Final = ("gpt-3-5", "gpt-4-32k", "gpt-4-turbo", "gpt-4-vision", "gpt-4-0", "gpt-4-1106", "text-embedding-")


def tokenizer(offering: Offering) -> str:
    """The encoding a model is counted by: the row's, else its family's. Models with unpublished ones count as o200k."""
    if offering.tokenizer is not None:
        return offering.tokenizer
    name = _bare(offering)
    return "cl100k" if name == "gpt-4" or name.startswith(_OLD) else "o200k"


def hold_factor(offering: Offering) -> tuple[int, int]:
    """How much more than a count a hold must cover, as (numerator, denominator): the model's encoding is not ours."""
    return (27, 20) if offering.provider == "anthropic" or _bare(offering).startswith("claude-") else (11, 10)


def needs_rules(raw: bytes) -> bool:
    """Whether a request may hold pictures, sound or documents, so that its bytes do not bound its tokens.

    True for a body that only mentions them, and for one that escapes letters, behind which they could hide.
    """
    for mark in _NOT_TEXT:  # a plain loop: this is on the hot path
        if mark in raw:
            return True
    return b"\\u" in raw and _ESCAPED_LETTER.search(raw) is not None


def count_text(text: str, name: str = "o200k") -> int:
    """The tokens of a text in the encoding "o200k" or "cl100k"; special tokens count as the letters they consist of."""
    if not text:
        return 0
    encode = encoding(name).encode_ordinary
    if len(text) <= _CHUNK:
        return len(encode(text))
    return sum(len(encode(chunk)) for chunk in _chunks(text))


def count_chat(body: Mapping[str, Any], offering: Offering) -> int:
    """The prompt tokens of an OpenAI chat request: messages, tools, schemas, and what is not text."""
    texts: list[str] = []
    messages = body.get("messages")
    total = PRIMING_TOKENS
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            total += MESSAGE_TOKENS + _count_message(message, offering, texts)
    for key in ("tools", "functions", "response_format"):
        if body.get(key) and not (key == "response_format" and _is_plain_format(body[key])):
            texts.append(_as_json(body[key]))
    name = tokenizer(offering)
    return total + sum(count_text(text, name) for text in texts)


async def count_chat_async(body: Mapping[str, Any], offering: Offering, size: int) -> int:
    """`count_chat`, in a thread where the request of `size` bytes is long: encoding leaves other requests running."""
    if size <= INLINE_BYTES and loaded(tokenizer(offering)):
        return count_chat(body, offering)
    return await asyncio.to_thread(count_chat, body, offering)


def count_completion(text: str, offering: Offering) -> int:
    """The tokens of text that a model made."""
    return count_text(text, tokenizer(offering))


async def count_completion_async(text: str, offering: Offering) -> int:
    """`count_completion`, in a thread where the text is long."""
    if len(text) <= INLINE_BYTES and loaded(tokenizer(offering)):
        return count_completion(text, offering)
    return await asyncio.to_thread(count_completion, text, offering)


def count_choices(choices: object, offering: Offering) -> int:
    """The completion tokens of an answer's `choices`: text, reasoning, refusals, tool calls, and what sound says."""
    texts: list[str] = []
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict):
            _count_message({**message, "role": None}, offering, texts)
        elif isinstance(choice, dict) and isinstance(choice.get("text"), str):
            texts.append(choice["text"])
    name = tokenizer(offering)
    return sum(count_text(text, name) for text in texts)


def count_inputs(inputs: object, offering: Offering) -> int:
    """The tokens of an embedding request's `input`: a text, texts, token ids, or lists of them."""
    total = 0
    name = tokenizer(offering)
    for one in inputs if isinstance(inputs, list) else [inputs]:
        if isinstance(one, str):
            total += count_text(one, name)
        elif isinstance(one, list):
            total += len(one)
        elif one is not None:
            total += 1
    return total


async def count_inputs_async(inputs: object, offering: Offering, size: int) -> int:
    """`count_inputs`, in a thread where the request of `size` bytes is long."""
    if size <= INLINE_BYTES and loaded(tokenizer(offering)):
        return count_inputs(inputs, offering)
    return await asyncio.to_thread(count_inputs, inputs, offering)


def _count_message(message: Mapping[str, Any], offering: Offering, texts: list[str]) -> int:
    """The tokens of a message that are not text; its texts are added to the list, to be counted together."""
    for key in ("role", "content", "refusal", "reasoning", "reasoning_content"):
        if isinstance(message.get(key), str):
            texts.append(message[key])
    total = 0
    if isinstance(message.get("name"), str):
        texts.append(message["name"])
        total += NAME_TOKENS
    for call in _items(message.get("tool_calls")):
        texts.extend(_strings_of(call.get("function")))
        texts.extend(_strings_of(call.get("custom")))
    texts.extend(_strings_of(message.get("function_call")))
    audio = message.get("audio")
    if isinstance(audio, dict) and isinstance(audio.get("transcript"), str):
        texts.append(audio["transcript"])
    for part in _items(message.get("content")):
        total += _count_part(part, offering, texts)
    return total


def _count_part(part: Mapping[str, Any], offering: Offering, texts: list[str]) -> int:
    for key in ("text", "refusal"):
        if isinstance(part.get(key), str):
            texts.append(part[key])
    total = 0
    for key in ("image_url", "input_image"):
        if key in part:
            total += _count_picture(part[key], part, offering)
    if "input_audio" in part:
        total += _count_sound(part["input_audio"], offering)
    if "file" in part:
        total += _count_file(part["file"], offering)
    if "video_url" in part:
        total += min(VIDEO_TOKENS, offering.context or VIDEO_TOKENS)
    return total


def _count_picture(picture: object, part: Mapping[str, Any], offering: Offering) -> int:
    detail = part.get("detail")
    url = picture
    if isinstance(picture, dict):
        url = picture.get("url")
        detail = picture.get("detail", detail)
    size = pictures.size_of(url) if isinstance(url, str) else None
    return pictures.rule_for(_bare(offering))(size, detail if isinstance(detail, str) else "auto")


def _count_sound(sound: object, offering: Offering) -> int:
    data = sound.get("data") if isinstance(sound, dict) else None
    kind = sound.get("format") if isinstance(sound, dict) else None
    seconds = recordings.seconds_in(data, kind if isinstance(kind, str) else "") if isinstance(data, str) else 0
    return seconds * _AUDIO_TOKENS_A_SECOND.get(offering.provider, 10)


def _count_file(file: object, offering: Offering) -> int:
    """By its pages; one that is only named (an id or a URL) may fill the model's whole context."""
    data = file.get("file_data") if isinstance(file, dict) else None
    if isinstance(data, str) and not data.startswith(("http:", "https:")):
        return recordings.pages_of(data) * PAGE_TOKENS
    most = 100 * PAGE_TOKENS
    return min(most, offering.context or most)


def _items(value: object) -> Iterator[Mapping[str, Any]]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item


def _strings_of(value: object) -> list[str]:
    return [text for text in value.values() if isinstance(text, str)] if isinstance(value, dict) else []


def _is_plain_format(value: object) -> bool:
    return isinstance(value, dict) and "json_schema" not in value


def _as_json(value: object) -> str:
    """A schema as the text that models get; one too deep to write counts by its strings, found without recursion."""
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError):
        pass
    found: list[str] = []
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left.extend(one.values())
            found.extend(key for key in one if isinstance(key, str))
        elif isinstance(one, list):
            left.extend(one)
        elif isinstance(one, str):
            found.append(one)
    return " ".join(found)


def _chunks(text: str) -> Iterator[str]:
    """Pieces short enough to encode, cut before a blank where there is one: the tokens stay the same there."""
    start = 0
    while start < len(text):
        end = start + _CHUNK
        if end < len(text):
            blank = text.rfind(" ", end - _LOOK_BACK, end)
            end = blank if blank > start and not text[blank - 1].isspace() else end
        yield text[start:end]
        start = end


def _bare(offering: Offering) -> str:
    return normal(offering.id).rpartition("/")[2]
