"""MongoDB without transactions: killed at every step, at any moment, and with a primary that goes away."""

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ppq_proxy.errors import InsufficientBalance, StoreUnavailable
from ppq_proxy.money.ledger import Ledger, now_ms
from ppq_proxy.money.owner import Heart, host_name, is_dead, owner_name
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Batch, Drawn, Entry, HistoryFilter, Refused, Store
from tests.peers.mongod import ReplicaSet, start_replica_set
from tests.store.books import AT, DAY, account, batch, call, charge, credit, key, standing, use
from tests.store.conftest import SERVERS
from tests.store.dying import DeadError, DyingStore, Fuse, Mishap

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
MANY = 10_000


@dataclass
class Story:
    """A run through everything that moves money, and what of it was acknowledged."""

    store: Store
    tries: int
    done: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    async def sure(self, ask: Callable[[], Awaitable[object]]) -> object:
        """Ask again while the database is away, as the ledger does."""
        for _ in range(self.tries - 1):
            with contextlib.suppress(StoreUnavailable):
                return await ask()
        return await ask()

    async def draw(
        self, owner: str, need: int, account_id: str = "a1", key_id: str | None = None, at: int = AT
    ) -> None:
        found = await self.sure(lambda: self.store.draw(owner, call(need, account_id, key_id), at))
        assert isinstance(found, Drawn), found

    async def commit(self, owner: str, made: Batch) -> None:
        asked = {entry.request_id: entry.amount for entry in made.entries}
        self.asked |= asked
        # A batch that is tried again is the same one, so each try gets the entries as they were.
        await self.sure(lambda: self.store.commit(owner, replace(made, entries=[replace(e) for e in made.entries])))
        self.done |= asked

    async def run(self) -> None:
        await self.sure(lambda: self.store.join("one", "", 0, AT, AT + 1))
        await self.draw("one", 100, key_id="k1")
        await self.draw("one", 50)
        await self.draw("one", 300, "a2")
        mixed = [
            named("r1", "k1", 10),
            named("r2", None, 5),
            named("r3", None, 300, "a2"),
            named("r4", "k1", 20, lost=3),
        ]
        first = batch(1, *mixed, give_back={("a1", "k1"): 70, ("a1", None): 1})
        first.rows = await self.store.rows.find("job")
        for row in first.rows:
            row.doc, row.state = {"done": True}, "done"
        await self.commit("one", first)
        await self.draw("one", 30, key_id="k1", at=AT + DAY)
        await self.commit("one", batch(2, named("r5", "k1", 30), give_back={("a1", None): 44}, at=AT + DAY))
        await self.sure(lambda: self.store.credit("story", credit("a1", 77)))
        await self.sure(lambda: self.store.update_key("k1", {"limit": 500}))
        # The other process died with a batch that it has just written, and is swept.
        await self.sure(lambda: self.store.sweep("two"))
        # This one is swept as well while it lives, and goes on: its last batch comes too late.
        await self.draw("one", 60, "a2", "k2")
        await self.sure(lambda: self.store.sweep("one"))
        await self.commit(
            "one", batch(3, named("r6", "k2", 55, "a2"), named("r7", None, 3), give_back={("a2", "k2"): 5})
        )
        for _ in range(2):
            late = await self.sure(lambda: self.draws_nothing("one"))
            assert late is True

    async def draws_nothing(self, owner: str) -> bool:
        """An owner that was swept cannot draw: it is told that the store is not to be had under this name."""
        try:
            found = await self.store.draw(owner, call(7), AT)
        except StoreUnavailable as problem:
            if "taken for dead" not in str(problem):
                raise
            return True
        return isinstance(found, Refused)


def named(request_id: str, key_id: str | None, amount: int, account_id: str = "a1", lost: int = 0) -> Entry:
    return charge(account_id, key_id, amount, request_id=request_id, lost=lost)


async def prepare(url: str) -> None:
    """A database with accounts, and an owner "two" that died after its batch was written and before it was settled."""
    async with opened(url) as store:
        await account(store, "a1", 1000)
        await account(store, "a2", 500)
        await key(store, limit=400, period="daily", reset_at=AT + DAY)
        await key(store, "k2", "a2")
        await store.rows.insert("job", "1", {}, state="run")
        await store.join("two", "", 0, AT, AT + 1)
        for need, key_id in ((40, "k1"), (20, None)):
            assert isinstance(await store.draw("two", call(need, key_id=key_id), AT), Drawn)
        fuse = Fuse("dies before", MANY)
        async with opened(url, fuse) as dying:
            fuse.at = fuse.writes + 2
            with pytest.raises(DeadError):
                await dying.commit("two", batch(1, named("t1", "k1", 33), named("t2", None, 9)))
        assert await store.audit() == []


@contextlib.asynccontextmanager
async def opened(url: str, fuse: Fuse | None = None) -> AsyncIterator[Store]:
    """A store, closed in the end whatever happened in between."""
    store: Store = DyingStore(url, fuse) if fuse else open_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def told(
    url: str, mishap: Mishap, at: int, others: Callable[[], Awaitable[None]] | None = None
) -> tuple[Story, bool, int]:
    """The story with a mishap at one write: how far it came, whether it came to its end, and how many writes it took."""
    await prepare(url)
    fuse = Fuse(mishap, MANY, others=others)
    async with opened(url, fuse) as dying:
        fuse.at, fuse.writes = at, 0
        story = Story(dying, 4)
        try:
            await story.run()
        except DeadError:
            return story, False, fuse.writes
        except StoreUnavailable as problem:
            if "taken for dead" not in str(problem):
                raise
            return story, False, fuse.writes
        return story, True, fuse.writes


async def charged_by_request(store: Store, *accounts: str) -> dict[str, tuple[int, int]]:
    """(charged, lost) of every request, each of which has one entry."""
    wanted = [HistoryFilter(account_id, nonzero=False) for account_id in accounts or ("a1", "a2")]
    entries = [entry for one in wanted for entry in (await store.history(one, 0, MANY**2))[0]]
    found = {entry.request_id: (entry.amount, entry.lost) for entry in entries}
    assert len(found) == len(entries)
    return found


def database(url: str) -> str:
    base, _, options = url.partition("?")
    return f"{base.rpartition('/')[0]}/test_{secrets.token_hex(6)}" + (f"?{options}" if options else "")


@pytest.mark.parametrize("url", SERVERS, indirect=True)
@pytest.mark.parametrize("mishap", ["request lost", "answer lost"])
async def test_a_lost_request_or_answer_at_any_write_changes_nothing(url: str, mishap: Mishap) -> None:
    """Whatever write it is, everything comes out to the last nano-dollar as if nothing had been lost."""
    at = writes = 0
    while writes >= at:
        at += 1
        story, ended, writes = await told(url := database(url), mishap, at)
        assert ended
        async with opened(url) as store:
            assert await store.audit() == [], at
            assert await standing(store) == (1077, 110, 0, 3), at
            assert await standing(store, "a2") == (500, 355, 0, 0), at
            assert await use(store) == (63, 93, 0), at
            assert await use(store, "k2") == (55, 55, 0), at
            found = await charged_by_request(store)
            assert {name: amount for name, (amount, _) in found.items()} == {**story.asked, "t1": 33, "t2": 9}, at
            changed = await store.key("k1")
            assert changed
            assert (changed.limit, await store.version() >= 1) == (500, True)
            assert [(row.state, row.version) for row in await store.rows.find("job")] == [("done", 2)], at
            assert await store.owners() == [], at
    assert at > 60


@pytest.mark.parametrize("url", SERVERS, indirect=True)
@pytest.mark.parametrize("mishap", ["dies before", "dies after"])
async def test_a_death_at_any_write_loses_no_acknowledged_charge_and_doubles_none(url: str, mishap: Mishap) -> None:
    at, ended = 0, False
    while not ended:
        at += 1
        story, ended, _ = await told(url := database(url), mishap, at)
        async with opened(url) as store:  # the next process to start; all that it does by itself is to sweep
            while owners := await store.owners():
                for owner in owners:
                    await store.sweep(owner.id)
            assert await store.audit() == [], at
            await check_after_death(story, store, at)
    assert at > 60


@pytest.mark.parametrize("url", SERVERS, indirect=True)
@pytest.mark.parametrize("mishap", ["others before", "others after", "others, request lost", "others, answer lost"])
async def test_an_owner_that_is_swept_between_any_two_writes(url: str, mishap: Mishap) -> None:
    """It lives, and goes on where it was, while another process has swept it and has finished its credits."""
    at = writes = 0
    while writes >= at:
        at += 1
        url = database(url)

        async def others(url: str = url) -> None:
            async with opened(url) as store:
                for owner in await store.owners():
                    await store.sweep(owner.id)
                await store.credit("story", credit("a1", 77))

        story, _, writes = await told(url, mishap, at, others)
        async with opened(url) as store:
            await store.sweep("one")
            assert await store.owners() == [], at
            assert await store.audit() == [], at
            await check_after_death(story, store, at)
    assert at > 60


@pytest.mark.parametrize("url", SERVERS, indirect=True)
@pytest.mark.parametrize("mishap", ["others before", "others after"])
async def test_an_owner_that_works_between_any_two_writes_of_its_sweep(url: str, mishap: Mishap) -> None:
    at, fuse = 0, Fuse(mishap, MANY)
    while fuse.writes >= at:
        at += 1
        async with opened(url := database(url)) as alive:
            await account(alive, amount=1000)
            await key(alive)
            await alive.join("one", "", 0, AT, AT + 1)
            await alive.draw("one", call(100, key_id="k1"), AT)
            await alive.draw("one", call(50), AT)
            await alive.commit("one", batch(1, named("r1", "k1", 20)))

            async def work(alive: Store = alive) -> None:
                with contextlib.suppress(StoreUnavailable):
                    await alive.draw("one", call(30, key_id="k1"), AT)
                await alive.commit("one", batch(2, named("r2", "k1", 40), give_back={("a1", None): 10}))

            fuse = Fuse(mishap, MANY, others=work)
            async with opened(url, fuse) as sweeper:
                fuse.at, fuse.writes = at, 0
                await sweeper.sweep("one")
            done = 20 + 40 * (fuse.writes >= at)
            assert await alive.audit() == [], at
            assert await standing(alive) == (1000, done, 0, 0), at
            assert await use(alive) == (done, done, 0), at
            assert await alive.owners() == []
    assert at > 8


async def check_after_death(story: Story, store: Store, at: int) -> None:
    found = await charged_by_request(store)
    for request_id, amount in {**story.done, "t1": 33, "t2": 9}.items():
        assert found[request_id][0] == amount, (at, request_id)
    for request_id, (amount, lost) in found.items():
        assert amount == {**story.asked, "t1": 33, "t2": 9}[request_id], (at, request_id)
        assert lost == (3 if request_id == "r4" else 0)
    for name, start in (("a1", 1000), ("a2", 500)):
        credited, _, reserved, _ = await standing(store, name)
        assert reserved == 0, at
        assert credited in (start, start + 77)
    for name in ("k1", "k2"):
        assert (await use(store, name))[2] == 0, at
    changed = await store.key("k1")
    assert changed
    assert changed.limit == 400 or await store.version() >= 1, at
    await store.credit("story", credit("a1", 77))
    assert (await standing(store))[0] == 1077, at
    assert await store.audit() == [], at


@pytest.mark.parametrize("url", SERVERS, indirect=True)
@pytest.mark.parametrize("mishap", ["dies before", "request lost", "answer lost"])
@pytest.mark.parametrize("write", [1, 2, 3, 4])
async def test_who_comes_next_settles_what_was_left_at_any_write(url: str, mishap: Mishap, write: int) -> None:
    """A job whose process died, or gave up, in a batch: the next process, or the next batch, settles that one first."""
    fuse = Fuse(mishap, MANY)
    async with opened(url) as store, opened(url, fuse) as first:
        await account(store, amount=1000)
        await key(store)
        await first.draw("job:1", call(100, key_id="k1"), AT)
        fuse.at = fuse.writes + write
        with pytest.raises((DeadError, StoreUnavailable)):
            await first.commit("job:1", batch(1, named("r1", "k1", 30)))
        then = store if fuse.dead else first
        await then.draw("job:1", call(50, key_id="k1"), AT)
        await then.commit("job:1", batch(2, named("r2", "k1", 70)))
        written = 30 if (write, mishap) not in ((1, "dies before"), (1, "request lost")) else 0
        assert await standing(store) == (1000, written + 70, 80 - written, 0)
        assert await use(store) == (written + 70, written + 70, 80 - written)
        assert await store.audit() == []
        assert await store.sweep("job:1") == 80 - written
        assert await store.audit() == []


@pytest.mark.parametrize("url", SERVERS, indirect=True)
async def test_processes_killed_at_any_moment(url: str) -> None:
    """`kill -9` in the middle of its work, again and again: what it has acknowledged is charged, once."""
    acknowledged: set[str] = set()
    async with opened(url) as store:
        for name, amount in (("rich", 10**9), ("thin", 1500)):
            await account(store, name, amount)
        await key(store, "k1", "rich")
        await key(store, "k2", "thin", limit=10**6)
        for turn in range(10):
            await store.credit(f"turn {turn}", credit("thin", 1500))
            acknowledged |= await spend_and_die(url)
            for owner in await store.owners():
                assert is_dead(owner, host_name(), now_ms())
                await store.sweep(owner.id)
            assert await store.audit() == []
            for name in ("rich", "thin"):
                credited, charged, reserved, _ = await standing(store, name)
                assert 0 == reserved <= credited - charged
            for name in ("k1", "k2"):
                assert (await use(store, name))[2] == 0
        assert acknowledged <= {*await charged_by_request(store, "rich", "thin")}
        assert len(acknowledged) > 500


async def spend_and_die(url: str) -> set[str]:
    """Run a process that serves, kill it somewhere in its first half second: the requests it said were charged."""
    command = (sys.executable, "-m", "tests.store.spender", url)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=pipe)
    assert process.stdout
    assert await process.stdout.readline() == b"ready\n"
    reading = asyncio.create_task(process.stdout.read())
    await asyncio.sleep(0.1 + secrets.randbelow(400) / 1000)
    process.kill()
    said = (await reading).decode()
    await process.wait()
    return set(said[: said.rfind("\n") + 1].split())


async def test_a_primary_that_is_killed_under_load(tmp_path: Path) -> None:
    servers = await asyncio.to_thread(start_replica_set, tmp_path)
    try:
        async with opened(servers.url) as store:
            await spend_through_failovers(store, servers)
    finally:
        await asyncio.to_thread(servers.stop)


async def spend_through_failovers(store: Store, servers: ReplicaSet) -> None:
    await account(store, "rich", 10**9)
    await account(store, "thin", 3000)
    await key(store, "k1", "rich")
    ledger = Ledger(store, owner_name())
    heart = Heart(store, ledger, 60, 1, lambda: None)
    await heart.start()
    load = Load(store, ledger)
    purses = [("rich", None), ("rich", "k1"), ("thin", None), ("thin", None)]
    workers = [asyncio.create_task(load.serve(*purses[i % 4])) for i in range(16)]
    for _ in range(3):
        await asyncio.sleep(2)
        lost = await asyncio.to_thread(servers.kill_primary)
        await asyncio.to_thread(servers.primary)
        await load.more(100)
        await asyncio.to_thread(lost.start)
    load.stopped = True
    await asyncio.gather(*workers)
    # The next draw puts back those whose answer was lost, so that nothing stays held for nobody.
    ledger.release(await ledger.hold(ledger.allotment("rich", None), 1, ahead=False))
    ledger.return_idle(-1)
    await ledger.flushed()
    assert sum(one.drawn for one in ledger.allotments.values()) == 0
    assert [(await standing(store, name))[2] for name in ("rich", "thin")] == [0, 0]
    assert (await use(store))[2] == 0
    assert await store.audit() == []
    charged = await charged_by_request(store, "rich", "thin")
    assert {request_id: amount for request_id, (amount, _) in charged.items()} == load.acknowledged
    await heart.stop()
    assert await store.owners() == []
    assert await store.audit() == []


@dataclass
class Load:
    """Customers that call one time after the other, and what they were charged."""

    store: Store
    ledger: Ledger
    acknowledged: dict[str, int] = field(default_factory=dict)
    stopped: bool = False

    async def serve(self, account_id: str, key_id: str | None) -> None:
        allotment = self.ledger.allotment(account_id, key_id)
        while not self.stopped:
            need = 1 + secrets.randbelow(40)
            try:
                hold = self.ledger.try_hold(allotment, need) or await self.ledger.hold(allotment, need)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
                continue
            except InsufficientBalance:
                with contextlib.suppress(StoreUnavailable):
                    await self.store.credit(secrets.token_hex(8), credit(account_id, 500))
                continue
            request_id, amount = secrets.token_hex(12), 1 + secrets.randbelow(need)
            await self.ledger.capture(hold, charge(account_id, key_id, amount, now_ms(), request_id=request_id))
            self.acknowledged[request_id] = amount

    async def more(self, count: int) -> None:
        """Wait until so many more calls were charged."""
        wanted, deadline = len(self.acknowledged) + count, time.monotonic() + 60
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, "nothing is charged any more"
            await asyncio.sleep(0.1)
