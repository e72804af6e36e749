"""BOLT 11 invoices: the few fields that are checked before an invoice is shown to anybody, and signing for regtest.

Every 402 needs an invoice read, and with the development wallet one signed. The package `bolt11` takes 1 to 3 ms for
either, most of it for bit strings; what stands here takes a twentieth, leaves the elliptic curve to the package and is
tested against it. Source: BOLT 11.
"""

import re
import secrets
from dataclasses import dataclass
from functools import reduce

_CHARSET = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_ALPHABET = frozenset(_CHARSET.decode())
_VALUES = bytes.maketrans(_CHARSET, bytes(range(32)))
_LETTERS = bytes.maketrans(bytes(range(32)), _CHARSET)
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_FOLDS = tuple(reduce(int.__xor__, (g for bit, g in enumerate(_GENERATORS) if top >> bit & 1), 0) for top in range(32))
_HUMAN = re.compile(r"ln(bcrt|bc|tbs|tb|sb)(?:([1-9][0-9]{0,17})([munp]?))?")
_NETWORKS = {"bc": "mainnet", "tb": "testnet", "tbs": "signet", "bcrt": "regtest", "sb": "simnet"}
_TENTHS_OF_MSAT = {"": 10**12, "m": 10**9, "u": 10**6, "n": 10**3, "p": 1}
_CHECKSUM, _SIGNATURE, _TIMESTAMP = 6, 104, 7  # lengths in groups of five bits
_PAYMENT_HASH, _PAYMENT_SECRET, _DESCRIPTION, _DESCRIPTION_HASH, _EXPIRY, _FEATURES = 1, 16, 13, 23, 6, 5
_VARIABLE_ONION, _NEEDS_SECRET = 1 << 8, 1 << 14  # feature bits (BOLT 9) that every payer today insists on
_LONGEST_MEMO = 639  # bytes, what a field's length of ten bits can hold
_HASH_GROUPS = 52
_DEFAULT_EXPIRY = 3600
_LONGEST = 7089  # what a QR code holds; invoices with many route hints have less than half of it


class InvalidInvoice(ValueError):
    """Not a BOLT 11 invoice; the message says why."""


class InvoiceMismatch(Exception):
    """A wallet answered with an invoice other than the one it was asked for. `field` says in what."""

    def __init__(self, field: str, expected: object, found: object) -> None:
        super().__init__(f"the wallet's invoice has another {field}: {found}, not {expected}")
        self.field = field


@dataclass(frozen=True, slots=True)
class InvoiceFields:
    """What is checked of an invoice. Hashes are hex, times unix seconds; `amount_msat` None: it names no amount."""

    network: str
    amount_msat: int | None
    payment_hash: str
    description_hash: str | None
    created_at: int
    expires_at: int


def read(invoice: str) -> InvoiceFields:
    """Read an invoice and check its checksum, not its signature.

    Raises:
        InvalidInvoice: whatever is wrong with it.
    """
    if not invoice.isascii() or len(invoice) > _LONGEST or invoice not in (invoice.lower(), invoice.upper()):
        raise InvalidInvoice("not an invoice: too long, mixed case or no ASCII")
    human, separator, data = invoice.lower().rpartition("1")
    prefix = _HUMAN.fullmatch(human)
    if not separator or not prefix or not set(data) <= _ALPHABET:
        raise InvalidInvoice("not an invoice: it does not read ln<network><amount>1<data>")
    groups = data.encode().translate(_VALUES)
    if len(groups) < _TIMESTAMP + _SIGNATURE + _CHECKSUM or _sum(human, groups) != 1:
        raise InvalidInvoice("not an invoice: cut short, or its checksum is wrong")
    tags = _tags(groups[_TIMESTAMP : -_SIGNATURE - _CHECKSUM])
    if _PAYMENT_HASH not in tags:
        raise InvalidInvoice("the invoice has no payment hash")
    created_at = _number(groups[:_TIMESTAMP])
    described = tags.get(_DESCRIPTION_HASH)
    expiry = _number(tags[_EXPIRY]) if _EXPIRY in tags else _DEFAULT_EXPIRY
    return InvoiceFields(
        network=_NETWORKS[prefix[1]],
        amount_msat=_msat(prefix[2], prefix[3]),
        payment_hash=_hash(tags[_PAYMENT_HASH]),
        description_hash=_hash(described) if described else None,
        created_at=created_at,
        expires_at=created_at + expiry,
    )


def check(
    invoice: str,
    *,
    payment_hash: str | None,
    amount_msat: int,
    network: str,
    lives_until: int,
    description_hash: str | None = None,
) -> InvoiceFields:
    """Read what a wallet returned and compare it with what was asked of it.

    `lives_until` (unix seconds) is the least that it must live. `payment_hash` and `description_hash` are hex; None
    does not compare them.

    Raises:
        InvoiceMismatch: naming the first of hash, amount, network, expiry, description hash that differs, or "form".
    """
    try:
        found = read(invoice)
    except InvalidInvoice as problem:
        raise InvoiceMismatch("form", "BOLT 11", problem) from None
    if payment_hash is not None and found.payment_hash != payment_hash.lower():
        raise InvoiceMismatch("payment hash", payment_hash, found.payment_hash)
    if found.amount_msat != amount_msat:
        raise InvoiceMismatch("amount in msat", amount_msat, found.amount_msat)
    if found.network != network:
        raise InvoiceMismatch("network", network, found.network)
    if found.expires_at < lives_until:
        raise InvoiceMismatch("expiry", lives_until, found.expires_at)
    if description_hash is not None and found.description_hash != description_hash:
        raise InvoiceMismatch("description hash", description_hash, found.description_hash)
    return found


def sign_regtest(
    private_key: bytes, payment_hash: str, amount_msat: int, memo: str, created_at: int, expiry_seconds: int
) -> str:
    """A signed invoice of regtest (`lnbcrt…`), on which no real money can ever move. Times in unix seconds."""
    # Imported late: elliptic curves are only for those who have the development wallet.
    from bolt11.models.signature import Signature

    human = f"lnbcrt{_amount(amount_msat)}"
    data = _groups(created_at, _TIMESTAMP) + b"".join(
        [
            _tag(_PAYMENT_HASH, _regrouped(bytes.fromhex(payment_hash))),
            _tag(_PAYMENT_SECRET, _regrouped(secrets.token_bytes(32))),
            _tag(_DESCRIPTION, _regrouped(memo.encode()[:_LONGEST_MEMO])),
            _tag(_EXPIRY, _groups(expiry_seconds, 7)),
            _tag(_FEATURES, _groups(_VARIABLE_ONION | _NEEDS_SECRET, 3)),
        ]
    )
    padding = -len(data) * 5 % 8
    message = (_number(data) << padding).to_bytes((len(data) * 5 + padding) // 8, "big")
    signature = Signature.from_private_key(human, private_key.hex(), message).signature_data
    data += _regrouped(signature)
    data += _groups(_sum(human, data + bytes(_CHECKSUM)) ^ 1, _CHECKSUM)
    return f"{human}1{data.translate(_LETTERS).decode()}"


def _sum(human: str, groups: bytes) -> int:
    """The BCH checksum of bech32 (BIP 173) over prefix and data; 1 over data with its right checksum."""
    letters = human.encode()
    total = 1
    for value in bytes(c >> 5 for c in letters) + b"\x00" + bytes(c & 31 for c in letters) + groups:
        total = (total & 0x1FFFFFF) << 5 ^ value ^ _FOLDS[total >> 25]
    return total


def _groups(number: int, count: int) -> bytes:
    """A number as so many groups of five bits, big-endian."""
    return bytes(number >> 5 * place & 31 for place in reversed(range(count)))


def _regrouped(data: bytes) -> bytes:
    """Bytes as groups of five bits, filled up with zero bits."""
    count = -(-len(data) * 8 // 5)
    return _groups(int.from_bytes(data, "big") << count * 5 - len(data) * 8, count)


def _tag(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + _groups(len(value), 2) + value


def _tags(groups: bytes) -> dict[int, bytes]:
    """The fields of interest by their number: the first of each that has its right length, as BOLT 11 wants it."""
    tags: dict[int, bytes] = {}
    at = 0
    while at < len(groups):
        kind, size = groups[at], _number(groups[at + 1 : at + 3])
        value = groups[at + 3 : at + 3 + size]
        if at + 3 + size > len(groups):
            raise InvalidInvoice("a field of the invoice is cut short")
        if kind == _EXPIRY or (kind in (_PAYMENT_HASH, _DESCRIPTION_HASH) and size == _HASH_GROUPS):
            tags.setdefault(kind, value)
        at += 3 + size
    return tags


def _number(groups: bytes) -> int:
    """Big-endian groups of five bits."""
    return reduce(lambda number, group: number << 5 | group, groups, 0)


def _hash(groups: bytes) -> str:
    return (_number(groups) >> 4).to_bytes(32, "big").hex()


def _amount(msat: int) -> str:
    """The shortest form, which BOLT 11 asks for: whole units of the largest multiplier that is exact."""
    unit = next(unit for unit, tenths in _TENTHS_OF_MSAT.items() if 10 * msat % tenths == 0)
    return f"{10 * msat // _TENTHS_OF_MSAT[unit]}{unit}"


def _msat(digits: str | None, multiplier: str) -> int | None:
    if digits is None:
        return None
    tenths = int(digits) * _TENTHS_OF_MSAT[multiplier]
    if tenths % 10:
        raise InvalidInvoice("the invoice's amount is finer than a millisatoshi")
    return tenths // 10
