"""`kill -9` between a payment and its credit, on both databases, with one process and with two."""

import asyncio
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.world import World, eventually
from tests.peers.mongod import MongodError, start_mongod

pytestmark = pytest.mark.slow
ENV = {"PPQ_WALLET": "dev", "PPQ_CHALLENGES_PER_MINUTE": "off"}
RATE, ANOTHER = {"PPQ_BTC_USD": "100000"}, {"PPQ_BTC_USD": "50000"}
ONE = Decimal("1.05")
ROUNDS = 10


def database(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/gateway.db"
        return
    try:
        server = start_mongod(folder, replica_set="rs0" if kind == "set" else None)
    except MongodError as problem:
        pytest.skip(f"no mongod here: {problem}")
    base, _, options = server.url.partition("?")
    yield f"{base}topups" + (f"?{options}" if options else "")
    server.stop()


@pytest.fixture(
    scope="module", params=["sqlite", *(pytest.param(kind, marks=pytest.mark.mongo) for kind in ("alone", "set"))]
)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("crashes")
    for url in database(request.param, folder):
        one = World(url, folder, upstream=None, rows=(), **ENV)
        one.start_now(**RATE)
        try:
            yield one
            code, out, err = one.desk.run(["doctor", "--models", str(one.models), "--json"])
            assert code == 0, out + err
        finally:
            one.stop_now()


async def make(world: World, key: str, name: str = "") -> Any:
    headers = {"idempotency-key": name} if name else {}
    answer = await world.http(
        "POST", "/topup/create/btc-lightning", {"amount": 1000, "currency": "SATS"}, key, headers=headers
    )
    assert answer.status in (201, 409), answer.body
    return answer.json if answer.status == 201 else None


async def is_credited(world: World, credit_id: str, due: Decimal) -> bool:
    async def credited() -> bool:
        return (await world.show(credit_id))["credited_usd"] >= due

    return bool(await eventually(credited, 20))


async def test_PPQ_160_killed_around_the_credit_each_payment_is_credited_once(world: World) -> None:
    credit_id, key = await world.account("0")
    dice, due, every = random.Random(160), Decimal(0), []
    for count in range(ROUNDS):
        topups = [await make(world, key) for _ in range(3)]
        every += topups
        for made in topups:
            await world.cli("wallet", "pay", made["lightning_invoice"])
        due += ONE * len(topups)
        asking = [
            asyncio.create_task(world.http("GET", f"/topup/status/{made['invoice_id']}", key=key))
            for made in topups * 3
        ]
        await asyncio.sleep(dice.uniform(0, 0.03))
        await world.kill()
        await asyncio.gather(*asking, return_exceptions=True)
        await world.start(**RATE)
        if count % 2:  # every other time nobody asks
            assert await is_credited(world, credit_id, due), f"round {count}: paid, and not credited within 20 s"
    for made in every:
        await world.http("GET", f"/topup/status/{made['invoice_id']}", key=key)
    assert await is_credited(world, credit_id, due)
    await asyncio.sleep(2)
    assert (await world.show(credit_id))["credited_usd"] == due
    states = [
        (await world.http("GET", f"/topup/status/{made['invoice_id']}", key=key)).json["status"] for made in every
    ]
    assert set(states) == {"Settled"}


async def test_PPQ_160_two_processes_and_one_is_killed(world: World) -> None:
    credit_id, key = await world.account("0")
    dice, due = random.Random(161), Decimal(0)
    await world.start(**ANOTHER)
    for _ in range(4):
        topups = [await make(world, key) for _ in range(3)]
        for made in topups:
            await world.cli("wallet", "pay", made["lightning_invoice"])
        due += ONE * len(topups)  # at the rate of the first process, which made them
        paths = [f"/topup/status/{made['invoice_id']}" for made in topups] * 3
        asking = [asyncio.create_task(one.http("GET", path, key=key)) for path in paths for one in world.gateways]
        await asyncio.sleep(dice.uniform(0, 0.03))
        await world.kill(world.gateways[-1])
        await asyncio.gather(*asking, return_exceptions=True)
        assert await is_credited(world, credit_id, due), "the other process goes on"
        await world.start(**ANOTHER)
    await world.end(world.gateways[-1])
    assert (await world.show(credit_id))["credited_usd"] == due


async def test_PPQ_150_killed_while_it_is_made_the_same_key_makes_it_once(world: World) -> None:
    credit_id, key = await world.account("0")
    dice, due = random.Random(162), Decimal(0)
    for count in range(ROUNDS):
        name = f"order-{count}"
        asking = [asyncio.create_task(make(world, key, name)) for _ in range(4)]
        await asyncio.sleep(dice.uniform(0, 0.02))
        await world.kill()
        before = [made for made in await asyncio.gather(*asking, return_exceptions=True) if isinstance(made, dict)]
        await world.start(**RATE)
        made = await eventually(lambda name=name: make(world, key, name), 20, 0.2)
        assert made and all(one == made for one in before), "whoever had an answer has the only one"
        await world.cli("wallet", "pay", made["lightning_invoice"])
        due += ONE
    assert await is_credited(world, credit_id, due)
    await asyncio.sleep(2)
    assert (await world.show(credit_id))["credited_usd"] == due
