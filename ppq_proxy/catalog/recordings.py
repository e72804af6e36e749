"""What sound and documents in a prompt count, from their bytes: seconds of audio, pages of a PDF."""

import base64
import binascii
import math
import re
import struct
from typing import Final

#: No speech recording is denser than this, so a header that says so is wrong: 192 kHz, 16 bit, two channels.
_MOST_BYTES_A_SECOND: Final = 768_000
#: Compressed sound is taken for the least bytes a second in use, which makes the most seconds.
_LEAST_BYTES_A_SECOND: Final = {"opus": 2_000, "ogg": 2_000, "webm": 2_000, "aac": 2_000, "m4a": 2_000}
_USUAL_LEAST: Final = 4_000
_HEAD: Final = 64 * 1024
_BYTES_A_PAGE: Final = 50_000
_PAGE: Final = re.compile(rb"/Type\s*/Page(?![A-Za-z])")


def decoded(text: str) -> bytes:
    """The bytes of base64, with or without a `data:` prefix; what follows the first fault is left out."""
    payload = text.partition(",")[2] if text.startswith("data:") else text
    payload = payload[: len(payload) // 4 * 4]
    try:
        return base64.b64decode(payload)
    except (binascii.Error, ValueError):
        return b""


def seconds_of(head: bytes, size: int, kind: str) -> int:
    """The length of a recording of `size` bytes that starts with `head`, rounded up; never less than it can be."""
    if kind == "pcm16":
        rate = 48_000
    else:
        rate = _LEAST_BYTES_A_SECOND.get(kind, _USUAL_LEAST)
        if kind == "wav":
            rate = _wav_rate(head) or rate
    return math.ceil(size / min(rate, _MOST_BYTES_A_SECOND))


def seconds_in(data: str, kind: str) -> int:
    """The same for a recording in base64."""
    return seconds_of(decoded(data[:_HEAD]), len(data) * 3 // 4, kind)


def _wav_rate(head: bytes) -> int:
    """Bytes a second, from the `fmt ` chunk; 0 where there is none."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return 0
    at = 12
    while at + 20 <= len(head):
        length = int(struct.unpack_from("<I", head, at + 4)[0])
        if head[at : at + 4] == b"fmt ":
            return int(struct.unpack_from("<I", head, at + 16)[0])
        at += 8 + length + length % 2
    return 0


def pages_of(data: str) -> int:
    """The pages of a document in base64: those that a PDF names, else by its size; at least one."""
    content = decoded(data)
    named = len(_PAGE.findall(content)) if content.startswith(b"%PDF") else 0
    return named or max(1, math.ceil(len(content) / _BYTES_A_PAGE))
