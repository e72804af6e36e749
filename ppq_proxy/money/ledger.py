"""The ledger's five verbs as a process sees them: hold, extend, capture, release; and credit, which goes straight to the store.

A process draws an **allotment** for a key from the store in one atomic step (that is the durable hold), holds and captures
against it in memory, and writes captures in group commits: whatever gathers while a commit is in flight goes into the
next. An account near its edge is drawn from call by call, and what such a call does not use goes back with its capture.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field

from ppq_proxy.errors import InsufficientBalance, KeyLimitReached, StoreUnavailable, Unauthorized
from ppq_proxy.histogram import SIZES, Histogram
from ppq_proxy.money.amounts import usd_from_nano
from ppq_proxy.store.base import Batch, Draw, Drawn, Entry, Refused, Row, Settlement, Store

log = logging.getLogger("ppq.ledger")

AHEAD = 4096
"""How many calls like the one at hand an allotment may hold ahead."""

PACE_SECONDS = 0.003  # not money: seconds
"""Commits begin no sooner one after the other: on a fast disk they would else be many and small, and each has its price.
The first one after a pause is not held back."""

DURABLE_WAIT_SECONDS = 30  # how long an answer waits for a database that is away


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Allotment:
    """What this process has drawn for one key and not promised to a call."""

    __slots__ = ("account_id", "drawing", "drawn", "free", "key_id", "thin", "touched")

    def __init__(self, account_id: str, key_id: str | None) -> None:
        self.account_id, self.key_id = account_id, key_id
        self.free = self.drawn = 0
        self.thin = False
        self.touched = 0.0  # not money: monotonic time
        self.drawing = asyncio.Lock()


class Hold:
    """Money promised to one call. Ends once: captured or released."""

    __slots__ = ("allotment", "amount", "available", "charged", "direct", "open", "owner")

    def __init__(self, allotment: Allotment, amount: int, owner: str, direct: bool, available: int = 0) -> None:
        self.allotment, self.amount, self.owner, self.direct = allotment, amount, owner, direct
        self.available = available
        self.open = True
        self.charged = 0


@dataclass(slots=True)
class Pending:
    """The batch that gathers, and who waits for it."""

    batch: Batch
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def settle(self, problem: StoreUnavailable | None) -> None:
        """Let those who wait go on: the batch is durable, or they have waited long enough."""
        for waiter in self.waiters:
            if waiter.done():
                continue
            if problem is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(problem)


class Ledger:
    """One process's view of the books."""

    def __init__(self, store: Store, owner: str) -> None:
        self.store, self.owner = store, owner
        self.allotments: dict[tuple[str, str | None], Allotment] = {}
        self.seq = 0
        self.pending: dict[str, Pending] = {}
        self.flusher: asyncio.Task[None] | None = None
        self._began = 0.0  # not money: when the last commit began
        self.held = self.captured = self.lost = 0
        self.batch_sizes = Histogram(SIZES)

    def allotment(self, account_id: str, key_id: str | None) -> Allotment:
        """The one allotment of a key in this process."""
        purse = (account_id, key_id)
        found = self.allotments.get(purse)
        if found is None:
            found = self.allotments[purse] = Allotment(account_id, key_id)
        return found

    # hold and extend

    def try_hold(self, allotment: Allotment, amount: int) -> Hold | None:
        """A hold from what is drawn already, without a look at the store; None if it does not suffice."""
        if allotment.free < amount:
            return None
        allotment.free -= amount
        self.held += amount
        return Hold(allotment, amount, self.owner, False)

    async def hold_ahead(self, allotment: Allotment, need: int) -> Hold | None:
        """A hold for an account that is far from its edge, drawing for the next calls too; None if it is not."""
        async with allotment.drawing:  # one draw serves all who wait
            return self.try_hold(allotment, need) or await self._hold_ahead(allotment, need)

    async def _hold_ahead(self, allotment: Allotment, need: int) -> Hold | None:
        if allotment.thin:
            return None
        drawn = await self._draw(Draw(allotment.account_id, allotment.key_id, need, need, need * AHEAD, edge=False))
        if isinstance(drawn, Refused):
            allotment.thin = True
            return None
        return self._held(allotment, need, drawn)

    async def hold(self, allotment: Allotment, need: int, least: int | None = None, *, ahead: bool = True) -> Hold:
        """A hold of `need`, or of what there is if that is `least` or more.

        Raises:
            InsufficientBalance, KeyLimitReached: it does not fit.
            Unauthorized: account or key are gone.
        """
        least = need if least is None else least
        want = need * AHEAD if ahead else need
        drawn = await self._draw(Draw(allotment.account_id, allotment.key_id, need, need, want))
        if isinstance(drawn, Refused) and (await self._find_more(allotment, drawn, least) or least < need):
            drawn = await self._draw(Draw(allotment.account_id, allotment.key_id, need, least, want))
        if isinstance(drawn, Refused):
            raise refusal(drawn, least)
        return self._held(allotment, need, drawn)

    def _adopted(self, allotment: Allotment) -> Allotment:
        """The allotment that `return_idle` looks after: a payer that was remembered may still have one that was forgotten."""
        return self.allotments.setdefault((allotment.account_id, allotment.key_id), allotment)

    def _held(self, allotment: Allotment, need: int, drawn: Drawn) -> Hold:
        allotment = self._adopted(allotment)
        allotment.touched = time.monotonic()
        allotment.thin = not drawn.ample
        allotment.drawn += drawn.amount
        amount = need if drawn.ample else drawn.amount
        allotment.free += drawn.amount - amount
        self.held += amount
        return Hold(allotment, amount, self.owner, not drawn.ample, drawn.available)

    async def _draw(self, draw: Draw) -> Drawn | Refused:
        owner = self.owner
        asked = asyncio.ensure_future(self.store.draw(owner, draw, now_ms()))
        try:
            drawn = await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(lambda done: self._unwanted(owner, draw, done))
            raise
        if owner != self.owner:  # taken for dead meanwhile: what was drawn is swept with the old name
            return await self._draw(draw)
        return drawn

    def _unwanted(self, owner: str, draw: Draw, asked: asyncio.Future[Drawn | Refused]) -> None:
        """Give back what was drawn for a caller that was cancelled."""
        if asked.cancelled() or asked.exception() or owner != self.owner:
            return
        if isinstance(drawn := asked.result(), Drawn):
            allotment = self.allotment(draw.account_id, draw.key_id)
            allotment.drawn += drawn.amount
            self._give_back(allotment, drawn.amount, from_free=False)

    async def _find_more(self, allotment: Allotment, refused: Refused, least: int) -> bool:
        """Money may lie idle in this process, or in another one for a moment longer: True if a second look is worth it."""
        if refused.reason == "gone":
            return False
        mine = [a for a in self.allotments.values() if a.account_id == allotment.account_id]
        idle = [a for a in mine if a.free]
        for one in idle:
            self._give_back(one, one.free)
        if idle:
            await self.flushed()
            return True
        elsewhere = refused.reserved - sum(a.drawn for a in mine)
        if refused.available < least <= refused.available + elsewhere:
            await asyncio.sleep(1.1)  # an idle allotment goes back within a second  # not money: seconds
            return True
        return False

    async def extend(self, hold: Hold, amount: int) -> int:
        """Add up to `amount` to an open hold; how much it was."""
        free = min(amount, hold.allotment.free) if hold.owner == self.owner and not hold.direct else 0
        hold.allotment.free -= free
        if free < amount and hold.owner == self.owner:
            account, key = hold.allotment.account_id, hold.allotment.key_id
            drawn = await self._draw(Draw(account, key, amount - free, 1, amount - free))
            if isinstance(drawn, Drawn):
                hold.allotment.drawn += drawn.amount
                free += drawn.amount
        hold.amount += free
        self.held += free
        return free

    # capture and release

    async def capture(self, hold: Hold, entry: Entry, rows: list[Row] | None = None) -> int:
        """Charge `entry.amount` to the hold, once, and return what was charged as soon as it is durable.

        What exceeds the hold is taken from what is free in the account; the rest is booked as lost. Cancelling the
        caller does not undo a capture.
        """
        if not hold.open:
            return hold.charged
        if entry.amount > hold.amount:
            hold.open = False  # nobody else may end it while it is being extended
            await asyncio.shield(asyncio.ensure_future(self._stretch(hold, entry)))
        await self._capture(hold, entry, rows)
        return hold.charged

    async def _stretch(self, hold: Hold, entry: Entry) -> None:
        try:
            await self.extend(hold, entry.amount - hold.amount)
        except StoreUnavailable:
            log.warning("no extension of a hold while the store is away")
        missing = max(0, entry.amount - hold.amount)
        entry.amount -= missing
        entry.lost += missing

    def _capture(self, hold: Hold, entry: Entry, rows: list[Row] | None) -> asyncio.Future[None]:
        hold.open, hold.charged = False, entry.amount
        allotment, rest = hold.allotment, hold.amount - entry.amount
        self.held -= hold.amount
        self.captured += entry.amount
        self.lost += entry.lost
        pending = self._pending(hold.owner)
        batch = pending.batch
        batch.entries.append(entry)
        if rows:
            batch.rows.extend(rows)
        one = self._settlement(batch, allotment)
        one.charge += entry.amount
        one.lost += entry.lost
        if hold.owner == self.owner:
            allotment.drawn -= entry.amount
            if hold.direct:
                allotment.drawn -= rest
                one.give_back += rest
            else:
                allotment.free += rest
                allotment.touched = time.monotonic()
        waiter = asyncio.get_running_loop().create_future()
        pending.waiters.append(waiter)
        return waiter

    def release(self, hold: Hold) -> None:
        """End a hold without a charge."""
        if not hold.open:
            return
        hold.open = False
        self.held -= hold.amount
        if hold.owner != self.owner:
            return
        if hold.direct:
            self._give_back(hold.allotment, hold.amount, from_free=False)
        else:
            hold.allotment.free += hold.amount
            hold.allotment.touched = time.monotonic()

    def _give_back(self, allotment: Allotment, amount: int, *, from_free: bool = True) -> None:
        if from_free:
            allotment.free -= amount
        allotment.drawn -= amount
        self._settlement(self._pending(self.owner).batch, allotment).give_back += amount

    @staticmethod
    def _settlement(batch: Batch, allotment: Allotment) -> Settlement:
        purse = (allotment.account_id, allotment.key_id)
        one = batch.settlements.get(purse)
        if one is None:
            one = batch.settlements[purse] = Settlement(*purse)
        return one

    # group commit

    def _pending(self, owner: str) -> Pending:
        pending = self.pending.get(owner)
        if pending is None:
            self.seq += 1
            pending = self.pending[owner] = Pending(Batch(self.seq, now_ms()))
            if self.flusher is None or self.flusher.done():
                self.flusher = asyncio.get_running_loop().create_task(self._flush())
        return pending

    async def _flush(self) -> None:
        while self.pending:
            early = self._began + PACE_SECONDS - time.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            self._began = time.monotonic()
            owner, pending = next(iter(self.pending.items()))
            try:
                await self._commit(owner, pending)
            except Exception:  # border: of one batch; those who wait are told, and the books show what is missing
                log.exception("a batch of %d charges could not be written", len(pending.batch.entries))
                pending.settle(StoreUnavailable("the charge could not be written"))

    async def _commit(self, owner: str, pending: Pending) -> None:
        """Write a batch, however long it takes: a batch is applied once, so trying again is safe."""
        del self.pending[owner]
        pause, began = 0.05, time.monotonic()  # not money: seconds
        while True:
            try:
                await self.store.commit(owner, pending.batch)
                break
            except StoreUnavailable as problem:
                log.warning("commit of %d charges put off: %s", len(pending.batch.entries), problem)
                await asyncio.sleep(pause)
                pause = min(2, pause * 2)
                if time.monotonic() - began > DURABLE_WAIT_SECONDS:
                    pending.settle(StoreUnavailable("the database does not answer: the charge is not yet durable"))
        self.batch_sizes.observe(len(pending.batch.entries))
        pending.settle(None)

    async def flushed(self) -> None:
        """Wait until everything that is pending now is durable."""
        pending = self._pending(self.owner)
        waiter = asyncio.get_running_loop().create_future()
        pending.waiters.append(waiter)
        await waiter

    # what the clock asks for

    def return_idle(self, idle_seconds: float) -> None:  # not money: seconds
        """Give back allotments that nobody has used for a while, and forget the empty ones."""
        before = time.monotonic() - idle_seconds
        for purse, one in list(self.allotments.items()):
            if one.free and one.touched <= before:
                self._give_back(one, one.free)
            elif not one.drawn and one.touched <= before - 60:
                del self.allotments[purse]

    def rename(self, owner: str) -> None:
        """Go on as another owner after this one was swept: what it had drawn is not ours any more."""
        self.owner = owner
        for one in self.allotments.values():
            one.free = one.drawn = 0

    async def close(self) -> None:
        """Give everything back and write what is pending."""
        self.return_idle(-1)
        await self.flushed()
        if self.flusher:
            with contextlib.suppress(asyncio.CancelledError):
                await self.flusher


def refusal(refused: Refused, required: int) -> InsufficientBalance | KeyLimitReached | Unauthorized:
    """A refused draw as an error that says which limit, how far, and when it resets."""
    if refused.reason == "gone":
        return Unauthorized("The API key was revoked or has expired.")
    required_usd, available_usd = usd_from_nano(required), usd_from_nano(max(0, refused.available))
    if refused.reason == "balance":
        return InsufficientBalance(
            f"Insufficient balance: this call may cost {_decimal(required_usd)} USD, {_decimal(available_usd)} USD are available. "
            "Top up with POST /topup/create/btc-lightning.",
            fields={"required": required_usd, "available": available_usd},
        )
    resets = ""
    if refused.reset_at:
        resets = f"; it resets at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(refused.reset_at // 1000))}"
    limit = usd_from_nano(refused.limit or 0)
    return KeyLimitReached(
        f"This API key's {refused.period + ' ' if refused.period else ''}spending limit of {limit} USD has {available_usd} USD left, "
        f"this call may cost {required_usd} USD{resets}.",
        fields={"limit": limit, "required": required_usd, "available": available_usd, "reset_at": refused.reset_at},
    )


def _decimal(usd: str) -> str:
    return usd if "." in usd else f"{usd}.0"
