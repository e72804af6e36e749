"""L402: the challenge line as the wallets in use read it, and every form in which they send the credential back.

Sources: the L402 specification (protocol-specification.md), and what lnget, Aperture, Alby's lightning-tools, npm
`l402` and l402-requests were seen to send.
"""

import base64
import re
from dataclasses import dataclass

from ppq_proxy.payments.credentials import (
    BadCredential,
    Problem,
    base64url,
    payment_hash_of,
    read_base64,
    read_preimage,
)
from ppq_proxy.payments.macaroon import MAX_BYTES, Macaroon, MacaroonError, parse

_SCHEME = re.compile(r"(?i:l402|lsat)(?=\s|$)\s*")
_BARE = re.compile(r"[A-Za-z0-9+/_=-]{16,}:(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{96})")
_LONGEST = 3 * MAX_BYTES
_CHALLENGE_ID_BYTES = 32


@dataclass(frozen=True, slots=True)
class L402Credential:
    """What came in an L402 `Authorization`, read but not verified.

    One of `macaroon` and `challenge_id` is set, the other None: the token may be the id of a `Payment` challenge
    (base64url without padding), as some documents have it.
    """

    macaroon: Macaroon | None
    challenge_id: str | None
    preimage: bytes

    @property
    def payment_hash(self) -> str:
        """The hash, in hex, of the invoice that the preimage pays. Whether the token names it is for the verifier."""
        return payment_hash_of(self.preimage)

    def __repr__(self) -> str:
        # A preimage is a bearer secret and must not reach a log by way of a traceback.
        return f"L402Credential(payment_hash={self.payment_hash!r})"


def challenge(macaroon: bytes, invoice: str) -> str:
    """The value of the `WWW-Authenticate` line, which must be the answer's first.

    lnget and l402-requests want `macaroon` and `invoice` first, adjacent and in this order; newer wallets want `token`.
    """
    token = base64.b64encode(macaroon).decode()
    return f'L402 macaroon="{token}", invoice="{invoice}", token="{token}", version="0"'


def parse_credential(authorization: str) -> L402Credential | None:
    """The credential in an `Authorization` value; None if it is of another scheme.

    Taken: `L402` and `LSAT` in any case; `<token>:<preimage>` without a scheme; base64 of either alphabet, padded or
    not; several tokens, of which the first counts; a `Payment` challenge's id as the token.

    Raises:
        BadCredential: it says L402 and is none.
    """
    text = authorization.strip()
    if scheme := _SCHEME.match(text):
        text = text[scheme.end() :]
    elif not _BARE.fullmatch(text):
        return None
    if len(text) > _LONGEST:
        raise BadCredential("the credential is too long", Problem.MALFORMED_CREDENTIAL)
    tokens, colon, preimage = text.rpartition(":")
    if not colon:
        raise BadCredential("an L402 credential is <token>:<preimage>", Problem.MALFORMED_CREDENTIAL)
    proof = read_preimage(preimage.strip())
    token = read_base64(tokens.partition(",")[0].strip())
    if len(token) == _CHALLENGE_ID_BYTES:
        return L402Credential(None, base64url(token), proof)
    try:
        return L402Credential(parse(token), None, proof)
    except MacaroonError as problem:
        raise BadCredential(f"the token is no macaroon of ours: {problem}", Problem.MALFORMED_CREDENTIAL) from None
