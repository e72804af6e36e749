"""Macaroons as L402 uses them: the v2 binary format, an HMAC-SHA256 chain, first-party caveats only.

The layout is Aperture's, so that lnget and every other L402 wallet reads it: location `lsat`, an identifier of 66 bytes
(version u16 = 0, payment hash, token id), caveats `key=value`. Sources: the L402 specification ("macaroons.md") and
libmacaroons' format v2. A holder may append caveats of its own (lnget adds the preimage), so a macaroon is known by its
identifier and proved by its chain, never by its bytes.
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LOCATION = b"lsat"
IDENTIFIER_BYTES = 66
MAX_BYTES = 8192
"""A macaroon of ours has about 110 bytes; holders may append, and what a stranger can make us hash is bounded."""
MAX_CAVEATS = 64

_VERSION = 2
_END, _LOCATION, _IDENTIFIER, _VERIFICATION_ID, _SIGNATURE = 0, 1, 2, 4, 6
_SIGNATURE_BYTES = 32
_KEY_GENERATOR = b"macaroons-key-generator"


class MacaroonError(ValueError):
    """Not a macaroon of ours, or not a valid one; the message says why and never contains it."""


@dataclass(frozen=True, slots=True)
class Macaroon:
    """A parsed macaroon, not yet verified. `payment_hash` and `token_id` are 32 bytes each out of the identifier."""

    identifier: bytes
    caveats: tuple[bytes, ...]
    signature: bytes

    @property
    def payment_hash(self) -> bytes:
        return self.identifier[2:34]

    @property
    def token_id(self) -> bytes:
        return self.identifier[34:]


def make_identifier(payment_hash: bytes, token_id: bytes) -> bytes:
    """The 66 bytes of Aperture's identifier, version 0."""
    if len(payment_hash) != 32 or len(token_id) != 32:
        raise MacaroonError("payment hash and token id have 32 bytes each")
    return b"\x00\x00" + payment_hash + token_id


def derive_root_key(server_key: bytes, identifier: bytes) -> bytes:
    """The root key of one macaroon, derived, so that nothing needs to be stored to verify it."""
    return _hmac(server_key, b"l402 root key" + identifier)


def mint(root_key: bytes, identifier: bytes, caveats: Iterable[str] = ()) -> bytes:
    """A new macaroon in binary form; caveats are `key=value`."""
    if len(identifier) != IDENTIFIER_BYTES:
        raise MacaroonError(f"the identifier has {len(identifier)} bytes, not {IDENTIFIER_BYTES}")
    conditions = [caveat.encode() for caveat in caveats]
    packets = [bytes([_VERSION]), _field(_LOCATION, LOCATION), _field(_IDENTIFIER, identifier), b"\x00"]
    packets += [_field(_IDENTIFIER, condition) + b"\x00" for condition in conditions]
    packets += [b"\x00", _field(_SIGNATURE, _chain(root_key, identifier, conditions))]
    return b"".join(packets)


def parse(data: bytes) -> Macaroon:
    """Read a macaroon strictly: nothing missing, nothing left over, nothing out of order, nothing of a third party.

    Raises:
        MacaroonError: and nothing else, whatever the bytes are.
    """
    if len(data) > MAX_BYTES:
        raise MacaroonError(f"more than {MAX_BYTES} bytes")
    reader = _Reader(data)
    if reader.byte() != _VERSION:
        raise MacaroonError("not a macaroon of version 2")
    found = _identifier_of(reader.section())
    if len(found) != IDENTIFIER_BYTES or found[:2] != b"\x00\x00":
        raise MacaroonError(f"the identifier is not one of {IDENTIFIER_BYTES} bytes and version 0")
    caveats: list[bytes] = []
    while section := list(reader.section()):
        caveats.append(_identifier_of(section))
        if len(caveats) > MAX_CAVEATS:
            raise MacaroonError(f"more than {MAX_CAVEATS} caveats")
    kind, signature = reader.field()
    if kind != _SIGNATURE or len(signature) != _SIGNATURE_BYTES:
        raise MacaroonError("no signature of 32 bytes at the end")
    if not reader.done():
        raise MacaroonError("bytes behind the signature")
    return Macaroon(found, tuple(caveats), signature)


def verify(macaroon: Macaroon, root_key: bytes, *, now: int, service: str) -> None:
    """Check the chain, and that no `<service>_valid_until=<unix seconds>` is over. Other caveats are accepted.

    Every such caveat must hold, so one that a holder appends can only narrow what came before it.

    Raises:
        MacaroonError: a wrong signature or an expired token.
    """
    expected = _chain(root_key, macaroon.identifier, macaroon.caveats)
    if not hmac.compare_digest(expected, macaroon.signature):
        raise MacaroonError("wrong signature")
    ending = f"{service}_valid_until".encode()
    for caveat in macaroon.caveats:
        key, _, value = caveat.partition(b"=")
        if key.strip() == ending and not _lies_ahead(value.strip(), now):
            raise MacaroonError("the token's time is over")


def _lies_ahead(moment: bytes, now: int) -> bool:
    return moment.isdigit() and len(moment) <= 20 and now < int(moment)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, hashlib.sha256)


def _chain(root_key: bytes, identifier: bytes, caveats: Iterable[bytes]) -> bytes:
    signature = _hmac(_hmac(_KEY_GENERATOR, root_key), identifier)
    for caveat in caveats:
        signature = _hmac(signature, caveat)
    return signature


def _field(kind: int, data: bytes) -> bytes:
    size, rest = bytearray(), len(data)
    while rest > 0x7F:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    size.append(rest)
    return bytes([kind]) + bytes(size) + data


def _identifier_of(section: Iterable[tuple[int, bytes]]) -> bytes:
    """The identifier of a section, which is an optional location and an identifier, in this order."""
    fields = list(section)
    if fields and fields[0][0] == _LOCATION:
        del fields[0]
    if fields and fields[-1][0] == _VERIFICATION_ID:
        raise MacaroonError("a caveat of a third party, which nobody here can discharge")
    if len(fields) != 1 or fields[0][0] != _IDENTIFIER:
        raise MacaroonError("fields that do not belong there")
    return fields[0][1]


class _Reader:
    """Takes packets off the bytes of a macaroon; running out of them is a `MacaroonError`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def done(self) -> bool:
        return self._at == len(self._data)

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise MacaroonError("cut short")
        self._at += 1
        return self._data[self._at - 1]

    def field(self) -> tuple[int, bytes]:
        """The next field's type and data; the end of a section has type 0 and no data."""
        kind = self.byte()
        if kind == _END:
            return _END, b""
        size = self._size()
        if self._at + size > len(self._data):
            raise MacaroonError("cut short")
        self._at += size
        return kind, self._data[self._at - size : self._at]

    def section(self) -> Iterator[tuple[int, bytes]]:
        """The fields up to the end of a section."""
        while (field := self.field())[0] != _END:
            yield field

    def _size(self) -> int:
        # A length is a base-128 number, least significant group first; two bytes reach beyond MAX_BYTES, and one that
        # ends in an empty group would be a second spelling of the same length.
        first = self.byte()
        if first < 0x80:
            return first
        second = self.byte()
        if not 0 < second < 0x80:
            raise MacaroonError("a length that is too large or not in its shortest form")
        return first & 0x7F | second << 7
