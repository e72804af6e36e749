"""Idempotency-Key on a call that charges: one key, one upstream call, one charge, the same answer again (requirements Z12).

A key is a row of the account: running under an owner, then finished with the answer, in the same commit as the charge. A
call that failed leaves nothing, and one whose process died is taken over.
"""

import base64
import hashlib
from typing import Any

from ppq_proxy.errors import BadRequest, IdempotencyMismatch, StillRunning
from ppq_proxy.exchange import Exchange
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.money.owner import host_name, is_dead
from ppq_proxy.store.base import Row, Store

KIND = "answer"
KEPT_MS = 24 * 3600 * 1000


class Answers:
    """The answers that are kept for repetition."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def claim(self, exchange: Exchange, account_id: str, raw: bytes, owner: str) -> Row | None:
        """The row of this call, claimed; or None if the header is absent. A finished row has its `state` "finished".

        Raises:
            StillRunning, IdempotencyMismatch, BadRequest
        """
        given = exchange.headers.get(b"idempotency-key")
        if given is None:
            return None
        if not 1 <= len(given) <= 255:
            raise BadRequest("Idempotency-Key must have 1 to 255 characters.")
        name = hashlib.sha256(account_id.encode() + b"\0" + given).hexdigest()
        doc = {
            "account": account_id,
            "owner": owner,
            "body": hashlib.sha256(exchange.path.removeprefix("/v1").encode() + b"\0" + raw).hexdigest(),
        }
        for _ in range(8):
            due = now_ms() + KEPT_MS
            if await self.store.rows.insert(KIND, name, doc, state="running", due=due):
                return Row(KIND, name, doc, 1, "running", due)
            found = await self.store.rows.get(KIND, name)
            if found is None:
                continue
            if found.due is not None and found.due <= now_ms():
                await self.store.rows.delete(found)
                continue
            if found.doc["body"] != doc["body"]:
                raise IdempotencyMismatch(
                    "This Idempotency-Key was used with another request; use a new key for a new request."
                )
            if found.state == "finished":
                return found
            if await self._abandoned(found.doc["owner"]) and await self.store.rows.replace(found, doc, due=due):
                return Row(KIND, name, doc, found.version + 1, "running", due)
            break
        raise StillRunning(
            "A request with this Idempotency-Key is still running; repeat it later for its answer.",
            headers={"retry-after": "1"},
        )

    async def _abandoned(self, owner: str) -> bool:
        host, at = host_name(), now_ms()
        return all(one.id != owner or is_dead(one, host, at) for one in await self.store.owners())

    @staticmethod
    def finish(row: Row, status: int, content_type: str) -> None:
        """Prepare a claimed row to be written with the charge; the body is added when it is whole."""
        row.state = "finished"
        row.doc = {**row.doc, "status": status, "type": content_type}

    async def forget(self, row: Row) -> None:
        """A call that failed is not kept: a repetition is a new call."""
        await self.store.rows.delete(row)

    async def sweep(self) -> None:
        """Delete what has been kept long enough."""
        for state in ("finished", "running"):
            for row in await self.store.rows.find(KIND, state=state, due_before=now_ms()):
                await self.store.rows.delete(row)


def body_of(doc: dict[str, Any]) -> bytes:
    """The bytes of a kept answer."""
    text = doc.get("text")
    return text.encode() if isinstance(text, str) else base64.b64decode(doc.get("base64", ""))
