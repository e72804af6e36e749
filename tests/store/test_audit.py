"""An audit finds what is wrong, says where, and raises no false alarm while the shop is open."""

import asyncio
import sqlite3
from typing import Any

import pytest
from pymongo import MongoClient

from ppq_proxy.money.ledger import Ledger
from ppq_proxy.store.base import Store
from tests.store.books import AT, account, batch, charge, drawn, key
from tests.store.conftest import Opener

# What is changed by hand: in which table and in which row, which column, by how much; and what the audit then says.
WRONGS = [
    ("accounts", "a1", "charged", 1, "Σ charges of a1 is 30, its account says 31"),
    ("accounts", "a1", "credited", 2, "Σ credits of a1 is 1000, its account says 1002"),
    ("accounts", "a1", "lost", 1, "Σ losses of a1 is 3, its account says 4"),
    ("accounts", "a1", "reserved", -1, "Σ draws on a1 is 70, its account says 69"),
    ("keys", "k1", "reserved", 1, "Σ draws on key k1 is 70, the key says 71"),
    ("keys", "k1", "used_total", 1, "Σ charges of key k1 is 30, the key says 31"),
]


async def shop(store: Store) -> None:
    await account(store, amount=1000)
    await account(store, "a2", 1000)
    await key(store)
    await store.join("one", "", 0, AT, AT + 9)
    await drawn(store, "one", 100, key_id="k1")
    await store.commit("one", batch(1, charge("a1", "k1", 20), charge("a1", "k1", 10, lost=3)))
    assert await store.audit() == []


def change(url: str, table: str, row: str, column: str, by: int) -> None:
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
            db.execute(f"UPDATE {table} SET {column}={column}+? WHERE id=?", (by, row))
        db.close()
        return
    with MongoClient[dict[str, Any]](url) as client:
        done = client.get_default_database()[table].update_one(
            {"_id": row}, {"$inc": {column: by}}, bypass_document_validation=True
        )
        assert done.modified_count == 1


@pytest.mark.parametrize(("table", "row", "column", "by", "words"), WRONGS)
async def test_what_is_wrong_is_found(
    store: Store, url: str, table: str, row: str, column: str, by: int, words: str
) -> None:
    await shop(store)
    change(url, table, row, column, by)
    assert await store.audit() == [words]
    change(url, table, row, column, -by)
    assert await store.audit() == []


async def test_a_draw_of_nobody_is_found(store: Store) -> None:
    await shop(store)
    await drawn(store, "job:7", 5)
    assert await store.audit() == []
    await drawn(store, "stray", 5, account_id="a2")
    assert await store.audit() == ["5 is drawn from a2 by an owner that is not registered: stray"]


async def test_no_false_alarm_while_the_shop_is_open(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=10**7)
    await key(stores[0])
    stopped = asyncio.Event()

    async def serve(ledger: Ledger, key_id: str | None) -> None:
        allotment = ledger.allotment("a1", key_id)
        while not stopped.is_set():
            hold = ledger.try_hold(allotment, 9) or await ledger.hold(allotment, 9)
            await ledger.capture(hold, charge("a1", key_id, 7))

    ledgers = [Ledger(one, f"o{i}") for i, one in enumerate(stores)]
    for ledger in ledgers:
        await ledger.store.join(ledger.owner, "", 0, AT, AT + 9)
    serving = [asyncio.create_task(serve(ledger, (None, "k1")[i % 2])) for ledger in ledgers for i in range(6)]
    for _ in range(6):
        await asyncio.sleep(0.1)
        assert await stores[0].audit() == []
    stopped.set()
    await asyncio.gather(*serving)
    for ledger in ledgers:
        await ledger.close()
        await ledger.store.sweep(ledger.owner)
    found = await stores[0].account("a1")
    assert found
    assert found.charged == 7 * (found.charged // 7) > 0 == found.reserved
    assert await stores[1].audit() == []
