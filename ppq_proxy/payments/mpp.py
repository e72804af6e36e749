"""The `Payment` scheme (MPP) with lightning/charge: stateless challenges, credentials, receipts, `Accept-Payment`.

Sources: draft-httpauth-payment-00 and draft-lightning-charge-00. A challenge's id is an HMAC over everything that the
client echoes, so that whatever comes back changed is seen without looking anything up. Of the optional parameters only
`expires` is sent: a wallet in use drops the others, and its payment would then be refused.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

from ppq_proxy.payments.credentials import (
    BadCredential,
    Problem,
    base64url,
    payment_hash_of,
    read_base64,
    read_preimage,
)

METHOD = "lightning"
INTENT = "charge"
_SCHEME = re.compile(r"(?i:payment)(?=\s|$)\s*")
_MAX_CREDENTIAL = 16 * 1024
_MAX_DEPTH = 8
_REALM = re.compile(r"[\x20-\x7e]+")
_OFFER = re.compile(
    r"\s*([\w*-]+)(?:/([\w*-]+))?\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Charge:
    """The `request` of lightning/charge: whole sats for one invoice. `payment_hash` is hex."""

    sats: int
    invoice: str
    payment_hash: str
    network: str


@dataclass(frozen=True, slots=True)
class Challenge:
    """A `Payment` challenge, as issued or echoed. `request` is base64url of JCS, `expires` RFC 3339; absent is ""."""

    id: str
    realm: str
    method: str
    intent: str
    request: str
    expires: str
    digest: str = ""
    opaque: str = ""

    def header(self) -> str:
        """The value of the `WWW-Authenticate` line."""
        names = ("id", "realm", "method", "intent", "request", "expires")
        return "Payment " + ", ".join(f'{name}="{getattr(self, name)}"' for name in names)

    def charge(self) -> Charge:
        """What the challenge asks for. Raises `BadCredential`; only what has been verified is known to be ours."""
        asked = _object(read_base64(self.request))
        details = asked.get("methodDetails")
        if not isinstance(details, dict) or not str(asked.get("amount", "")).isdecimal():
            raise BadCredential("the challenge's request is not lightning/charge", Problem.INVALID_CHALLENGE)
        fields = [
            field for name in ("invoice", "paymentHash", "network") if isinstance(field := details.get(name), str)
        ]
        if len(fields) != 3:
            raise BadCredential("the challenge's request is not lightning/charge", Problem.INVALID_CHALLENGE)
        return Charge(int(asked["amount"]), *fields)

    def expired(self, now: int) -> bool:
        """Whether `expires` lies at or before `now`, in unix seconds."""
        return datetime.fromisoformat(self.expires).timestamp() <= now


@dataclass(frozen=True, slots=True)
class PaymentCredential:
    """What came in a `Payment` credential, read but not verified."""

    challenge: Challenge
    preimage: bytes
    source: str | None

    @property
    def payment_hash(self) -> str:
        """The hash, in hex, of the invoice that the preimage pays."""
        return payment_hash_of(self.preimage)

    def __repr__(self) -> str:
        return f"PaymentCredential(challenge_id={self.challenge.id!r}, payment_hash={self.payment_hash!r})"


def issue(secret: bytes, realm: str, charge: Charge, expires_at: int) -> Challenge:
    """A challenge for `charge`, good until `expires_at` (unix seconds), bound to `secret`."""
    if not _REALM.fullmatch(realm) or set(realm) & set('"\\|'):
        raise ValueError("a realm is printable ASCII without quotes, backslashes and |")
    details = {"invoice": charge.invoice, "paymentHash": charge.payment_hash, "network": charge.network}
    request = base64url(jcs({"amount": str(charge.sats), "currency": "sat", "methodDetails": details}))
    expires = rfc3339(expires_at)
    slots = (realm, METHOD, INTENT, request, expires)
    return Challenge(_bind(secret, *slots, "", ""), *slots)


def parse_credential(header: str) -> PaymentCredential | None:
    """The credential in an `Authorization` or `Payment-Authorization` value; None if it is of another scheme.

    Raises:
        BadCredential: it says Payment and is none; so is `Payment … preimage="…"`, which does not show its challenge.
    """
    text = header.strip()
    scheme = _SCHEME.match(text)
    if not scheme:
        return None
    if len(text) > _MAX_CREDENTIAL:
        raise BadCredential("the credential is too long", Problem.MALFORMED_CREDENTIAL)
    given = _object(read_base64(text[scheme.end() :]))
    payload, source = given.get("payload"), given.get("source")
    preimage = payload.get("preimage") if isinstance(payload, dict) else None
    if not isinstance(preimage, str):
        raise BadCredential("the credential's payload has no preimage", Problem.MALFORMED_CREDENTIAL)
    if source is not None and not isinstance(source, str):
        raise BadCredential("the credential's source is not a string", Problem.MALFORMED_CREDENTIAL)
    return PaymentCredential(_echoed(given.get("challenge")), read_preimage(preimage), source)


def verify(credential: PaymentCredential, secrets: Sequence[bytes]) -> Charge:
    """Check that the challenge is ours, as issued under one of `secrets`, and that the preimage pays its invoice.

    Neither `expires` nor single use is looked at: an invoice that was paid in time stays good, and what is left on it
    only the ledger knows.

    Raises:
        BadCredential: a challenge that is not ours or was changed, another method, a preimage of another invoice.
    """
    given = credential.challenge
    slots = (given.realm, given.method, given.intent, given.request, given.expires, given.digest, given.opaque)
    matches = [hmac.compare_digest(_bind(secret, *slots).encode(), given.id.encode()) for secret in secrets]
    if not any(matches):
        raise BadCredential("the challenge is not one of this service, or was changed", Problem.INVALID_CHALLENGE)
    if (given.method, given.intent) != (METHOD, INTENT):
        raise BadCredential(f"only {METHOD}/{INTENT} is taken", Problem.METHOD_UNSUPPORTED)
    charge = given.charge()
    if not hmac.compare_digest(charge.payment_hash, credential.payment_hash):
        raise BadCredential("the preimage is not that of the challenge's invoice", Problem.INVALID_PREIMAGE)
    return charge


def receipt(challenge_id: str, payment_hash: str, at: int) -> str:
    """The value of `Payment-Receipt` for a call served at `at` (unix seconds). It never shows the preimage."""
    said = {"challengeId": challenge_id, "method": METHOD, "reference": payment_hash, "status": "success"}
    return base64url(jcs(said | {"timestamp": rfc3339(at)}))


def accepts(accept_payment: str | None, method: str = METHOD, intent: str = INTENT) -> bool:
    """Whether a request with this `Accept-Payment` header, None if it has none, wants to be offered method/intent.

    The most specific matching range decides, `q=0` excludes. A header that cannot be read asks for nothing special.
    """
    ranges = [found.groups() for part in (accept_payment or "").split(",") if (found := _OFFER.fullmatch(part))]
    if not ranges:
        return True
    matching = [
        ((name != "*") * 2 + (kind not in (None, "*")), Decimal(quality or "1"))
        for name, kind, quality in ranges
        if name.lower() in (method, "*") and (kind or "*").lower() in (intent, "*")
    ]
    return bool(matching) and max(matching)[1] > 0


def jcs(value: dict[str, Any]) -> bytes:
    """RFC 8785 canonical JSON of objects and strings with ASCII names, which is all that is sent here.

    Wallets write the request anew before they echo it, so any other spelling would come back changed.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def rfc3339(at: int) -> str:
    """Unix seconds as RFC 3339 in UTC, to the second, the one form that every wallet echoes unchanged."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _bind(secret: bytes, *slots: str) -> str:
    # No slot can contain the separator without being refused first: base64url, dates and the realm have none, and the
    # name in front keeps these HMACs apart from others under the same secret.
    message = "|".join(("mpp challenge", *slots)).encode()
    return base64url(hmac.digest(secret, message, hashlib.sha256))


def _echoed(given: object) -> Challenge:
    if not isinstance(given, dict):
        raise BadCredential("the credential has no challenge", Problem.MALFORMED_CREDENTIAL)
    names = ("id", "realm", "method", "intent", "request", "expires")
    slots = [slot for name in names if isinstance(slot := given.get(name), str) and "|" not in slot]
    slots += [
        slot for name in ("digest", "opaque") if isinstance(slot := given.get(name) or "", str) and "|" not in slot
    ]
    if len(slots) != len(names) + 2:
        raise BadCredential("the challenge is not echoed whole", Problem.MALFORMED_CREDENTIAL)
    return Challenge(*slots)


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object, no deeper than a credential can be."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadCredential("the credential is not base64url of JSON", Problem.MALFORMED_CREDENTIAL) from None
    if not isinstance(value, dict) or _depth(value) > _MAX_DEPTH:
        raise BadCredential("the credential is not an object as the scheme defines it", Problem.MALFORMED_CREDENTIAL)
    return value


def _depth(value: object) -> int:
    # Level by level, since a credential may be nested deeper than our own stack.
    level, depth = [value], 0
    while level := [child for node in level for child in _children(node)]:
        depth += 1
    return depth


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
