"""What the payment schemes' credentials have in common: how one is refused, how a preimage and base64 are read."""

import base64
import binascii
import hashlib
import re
from enum import StrEnum

_HEX = re.compile(r"[0-9a-fA-F]*")


class Problem(StrEnum):
    """The problem types (RFC 9457) of the `Payment` scheme and of its method lightning."""

    PAYMENT_REQUIRED = "https://paymentauth.org/problems/payment-required"
    PAYMENT_INSUFFICIENT = "https://paymentauth.org/problems/payment-insufficient"
    PAYMENT_EXPIRED = "https://paymentauth.org/problems/payment-expired"
    VERIFICATION_FAILED = "https://paymentauth.org/problems/verification-failed"
    METHOD_UNSUPPORTED = "https://paymentauth.org/problems/method-unsupported"
    MALFORMED_CREDENTIAL = "https://paymentauth.org/problems/malformed-credential"
    INVALID_CHALLENGE = "https://paymentauth.org/problems/invalid-challenge"
    UNKNOWN_CHALLENGE = "https://paymentauth.org/problems/lightning/unknown-challenge"
    INVALID_PREIMAGE = "https://paymentauth.org/problems/lightning/invalid-preimage"
    EXPIRED_INVOICE = "https://paymentauth.org/problems/lightning/expired-invoice"

    @property
    def summary(self) -> str:
        """The short human name, for the member `title` of a problem document."""
        return self.value.rsplit("/", 1)[1].replace("-", " ").capitalize()


class BadCredential(Exception):
    """A payment credential that proves nothing. The message is for the client and never repeats what it sent."""

    def __init__(self, message: str, problem: Problem = Problem.VERIFICATION_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.problem = problem


def read_preimage(text: str) -> bytes:
    """32 bytes from 64 hex digits.

    l402-requests decodes the hex preimage of lnd as if it were base64 and sends those 48 bytes as 96 hex digits;
    encoding them again gives the 64 digits back.
    """
    if len(text) == 96 and _HEX.fullmatch(text):
        text = base64.b64encode(bytes.fromhex(text)).decode()
    if len(text) != 64 or not _HEX.fullmatch(text):
        raise BadCredential("the preimage is not 64 hex digits", Problem.MALFORMED_CREDENTIAL)
    return bytes.fromhex(text)


def payment_hash_of(preimage: bytes) -> str:
    """The payment hash that a preimage proves, in hex."""
    return hashlib.sha256(preimage).hexdigest()


def read_base64(text: str) -> bytes:
    """Bytes from base64 in the standard or the URL alphabet, padded or not. Raises `BadCredential`."""
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadCredential("not base64", Problem.MALFORMED_CREDENTIAL) from None


def base64url(data: bytes) -> str:
    """Base64 in the URL alphabet without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
