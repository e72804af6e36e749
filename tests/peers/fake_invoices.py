"""Invoices of regtest for the stand-ins of wallets, signed with the package `bolt11`."""

import hashlib
import secrets
import time
from dataclasses import dataclass, field

import bolt11
from bolt11.models.tags import TagChar, Tags

SIGNING_KEY = secrets.token_hex(32)


@dataclass
class Made:
    """An invoice with its preimage. `paid_msat` is what came in for it; None while it is unpaid."""

    bolt11: str
    payment_hash: str
    preimage: str
    amount_msat: int
    created_at: int
    expires_at: int
    name: str = ""
    paid_msat: int | None = None
    index: int = 0
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def expired(self) -> bool:
        return self.paid_msat is None and self.expires_at <= time.time()


def make(amount_msat: int, memo: str, expiry: int, *, name: str = "", description_hash: str = "") -> Made:
    """A new invoice."""
    preimage, at = secrets.token_bytes(32), int(time.time())
    payment_hash = hashlib.sha256(preimage).hexdigest()
    tags = Tags()
    tags.add(TagChar.payment_hash, payment_hash)
    tags.add(TagChar.payment_secret, secrets.token_hex(32))
    if description_hash:
        tags.add(TagChar.description_hash, description_hash)
    else:
        tags.add(TagChar.description, memo)
    tags.add(TagChar.expire_time, expiry)
    unsigned = bolt11.Bolt11("bcrt", at, tags, bolt11.MilliSatoshi(amount_msat))
    text = bolt11.encode(unsigned, SIGNING_KEY, ignore_exceptions=True)
    return Made(text, payment_hash, preimage.hex(), amount_msat, at, at + expiry, name)
