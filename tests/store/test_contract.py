"""What every store has to do, the same for all of them: accounts, keys, rows, rates, owners, history."""

import asyncio
from dataclasses import replace

import pytest

from ppq_proxy.errors import Conflict, SettingsError, StoreUnavailable
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Account, Entry, HistoryFilter, Key, Row, Store
from tests.store.books import AT, account, batch, charge, credit, drawn, key, standing, use
from tests.store.conftest import Opener


async def test_account_as_created(store: Store) -> None:
    assert await store.create_account("a1", b"digest 1", "guest", AT, AT + 5)
    assert not await store.create_account("a1", b"digest 2", "guest", AT)
    assert not await store.create_account("a2", b"digest 1", "guest", AT)
    assert await store.account("a1") == Account("a1", "guest", 0, 0, 0, 0, AT, AT + 5)
    assert await store.account("a2") is None
    assert await store.account_id(b"digest 1") == "a1"
    assert await store.account_id(b"digest 2") is None
    await store.ping()


async def test_credit_counts_once(store: Store) -> None:
    await account(store, amount=0)
    assert await store.credit("ref", credit("a1", 70))
    assert not await store.credit("ref", credit("a1", 70))
    assert not await store.credit("ref", credit("a1", 99))
    assert await store.credit("other", credit("a1", 5))
    assert await standing(store) == (75, 0, 0, 0)
    assert await store.audit() == []


async def test_credit_of_an_unknown_account_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="no such account"):
        await store.credit("ref", credit("nobody", 70))
    await account(store, "nobody", 0)
    assert await store.credit("ref", credit("nobody", 70))
    assert await standing(store, "nobody") == (70, 0, 0, 0)


async def test_many_credit_at_once_each_ref_once(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=0)
    done = await asyncio.gather(*(one.credit(f"ref {i % 20}", credit("a1", 3)) for i in range(80) for one in stores))
    assert sum(done) == 20
    assert await standing(stores[1]) == (60, 0, 0, 0)
    assert await stores[0].audit() == []


async def test_key_as_created_and_found(store: Store) -> None:
    await account(store)
    made = Key(
        "k1", "a1", "main", b"\0sealed", AT, AT, limit=10**18, period="daily", reset_at=AT + 9, rpm=3, tpm=10**12
    )
    assert await store.create_key(made, b"digest")
    assert await store.key("k1") == made
    assert await store.key_by_digest(b"digest") == made
    assert await store.key("k2") is None
    assert await store.key_by_digest(b"other") is None
    assert not await store.create_key(replace(made, name="x"), b"digest 2")
    assert not await store.create_key(replace(made, id="k2", name="x"), b"digest")


async def test_names_are_unique_among_active_keys_of_an_account(store: Store) -> None:
    await account(store)
    await account(store, "a2")
    await key(store, "k1", name="main", created_at=AT + 2)
    second = Key("k2", "a1", "main", b"", AT + 1, AT)
    assert not await store.create_key(second, b"d2")
    assert await store.create_key(replace(second, account_id="a2"), b"d2")
    assert await store.create_key(replace(second, id="k3", name="other"), b"d3")
    with pytest.raises(Conflict):
        await store.update_key("k3", {"name": "main"})
    assert await store.update_key("k1", {"deleted_at": AT})
    renamed = await store.update_key("k3", {"name": "main", "updated_at": AT + 7})
    assert renamed
    assert (renamed.name, renamed.updated_at) == ("main", AT + 7)
    assert [found.id for found in await store.keys("a1")] == ["k3", "k1"]


async def test_changes_of_a_key_raise_the_version(store: Store) -> None:
    await account(store)
    await key(store)
    before = await store.version()
    changed = await store.update_key("k1", {"limit": 7, "period": None, "expire_at": AT + 9, "rpm": 5, "tpm": None})
    assert changed == await store.key("k1")
    assert changed
    assert (changed.limit, changed.expire_at, changed.rpm) == (7, AT + 9, 5)
    assert await store.version() == before + 1
    assert await store.update_key("nobody", {"limit": 7}) is None
    assert await store.version() == before + 1
    await store.update_key("k1", {"deleted_at": AT})
    assert await store.update_key("k1", {"limit": 8}) is None
    assert await store.version() == before + 2


async def test_versions_of_changes_at_once_are_all_counted(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0])
    await key(stores[0])
    before = await stores[0].version()
    await asyncio.gather(*(one.update_key("k1", {"rpm": i}) for i in range(20) for one in stores))
    assert await stores[1].version() == before + 40


async def test_rows(store: Store) -> None:
    doc = {"a.b": 1, "$x": [1, None, {"ü": True}], "big": 2**62, "text": "x" * 1000}
    assert await store.rows.insert("quote", "1", doc, state="open", due=AT)
    assert not await store.rows.insert("quote", "1", {}, state="open")
    assert await store.rows.insert("payment", "1", {})
    assert await store.rows.get("quote", "2") is None
    row = await store.rows.get("quote", "1")
    assert row == Row("quote", "1", doc, 1, "open", AT)
    assert await store.rows.replace(row, {"n": 2}, due=AT + 1)
    assert not await store.rows.replace(row, {"n": 3})
    row = await store.rows.get("quote", "1")
    assert row == Row("quote", "1", {"n": 2}, 2, "open", AT + 1)
    assert await store.rows.replace(row, {"n": 4}, state="done")
    assert not await store.rows.delete(row)
    row = await store.rows.get("quote", "1")
    assert row == Row("quote", "1", {"n": 4}, 3, "done", None)
    assert await store.rows.delete(row)
    assert await store.rows.get("quote", "1") is None
    assert await store.rows.get("payment", "1") == Row("payment", "1", {}, 1, "", None)


async def test_rows_that_are_due(store: Store) -> None:
    for i, due in enumerate([AT + 3, AT + 1, None, AT + 2, AT + 9]):
        await store.rows.insert("job", f"j{i}", {}, state="new" if i != 3 else "done", due=due)
    await store.rows.insert("other", "j9", {}, state="new", due=AT)
    assert [row.id for row in await store.rows.find("job")] == ["j2", "j1", "j3", "j0", "j4"]
    assert [row.id for row in await store.rows.find("job", due_before=AT + 3)] == ["j1", "j3", "j0"]
    assert [row.id for row in await store.rows.find("job", state="new", due_before=AT + 3)] == ["j1", "j0"]
    assert [row.id for row in await store.rows.find("job", state="new", limit=2)] == ["j2", "j1"]


async def test_of_many_that_replace_a_row_one_does(another: Opener) -> None:
    stores = [await another(), await another()]
    await stores[0].rows.insert("quote", "1", {})
    row = await stores[0].rows.get("quote", "1")
    assert row
    done = await asyncio.gather(*(one.rows.replace(row, {"n": i}) for i in range(20) for one in stores))
    assert sum(done) == 1
    inserted = await asyncio.gather(*(one.rows.insert("quote", "2", {"n": i}) for i in range(20) for one in stores))
    assert sum(inserted) == 1


async def test_rates(store: Store) -> None:
    take = store.take
    assert [await take("k1", "requests", 7, 4, 10) for _ in range(4)] == [4, 4, 2, 0]
    assert await take("k1", "tokens", 7, 4, 10) == 4
    assert await take("k2", "requests", 7, 4, 10) == 4
    assert await take("k1", "requests", 8, 11, 10) == 10
    assert await take("k1", "requests", 8, 1, 5) == 0
    assert await take("k1", "requests", 8, 3, 12) == 2


async def test_rates_are_never_exceeded(another: Opener) -> None:
    stores = [await another(), await another()]
    taken = await asyncio.gather(*(one.take("k1", "requests", 7, 3, 100) for _ in range(40) for one in stores))
    assert sum(taken) == 100


async def test_owners(store: Store) -> None:
    await account(store)
    await key(store)
    first = await store.join("one", "host", 11, AT, AT + 10)
    assert await store.join("two", "", 12, AT, AT + 20) == first
    assert {(o.id, o.host, o.pid, o.seen, o.expires_at) for o in await store.owners()} == {
        ("one", "host", 11, first, AT + 10),
        ("two", "", 12, first, AT + 20),
    }
    await store.update_key("k1", {"rpm": 1})
    now = await store.version()
    assert {owner.id for owner in await store.laggards(now)} == {"one", "two"}
    assert await store.beat("one", now, AT + 30)
    assert {owner.id for owner in await store.laggards(now)} == {"two"}
    assert not await store.beat("nobody", now, AT + 30)
    assert await store.sweep("two") == 0
    assert not await store.beat("two", now, AT + 30)
    assert [owner.id for owner in await store.owners()] == ["one"]
    assert await store.laggards(now) == []
    assert await store.join("three", "", 1, AT, AT + 1) == now


async def test_secret_is_the_first_one(another: Opener) -> None:
    stores = [await another(), await another()]
    given = await asyncio.gather(*(one.secret(bytes([i]) * 32) for i, one in enumerate(stores * 5)))
    assert len(set(given)) == 1
    assert await stores[0].secret(b"x" * 32) == given[0]


ENTRIES = [
    charge(
        "a1", "k1", 5, AT + 1, request_id="r1", model="m1", query_type="chat", query_source="api", inputs=3, outputs=4
    ),
    charge(
        "a1", None, 7, AT + 2, request_id="r1", model="m2", query_type="image", query_source="web", detail=b'{"n":1}'
    ),
    charge("a1", "k1", 0, AT + 3, request_id="r2", model="m1", query_type="chat", query_source="api"),
    charge("a1", "k1", 0, AT + 4, request_id="r3", model="m1", lost=9),
    charge("a1", "k1", 1, AT + 5, model="m1", query_type="chat", query_source="api", lost=2),
]


async def filled(store: Store) -> None:
    await account(store, amount=100)
    await account(store, "a2", 100)
    await key(store)
    await store.join("one", "", 0, AT, AT + 9)
    await drawn(store, "one", 50, key_id="k1")
    await drawn(store, "one", 20)
    await drawn(store, "one", 20, account_id="a2")
    await store.commit("one", batch(1, *(replace(entry) for entry in ENTRIES)))
    await store.commit("one", batch(2, charge("a2", None, 11, AT + 6, request_id="r1")))


async def test_history(store: Store) -> None:
    await filled(store)
    every = list(reversed(ENTRIES))

    async def asked(offset: int = 0, limit: int = 10, **more: object) -> list[Entry]:
        found, total = await store.history(HistoryFilter("a1", **more), offset, limit)  # type: ignore[arg-type]
        assert total >= len(found)
        return found

    assert await asked(nonzero=False) == every
    assert await asked() == [entry for entry in every if entry.amount or not entry.lost]
    assert await asked(nonzero=False, limit=2) == every[:2]
    assert await asked(nonzero=False, offset=2, limit=2) == every[2:4]
    assert (await store.history(HistoryFilter("a1", nonzero=False), 4, 0)) == ([], 5)
    assert await asked(nonzero=False, offset=9) == []
    assert await asked(nonzero=False, since=AT + 2, until=AT + 4) == every[1:4]
    assert await asked(key_id="k1", model="m1", query_source="api", query_type="chat") == [every[0], every[2], every[4]]
    assert await asked(model="m3") == []
    assert await store.audit() == []


async def test_receipts(store: Store) -> None:
    await filled(store)
    everyones = await store.receipts("r1")
    assert [entry.amount for entry in everyones] == [11, 7, 5]
    assert [entry.amount for entry in await store.receipts("r1", "a1")] == [7, 5]
    assert await store.receipts("r9") == []


async def test_everything_is_there_after_reopening(another: Opener) -> None:
    first = await another()
    await filled(first)
    before = (await first.account("a1"), await first.key("k1"), await first.history(HistoryFilter("a1"), 0, 9))
    await first.close()
    second = await another()
    assert (
        await second.account("a1"),
        await second.key("k1"),
        await second.history(HistoryFilter("a1"), 0, 9),
    ) == before
    assert await standing(second) == (100, 13, 57, 11)
    assert await use(second) == (6, 6, 44)


async def test_many_open_an_empty_database_at_once(another: Opener) -> None:
    stores = await asyncio.gather(*(another() for _ in range(6)))
    await account(stores[0])
    assert not await stores[1].create_account("a2", b"a1" * 8, "prepaid", AT)
    assert [await one.version() for one in stores] == [0] * 6


async def test_what_cannot_be_written_hurts_nobody_else(store: Store) -> None:
    await account(store)
    for amount in (2**70, 2**63):
        with pytest.raises(OverflowError):
            await asyncio.wait_for(store.credit(f"{amount}", credit("a1", amount)), 5)
    assert await asyncio.wait_for(store.credit("fine", credit("a1", 1)), 5)
    assert await standing(store) == (1_000_001, 0, 0, 0)
    assert await store.audit() == []


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    for asked in (store.account("a1"), store.ping(), store.rows.get("x", "y"), store.version()):
        with pytest.raises(StoreUnavailable):
            await asked


@pytest.mark.parametrize(
    "url", ["mongodb://h/a b", "mongodb://me:p@ss:word@h/db", "mongodb://h:99999/db", "mongodb://"]
)
async def test_a_url_that_is_none_is_told_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="PPQ_DATABASE") as told:
        await open_store(url).open()
    assert "word" not in str(told.value)


@pytest.mark.mongo
async def test_no_server_is_unavailable(unused_tcp_port: int) -> None:
    store = open_store(f"mongodb://127.0.0.1:{unused_tcp_port}/db?serverSelectionTimeoutMS=200")
    with pytest.raises(StoreUnavailable):
        await store.open()
