"""Macaroons against an independent implementation, and against everything that is not one."""

import base64
import hashlib
import hmac
import secrets

import pymacaroons
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.payments.macaroon import (
    MAX_BYTES,
    MAX_CAVEATS,
    MacaroonError,
    derive_root_key,
    make_identifier,
    mint,
    parse,
    verify,
)

SERVER_KEY = b"s" * 32
HASH, TOKEN_ID = bytes(range(32)), bytes(range(32, 64))
IDENTIFIER = make_identifier(HASH, TOKEN_ID)
ROOT_KEY = derive_root_key(SERVER_KEY, IDENTIFIER)
NOW = 1_800_000_000


def ours(*caveats: str) -> bytes:
    return mint(ROOT_KEY, IDENTIFIER, caveats)


def accepted(data: bytes, now: int = NOW) -> bool:
    try:
        macaroon = parse(data)
        verify(macaroon, derive_root_key(SERVER_KEY, macaroon.identifier), now=now, service="ppq")
    except MacaroonError:
        return False
    return True


def appended(data: bytes, caveat: bytes) -> bytes:
    """A caveat appended by a holder, who has no root key."""
    assert data[-35:-32] == b"\x00\x06\x20"
    signature = hmac.digest(data[-32:], caveat, hashlib.sha256)
    return data[:-35] + b"\x02" + bytes([len(caveat)]) + caveat + b"\x00" + data[-35:-32] + signature


def of_pymacaroons(macaroon: pymacaroons.Macaroon) -> bytes:
    text = macaroon.serialize()
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_PPQ_214_the_layout_is_apertures() -> None:
    data = ours()
    assert data[:8] == b"\x02\x01\x04lsat\x02"
    assert data[8:10] == bytes([66, 0])
    assert data[9:75] == b"\x00\x00" + HASH + TOKEN_ID
    assert data[75:79] == b"\x00\x00\x06\x20"
    assert len(data) == 111


@pytest.mark.parametrize("caveats", [(), ("services=ppq:0",), ("a=1", "b=" + "x" * 300, "ppq_valid_until=1900000000")])
def test_pymacaroons_reads_and_verifies_ours(caveats: tuple[str, ...]) -> None:
    text = base64.urlsafe_b64encode(ours(*caveats)).decode()
    macaroon = pymacaroons.Macaroon.deserialize(text)
    assert macaroon.identifier_bytes == IDENTIFIER
    assert [caveat.caveat_id_bytes.decode() for caveat in macaroon.caveats] == list(caveats)
    verifier = pymacaroons.Verifier()
    verifier.satisfy_general(lambda _: True)
    assert verifier.verify(macaroon, ROOT_KEY)


def test_we_read_and_verify_those_of_pymacaroons() -> None:
    macaroon = pymacaroons.Macaroon(location="lsat", identifier=IDENTIFIER, key=ROOT_KEY, version=2)
    assert of_pymacaroons(macaroon) == ours()
    macaroon.add_first_party_caveat("services=ppq:0")
    assert of_pymacaroons(macaroon) == ours("services=ppq:0")
    macaroon.add_first_party_caveat("preimage=" + "ab" * 32)
    assert accepted(of_pymacaroons(macaroon))


def test_a_caveat_of_a_third_party_is_refused() -> None:
    macaroon = pymacaroons.Macaroon(location="lsat", identifier=IDENTIFIER, key=ROOT_KEY, version=2)
    macaroon.add_third_party_caveat("elsewhere", "their key".ljust(32), "discharge me")
    with pytest.raises(MacaroonError, match="third party"):
        parse(of_pymacaroons(macaroon))


def test_another_location_is_only_a_hint() -> None:
    macaroon = pymacaroons.Macaroon(location="aperture", identifier=IDENTIFIER, key=ROOT_KEY, version=2)
    assert accepted(of_pymacaroons(macaroon))


def test_a_caveat_that_the_holder_appends_is_accepted() -> None:
    data = appended(ours("services=ppq:0"), b"preimage=" + b"ab" * 32)
    assert accepted(data)
    assert parse(data).identifier == IDENTIFIER
    assert parse(data).payment_hash == HASH
    assert parse(data).token_id == TOKEN_ID
    unsigned = data[:-32] + ours("services=ppq:0")[-32:]
    assert not accepted(unsigned)


@pytest.mark.parametrize(
    ("caveats", "good"),
    [
        ((f"ppq_valid_until={NOW + 1}",), True),
        ((f"ppq_valid_until={NOW}",), False),
        ((f"ppq_valid_until={NOW + 9}", f"ppq_valid_until={NOW - 9}"), False),
        ((f"ppq_valid_until={NOW - 9}", f"ppq_valid_until={NOW + 9}"), False),
        ((f"other_valid_until={NOW - 9}",), True),
        (("ppq_valid_until=",), False),
        (("ppq_valid_until=-5",), False),
        (("ppq_valid_until=soon",), False),
        (("ppq_valid_until=" + "9" * 5000,), False),
        (("ppq_valid_until",), False),
        ((f" ppq_valid_until = {NOW - 9}",), False),
        (("nonsense",), True),
    ],
)
def test_valid_until_is_honoured(caveats: tuple[str, ...], good: bool) -> None:
    assert accepted(ours(*caveats)) is good


def test_a_cut_macaroon_is_refused_wherever_it_is_cut() -> None:
    data = ours("services=ppq:0", "x=" + "y" * 200)
    assert accepted(data)
    for length in range(len(data)):
        with pytest.raises(MacaroonError):
            parse(data[:length])
    with pytest.raises(MacaroonError):
        parse(data + b"\x00")


def test_a_changed_macaroon_is_refused_wherever_it_is_changed() -> None:
    data = ours("services=ppq:0")
    location = range(3, 7)
    for at in set(range(len(data))) - set(location):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            assert not accepted(bytes(changed)), f"byte {at}, bit {bit}"


def test_forgeries_are_refused() -> None:
    assert not accepted(mint(secrets.token_bytes(32), IDENTIFIER))
    other = make_identifier(hashlib.sha256(b"another").digest(), TOKEN_ID)
    assert not accepted(mint(ROOT_KEY, other))
    assert derive_root_key(SERVER_KEY, other) != ROOT_KEY
    assert not accepted(b"")


def test_size_and_number_of_caveats_are_bounded() -> None:
    assert accepted(ours(*["a=b"] * MAX_CAVEATS))
    with pytest.raises(MacaroonError, match="caveats"):
        parse(ours(*["a=b"] * (MAX_CAVEATS + 1)))
    with pytest.raises(MacaroonError, match=str(MAX_BYTES)):
        parse(ours("a=" + "b" * MAX_BYTES))


def test_a_length_has_one_spelling() -> None:
    data = ours("ab")
    at = data.index(b"\x02\x02ab")
    with pytest.raises(MacaroonError):
        parse(data[: at + 1] + b"\x82\x00" + data[at + 2 :])


@pytest.mark.parametrize("wrong", [b"", b"\x00" * 65, b"\x00\x01" + bytes(64)])
def test_other_identifiers_are_refused(wrong: bytes) -> None:
    text = pymacaroons.Macaroon(location="lsat", identifier=wrong or b"x", key=ROOT_KEY, version=2)
    with pytest.raises(MacaroonError, match="identifier"):
        parse(of_pymacaroons(text))
    if len(wrong) != 66:
        with pytest.raises(MacaroonError):
            mint(ROOT_KEY, wrong)


def test_an_identifier_needs_two_times_32_bytes() -> None:
    with pytest.raises(MacaroonError):
        make_identifier(b"short", TOKEN_ID)


@given(st.binary(max_size=300))
def test_parse_raises_nothing_but_MacaroonError(data: bytes) -> None:
    assert not accepted(data)


@given(st.lists(st.binary(max_size=40), max_size=8), st.sampled_from([b"\x02", b"\x02\x01\x04lsat\x02\x42"]))
def test_parse_raises_nothing_but_MacaroonError_on_what_looks_like_one(parts: list[bytes], start: bytes) -> None:
    assert not accepted(start + b"\x00".join(parts))


@given(st.lists(st.text(max_size=200), max_size=10))
def test_what_is_minted_is_read_back(caveats: list[str]) -> None:
    macaroon = parse(mint(ROOT_KEY, IDENTIFIER, caveats))
    assert [caveat.decode() for caveat in macaroon.caveats] == caveats
