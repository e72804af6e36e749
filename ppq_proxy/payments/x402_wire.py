"""x402 on the wire, versions 1 and 2: terms of payment, payments as clients show them, and what they are told.

Sources: the x402 specifications of both versions (transport HTTP; schemes exact with EIP-3009 and upto with Permit2).
Amounts are integers in base units of the asset, which has six decimals; addresses are compared in lower case.
"""

import base64
import dataclasses
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import orjson

from ppq_proxy.exchange import Exchange
from ppq_proxy.payments.credentials import BadCredential, Problem, read_base64

Document = dict[str, Any]

EXACT, UPTO = "exact", "upto"
UNIT_NANO = 1000
"""Nano-USD in one base unit: the assets are dollars with six decimals."""
TIMEOUT_SECONDS = 300
"""For how long a client signs its authorization; also how old the block of a transaction may be that is shown."""

_LONGEST = 16 * 1024
_DEEPEST = 32
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_BYTES32 = re.compile(r"0x[0-9a-fA-F]{64}")
_SIGNATURE = re.compile(r"0x(?:[0-9a-fA-F]{2}){65,4096}")
_NUMBER = re.compile(r"[0-9]{1,78}")
_BOUNDARY = re.compile(rb'boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})')


@dataclass(frozen=True, slots=True)
class Network:
    """An EVM chain, its name in version 1 ("" where it has none), and its USDC with the names of its EIP-712 domain."""

    chain_id: int
    name: str = ""
    asset: str = ""
    asset_name: str = "USDC"
    asset_version: str = "2"

    @property
    def caip2(self) -> str:
        """Its name in version 2."""
        return f"eip155:{self.chain_id}"


NETWORKS = (
    Network(8453, "base", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin"),
    Network(84532, "base-sepolia", "0x036CbD53842c5426634e7929541eC2318f3dCF7e"),
    Network(1, "", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin"),
    Network(137, "polygon", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin"),
    Network(80002, "polygon-amoy"),
    Network(42161, "", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin"),
    Network(421614, "", "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USD Coin"),
    Network(43114, "avalanche", "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin"),
    Network(43113, "avalanche-fuji"),
)


def network_named(text: str) -> Network | None:
    """The network of a version 1 name or a CAIP-2 id; one that is not listed has no asset."""
    for network in NETWORKS:
        if text in (network.caip2, network.name or network.caip2):
            return network
    chain = re.fullmatch(r"eip155:([1-9][0-9]{0,17})", text)
    return Network(int(chain[1])) if chain else None


def is_address(text: str) -> bool:
    """Whether this is an EVM address."""
    return _ADDRESS.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Terms:
    """What one quote asks for. It is stored with the quote and never computed again."""

    network: Network
    pay_to: str
    amount: int
    resource: str
    description: str
    method: str = "POST"
    schema: Document | None = None

    def requirement(self, version: int, scheme: str, quote_id: str, facilitator: str = "") -> Document:
        """The requirement of one scheme, as offered to the client and as given to the facilitator.

        `facilitator` is the address that upto binds a payment to.
        """
        extra = {"name": self.network.asset_name, "version": self.network.asset_version, "quoteId": quote_id}
        if scheme == UPTO:
            extra |= {"assetTransferMethod": "permit2", "facilitatorAddress": facilitator}
        shared = {
            "scheme": scheme,
            "network": self.network.caip2 if version == 2 else self.network.name,
            "payTo": self.pay_to,
            "asset": self.network.asset,
            "maxTimeoutSeconds": TIMEOUT_SECONDS,
            "extra": extra,
        }
        if version == 2:
            return shared | {"amount": str(self.amount)}
        described = {"resource": self.resource, "description": self.description, "mimeType": "application/json"}
        return shared | described | {"maxAmountRequired": str(self.amount), "outputSchema": self.discovery}

    @property
    def discovery(self) -> Document:
        """How the resource is called, for directories: method, body, and the fields where the dialect gives them."""
        given = self.schema or {}
        body = {"bodyType": "json"} if self.method == "POST" else {}
        called = {"type": "http", "method": self.method, **body, **given.get("input", {})}
        return {"input": called, "output": given.get("output")}

    def accepted(self, given: Document, scheme: str, quote_id: str) -> bool:
        """Whether what a client says that it accepted (version 2) is what was offered."""
        offered = self.requirement(2, scheme, quote_id)
        same = all(str(given.get(name)).lower() == str(offered[name]).lower() for name in ("payTo", "asset", "network"))
        return same and all(given.get(name) == offered[name] for name in ("scheme", "amount", "maxTimeoutSeconds"))


def payment_required(terms: Terms, accepts: list[Document], error: str) -> str:
    """The value of PAYMENT-REQUIRED (version 2)."""
    resource = {"url": terms.resource, "description": terms.description, "mimeType": "application/json"}
    return encode({"x402Version": 2, "error": error, "resource": resource, "accepts": accepts})


def payment_response(
    version: int, network: Network, payer: str, transaction: str, error: str = ""
) -> tuple[bytes, bytes]:
    """The header line that tells how a payment was settled."""
    told: Document = {
        "success": not error,
        "transaction": transaction,
        "network": network.name if version == 1 and network.name else network.caip2,
        "payer": payer,
    }
    if error:
        told["errorReason"] = error
    return b"payment-response" if version == 2 else b"x-payment-response", encode(told).encode()


def encode(document: Document) -> str:
    """Standard base64 of JSON in ASCII, since some clients decode it as Latin-1."""
    text = orjson.dumps(document).decode()
    return base64.b64encode(re.sub(r"[^\x00-\x7f]", _escape, text).encode()).decode()


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


# what a client shows


@dataclass(frozen=True, slots=True)
class Signed:
    """What a client signed: EIP-3009's authorization or Permit2's permit. `asset` is "" where that is the domain's."""

    payer: str
    pay_to: str
    asset: str
    value: int
    valid_after: int
    valid_before: int
    nonce: str


@dataclass(frozen=True, slots=True)
class Payment:
    """A signed payment, read and not verified. `document` goes to the facilitator as it came; `proof` names all of it."""

    version: int
    scheme: str
    network: str
    document: Document
    signed: Signed
    accepted: Document
    quote_id: str
    proof: str

    def __repr__(self) -> str:
        return f"Payment(version={self.version}, payer={self.signed.payer!r}, nonce={self.signed.nonce!r})"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transaction that the client sent itself, and its proof that it is the sender ("" where it gives none)."""

    transaction: str
    payer: str
    quote_id: str
    signature: str
    proof: str

    def __repr__(self) -> str:
        return f"Transfer(transaction={self.transaction!r}, payer={self.payer!r})"


def shown(exchange: Exchange) -> Payment | Transfer | None:
    """The payment that a request shows; None if it shows none. Raises `BadCredential`."""
    for name in (b"payment-signature", b"x-payment"):
        if text := exchange.header(name):
            return read(text)
    return None


def read(text: str) -> Payment | Transfer:
    """A payment from the value of PAYMENT-SIGNATURE or X-PAYMENT.

    Raises:
        BadCredential: not base64 of JSON in one of the shapes, or beyond the bounds.
    """
    if len(text) > _LONGEST:
        raise malformed("the payment is too long")
    try:
        document = orjson.loads(read_base64(text.strip()))
    except orjson.JSONDecodeError:
        raise malformed("the payment is not base64 of JSON") from None
    if not isinstance(document, dict) or not _shallow(document):
        raise malformed("the payment is not an object as x402 defines it")
    if "txHash" in document:
        return _transfer(document)
    version, payload = document.get("x402Version"), document.get("payload")
    if version not in (1, 2) or isinstance(version, bool) or not isinstance(payload, dict):
        raise malformed("x402Version must be 1 or 2, with a payload")
    accepted = document.get("accepted") if version == 2 else document
    if not isinstance(accepted, dict):
        raise malformed("a payment of version 2 says what it accepted")
    return _payment(document, version, payload, accepted)


def _payment(document: Document, version: int, payload: Document, accepted: Document) -> Payment:
    scheme, network = accepted.get("scheme"), accepted.get("network")
    if scheme not in (EXACT, UPTO) or (version, scheme) == (1, UPTO) or not isinstance(network, str):
        raise malformed("scheme and network are not among those offered")
    extra = accepted.get("extra") if version == 2 else {}
    quote_id = str(extra.get("quoteId", "")) if isinstance(extra, dict) else ""
    signature = _matching(payload.get("signature"), _SIGNATURE, "signature").lower()
    signed = _authorization(payload) if scheme == EXACT else _permit(payload)
    bound = orjson.dumps([version, scheme, signature, quote_id, *map(str, dataclasses.astuple(signed))])
    proof = hashlib.sha256(bound).hexdigest()
    return Payment(version, scheme, network, document, signed, accepted, quote_id, proof)


def _authorization(payload: Document) -> Signed:
    given = _object(payload.get("authorization"), "authorization")
    return Signed(
        payer=_matching(given.get("from"), _ADDRESS, "authorization.from").lower(),
        pay_to=_matching(given.get("to"), _ADDRESS, "authorization.to").lower(),
        asset="",
        value=_number(given.get("value"), "authorization.value"),
        valid_after=_number(given.get("validAfter"), "authorization.validAfter"),
        valid_before=_number(given.get("validBefore"), "authorization.validBefore"),
        nonce=_matching(given.get("nonce"), _BYTES32, "authorization.nonce").lower(),
    )


def _permit(payload: Document) -> Signed:
    given = _object(payload.get("permit2Authorization"), "permit2Authorization")
    permitted, witness = _object(given.get("permitted"), "permitted"), _object(given.get("witness"), "witness")
    return Signed(
        payer=_matching(given.get("from"), _ADDRESS, "from").lower(),
        pay_to=_matching(witness.get("to"), _ADDRESS, "witness.to").lower(),
        asset=_matching(permitted.get("token"), _ADDRESS, "permitted.token").lower(),
        value=_number(permitted.get("amount"), "permitted.amount"),
        valid_after=_number(witness.get("validAfter"), "witness.validAfter"),
        valid_before=_number(given.get("deadline"), "deadline"),
        nonce=str(_number(given.get("nonce"), "nonce")),
    )


def _transfer(document: Document) -> Transfer:
    transaction = _matching(document.get("txHash"), _BYTES32, "txHash").lower()
    payer = _matching(document.get("from"), _ADDRESS, "from").lower()
    quote_id, signature = document.get("quoteId") or "", document.get("signature") or ""
    if not isinstance(quote_id, str) or (signature and not _matching(signature, _SIGNATURE, "signature")):
        raise malformed("quoteId must be a string")
    bound = orjson.dumps(["transaction", transaction, payer, quote_id])
    return Transfer(transaction, payer, quote_id, signature, hashlib.sha256(bound).hexdigest())


def transfer_message(network: Network, transaction: str, quote_id: str, body: bytes) -> str:
    """What the sender of a transaction signs (EIP-191), so that nobody who watches the chain can show it instead.

    `body` is the request's body as it is sent, b"" where it has none.
    """
    return "\n".join(
        (
            "x402 payment by transaction",
            f"network: {network.caip2}",
            f"transaction: {transaction.lower()}",
            f"quote: {quote_id}",
            f"body: {hashlib.sha256(body).hexdigest()}",
        )
    )


def request_digest(exchange: Exchange, body: bytes) -> str:
    """What makes two requests the same for a quote: method, path, query and body.

    The boundary of a multipart body is left out, as some clients make another one when they send it again.
    """
    boundary = _BOUNDARY.search(exchange.headers.get(b"content-type", b""))
    plain = body.replace(boundary[1], b"") if boundary else body
    head = f"{exchange.method} {exchange.path}".encode() + b"?" + exchange.scope.get("query_string", b"")
    return hashlib.sha256(head + b"\0" + plain).hexdigest()


# small parts


def malformed(message: str) -> BadCredential:
    """The refusal of something that cannot be read."""
    return BadCredential(message, Problem.MALFORMED_CREDENTIAL)


def _object(value: object, name: str) -> Document:
    if not isinstance(value, dict):
        raise malformed(f"{name} is missing in the payment")
    return value


def _matching(value: object, shape: re.Pattern[str], name: str) -> str:
    if not isinstance(value, str) or not shape.fullmatch(value):
        raise malformed(f"{name} of the payment is not a valid one")
    return value


def _number(value: object, name: str) -> int:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not _NUMBER.fullmatch(text):
        raise malformed(f"{name} of the payment is not a whole number")
    return int(text)


def _shallow(value: object) -> bool:
    # Level by level: the libraries that it is handed to recurse.
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in _children(node)]
        if not level:
            return True
    return False


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
