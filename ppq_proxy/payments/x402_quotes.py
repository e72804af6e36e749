"""What was quoted by x402, to which request, and until when: a row for each request and price.

Payments of version 2 and signed transactions name their quote; of version 1 they cannot, so that the quote is found by
the request that comes with them and the amount that was signed. The id that a client gets also has a random part, which
only it knows: with it, a payment that was settled can be shown again, though all else of it stands on the chain.
"""

import dataclasses
import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

import orjson

from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payments.x402_wire import TIMEOUT_SECONDS, Network, Terms
from ppq_proxy.store.base import Row, Rows

KIND = "x402_quote"
OPEN = "open"
_ID = re.compile(r"([0-9a-f]{32})\.[A-Za-z0-9_-]{16,64}")


@dataclass(frozen=True, slots=True)
class Quote:
    """The terms, the digest of the request that they were made for, and when they end (unix seconds)."""

    terms: Terms
    request: str
    expires_at: int


class Quotes:
    """Quotes of one network and recipient. `life` is how long one holds, in seconds."""

    def __init__(self, rows: Rows, network: Network, pay_to: str, life: int) -> None:
        self.rows, self.network, self.pay_to, self.life = rows, network, pay_to, life

    async def make(self, terms: Terms, request: str) -> str:
        """The id of a quote of these terms; a request that is quoted again at the same price prolongs its quote."""
        name = self._name(request, terms.amount)
        at = int(time.time())
        doc = {"terms": dataclasses.asdict(terms), "request": request, "expires_at": at + self.life}
        while not await self.rows.insert(KIND, name, doc, state=OPEN, due=_due(doc)):
            found = await self.rows.get(KIND, name)
            if found is None:
                continue
            if found.doc["expires_at"] >= at + self.life - self.life // 10:  # fresh enough
                break
            if await self.rows.replace(found, doc, due=_due(doc)):
                break
        return f"{name}.{secrets.token_urlsafe(18)}"

    async def named(self, quote_id: str) -> Quote | None:
        """The quote of an id, also when its time is over."""
        name = _ID.fullmatch(quote_id)
        return await self._read(name[1]) if name else None

    async def made_for(self, request: str, amount: int) -> Quote | None:
        """The quote of an amount that a request was given."""
        return await self._read(self._name(request, amount))

    async def sweep(self) -> None:
        """Forget quotes that nothing can refer to any more."""
        while rows := await self.rows.find(KIND, state=OPEN, due_before=now_ms()):
            for row in rows:
                await self.rows.delete(row)

    def _name(self, request: str, amount: int) -> str:
        of = orjson.dumps([request, amount, self.network.caip2, self.network.asset.lower(), self.pay_to.lower()])
        return hashlib.sha256(of).hexdigest()[:32]

    async def _read(self, name: str) -> Quote | None:
        row = await self.rows.get(KIND, name)
        return None if row is None else Quote(_terms(row), row.doc["request"], row.doc["expires_at"])


def _due(doc: dict[str, Any]) -> int:
    """When a quote can be forgotten: transactions of its last moment are still shown after its end."""
    return 1000 * (int(doc["expires_at"]) + 2 * TIMEOUT_SECONDS)


def _terms(row: Row) -> Terms:
    said = row.doc["terms"]
    return Terms(**said | {"network": Network(**said["network"])})
