"""Signed payments from reserved to credited: each is a row by chain, asset, payer and nonce, and is settled once.

    reserved → settled → credited        what a payment normally does, within one request
    reserved → unknown → settled         its outcome was lost, and was found by looking
    unknown → unresolved                 nobody could tell, and it can no longer move: the operator is told
    (none)                               it was refused or ended unused, so that nothing was taken

The row is written before anything is settled, so that two requests, two workers or two runs of one process never settle
twice, and whoever finds a row that its process left knows that it must look before it says anything.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from ppq_proxy.errors import Conflict, Unavailable
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payments.credentials import BadCredential, Problem
from ppq_proxy.payments.x402_chain import Chain, ChainUnavailable, Found, Use
from ppq_proxy.payments.x402_facilitator import Facilitator, FacilitatorUnavailable, Outcome, Settlement
from ppq_proxy.payments.x402_wire import EXACT, UNIT_NANO, Payment, Terms
from ppq_proxy.store.base import Row, Rows

KIND = "x402_payment"
LIFE_MS = 90 * 24 * 3600 * 1000
CREDIT_MS = 5_000  # a settled payment that is not credited within this time was left by its process
STEP_SECONDS = 0.1  # not money: seconds
ATTEMPTS = 2
LEASE_SECONDS = 10
RETRY_MS, LONGEST_RETRY_MS = 2_000, 30_000
EXPIRED_SECONDS = 60  # by the chain's clock; twice that by our own

log = logging.getLogger("ppq.x402")


class State(StrEnum):
    """How far a payment is."""

    RESERVED = "reserved"
    UNKNOWN = "unknown"
    SETTLED = "settled"
    CREDITED = "credited"
    UNRESOLVED = "unresolved"


class PaymentPending(Unavailable):
    """A payment whose outcome is not known yet: to be shown again, and not to be made again."""

    code: ClassVar[str] = "payment_pending"

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why} Do not pay again: repeat this request with the same payment.", headers={"retry-after": "3"}
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """A payment as it was shown: the id of its row, the digest of the request that came with it, and the peer."""

    payment: Payment
    key: str
    request: str
    peer: str


class Payments:
    """The rows of signed payments, and what moves them on."""

    def __init__(self, rows: Rows, facilitator: Facilitator, chain: Chain | None, settle_seconds: int) -> None:
        self.rows, self.facilitator, self.chain, self.settle_seconds = rows, facilitator, chain, settle_seconds
        self.lease_ms = 1000 * (ATTEMPTS * settle_seconds + LEASE_SECONDS)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def settled(self, shown: Shown, terms: Callable[[], Awaitable[Terms]]) -> Row:
        """The row of a payment that is settled, if need be now; `terms` are asked for on its first showing.

        Raises:
            BadCredential: it is no good, or not this one. PaymentPending: nobody knows yet. Conflict: nobody ever will.
        """
        proof = shown.payment.proof
        if (task := self._running.get(proof)) is not None:
            await asyncio.shield(task)
        row = await self.rows.get(KIND, shown.key)
        if row is None:
            await self._once(proof, lambda: self._first(shown, terms))
            row = await self.rows.get(KIND, shown.key)
        end = time.monotonic() + self.settle_seconds
        while not _settled(row, shown):
            if time.monotonic() >= end:
                raise PaymentPending("This payment is still being settled.")
            await asyncio.sleep(STEP_SECONDS)
            row = await self.rows.get(KIND, shown.key)
        assert row is not None
        return row

    async def _once(self, proof: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` for all who ask at the same time; it goes on if they leave."""
        task = self._running.get(proof)
        if task is None:
            task = asyncio.ensure_future(_run(work))
            self._running[proof] = task
            task.add_done_callback(lambda done: self._forget(proof, done))
        await asyncio.shield(task)

    def _forget(self, proof: str, task: "asyncio.Task[None]") -> None:
        del self._running[proof]
        if not task.cancelled():
            task.exception()  # those who waited have it; if nobody did, it is no news either

    async def stop(self) -> None:
        """Leave what is being settled to whoever looks at its row next."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    # the first showing

    async def _first(self, shown: Shown, terms: Callable[[], Awaitable[Terms]]) -> None:
        asked = await terms()
        payment, signed = shown.payment, shown.payment.signed
        requirement = asked.requirement(payment.version, payment.scheme, payment.quote_id, await self._bound(payment))
        since = 0
        if self.chain is not None:
            since = (await self.chain.head()).number
            if await self.chain.sanctioned(signed.payer):
                raise BadCredential("payments of this address are not taken")
        if reason := await self.facilitator.verify(payment.version, payment.document, requirement):
            raise BadCredential(f"the payment does not verify: {reason}")
        doc: dict[str, Any] = {
            "proof": payment.proof, "version": payment.version, "scheme": payment.scheme,
            "request": shown.request, "peer": _hidden(shown),
            "payer": signed.payer, "nonce": signed.nonce, "pay_to": signed.pay_to, "value": str(signed.value),
            "valid_before": str(signed.valid_before), "nano": asked.amount * UNIT_NANO, "since": since,
            "document": payment.document, "requirement": requirement, "transaction": "", "tries": 0, "at": now_ms(),
        }  # fmt: skip
        row = Row(KIND, shown.key, doc, 1, State.RESERVED, now_ms() + self.lease_ms)
        if await self.rows.insert(KIND, row.id, doc, state=row.state, due=row.due):
            await self._settle_first(row)

    async def _bound(self, payment: Payment) -> str:
        return "" if payment.scheme == EXACT else await self.facilitator.binds()

    async def _settle_first(self, row: Row) -> None:
        for _ in range(ATTEMPTS):
            began = time.monotonic()
            ended = await self._settle(row)
            if await self._concluded(row, ended):
                return
            if ended.transaction or 2 * (time.monotonic() - began) > self.settle_seconds:
                break  # it is on its way, or there is no time to try again
        await self._mark(row, State.UNKNOWN, ended.transaction)

    async def _concluded(self, row: Row, ended: Settlement) -> bool:
        """Whether the first settling is known to have worked. Raises where it is known that it did not."""
        if ended.outcome is Outcome.SETTLED:
            await self._mark(row, State.SETTLED, ended.transaction)
            return True
        found = await self._look(row)
        if found is not None and found.use is Use.PAID:
            await self._mark(row, State.SETTLED, found.transaction)
            return True
        nothing_sent = ended.outcome is not Outcome.UNKNOWN or await self._reverted(ended)
        if found == Found(Use.ELSEWHERE) or (nothing_sent and found in (None, Found(Use.UNUSED))):
            if not await self.rows.delete(row):
                raise PaymentPending("The outcome of this payment is not known yet.")
            if ended.outcome is Outcome.UNREACHED:
                raise FacilitatorUnavailable(ended.reason)
            raise BadCredential(f"the payment was not settled: {ended.reason}")
        return False

    async def _reverted(self, ended: Settlement) -> bool:
        """Whether a transaction was sent, and is in a block without effect."""
        if self.chain is None or not ended.transaction:
            return False
        try:
            return await self.chain.reverted(ended.transaction)
        except ChainUnavailable:
            return False

    async def _settle(self, row: Row) -> Settlement:
        doc = row.doc
        return await self.facilitator.settle(doc["version"], doc["document"], doc["requirement"])

    async def _look(self, row: Row) -> Found | None:
        """What the chain says; None where none is asked, UNCLEAR where it does not answer."""
        doc = row.doc
        if self.chain is None or doc["scheme"] != EXACT:
            return None
        try:
            return await self.chain.use(doc["payer"], doc["nonce"], doc["pay_to"], int(doc["value"]), doc["since"])
        except ChainUnavailable as problem:
            log.warning("x402: %s", problem)
            return Found(Use.UNCLEAR)

    async def _mark(self, row: Row, state: State, transaction: str = "") -> None:
        """Move a row on; one that somebody else has settled stays so."""
        while row.state not in (State.SETTLED, State.CREDITED):
            doc = row.doc | {"transaction": transaction or row.doc["transaction"]}
            due = now_ms() + min(RETRY_MS << min(doc["tries"], 5), LONGEST_RETRY_MS)
            if state is not State.UNKNOWN:
                doc = {name: value for name, value in doc.items() if name not in ("document", "requirement")}
                due = now_ms() + (CREDIT_MS if state is State.SETTLED else LIFE_MS)
            if await self.rows.replace(row, doc, state=state, due=due):
                row.doc, row.state, row.version, row.due = doc, state, row.version + 1, due
                return
            if (found := await self.rows.get(KIND, row.id)) is None:
                if state is State.SETTLED and await self.rows.insert(KIND, row.id, doc, state=state, due=due):
                    row.doc, row.state, row.version, row.due = doc, state, 1, due
                return
            row.doc, row.state, row.version, row.due = found.doc, found.state, found.version, found.due

    # afterwards

    async def credited(self, row: Row) -> None:
        """Note that a settled payment is in the books."""
        if row.state == State.SETTLED:
            await self.rows.replace(row, row.doc, state=State.CREDITED, due=now_ms() + LIFE_MS)

    async def reconcile(self) -> list[Row]:
        """Look at every payment whose outcome is open and that nobody is working on.

        Returns the settled ones that are to be credited, those too that their process has left so.
        """
        settled = await self.rows.find(KIND, state=State.SETTLED, due_before=now_ms())
        for state in (State.RESERVED, State.UNKNOWN):
            rows = await self.rows.find(KIND, state=state, due_before=now_ms(), limit=20)
            looked_at = await asyncio.gather(*(self._reconcile(row) for row in rows))
            settled += [row for row in looked_at if row.state == State.SETTLED]
        return settled

    async def _reconcile(self, row: Row) -> Row:
        claimed = row.doc | {"tries": row.doc["tries"] + 1}
        if await self.rows.replace(row, claimed, state=State.UNKNOWN, due=now_ms() + self.lease_ms):
            row = Row(KIND, row.id, claimed, row.version + 1, State.UNKNOWN)
            await self._decide(row)
        return row

    async def _decide(self, row: Row) -> None:
        expired = await self._expired(row)  # asked first: what is unused after the end stays so
        found = await self._look(row)
        if found is not None and found.use is Use.PAID:
            await self._mark(row, State.SETTLED, found.transaction)
        elif found == Found(Use.ELSEWHERE) or (found == Found(Use.UNUSED) and expired):
            log.warning("x402: payment %s ended without being made", row.id)
            await self.rows.delete(row)
        elif expired:
            log.error("x402: whether payment %s was made cannot be found out; look at the chain", row.id)
            await self._mark(row, State.UNRESOLVED)
        elif found == Found(Use.UNCLEAR):
            await self._mark(row, State.UNKNOWN)
        else:
            await self._again(row)

    async def _again(self, row: Row) -> None:
        """Settle once more: the nonce sees to it that this moves no money twice."""
        ended = Settlement(Outcome.UNKNOWN, reason="it cannot be settled at the moment")
        if self.chain is None or not await self._flaw(row):
            ended = await self._settle(row)
        if ended.outcome is Outcome.SETTLED:
            await self._mark(row, State.SETTLED, ended.transaction)
        else:
            log.warning("x402: payment %s is still open: %s", row.id, ended.reason)
            await self._mark(row, State.UNKNOWN, ended.transaction)

    async def _flaw(self, row: Row) -> str:
        """Why settling would only burn gas now, as where the payer has spent the money elsewhere; "" if it would work."""
        doc = row.doc
        try:
            return await self.facilitator.verify(doc["version"], doc["document"], doc["requirement"])
        except FacilitatorUnavailable as problem:
            return str(problem)

    async def _expired(self, row: Row) -> bool:
        """Whether the authorization can no longer be used, for certain; False while the chain does not answer."""
        end = int(row.doc["valid_before"])
        if self.chain is None:
            return time.time() > end + 2 * EXPIRED_SECONDS
        try:
            return (await self.chain.head()).time > end + EXPIRED_SECONDS
        except ChainUnavailable:
            return False

    async def sweep(self) -> None:
        """Forget payments that were made long ago; their authorizations are used or expired."""
        for state in (State.CREDITED, State.UNRESOLVED):
            for row in await self.rows.find(KIND, state=state, due_before=now_ms()):
                await self.rows.delete(row)


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def _hidden(shown: Shown) -> str:
    """The peer as it is kept: to be compared, and not to be read."""
    return hashlib.sha256(f"{shown.key} {shown.peer}".encode()).hexdigest()[:32]


def _settled(row: Row | None, shown: Shown) -> bool:
    """Whether a row is settled, and this payment's. Raises what `Payments.settled` does."""
    if row is None:
        raise BadCredential("the payment was not settled; nothing was taken")
    if row.doc["proof"] != shown.payment.proof:
        raise BadCredential("this authorization was shown before in another payment")
    if shown.payment.version == 1 and row.doc["request"] != shown.request and row.doc["peer"] != _hidden(shown):
        # All that a payment of version 1 consists of stands in its transaction, for everybody to copy.
        raise BadCredential(
            "what is left of a payment by x402 version 1 is good for the same request, or from the same address",
            Problem.PAYMENT_INSUFFICIENT,
        )
    if row.state == State.UNRESOLVED:
        raise Conflict("Whether this payment was made could not be found out; the operator has been told.")
    if row.state == State.UNKNOWN or (row.state == State.RESERVED and (row.due or 0) <= now_ms()):
        raise PaymentPending("The outcome of this payment is not known yet.")
    return row.state in (State.SETTLED, State.CREDITED)
