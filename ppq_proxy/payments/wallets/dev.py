"""The development wallet: real signed invoices of regtest, in the gateway's own database, and a command to pay them.

It lives in the database so that `ppq-proxy wallet pay` works beside a serving gateway, and so that a test can hold a
preimage whose payment has not settled. No money is behind it; it never signs for another network than regtest.
"""

import hashlib
import secrets
from collections.abc import Callable

from ppq_proxy.payments.invoice import InvalidInvoice, read, sign_regtest
from ppq_proxy.payments.wallets.base import (
    Invoice,
    Payment,
    PaymentFailed,
    State,
    Status,
    Told,
    Wallet,
    WalletRefused,
    now,
)
from ppq_proxy.store.base import Row, Rows

_INVOICE = "dev_invoice"
_NODE = "dev_node"
_OPEN, _PAID = "open", "paid"
_KEEP_SECONDS = 24 * 3600


class DevWallet(Wallet):
    """Invoices are rows of kind `dev_invoice` by payment hash; a paid one has `settles_at` (ms) in its document."""

    name = "dev"
    network = "regtest"
    can_tell = True

    def __init__(self, rows: Rows, clock: Callable[[], int] = now) -> None:
        self._rows = rows
        self._clock = clock
        self._key: bytes | None = None

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        if amount_msat < 1 or expiry_seconds < 1:
            raise WalletRefused("an invoice needs an amount and a life of at least a second")
        key, created_at = await self._node_key(), self._clock()
        preimage = secrets.token_bytes(32)
        payment_hash = hashlib.sha256(preimage).hexdigest()
        bolt11 = sign_regtest(key, payment_hash, amount_msat, memo, created_at, expiry_seconds)
        expires_at = created_at + expiry_seconds
        doc = {"bolt11": bolt11, "preimage": preimage.hex(), "amount_msat": amount_msat, "expires_at": expires_at}
        await self._rows.insert(
            _INVOICE, payment_hash, doc | {"ref": ref}, state=_OPEN, due=1000 * (expires_at + _KEEP_SECONDS)
        )
        return Invoice(bolt11, payment_hash, payment_hash, amount_msat, expires_at)

    async def status(self, handle: str) -> Status:
        row = await self._rows.get(_INVOICE, handle)
        if row is None:
            return Status(State.UNKNOWN)
        if row.state == _OPEN:
            return Status(State.EXPIRED if row.doc["expires_at"] <= self._clock() else State.PENDING)
        if row.doc["settles_at"] > self._clock():
            return Status(State.PENDING)
        return Status(State.SETTLED, row.doc["amount_msat"])

    async def pay(self, bolt11: str, max_fee_msat: int = 0, *, settle_after_seconds: int = 0) -> Payment:
        """Pay one of this wallet's own invoices. The preimage is out at once, `status` says SETTLED so much later.

        Raises:
            PaymentFailed: not an invoice of this wallet, expired, or paid before.
        """
        try:
            payment_hash = read(bolt11).payment_hash
        except InvalidInvoice as problem:
            raise PaymentFailed(str(problem)) from None
        row = await self._rows.get(_INVOICE, payment_hash)
        if row is None or row.doc["bolt11"] != bolt11.lower():
            raise PaymentFailed("not an invoice of this development wallet")
        await self._settle(row, settle_after_seconds)
        return Payment(payment_hash, row.doc["preimage"], row.doc["amount_msat"], 0)

    async def info(self) -> Told:
        await self._node_key()
        return {"wallet": self.name, "network": self.network, "can_tell": True, "real_money": False}

    async def _settle(self, row: Row, after_seconds: int) -> None:
        current: Row | None = row
        while current and current.state == _OPEN:
            if current.doc["expires_at"] <= self._clock():
                raise PaymentFailed("the invoice has expired")
            doc = current.doc | {"settles_at": self._clock() + after_seconds}
            if await self._rows.replace(current, doc, state=_PAID, due=None):
                return
            current = await self._rows.get(_INVOICE, row.id)
        raise PaymentFailed("the invoice has been paid already")

    async def _node_key(self) -> bytes:
        """The key that signs, one for each database: whoever comes first stores it."""
        if self._key is None:
            fresh = secrets.token_hex(32)
            inserted = await self._rows.insert(_NODE, "key", {"key": fresh})
            row = None if inserted else await self._rows.get(_NODE, "key")
            self._key = bytes.fromhex(row.doc["key"] if row else fresh)
        return self._key
