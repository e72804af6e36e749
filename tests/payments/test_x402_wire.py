"""x402's shapes, read and written: by the library that x402 publishes, by hand, and at random."""

import base64
import hashlib
import json
from typing import Any

import pytest
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from x402.schemas import PaymentRequired, PaymentRequirementsV1

from ppq_proxy.exchange import Exchange, RequestIds
from ppq_proxy.payments import x402_chain, x402_wire
from ppq_proxy.payments.credentials import BadCredential, Problem
from ppq_proxy.payments.x402_wire import NETWORKS, Network, Payment, Terms, Transfer, network_named, read

BASE = NETWORKS[0]
PAY_TO = "0xB0FdC6030B9f30652e8B221B8090d443Dd3C6381"
PAYER = "0x857b06519E91e3A54538791bDbb0E22373e36b66"
QUOTE = "0123456789abcdef0123456789abcdef.abcdefghijklmnopqrstuvwx"
TERMS = Terms(
    BASE, PAY_TO, 10000, "https://api.example/v1/chat/completions", "One call, paid in advance: 0.010000 USDC."
)
AUTHORIZATION = {
    "from": PAYER,
    "to": PAY_TO,
    "value": "10000",
    "validAfter": "1740672089",
    "validBefore": "1740672154",
    "nonce": "0xf3746613c2d920b5fdabc0856f2aeb2d4f88ee6037b8cc5d04a71a4462f13480",
}
ODD: tuple[Any, ...] = (None, "", "-1", 1.5, True, [], {}, "0x", "1e5", "9" * 79)
PAYLOAD = {"signature": "0x" + "2d" * 65, "authorization": AUTHORIZATION}


def encoded(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def decoded(text: str) -> Any:
    return json.loads(base64.b64decode(text, validate=True))


def version2(**changes: Any) -> dict[str, Any]:
    return {"x402Version": 2, "accepted": TERMS.requirement(2, "exact", QUOTE), "payload": PAYLOAD} | changes


def version1(**changes: Any) -> dict[str, Any]:
    return {"x402Version": 1, "scheme": "exact", "network": "base", "payload": PAYLOAD} | changes


def refused(document: Any) -> BadCredential:
    with pytest.raises(BadCredential) as problem:
        read(encoded(document))
    assert problem.value.problem is Problem.MALFORMED_CREDENTIAL
    return problem.value


# what is offered


def test_GB_012_the_requirement_of_version_1_has_the_documented_members() -> None:
    made = TERMS.requirement(1, "exact", QUOTE)
    documented = {
        "scheme": "exact",
        "network": "base",
        "maxAmountRequired": "10000",
        "payTo": PAY_TO,
        "asset": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
        "maxTimeoutSeconds": 300,
    }
    assert documented.items() <= made.items()
    assert isinstance(made["maxAmountRequired"], str), "GB-014"


def test_GB_013_XF_011_the_library_reads_both_versions() -> None:
    old = PaymentRequirementsV1.model_validate(TERMS.requirement(1, "exact", QUOTE))
    assert (old.max_amount_required, old.network, old.pay_to) == ("10000", "base", PAY_TO)
    assert (old.resource, old.description) == (TERMS.resource, TERMS.description), "XF-013"
    header = x402_wire.payment_required(TERMS, [TERMS.requirement(2, "exact", QUOTE)], "pay first")
    new = PaymentRequired.model_validate(decoded(header))
    assert new.resource and (new.resource.url, new.error) == (TERMS.resource, "pay first")
    (one,) = new.accepts
    assert (one.scheme, one.network, one.amount, one.max_timeout_seconds) == ("exact", "eip155:8453", "10000", 300)
    assert one.extra == {"name": "USD Coin", "version": "2", "quoteId": QUOTE}


def test_GB_007_GB_008_the_defaults_of_base() -> None:
    base = network_named("base")
    assert base == network_named("eip155:8453")
    assert base and (base.chain_id, base.asset) == (8453, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")


def test_XF_012_the_input_schema_is_in_the_requirement() -> None:
    schema = {"input": {"bodyFields": {"message": {"type": "string"}}}, "output": {"reply": {"type": "string"}}}
    terms = Terms(BASE, PAY_TO, 1, "https://api.example/x", "x", schema=schema)
    assert terms.requirement(1, "exact", QUOTE)["outputSchema"] == {
        "input": {"type": "http", "method": "POST", "bodyType": "json", "bodyFields": {"message": {"type": "string"}}},
        "output": {"reply": {"type": "string"}},
    }
    asked = Terms(BASE, PAY_TO, 1, "https://api.example/x", "x", method="GET").requirement(1, "exact", QUOTE)
    assert asked["outputSchema"]["input"] == {"type": "http", "method": "GET"}


def test_upto_names_the_facilitator_that_it_is_bound_to() -> None:
    made = TERMS.requirement(2, "upto", QUOTE, "0xfa")
    assert made["extra"] | {"assetTransferMethod": "permit2", "facilitatorAddress": "0xfa"} == made["extra"]
    assert TERMS.accepted(made, "upto", QUOTE)
    assert not TERMS.accepted(made, "exact", QUOTE)


@pytest.mark.parametrize("name", ["", "solana", "eip155:", "eip155:0", "eip155:x", "EIP155:1", "base "])
def test_names_of_no_network(name: str) -> None:
    assert network_named(name) is None


def test_a_chain_that_is_not_listed_has_no_asset() -> None:
    assert network_named("eip155:31337") == Network(31337)


@given(st.text(max_size=200))
def test_headers_are_ascii_whatever_the_description(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair is no text that a description could have
        return
    terms = Terms(BASE, PAY_TO, 1, "https://api.example/x", text)
    header = x402_wire.payment_required(terms, [], "")
    plain = base64.b64decode(header)
    assert plain.isascii()
    assert json.loads(plain)["resource"]["description"] == text


@pytest.mark.parametrize(
    ("version", "name", "network"), [(1, b"x-payment-response", "base"), (2, b"payment-response", "eip155:8453")]
)
def test_settlement_is_told_by_the_header_of_its_version(version: int, name: bytes, network: str) -> None:
    told, value = x402_wire.payment_response(version, BASE, PAYER, "0xab")
    assert told == name
    assert decoded(value.decode()) == {"success": True, "transaction": "0xab", "network": network, "payer": PAYER}
    _, value = x402_wire.payment_response(version, BASE, PAYER, "", "insufficient_funds")
    assert decoded(value.decode())["errorReason"] == "insufficient_funds"
    assert decoded(value.decode())["success"] is False


# what is shown


def test_a_payment_of_version_2() -> None:
    found = read(encoded(version2()))
    assert isinstance(found, Payment)
    assert (found.version, found.scheme, found.network, found.quote_id) == (2, "exact", "eip155:8453", QUOTE)
    assert (found.signed.payer, found.signed.value, found.signed.valid_before) == (PAYER.lower(), 10000, 1740672154)
    assert found.document == version2(), "the facilitator gets what came"
    assert TERMS.accepted(found.accepted, "exact", QUOTE)


def test_a_payment_of_version_1() -> None:
    found = read(encoded(version1()))
    assert isinstance(found, Payment)
    assert (found.version, found.network, found.quote_id) == (1, "base", "")


def test_the_url_safe_alphabet_is_read_too() -> None:
    text = base64.urlsafe_b64encode(json.dumps(version1(note="?>~~~ÿ")).encode()).decode().rstrip("=")
    assert isinstance(read(text), Payment)


@pytest.mark.parametrize("name", ["payTo", "asset", "network", "scheme", "amount", "maxTimeoutSeconds"])
def test_what_was_accepted_has_to_be_what_was_offered(name: str) -> None:
    accepted = TERMS.requirement(2, "exact", QUOTE)
    assert not TERMS.accepted(accepted | {name: "1"}, "exact", QUOTE)
    assert not TERMS.accepted({key: value for key, value in accepted.items() if key != name}, "exact", QUOTE)


def test_a_proof_names_all_that_makes_a_payment() -> None:
    """With the same signature in another version, or under another quote, it is not the same payment."""
    other = TERMS.requirement(2, "exact", QUOTE + "y")
    quick = PAYLOAD | {"authorization": AUTHORIZATION | {"validBefore": "1740672155"}}
    shown = [version2(), version1(), version2(accepted=other), version2(payload=quick)]
    proofs = {found.proof for one in shown if isinstance(found := read(encoded(one)), Payment)}
    assert len(proofs) == len(shown)
    again = json.dumps(version2(), indent=3, sort_keys=True).encode()
    same = read(base64.b64encode(again).decode())
    assert isinstance(same, Payment) and same.proof in proofs, "spelling makes no difference"


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"x402Version": 1},
        version1(x402Version=3),
        version1(x402Version=True),
        version1(x402Version="1"),
        version1(payload=None),
        version1(payload={}),
        version1(network=None),
        version1(scheme="upto"),
        version1(scheme=["exact"]),
        version2(accepted=None),
        version2(accepted={"scheme": "exact"}),
        version2(payload=PAYLOAD | {"signature": "0x"}),
        version2(payload=PAYLOAD | {"signature": "0x" + "g" * 130}),
        version2(payload=PAYLOAD | {"signature": None}),
        *(
            version2(payload=PAYLOAD | {"authorization": AUTHORIZATION | {name: value}})
            for name in AUTHORIZATION
            for value in ODD
        ),
    ],
)
def test_what_cannot_be_read_is_refused(document: Any) -> None:
    refused(document)


def test_bounds_of_size_and_depth() -> None:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    refused(version2(extensions=deep))
    refused(version2(extensions="x" * 20_000))
    with pytest.raises(BadCredential):
        read("[" * 8000)
    with pytest.raises(BadCredential):
        read(base64.b64encode(b"[" * 8000).decode())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_nothing_but_a_payment_is_read(value: Any) -> None:
    with pytest.raises(BadCredential):
        read(base64.b64encode(json.dumps(value).encode()).decode())


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(BadCredential):
        read(text)


# transactions


def test_GB_009_a_transaction_is_told_from_a_payment() -> None:
    found = read(encoded({"txHash": "0x" + "AB" * 32, "from": PAYER}))
    assert isinstance(found, Transfer)
    assert (found.transaction, found.payer) == ("0x" + "ab" * 32, PAYER.lower()), "lower case, so that it is unique"
    assert (found.quote_id, found.signature) == ("", "")


def test_GB_010_the_documented_header_is_parsed_and_its_hash_refused() -> None:
    header = "eyJ0eEhhc2giOiIweC4uLiIsImZyb20iOiIweC4uLiJ9"
    assert decoded(header) == {"txHash": "0x...", "from": "0x..."}
    with pytest.raises(BadCredential, match="txHash") as problem:
        read(header)
    assert problem.value.problem is Problem.MALFORMED_CREDENTIAL


@pytest.mark.parametrize(
    "changes", [{"from": "0x1"}, {"from": None}, {"quoteId": 5}, {"signature": "0x12"}, {"txHash": None}]
)
def test_transactions_that_cannot_be_read(changes: dict[str, Any]) -> None:
    refused({"txHash": "0x" + "ab" * 32, "from": PAYER} | changes)


def test_the_message_of_a_sender_binds_chain_transaction_quote_and_body() -> None:
    said = x402_wire.transfer_message(BASE, "0x" + "AB" * 32, QUOTE, b"{}")
    assert said.split("\n") == [
        "x402 payment by transaction",
        "network: eip155:8453",
        "transaction: 0x" + "ab" * 32,
        f"quote: {QUOTE}",
        f"body: {hashlib.sha256(b'{}').hexdigest()}",
    ]


# requests


def exchange(
    method: str = "POST", path: str = "/v1/x", query: bytes = b"", kind: bytes = b"application/json"
) -> Exchange:
    async def nothing(*_: Any) -> Any: ...

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(b"content-type", kind)],
    }
    return Exchange(scope, nothing, nothing, RequestIds())


def test_a_request_is_known_by_method_path_query_and_body() -> None:
    digest = x402_wire.request_digest
    one = digest(exchange(), b"{}")
    others = [
        digest(exchange("PUT"), b"{}"),
        digest(exchange(path="/v1/y"), b"{}"),
        digest(exchange(query=b"a=1"), b"{}"),
        digest(exchange(), b"{ }"),
    ]
    assert one == digest(exchange(), b"{}")
    assert len({one, *others}) == 5


def test_a_multipart_body_is_the_same_with_another_boundary() -> None:
    def sent(boundary: bytes, text: bytes) -> str:
        body = b"--%b\r\ncontent-disposition: form-data; name=a\r\n\r\n%b\r\n--%b--\r\n" % (boundary, text, boundary)
        return x402_wire.request_digest(exchange(kind=b'multipart/form-data; boundary="%b"' % boundary), body)

    assert sent(b"----one1", b"x") == sent(b"----two22", b"x")
    assert sent(b"----one1", b"x") != sent(b"----one1", b"y")


def test_payments_keep_their_secrets_out_of_logs() -> None:
    shown = [
        read(encoded(version2())),
        read(encoded({"txHash": "0x" + "ab" * 32, "from": PAYER, "signature": "0x" + "2d" * 65})),
    ]
    assert "2d2d" not in repr(shown)
    assert QUOTE not in repr(shown)


# the chain's names


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("TRANSFER", "Transfer(address,address,uint256)"),
        ("USED", "AuthorizationUsed(address,bytes32)"),
        ("CANCELED", "AuthorizationCanceled(address,bytes32)"),
        ("AUTHORIZATION_STATE", "authorizationState(address,bytes32)"),
        ("IS_SANCTIONED", "isSanctioned(address)"),
    ],
)
def test_the_hashes_of_events_and_functions(name: str, signature: str) -> None:
    known = getattr(x402_chain, name)
    assert known == "0x" + keccak(text=signature).hex()[: len(known) - 2]


def test_the_assets_are_real_addresses() -> None:
    """Each has its EIP-55 checksum, so that no digit is wrong."""
    from eth_utils.address import is_checksum_address

    assert all(is_checksum_address(network.asset) for network in NETWORKS if network.asset)
