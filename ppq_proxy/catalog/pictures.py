"""What a picture in a prompt counts: its size from its first bytes, and the vendors' published rules.

Sizes come from `data:` URLs only. A remote URL is never fetched for its price, for that would connect to whatever
address a caller names; it counts as the largest picture that the model makes of anything.
"""

import base64
import binascii
import math
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

#: Enough of a file to find its size: JPEGs may carry a preview and colour tables before it.
_HEAD: Final = 256 * 1024


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


Rule = Callable[[Size | None, str], int]


def size_of(url: str) -> Size | None:
    """The size of the picture in a base64 `data:` URL; None for any other URL and for what is not understood."""
    if not url.startswith("data:"):
        return None
    head, comma, payload = url[: _HEAD * 4 // 3 + 256].partition(",")
    if not comma or ";base64" not in head.lower():
        return None
    try:
        data = base64.b64decode(payload[: len(payload) // 4 * 4])
    except (binascii.Error, ValueError):
        return None
    return _from_bytes(data)


def _from_bytes(data: bytes) -> Size | None:
    for magic, reader in _READERS:
        if data.startswith(magic):
            try:
                size = reader(data)
            except (struct.error, IndexError):
                return None
            return size if size is not None and size.width > 0 and size.height > 0 else None
    return None


def _png(data: bytes) -> Size:
    return Size(*struct.unpack_from(">II", data, 16))


def _gif(data: bytes) -> Size:
    return Size(*struct.unpack_from("<HH", data, 6))


def _jpeg(data: bytes) -> Size | None:
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        kind = data[at + 1]
        if kind == 0xFF:  # padding before a marker
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame header; the others define tables
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Size(width, height)
        elif kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers without a length
            at += 2
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def _webp(data: bytes) -> Size | None:
    if data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Size(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        bits = int(struct.unpack_from("<I", data, 21)[0])
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        return Size(width, int.from_bytes(data[27:30], "little") + 1)
    return None


_READERS: Final[tuple[tuple[bytes, Callable[[bytes], Size | None]], ...]] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8", _jpeg),
    (b"GIF8", _gif),
    (b"RIFF", _webp),
)


def tiles(base: int, tile: int) -> Rule:
    """OpenAI's tiles of 512 pixels: fitted into 2048 squared, the shorter side to 768; `detail: low` is the base."""

    def rule(size: Size | None, detail: str) -> int:
        if detail == "low":
            return base
        if size is None:
            return base + 8 * tile
        longest = max(size)
        scale = min(1, 2048 / longest)
        scale = min(scale, 768 / min(size))
        across, down = (max(1, math.ceil(round(side * scale, 6) / 512)) for side in size)
        return base + tile * across * down

    return rule


def patches(budget: int, percent: int, high: int | None = None) -> Rule:
    """OpenAI's patches of 32 pixels, shrunk to the budget (`high` for that detail), times a factor in percent."""

    def rule(size: Size | None, detail: str) -> int:
        most = high if high is not None and detail == "high" else budget
        count = most if size is None else _patches_of(size, most)
        return -(-count * percent // 100)

    return rule


def _patches_of(size: Size, budget: int) -> int:
    width, height = size
    count = -(-width // 32) * -(-height // 32)
    if count <= budget:
        return count
    ratio = math.sqrt(budget * 32 * 32 / (width * height))
    across, down = width * ratio / 32, height * ratio / 32
    ratio *= min(math.floor(across) / across, math.floor(down) / down) if across >= 1 and down >= 1 else 1
    return min(budget, max(1, math.ceil(round(width * ratio / 32, 6)) * math.ceil(round(height * ratio / 32, 6))))


def blocks(edge: int, cap: int) -> Rule:
    """Blocks of 28 pixels after the longer edge is brought to `edge`, at most `cap` (Anthropic; Qwen alike)."""

    def rule(size: Size | None, detail: str) -> int:
        if size is None:
            return cap
        scale = min(1, edge / max(size))
        across, down = (max(1, math.ceil(round(side * scale, 6) / 28)) for side in size)
        return min(cap, across * down)

    return rule


def squares(side: int, tokens: int, cap: int) -> Rule:
    """Gemini: a small picture is one square, a larger one is cut into squares of `side` pixels."""

    def rule(size: Size | None, detail: str) -> int:
        if size is None:
            return cap
        if max(size) <= 384:
            return tokens
        return min(cap, tokens * math.ceil(size.width / side) * math.ceil(size.height / side))

    return rule


#: By the start of a model's normal name without its vendor; the first that fits. The tables move with the models, so a
#: model that is not here gets its family's newest rule, and those without a family the most generous one.
RULES: Final[tuple[tuple[str, Rule], ...]] = (
    ("gpt-4-1-mini", patches(1536, 162)),
    ("gpt-4-1-nano", patches(1536, 246)),
    ("o4-mini", patches(1536, 172)),
    ("gpt-5-mini", patches(1536, 162)),
    ("gpt-5-nano", patches(1536, 246)),
    ("gpt-5-4-mini", patches(1536, 162)),
    ("gpt-5-4-nano", patches(1536, 246)),
    ("gpt-4o-mini", tiles(2833, 5667)),
    ("gpt-4", tiles(85, 170)),
    ("chatgpt-4o", tiles(85, 170)),
    ("gpt-5-1", tiles(70, 140)),
    ("gpt-5-pro", tiles(70, 140)),
    ("gpt-5-chat", tiles(70, 140)),
    ("gpt-5-codex", tiles(70, 140)),
    ("gpt-5-2025", tiles(70, 140)),
    ("o1", tiles(75, 150)),
    ("o3", tiles(75, 150)),
    ("computer-use", tiles(65, 129)),
    ("gpt-", patches(10_000, 120, high=2_500)),
    ("claude-2", blocks(1568, 1568)),
    ("claude-3", blocks(1568, 1568)),
    ("claude-haiku-4", blocks(1568, 1568)),
    ("claude-sonnet-4", blocks(1568, 1568)),
    ("claude-opus-4-7", blocks(2576, 4784)),
    ("claude-opus-4-8", blocks(2576, 4784)),
    ("claude-opus-4", blocks(1568, 1568)),
    ("claude-", blocks(2576, 4784)),
    ("gemini-3", squares(768, 1120, 2240)),
    ("gemini-2", squares(768, 258, 258 * 16)),
    ("gemini-1", squares(768, 258, 258 * 16)),
    ("gemini-", squares(768, 1120, 2240)),
)
_EXACTLY: Final = {"gpt-5": tiles(70, 140)}
_OTHERWISE: Final = blocks(4096, 4784)


def rule_for(name: str) -> Rule:
    """The rule of a model, by its normal name without the vendor."""
    if name in _EXACTLY:
        return _EXACTLY[name]
    return next((rule for start, rule in RULES if name.startswith(start)), _OTHERWISE)
