"""The `Payment` scheme: challenges that come back changed, credentials of every shape, receipts, Accept-Payment."""

import base64
import dataclasses
import hashlib
import json
import re
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.payments import mpp
from ppq_proxy.payments.credentials import BadCredential, Problem
from ppq_proxy.payments.mpp import Challenge, Charge, accepts, issue, jcs, parse_credential, receipt, verify

SECRET, OLD_SECRET = b"n" * 32, b"o" * 32
PREIMAGE = "5a" * 32
HASH = hashlib.sha256(bytes.fromhex(PREIMAGE)).hexdigest()
CHARGE = Charge(11, "lnbcrt110n1pexample", HASH, "regtest")
EXPIRES = 1_794_000_000


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def params(line: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', line))


def given_back(
    challenge: Challenge, preimage: object = PREIMAGE, more: dict[str, Any] | None = None, **changes: object
) -> str:
    document = {"challenge": params(challenge.header()) | changes, "payload": {"preimage": preimage}} | (more or {})
    return "Payment " + b64url(json.dumps(document).encode())


def verified(header: str, secrets: tuple[bytes, ...] = (SECRET,)) -> Charge:
    credential = parse_credential(header)
    assert credential
    return verify(credential, secrets)


@pytest.fixture
def challenge() -> Challenge:
    return issue(SECRET, "gateway.example", CHARGE, EXPIRES)


def test_PPQ_211_PPQ_212_the_challenge_line(challenge: Challenge) -> None:
    line = challenge.header()
    assert line.startswith('Payment id="')
    assert list(params(line)) == ["id", "realm", "method", "intent", "request", "expires"]
    assert params(line)["method"] == "lightning"
    assert params(line)["intent"] == "charge"
    assert params(line)["expires"] == "2026-11-06T21:20:00Z"
    request = json.loads(unb64url(challenge.request))
    assert request == {
        "amount": "11",
        "currency": "sat",
        "methodDetails": {"invoice": CHARGE.invoice, "paymentHash": HASH, "network": "regtest"},
    }
    assert unb64url(challenge.request) == rfc8785.dumps(request)
    assert challenge.charge() == CHARGE


def test_PPQ_213_what_is_echoed_whole_and_paid_is_accepted(challenge: Challenge) -> None:
    assert verified(given_back(challenge)) == CHARGE
    assert verified(given_back(challenge, more={"source": "did:key:z6Mk"})) == CHARGE
    assert verified(given_back(challenge, description="shown by the wallet", unknown={"a": 1})) == CHARGE
    assert verified(given_back(challenge, digest=None, opaque="")) == CHARGE
    assert verified(given_back(challenge).replace("Payment ", "payment  ")) == CHARGE
    assert verified(given_back(challenge) + "==") == CHARGE


def test_a_secret_can_be_rotated(challenge: Challenge) -> None:
    assert verified(given_back(challenge), (b"new" * 11, SECRET)) == CHARGE
    with pytest.raises(BadCredential):
        verified(given_back(challenge), (OLD_SECRET,))


CHANGES: list[dict[str, Any]] = [
    {"id": "A" * 43},
    {"id": ""},
    {"realm": "elsewhere"},
    {"method": "tempo"},
    {"intent": "session"},
    {"expires": "2099-01-01T00:00:00Z"},
    {"expires": ""},
    {"digest": "sha-256=:AAAA:"},
    {"opaque": "e30"},
    {"request": b64url(jcs({"amount": "1000000", "currency": "sat", "methodDetails": {}}))},
    {"request": ""},
    {"realm": "gateway.example|lightning", "method": "charge", "intent": ""},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_changed_challenge_is_a_forgery(challenge: Challenge, changes: dict[str, Any]) -> None:
    with pytest.raises(BadCredential):
        verified(given_back(challenge, **changes))


def test_the_request_of_another_challenge_is_a_forgery(challenge: Challenge) -> None:
    other = issue(SECRET, "gateway.example", dataclasses.replace(CHARGE, sats=1), EXPIRES)
    for name in ("id", "request"):
        with pytest.raises(BadCredential) as refusal:
            verified(given_back(challenge, **{name: getattr(other, name)}))
        assert refusal.value.problem == Problem.INVALID_CHALLENGE


def test_another_preimage_is_refused(challenge: Challenge) -> None:
    with pytest.raises(BadCredential) as refusal:
        verified(given_back(challenge, preimage="00" * 32))
    assert refusal.value.problem == Problem.INVALID_PREIMAGE


def test_expiry_is_told_apart_from_forgery(challenge: Challenge) -> None:
    assert not challenge.expired(EXPIRES - 1)
    assert challenge.expired(EXPIRES)


@pytest.mark.parametrize("header", ["", "Bearer sk-1", "L402 abc:def", "Payments e30", "sk-1"])
def test_other_schemes_are_none_of_ours(header: str) -> None:
    assert parse_credential(header) is None


@pytest.mark.parametrize(
    "header",
    [
        "Payment",
        "Payment %%%",
        "Payment ö",
        f'Payment method="lightning", preimage="{PREIMAGE}"',
        "Payment " + b64url(b"[1]"),
        "Payment " + b64url(b"{}"),
        "Payment " + b64url(b"\xff\xfe"),
        "Payment " + b64url(b'{"challenge":NaN}'),
        "Payment " + b64url(b"[" * 3000),
        "Payment " + b64url(b'{"a":' * 900 + b"1" + b"}" * 900),
        "Payment " + b64url(b'{"a":' * 20 + b"1" + b"}" * 20),
        "Payment " + "A" * 20_000,
    ],
    ids=lambda header: header[:40],
)
def test_what_says_payment_and_is_none_is_refused(header: str) -> None:
    with pytest.raises(BadCredential) as refusal:
        parse_credential(header)
    assert refusal.value.problem == Problem.MALFORMED_CREDENTIAL
    assert PREIMAGE not in refusal.value.message


def test_parts_of_a_wrong_type_are_refused(challenge: Challenge) -> None:
    preimages: list[object] = [5, None, [], {}, "00", "zz" * 32]
    headers = [given_back(challenge, preimage) for preimage in preimages]
    wrong: list[dict[str, Any]] = [{name: 5} for name in ("id", "realm", "request", "expires", "digest", "opaque")]
    headers += [given_back(challenge, **changes) for changes in wrong]
    headers += [given_back(challenge, more={"payload": []}), given_back(challenge, more={"source": 5})]
    headers += [given_back(challenge, more={"challenge": challenge.id}), given_back(challenge, more={"challenge": {}})]
    for header in headers:
        with pytest.raises(BadCredential):
            parse_credential(header)


def test_an_id_is_not_good_for_slots_that_are_cut_elsewhere() -> None:
    one = issue(SECRET, "a", CHARGE, EXPIRES)
    moved = dataclasses.replace(one, realm="a|lightning", method="charge", intent=one.request, request=one.expires)
    credential = mpp.PaymentCredential(dataclasses.replace(moved, expires=""), bytes.fromhex(PREIMAGE), None)
    with pytest.raises(BadCredential):
        verify(credential, [SECRET])


@pytest.mark.parametrize("realm", ["", 'a"b', "a|b", "a\\b", "a\nb", "ä"])
def test_a_realm_that_would_break_the_line_is_refused(realm: str) -> None:
    with pytest.raises(ValueError, match="realm"):
        issue(SECRET, realm, CHARGE, EXPIRES)


def test_the_receipt_names_the_payment_and_not_the_preimage(challenge: Challenge) -> None:
    text = receipt(challenge.id, HASH, EXPIRES)
    assert re.fullmatch(r"[\w-]+", text)
    assert json.loads(unb64url(text)) == {
        "status": "success",
        "method": "lightning",
        "reference": HASH,
        "challengeId": challenge.id,
        "timestamp": "2026-11-06T21:20:00Z",
    }


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, True),
        ("", True),
        ("lightning/charge", True),
        ("lightning/*", True),
        ("lightning", True),
        ("*/*", True),
        ("*", True),
        ("*/charge", True),
        ("tempo/*;q=0.5, lightning/charge", True),
        ("Lightning/Charge; q=0.1", True),
        ("tempo/*", False),
        ("evm/charge, tempo/charge", False),
        ("lightning/session", False),
        ("lightning/charge;q=0", False),
        ("lightning/charge;q=0.000, */*", False),
        ("*/*;q=0, lightning/charge", True),
        ("lightning/*;q=0, lightning/charge;q=0.2", True),
        ("*/*;q=0", False),
        ("?!", True),
    ],
)
def test_accept_payment_ranks_and_excludes(header: str | None, wanted: bool) -> None:
    assert accepts(header) is wanted


def test_accept_payment_for_other_methods() -> None:
    assert accepts("tempo/*;q=0.5, evm/charge", "evm")
    assert not accepts("lightning/charge", "evm")


def test_reprs_keep_the_preimage() -> None:
    credential = parse_credential(given_back(issue(SECRET, "a", CHARGE, EXPIRES)))
    assert PREIMAGE not in repr(credential)
    assert "ZZZZ" not in repr(credential)


objects = st.dictionaries(
    st.text(st.characters(min_codepoint=32, max_codepoint=126)), st.text(st.characters(exclude_categories=["Cs"]))
)


@given(objects)
def test_our_canonical_json_is_that_of_rfc_8785(value: dict[str, str]) -> None:
    assert jcs(value) == rfc8785.dumps(value)
    assert jcs({"nested": value}) == rfc8785.dumps({"nested": value})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_any_document_is_read_or_refused(document: object) -> None:
    for shape in (
        document,
        {"challenge": document, "payload": document},
        {"challenge": {}, "payload": {"preimage": document}},
    ):
        with pytest.raises(BadCredential):
            parse_credential("Payment " + b64url(json.dumps(shape).encode()))
