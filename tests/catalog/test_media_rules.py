"""Sizes of pictures from their first bytes, the vendors' worked examples, lengths of sound and documents."""

import base64
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.catalog.pictures import Size, rule_for, size_of
from ppq_proxy.catalog.recordings import decoded, pages_of, seconds_in, seconds_of

sides = st.integers(min_value=1, max_value=16_383)


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + b"\x08\x06\0\0\0"


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0"


def jpeg(width: int, height: int) -> bytes:
    preview = b"\xff\xe1" + struct.pack(">H", 5_002) + b"\xff\xc0" * 2_500
    tables = b"\xff\xdb" + struct.pack(">H", 67) + bytes(65) + b"\xff\xff\xc4" + struct.pack(">H", 4) + bytes(2)
    return b"\xff\xd8" + preview + tables + b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)


def webp_lossy(width: int, height: int) -> bytes:
    return b"RIFF\0\0\0\0WEBPVP8 " + bytes(4) + b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width, height)


def webp_lossless(width: int, height: int) -> bytes:
    return b"RIFF\0\0\0\0WEBPVP8L" + bytes(4) + b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14)


def webp_extended(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + size


@pytest.mark.parametrize("make", [png, gif, jpeg, webp_lossy, webp_lossless, webp_extended])
@given(width=sides, height=sides)
def test_the_size_of_a_picture_is_read_from_its_head(
    make: Callable[[int, int], bytes], width: int, height: int
) -> None:
    assert size_of(url(make(width, height))) == (width, height)
    assert size_of(url(make(width, height) + bytes(300_000))) == (width, height)


@given(st.sampled_from([png, gif, jpeg, webp_lossy, webp_lossless, webp_extended]), st.data())
def test_a_damaged_head_has_no_size_and_raises_nothing(make: Callable[[int, int], bytes], data: st.DataObject) -> None:
    whole = make(64, 64)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    at = data.draw(st.integers(0, len(whole) - 1))
    size_of(url(cut))
    size_of(url(whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]))


@given(st.text(max_size=60) | st.text(max_size=30).map(lambda text: "data:image/png;base64," + text))
def test_no_url_makes_reading_fail(text: str) -> None:
    size = size_of(text)
    assert size is None or min(size) > 0


@pytest.mark.parametrize(
    "address", ["https://example.com/a.png", "data:image/png,abc", "data:;base64,AAAA", "", "data:"]
)
def test_what_is_no_picture_in_base64_has_no_size(address: str) -> None:
    assert size_of(address) is None


@pytest.mark.parametrize(
    ("model", "size", "detail", "count"),
    [
        # The vendors' worked examples.
        ("gpt-4o", (1024, 1024), "high", 765),
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4-1", (512, 512), "auto", 255),
        ("gpt-4o-mini", (1024, 1024), "high", 2833 + 4 * 5667),
        ("o4-mini", (1024, 1024), "high", -(-1024 * 172 // 100)),
        ("gpt-5-mini", (1800, 2400), "high", -(-1452 * 162 // 100)),
        ("gpt-5-nano", (32, 32), "high", 3),
        ("gpt-5", (1024, 1024), "high", 70 + 4 * 140),
        ("gpt-5-5", (1024, 1024), "high", -(-1024 * 120 // 100)),
        ("claude-sonnet-4-5", (1000, 1000), "auto", 1296),
        ("claude-sonnet-4-5", (8000, 8000), "auto", 1568),
        ("claude-opus-5-5", (8000, 8000), "auto", 4784),
        ("gemini-2-5-pro", (384, 384), "auto", 258),
        ("gemini-2-5-pro", (1536, 768), "auto", 516),
    ],
)
def test_pictures_count_as_the_vendors_say(model: str, size: tuple[int, int], detail: str, count: int) -> None:
    assert rule_for(model)(Size(*size), detail) == count


@given(st.sampled_from(["gpt-4o", "gpt-4-1-mini", "gpt-5-5", "claude-opus-5", "gemini-3-pro", "other"]), sides, sides)
def test_no_picture_counts_more_than_one_of_unknown_size(model: str, width: int, height: int) -> None:
    rule = rule_for(model)
    for detail in ("auto", "high", "low"):
        assert 1 <= rule(Size(width, height), detail) <= rule(None, detail)


def wav(seconds: int, rate: int = 32_000) -> bytes:
    junk = b"JUNK" + struct.pack("<I", 3) + bytes(4)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate // 2, rate, 2, 16)
    return b"RIFF\0\0\0\0WAVE" + junk + form + b"data" + struct.pack("<I", rate * seconds) + bytes(rate * seconds)


def test_the_length_of_a_recording_comes_from_its_header_or_its_size() -> None:
    sound = base64.b64encode(wav(10)).decode()
    assert seconds_in(sound, "wav") in (10, 11)
    assert seconds_in(sound, "mp3") == -(-len(wav(10)) // 4_000)
    assert seconds_of(b"", 48_000, "pcm16") == 1
    assert seconds_of(b"", 2_000, "opus") == 1
    assert seconds_of(b"", 25_000_000, "mp3") == 6_250


def test_a_header_that_promises_too_little_is_not_believed() -> None:
    lying = wav(1, rate=32_000).replace(struct.pack("<I", 32_000), struct.pack("<I", 2**31), 1)
    assert seconds_of(lying, 768_000 * 5, "wav") == 5


@given(st.binary(max_size=200), st.sampled_from(["wav", "mp3", "", "pcm16", "opus"]))
def test_no_bytes_make_measuring_fail(data: bytes, kind: str) -> None:
    assert seconds_of(data, len(data), kind) >= 0
    assert pages_of(base64.b64encode(data).decode()) >= 1
    assert pages_of(data.decode("latin-1")) >= 1


def test_pages_are_those_that_a_document_names_or_its_size() -> None:
    def pages(content: bytes) -> int:
        return pages_of(base64.b64encode(content).decode())

    assert pages(b"%PDF-1.7 /Type/Page >> /Type /Page\n /Type /Pages /Type /PageLabel") == 2
    assert pages(b"%PDF-1.7" + bytes(120_000)) == 3
    assert pages(b"plain text") == 1
    assert decoded("data:text/plain;base64,aGk=") == b"hi"
