"""Two processes on one database, doing whatever comes to mind: the books must be right after every single step.

What is checked each time are the invariants of the ledger: the entries add up to the balance, no draw exceeds it, what
a process holds is what it has drawn, and every charge that was acknowledged is there exactly once.
"""

import asyncio
import secrets
import selectors
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ppq_proxy.errors import InsufficientBalance, KeyLimitReached
from ppq_proxy.money.ledger import Hold, Ledger
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Batch, Draw, Drawn, HistoryFilter, Refused, Store
from ppq_proxy.store.periods import next_reset
from tests.peers.mongod import Mongod
from tests.store.books import AT, DAY, account, charge, credit, key, standing
from tests.store.conftest import fresh

T = TypeVar("T")
PURSES: list[tuple[str, str | None]] = [("a1", None), ("a1", "k1"), ("a1", "k2"), ("a2", "k3")]
LIMITED = {"k1": 400, "k2": 5000}
amounts = st.one_of(st.integers(1, 60), st.integers(1, 3000))


class HastySelector(selectors.DefaultSelector):
    """Waits a thousandth of the time."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout and timeout / 1000)


class Hasty(asyncio.SelectorEventLoop):
    """An event loop whose clock runs a thousand times as fast: waiting for other processes is soon over."""

    def __init__(self) -> None:
        super().__init__(HastySelector())

    def time(self) -> float:
        return super().time() * 1000


@dataclass
class Process:
    """A process that serves: its ledger, and the calls that it is at."""

    ledger: Ledger
    calls: list[Hold] = field(default_factory=list)


class AtOurTime:
    """The store as the ledgers see it: what they ask for happens at the time of the test, which can jump to another day."""

    def __init__(self, shop: "Shop") -> None:
        self._shop = shop

    async def draw(self, owner: str, draw: Draw, at: int) -> Drawn | Refused:
        return await self._shop.store.draw(owner, draw, self._shop.clock)

    async def commit(self, owner: str, batch: Batch) -> None:
        batch.at = self._shop.clock
        await self._shop.store.commit(owner, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shop.store, name)


class Shop(RuleBasedStateMachine):
    """Two processes, two accounts, three keys; `opened` makes a store on an empty database."""

    def __init__(self, opened: Callable[[], Store], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop
        self.patience = 30_000 if isinstance(loop, Hasty) else 30
        self.clock, self.names = AT, 0
        self.charged: defaultdict[str, int] = defaultdict(int)
        self.lost: defaultdict[str, int] = defaultdict(int)
        self.credited: defaultdict[str, int] = defaultdict(int)
        self.used: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.over_limit: set[str] = set()
        self.dead: list[str] = []
        self.entries = 0
        self.run(self._start(opened))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, self.patience))

    async def _start(self, opened: Callable[[], Store]) -> None:
        self.store = opened()
        await self.store.open()
        self.at_our_time = cast(Store, AtOurTime(self))
        for name in ("a1", "a2"):
            await account(self.store, name, 3000)
            self.credited[name] = 3000
        for name, limit in LIMITED.items():
            await key(self.store, name, name=name, limit=limit, period="daily", reset_at=next_reset("daily", AT))
        await key(self.store, "k3", "a2")
        self.processes = [await self._process(), await self._process()]

    async def _process(self) -> Process:
        self.names += 1
        owner = f"owner{self.names:04}"
        await self.store.join(owner, "", 0, self.clock, self.clock + DAY)
        return Process(Ledger(self.at_our_time, owner))

    # what customers do

    @rule(
        who=st.integers(0, 1), purse=st.sampled_from(PURSES), need=amounts, part=st.integers(1, 4), ahead=st.booleans()
    )
    def hold(self, who: int, purse: tuple[str, str | None], need: int, part: int, ahead: bool) -> None:
        self.run(self._hold(self.processes[who], purse, need, max(1, need // part), ahead))

    async def _hold(
        self, process: Process, purse: tuple[str, str | None], need: int, least: int, ahead: bool
    ) -> Hold | None:
        ledger = process.ledger
        allotment = ledger.allotment(*purse)
        try:
            held = ledger.try_hold(allotment, need) or await ledger.hold(allotment, need, least, ahead=ahead)
        except (InsufficientBalance, KeyLimitReached):
            return None
        assert least <= held.amount <= need
        process.calls.append(held)
        return held

    @rule(who=st.integers(0, 1), purse=st.sampled_from(PURSES), need=amounts)
    def hold_what_nobody_else_wants(self, who: int, purse: tuple[str, str | None], need: int) -> None:
        """A refusal is right: once the other process has returned what lies idle, there is less than was asked for."""
        self.idle(1 - who)
        self.flush()
        if self.run(self._hold(self.processes[who], purse, need, need, False)) is None:
            self.flush()
            found = self.run(self.store.account(purse[0]))
            assert found
            rooms = [found.available]
            if purse[1] in LIMITED:
                of_key = self.run(self.store.key(purse[1]))
                assert of_key
                assert of_key.limit is not None
                rooms.append(of_key.limit - of_key.used - of_key.reserved)
            assert min(rooms) < need

    @precondition(lambda self: any(process.calls for process in self.processes))
    @rule(data=st.data(), add=st.integers(1, 500))
    def extend(self, data: st.DataObject, add: int) -> None:
        process, call = self._some_call(data)
        before = call.amount
        added = self.run(process.ledger.extend(call, add))
        assert 0 <= added <= add
        assert call.amount == before + added

    @precondition(lambda self: any(process.calls for process in self.processes))
    @rule(data=st.data(), percent=st.sampled_from([0, 1, 50, 99, 100, 100, 101, 150, 400]))
    def capture(self, data: st.DataObject, percent: int) -> None:
        process, call = self._some_call(data)
        process.calls.remove(call)
        self.run(self._capture(process, call, call.amount * percent // 100 + (percent > 100)))

    async def _capture(self, process: Process, call: Hold, amount: int) -> None:
        account_id, key_id = call.allotment.account_id, call.allotment.key_id
        late, enough = call.owner != process.ledger.owner, amount <= call.amount
        entry = charge(account_id, key_id, amount)
        charged = await process.ledger.capture(call, entry)
        assert await process.ledger.capture(call, charge(account_id, key_id, 99)) == charged
        if not late:
            assert charged == amount or not enough
            assert charged + entry.lost == amount
            self._count(account_id, key_id, charged, amount - charged)
        else:  # swept meanwhile: what the account pays is charged, and that is for the store to say
            before = self.charged[account_id]
            now = (await standing(self.store, account_id))[1]
            assert 0 <= now - before <= charged
            self._count(account_id, key_id, now - before, amount - (now - before))
            self.over_limit.add(key_id or "")
        self.entries += 1

    def _count(self, account_id: str, key_id: str | None, charged: int, lost: int) -> None:
        self.charged[account_id] += charged
        self.lost[account_id] += lost
        self.used[key_id or "", self.clock // DAY] += charged

    def _some_call(self, data: st.DataObject) -> tuple[Process, Hold]:
        calls = [(process, call) for process in self.processes for call in process.calls]
        return calls[data.draw(st.integers(0, len(calls) - 1))]

    @precondition(lambda self: any(process.calls for process in self.processes))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        process, call = self._some_call(data)
        process.calls.remove(call)

        async def release() -> None:
            process.ledger.release(call)
            process.ledger.release(call)

        self.run(release())

    @rule(needs=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(PURSES), amounts), min_size=2, max_size=12))
    def rush(self, needs: list[tuple[int, tuple[str, str | None], int]]) -> None:
        """Many calls at once, in both processes."""

        async def serve(who: int, purse: tuple[str, str | None], need: int) -> None:
            process = self.processes[who]
            if call := await self._hold(process, purse, need, 1 + need // 2, need % 2 == 0):
                process.calls.remove(call)
                if need % 5:
                    await self._capture(process, call, call.amount * (need % 4) // 3)
                else:
                    process.ledger.release(call)

        async def all_of_them() -> None:
            await asyncio.gather(*(serve(*one) for one in needs))

        self.run(all_of_them())

    @rule(account_id=st.sampled_from(["a1", "a2"]), amount=st.integers(1, 4000))
    def credit(self, account_id: str, amount: int) -> None:
        ref = secrets.token_hex(8)
        assert self.run(self.store.credit(ref, credit(account_id, amount)))
        assert not self.run(self.store.credit(ref, credit(account_id, amount)))
        self.credited[account_id] += amount

    # what befalls the operator

    @rule(who=st.integers(0, 1))
    def lie_idle(self, who: int) -> None:
        self.idle(who)

    def idle(self, who: int) -> None:
        async def idle() -> None:
            self.processes[who].ledger.return_idle(-1)

        self.run(idle())

    @rule(who=st.integers(0, 1), at_once=st.booleans())
    def crash(self, who: int, at_once: bool) -> None:
        """A process ends as by `kill -9`. Its charges stay, its draws return when it is swept."""
        ledger = self.processes[who].ledger
        if ledger.flusher:
            ledger.flusher.cancel()
        self.dead.append(ledger.owner)
        self.processes[who] = self.run(self._process())
        if at_once:
            self.sweep()

    @precondition(lambda self: self.dead)
    @rule()
    def sweep(self) -> None:
        for owner in self.dead:
            self.run(self.store.sweep(owner))
        self.dead.clear()

    @rule(who=st.integers(0, 1))
    def taken_for_dead(self, who: int) -> None:
        """The other process sweeps this one, which lives: it goes on under another name, and its calls end late."""
        ledger = self.processes[who].ledger
        self.run(ledger.flushed())
        self.run(self.store.sweep(ledger.owner))
        assert not self.run(self.store.beat(ledger.owner, 0, self.clock + DAY))
        self.names += 1
        ledger.rename(f"owner{self.names:04}")
        self.run(self.store.join(ledger.owner, "", 0, self.clock, self.clock + DAY))

    @rule(days=st.integers(1, 2))
    def midnight(self, days: int) -> None:
        self.flush()
        self.clock += days * DAY
        self.over_limit.clear()

    # the invariants

    def flush(self) -> None:
        for process in self.processes:
            self.run(process.ledger.flushed())

    @invariant()
    def books_are_right(self) -> None:
        self.flush()
        assert self.run(self.store.audit()) == []
        for name in ("a1", "a2"):
            credited, charged, reserved, lost = self.run(standing(self.store, name))
            assert (credited, charged, lost) == (self.credited[name], self.charged[name], self.lost[name])
            if not self.dead:
                drawn = sum(
                    a.drawn for p in self.processes for a in p.ledger.allotments.values() if a.account_id == name
                )
                assert reserved == drawn
        assert (
            sum(self.run(self.store.history(HistoryFilter(a, nonzero=False), 0, 0))[1] for a in ("a1", "a2"))
            == self.entries
        )

    @invariant()
    def what_is_held_is_drawn(self) -> None:
        for process in self.processes:
            mine = [call for call in process.calls if call.owner == process.ledger.owner]
            assert process.ledger.held == sum(call.amount for call in process.calls)
            for allotment in process.ledger.allotments.values():
                held = sum(call.amount for call in mine if call.allotment is allotment)
                assert allotment.drawn == allotment.free + held
                assert allotment.free >= 0

    @invariant()
    def limits_hold(self) -> None:
        for name, limit in LIMITED.items():
            found = self.run(self.store.key(name))
            assert found
            assert found.reset_at
            if found.reset_at > self.clock:
                assert found.used == self.used[name, self.clock // DAY]
                assert found.used + found.reserved <= limit or name in self.over_limit

    def teardown(self) -> None:
        self.run(self._end())
        self.loop.close()

    async def _end(self) -> None:
        for process in self.processes:
            for call in process.calls:
                process.ledger.release(call)
            await process.ledger.close()
        for owner in [*self.dead, *(process.ledger.owner for process in self.processes)]:
            await self.store.sweep(owner)
        assert [(await standing(self.store, name))[2] for name in ("a1", "a2")] == [0, 0]
        assert await self.store.audit() == []
        assert await self.store.owners() == []
        await self.store.close()


def explore(
    opened: Callable[[], Store], loop: Callable[[], asyncio.AbstractEventLoop], examples: int, steps: int
) -> None:
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    class Here(Shop):
        def __init__(self) -> None:
            super().__init__(opened, loop())

    run_state_machine_as_test(Here, settings=how)


def test_the_books_are_right_after_every_step_on_sqlite(tmp_path: Path) -> None:
    explore(lambda: open_store(f"sqlite:///{tmp_path}/{secrets.token_hex(6)}.db"), Hasty, 40, 30)


@pytest.mark.mongo
@pytest.mark.slow
def test_the_books_are_right_after_every_step_on_a_standalone_mongod(alone: Mongod) -> None:
    explore(lambda: open_store(fresh(alone)), asyncio.new_event_loop, 12, 20)


@pytest.mark.mongo
@pytest.mark.slow
def test_the_books_are_right_after_every_step_on_a_replica_set(replica_set: Mongod) -> None:
    explore(lambda: open_store(fresh(replica_set)), asyncio.new_event_loop, 6, 20)
