"""Processes that die: no charge is lost or doubled, nothing stays held, the books are right afterwards (cases 21 to 24)."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import MONGO, database_for, database_of
from tests.gateway.wire import Answer
from tests.gateway.world import COUNTED_PROMPT, Customer, Gateway, Upstream, World, cost, eventually, new_tag
from tests.peers.mongod import MongodError, ReplicaSet, start_mongod, start_replica_set
from tests.peers.upstream import PROMPT_TOKENS

pytestmark = pytest.mark.slow

EVENTS = 8
CALL = cost(PROMPT_TOKENS, EVENTS)
MOST = max(PROMPT_TOKENS, COUNTED_PROMPT)
LEAST = min(PROMPT_TOKENS, COUNTED_PROMPT)
ENDED_WELL = (0, -15, 143)
BACK_SECONDS = 30
"""Within this time what a dead process held is free again."""


@pytest.fixture(params=["sqlite", MONGO])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return database_for(request, tmp_path)


@pytest.fixture
async def world(database: str, tmp_path: Path, upstream: Upstream) -> AsyncIterator[World]:
    """A world with nothing running in it; its books have to be right at the end."""
    async with ended(World(database, tmp_path, upstream=upstream, PPQ_ALLOTMENT_IDLE_SECONDS="1")) as one:
        yield one


@contextlib.asynccontextmanager
async def ended(world: World) -> AsyncIterator[World]:
    try:
        yield world
        await world.doctor()
    finally:
        for gateway in world.gateways:
            gateway.kill()
        world.gateways.clear()
        await world.stop()


@dataclass
class Sent:
    """A call whose gateway may die."""

    customer: Customer
    tag: str
    stream: bool
    answer: Answer

    @property
    def whole(self) -> bool:
        """True if the client has all of it."""
        return self.answer.status == 200 and self.answer.whole and (self.answer.done or not self.stream)

    @property
    def seen(self) -> int:
        """How many words of it the client has."""
        return self.answer.body.count(b'"content":" word"') if self.stream else 0


async def call(gateway: Gateway, customer: Customer, *, stream: bool, tag: str | None = None, **fields: Any) -> Sent:
    """A call under its own request id. Whatever becomes of the gateway, what came is in the answer."""
    tag = tag or new_tag()
    talk = gateway.talk(customer.key, tag=tag, stream=stream, headers={"x-request-id": tag}, **fields)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with talk:
            await talk.rest()
    return Sent(customer, tag, stream, talk.answer)


async def check(world: World, calls: list[Sent], seconds: float = BACK_SECONDS) -> int:
    """Every call against the books: exactly once and exact if it was whole, else at most what was made. How many were whole."""
    charges: dict[str, list[Decimal]] = {one.tag: [] for one in calls}
    for customer in {id(one.customer): one.customer for one in calls}.values():
        books = await customer.books(seconds=seconds)
        for row in books.rows:
            charges[row["request_id"]].append(Decimal(row["price_in_usd"]))
    journal = {call["user"]: call for call in await world.upstream.journal()}
    for one in calls:
        charged, made = charges[one.tag], journal.get(one.tag, {}).get("tokens", 0)
        if one.whole:
            assert charged == [cost(PROMPT_TOKENS, made)], f"a whole answer was charged {charged}"
            receipt = await one.customer.receipt(one.tag)
            assert Decimal(receipt["cost_usd"]) == charged[0]
        else:
            assert len(charged) <= 1 and sum(charged) <= cost(MOST, made)
    return sum(one.whole for one in calls)


# 21 and 22: killed


STAGES = {
    True: ("request", "head", "event:1", "event:4", "finish", "usage", "done", "end"),
    False: ("request", "body", "end"),
}


@pytest.mark.parametrize("rescue", ["restarted", "another lives"])
async def test_case22_killed_at_every_step_of_a_call(world: World, rescue: str) -> None:
    """Calls that stand at every step, of accounts with much and with little money; one blow ends them all."""
    doomed = await world.start()
    if rescue == "another lives":
        await world.start()
    running = []
    for stream, stages in STAGES.items():
        for stage in stages:
            for credit in ("1", "0.00005"):
                customer, tag = await world.customer(credit), new_tag()
                play = {"pause": stage}
                running.append(
                    asyncio.create_task(call(doomed, customer, stream=stream, tag=tag, max_tokens=EVENTS, play=play))
                )
                await world.upstream.reached(tag, stage)
    await asyncio.sleep(0.3)
    await world.kill(doomed)
    killed = time.monotonic()
    calls = await asyncio.gather(*running)
    if rescue == "restarted":
        await world.start()
    whole = await check(world, calls)
    assert time.monotonic() - killed < BACK_SECONDS
    assert whole >= 4, "what had come to its end was not whole"
    again = await asyncio.gather(*(one.customer.chat(max_tokens=1, play={"events": 1}) for one in calls))
    assert {answer.status for answer in again} <= {200, 402}
    assert all(answer.status == 200 for one, answer in zip(calls, again, strict=True) if not one.whole)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_case21_killed_at_the_very_last_byte(world: World, stream: bool) -> None:
    """The client itself kills the gateway the moment it has its answer: the charge is there, once."""
    customer = await world.customer("5")
    calls: list[Sent] = []
    for _ in range(8):
        gateway = await world.start()
        others = [asyncio.create_task(call(gateway, customer, stream=stream, play={"tick": 0.005})) for _ in range(10)]
        tag = new_tag()
        async with gateway.talk(customer.key, tag=tag, stream=stream, headers={"x-request-id": tag}) as talk:
            await talk.head()
            while not talk.answer.body.endswith(b"data: [DONE]\n\n" if stream else b"}}"):
                await talk.piece()
            gateway.kill()
        world.gateways.remove(gateway)
        talk.answer.whole = True
        calls += [Sent(customer, tag, stream, talk.answer), *await asyncio.gather(*others)]
    await world.start()
    assert await check(world, calls) >= 8


async def test_case21_killed_at_any_moment_under_load(world: World) -> None:
    """Kill after kill at random moments, with some customers near the end of their money."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    print(f"seed {seed}")
    customers = [await world.customer(credit) for credit in ("5", "1", "0.004", "0.002")]
    calls: list[Sent] = []

    async def caller(gateway: Gateway, customer: Customer) -> None:
        while gateway.process.poll() is None:
            made = chance.randint(1, 12)
            play = {"events": made, "tick": chance.choice((0, 0, 0.002))}
            calls.append(await call(gateway, customer, stream=chance.random() < 0.6, max_tokens=12, play=play))

    for _ in range(8):
        gateway = await world.start()
        callers = [asyncio.create_task(caller(gateway, customers[at % 4])) for at in range(24)]
        await asyncio.sleep(chance.uniform(0.1, 0.8))
        await world.kill(gateway)
        await asyncio.gather(*callers)
    await world.start()
    assert await check(world, calls) > 50


async def test_case22_one_of_two_processes_killed_under_load(world: World) -> None:
    """The survivor serves on, and returns what the dead one had drawn."""
    customer = await world.customer("0.02")
    survivor = await world.start()
    calls: list[Sent] = []
    stop = asyncio.Event()

    async def caller(gateway: Gateway) -> None:
        while gateway.process.poll() is None and not stop.is_set():
            calls.append(await call(gateway, customer, stream=True, max_tokens=EVENTS))

    surviving = [asyncio.create_task(caller(survivor)) for _ in range(4)]
    for _ in range(4):
        doomed = await world.start()
        callers = [asyncio.create_task(caller(doomed)) for _ in range(8)]
        await asyncio.sleep(0.5)
        await world.kill(doomed)
        await asyncio.gather(*callers)
    stop.set()
    await asyncio.gather(*surviving)
    await check(world, calls)


def workers_of(gateway: Gateway) -> list[int]:
    """The workers below a gateway's first process, without Python's own helper."""
    pid = gateway.process.pid
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in below if b"resource_tracker" not in Path(f"/proc/{one}/cmdline").read_bytes()]


async def test_case22_a_worker_is_killed(world: World) -> None:
    """One worker of two dies with calls in it: it is replaced, and what it held is free again."""
    gateway = await world.start("--workers", "2")
    customers = [await world.customer("0.00005") for _ in range(8)]
    tags = [new_tag() for _ in customers]
    play = {"pause": "event:2"}
    running = [
        asyncio.create_task(call(gateway, customer, stream=True, tag=tag, max_tokens=EVENTS, play=play))
        for customer, tag in zip(customers, tags, strict=True)
    ]
    for tag in tags:
        await world.upstream.reached(tag, "event:2")
    workers = workers_of(gateway)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    await asyncio.sleep(0.5)
    for tag in tags:
        await world.upstream.go(tag)
    calls = await asyncio.gather(*running)
    whole = await check(world, calls)
    assert whole < len(calls), "the killed worker had no call, so this shows nothing"

    async def two() -> bool:
        return len(workers_of(gateway)) == 2

    assert await eventually(two, 20)
    answers = await asyncio.gather(*(one.customer.chat(max_tokens=1, play={"events": 1}) for one in calls))
    assert all(answer.status == 200 for one, answer in zip(calls, answers, strict=True) if not one.whole)


# 23: SIGTERM


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_case23_sigterm_drains(world: World, workers: str) -> None:
    """What can end in time ends; what cannot is told so; every token that was delivered is charged."""
    gateway = await world.start("--workers", workers, PPQ_DRAIN_SECONDS="3")
    customer = await world.customer("1")
    short = [asyncio.create_task(call(gateway, customer, stream=True, play={"tick": 0.2})) for _ in range(5)]
    plain = [asyncio.create_task(call(gateway, customer, stream=False, play={"tick": 0.15})) for _ in range(5)]
    long = [
        asyncio.create_task(call(gateway, customer, stream=True, play={"events": 600, "tick": 0.1})) for _ in range(5)
    ]
    await asyncio.sleep(0.8)
    began = time.monotonic()
    ending = asyncio.create_task(world.end(gateway))
    if workers == "1":
        await asyncio.sleep(0.3)
        with pytest.raises(OSError):  # whoever balances load has to notice
            await gateway.http("GET", "/health")
    code = await ending
    assert code in ENDED_WELL and time.monotonic() - began < 20
    ended = await asyncio.gather(*short, *plain)
    assert all(one.whole for one in ended)
    cut_off = await asyncio.gather(*long)
    shown = await world.show(customer.credit_id)
    assert shown["held_usd"] == 0, "a process that ends in good order leaves nothing held"
    await world.start()
    assert await check(world, [*ended, *cut_off]) == 10
    for one in cut_off:
        assert one.answer.whole and one.answer.broken and not one.answer.done
        assert Decimal((await customer.receipt(one.tag))["cost_usd"]) >= cost(LEAST, one.seen)
        assert one.seen >= 20


async def test_case23_sigterm_again_and_again_under_load(world: World) -> None:
    """A rolling restart: nothing is lost that a client has seen."""
    customers = [await world.customer("5"), await world.customer("0.01")]
    calls: list[Sent] = []

    async def caller(gateway: Gateway, customer: Customer) -> None:
        while gateway.process.poll() is None:
            sent = await call(gateway, customer, stream=len(calls) % 2 == 0, play={"tick": 0.01}, max_tokens=EVENTS)
            calls.append(sent)
            if not sent.answer.status:
                await asyncio.sleep(0.05)

    for _ in range(4):
        gateway = await world.start()
        callers = [asyncio.create_task(caller(gateway, customers[at % 2])) for at in range(12)]
        await asyncio.sleep(0.6)
        assert await world.end(gateway) in ENDED_WELL
        await asyncio.gather(*callers)
        for customer in customers:
            assert (await world.show(customer.credit_id))["held_usd"] == 0
    await world.start()
    assert await check(world, calls) > 50
    for one in calls:
        assert one.whole or one.seen == 0 or one.answer.broken, "a stream just stopped"


# 24: credits


async def test_case24_credits_from_other_processes_under_load(world: World) -> None:
    """Each credit once, however often it is repeated, while calls are charged to the same account by two processes."""
    one, two = await world.start(), await world.start()
    customer = await world.customer("0.001")
    calls: list[Sent] = []
    stop = asyncio.Event()

    async def caller(gateway: Gateway) -> None:
        while not stop.is_set():
            calls.append(await call(gateway, customer, stream=len(calls) % 2 == 0, max_tokens=EVENTS))

    callers = [asyncio.create_task(caller(gateway)) for gateway in (one, two) for _ in range(4)]
    for at in range(25):
        for _ in range(1 + at % 3):
            await world.cli("accounts", "credit", customer.credit_id, "0.000123456", "--id", f"credit-{at}")
    typed = [
        asyncio.to_thread(world.run, "accounts", "credit", customer.credit_id, "0.01", "--id", "typed")
        for _ in range(4)
    ]
    assert [done.returncode for done in await asyncio.gather(*typed)] == [0] * 4
    stop.set()
    await asyncio.gather(*callers)
    await check(world, calls)
    shown = await world.show(customer.credit_id)
    assert shown["credited_usd"] == Decimal("0.001") + 25 * Decimal("0.000123456") + Decimal("0.01")


# the database itself


@pytest.mark.mongo
async def test_the_only_mongod_is_killed_under_load(tmp_path: Path, upstream: Upstream) -> None:
    """While it is away nothing is sold that could not be charged; when it is back every charge is in it."""
    try:
        server = await asyncio.to_thread(start_mongod, tmp_path / "db", None, "rs0")
    except MongodError as problem:
        pytest.skip(str(problem))
    try:
        async with ended(World(database_of(server.url), tmp_path, upstream=upstream)) as world:
            await _survives(world, server.kill, server.start)
    finally:
        server.stop()


@pytest.mark.mongo
async def test_the_primary_is_killed_under_load(tmp_path: Path, upstream: Upstream) -> None:
    try:
        servers: ReplicaSet = await asyncio.to_thread(start_replica_set, tmp_path / "db")
    except MongodError as problem:
        pytest.skip(str(problem))
    try:
        async with ended(World(database_of(servers.url), tmp_path, upstream=upstream)) as world:
            await _survives(world, servers.kill_primary, servers.primary)
    finally:
        servers.stop()


async def _survives(world: World, kill: Any, back: Any) -> None:
    gateway = await world.start()
    customers = [await world.customer("5"), await world.customer("0.01")]
    calls: list[Sent] = []
    stop = asyncio.Event()

    async def caller(customer: Customer) -> None:
        while not stop.is_set():
            sent = await call(gateway, customer, stream=len(calls) % 2 == 0, max_tokens=EVENTS)
            calls.append(sent)
            if not sent.whole:
                await asyncio.sleep(0.05)

    callers = [asyncio.create_task(caller(customers[at % 2])) for at in range(12)]
    await asyncio.sleep(1)
    await asyncio.to_thread(kill)
    await asyncio.sleep(2)
    await asyncio.to_thread(back)
    before = sum(one.whole for one in calls)

    async def served_again() -> bool:
        return sum(one.whole for one in calls) > before + 20

    assert await eventually(served_again, 60, 0.1), "not served again after the database came back"
    stop.set()
    await asyncio.gather(*callers)
    assert {one.answer.status for one in calls} <= {200, 402, 503}
    await check(world, calls)
