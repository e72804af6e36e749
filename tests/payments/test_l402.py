"""The challenge line as wallets read it, and the credential in every form in which they send it."""

import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.payments.credentials import BadCredential, Problem
from ppq_proxy.payments.l402 import L402Credential, challenge, parse_credential
from ppq_proxy.payments.macaroon import derive_root_key, make_identifier, mint

PREIMAGE = bytes.fromhex("b5" * 31 + "01")
HASH = hashlib.sha256(PREIMAGE).digest()
IDENTIFIER = make_identifier(HASH, b"t" * 32)
ROOT_KEY = derive_root_key(b"k" * 32, IDENTIFIER)
INVOICE = "lnbcrt210n1pexample"
# Lengths of all three kinds of padding, and bytes that the two alphabets spell differently.
MACAROONS = [mint(ROOT_KEY, IDENTIFIER, ["x=" + "?~\xff" * n]) for n in range(1, 4)]

LNGET = re.compile(r'(?i)(LSAT|L402)\s+macaroon="([^"]+)",\s*invoice="([^"]+)"')


def standard(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read(header: str) -> L402Credential:
    credential = parse_credential(header)
    assert credential is not None
    return credential


def test_PPQ_214_the_challenge_is_the_line_that_lnget_reads() -> None:
    token = standard(MACAROONS[0])
    line = challenge(MACAROONS[0], INVOICE)
    assert line == f'L402 macaroon="{token}", invoice="{INVOICE}", token="{token}", version="0"'
    found = LNGET.match(line)
    assert found
    assert base64.b64decode(found[2]) == MACAROONS[0]
    assert found[3] == INVOICE


@pytest.mark.parametrize("macaroon", MACAROONS)
@pytest.mark.parametrize("spell", [standard, url_safe, lambda m: standard(m).rstrip("="), base64.urlsafe_b64encode])
@pytest.mark.parametrize("scheme", ["L402 ", "LSAT ", "l402 ", "lsat ", "L402  ", ""])
@pytest.mark.parametrize("preimage", [PREIMAGE.hex(), PREIMAGE.hex().upper()])
def test_PPQ_214_every_form_is_read(macaroon: bytes, spell: object, scheme: str, preimage: str) -> None:
    assert callable(spell)
    token = spell(macaroon)
    text = token.decode() if isinstance(token, bytes) else token
    credential = read(f"{scheme}{text}:{preimage}")
    assert credential.macaroon
    assert credential.macaroon.identifier == IDENTIFIER
    assert credential.challenge_id is None
    assert credential.payment_hash == HASH.hex()


def test_a_preimage_that_was_decoded_as_base64_is_mended() -> None:
    mangled = base64.b64decode(PREIMAGE.hex()).hex()
    assert len(mangled) == 96
    assert read(f"L402 {standard(MACAROONS[0])}:{mangled}").preimage == PREIMAGE
    with pytest.raises(BadCredential):
        parse_credential(f"L402 {standard(MACAROONS[0])}:{'ab' * 48}")


def test_of_several_tokens_the_first_counts() -> None:
    other = mint(ROOT_KEY, make_identifier(b"o" * 32, b"o" * 32))
    for comma in (",", ", "):
        header = f"L402 {standard(MACAROONS[1])}{comma}{standard(other)}:{PREIMAGE.hex()}"
        macaroon = read(header).macaroon
        assert macaroon
        assert macaroon.payment_hash == HASH


def test_the_id_of_a_payment_challenge_is_a_token() -> None:
    ident = url_safe(hashlib.sha256(b"?~\xff").digest())
    for text in (ident, ident + "="):
        credential = read(f"L402 {text}:{PREIMAGE.hex()}")
        assert credential.macaroon is None
        assert credential.challenge_id == ident


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer sk-1",
        "Basic dXNlcjpwYXNz",
        "Payment e30",
        "sk-abc",
        "L402x abc:00",
        "user:password",
        "x" * 40 + ":00",
    ],
)
def test_other_schemes_are_none_of_ours(header: str) -> None:
    assert parse_credential(header) is None


GOOD = standard(MACAROONS[0])


@pytest.mark.parametrize(
    "header",
    [
        "L402",
        "L402 ",
        "LSAT :",
        f"L402 {GOOD}",
        f"L402 {GOOD}:",
        f"L402 :{PREIMAGE.hex()}",
        f"L402 {GOOD}:00",
        f"L402 {GOOD}:{PREIMAGE.hex()}00",
        f"L402 {GOOD}:{'g' * 64}",
        f"L402 {GOOD}:{'٣' * 64}",
        f"L402 %%%:{PREIMAGE.hex()}",
        f"L402 ö:{PREIMAGE.hex()}",
        f"L402 A:{PREIMAGE.hex()}",
        f"L402 {GOOD[:-8]}:{PREIMAGE.hex()}",
        f"L402 {url_safe(b'some opaque token')}:{PREIMAGE.hex()}",
        f"L402 {'A' * 100_000}:{PREIMAGE.hex()}",
    ],
)
def test_what_says_L402_and_is_none_is_refused(header: str) -> None:
    with pytest.raises(BadCredential) as refusal:
        parse_credential(header)
    assert refusal.value.problem == Problem.MALFORMED_CREDENTIAL
    assert PREIMAGE.hex() not in refusal.value.message


def test_the_preimage_stays_out_of_reprs() -> None:
    assert PREIMAGE.hex() not in repr(read(f"L402 {GOOD}:{PREIMAGE.hex()}"))
    assert repr(PREIMAGE) not in repr(read(f"L402 {GOOD}:{PREIMAGE.hex()}"))


@given(st.text(max_size=200))
def test_any_header_is_read_or_refused(text: str) -> None:
    for header in (text, "L402 " + text, f"L402 {text}:{PREIMAGE.hex()}"):
        try:
            credential = parse_credential(header)
        except BadCredential:
            continue
        assert credential is None or credential.challenge_id or credential.macaroon
