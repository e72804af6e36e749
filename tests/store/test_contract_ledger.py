"""What every store has to do with money: draws, batches, sweeps, and what comes too late. The same for all of them."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ppq_proxy.store.base import SHARE, Draw, Drawn, HistoryFilter, Refused, Row, Store
from ppq_proxy.store.periods import next_reset
from tests.store.books import AT, DAY, Purse, account, batch, call, charge, credit, drawn, key, standing, use
from tests.store.conftest import SERVERS, Opener

# A server's answer can be lost, so a batch that was written may come again. An embedded database's cannot.
by_servers = pytest.mark.parametrize("url", SERVERS, indirect=True)


async def joined(store: Store, *owners: str) -> None:
    for owner in owners:
        await store.join(owner, "", 0, AT, AT + 10_000)


async def refused(asked: Awaitable[Drawn | Refused]) -> Refused:
    found = await asked
    assert isinstance(found, Refused), found
    return found


# draws


async def test_a_draw_takes_exactly_what_is_needed_near_the_edge(store: Store) -> None:
    await account(store, amount=100)
    await joined(store, "one")
    assert await store.draw("one", Draw("a1", None, 40, 40, 4000), AT) == Drawn(40, 60, False)
    assert await store.draw("one", Draw("a1", None, 60, 60, 60), AT) == Drawn(60, 0, False)
    assert await store.draw("one", call(1), AT) == Refused("balance", 0, 100)
    assert await standing(store) == (100, 0, 100, 0)
    assert await store.audit() == []


async def test_a_draw_takes_a_share_ahead_far_from_the_edge(store: Store) -> None:
    await account(store, amount=SHARE * 100)
    await joined(store, "one")
    assert await store.draw("one", Draw("a1", None, 2, 2, 10**9), AT) == Drawn(100, SHARE * 100 - 100, True)
    assert await store.draw("one", Draw("a1", None, 2, 2, 3), AT) == Drawn(3, SHARE * 100 - 103, True)
    assert await store.draw("one", Draw("a1", None, 99, 99, 50), AT) == Drawn(99, SHARE * 100 - 202, False)
    assert await store.audit() == []


async def test_a_draw_without_edge_takes_a_share_or_nothing(store: Store) -> None:
    await account(store, amount=SHARE * 100)
    assert isinstance(await store.draw("one", Draw("a1", None, 100, 100, 400, edge=False), AT), Drawn)
    assert (await refused(store.draw("one", Draw("a1", None, 100, 100, 400, edge=False), AT))).reason == "balance"
    assert (await standing(store))[2] == 100


async def test_a_draw_takes_what_there_is_if_that_is_enough(store: Store) -> None:
    await account(store, amount=100)
    assert await store.draw("one", Draw("a1", None, 500, 101, 500), AT) == Refused("balance", 100, 0)
    assert await store.draw("one", Draw("a1", None, 500, 100, 500), AT) == Drawn(100, 0, False)


async def test_a_draw_for_an_account_or_key_that_is_gone(store: Store) -> None:
    await account(store, amount=100, expires_at=AT + 5)
    await key(store, "k1", expire_at=AT + 3)
    await key(store, "k2", name="k2")
    await store.update_key("k2", {"deleted_at": AT})
    gone = Refused("gone", 0)
    assert await store.draw("one", call(1, "nobody"), AT) == gone
    assert await store.draw("one", call(1, "a1", "nokey"), AT) == gone
    assert await store.draw("one", call(1, "a1", "k2"), AT) == gone
    assert await store.draw("one", call(1, "a1", "k1"), AT + 3) == gone
    assert isinstance(await store.draw("one", call(1, "a1", "k1"), AT + 2), Drawn)
    assert isinstance(await store.draw("one", call(1), AT + 4), Drawn)
    assert await store.draw("one", call(1), AT + 5) == gone
    assert await standing(store) == (100, 0, 2, 0)


async def test_a_limit_of_a_key_is_kept(store: Store) -> None:
    await account(store, amount=1000)
    await key(store, limit=50)
    await joined(store, "one", "two")
    assert await drawn(store, "one", 30, key_id="k1") == 30
    assert await store.draw("two", call(21, "a1", "k1"), AT) == Refused("key_limit", 20, 30, 50)
    assert await drawn(store, "two", 20, key_id="k1") == 20
    await store.commit("one", batch(1, charge("a1", "k1", 25), give_back={("a1", "k1"): 5}))
    assert await use(store) == (25, 25, 20)
    assert await store.draw("one", call(6, "a1", "k1"), AT) == Refused("key_limit", 5, 20, 50)
    assert await standing(store) == (1000, 25, 20, 0)
    assert await store.audit() == []


async def test_a_key_without_a_limit_keeps_count_all_the_same(store: Store) -> None:
    await account(store, amount=1000)
    await key(store)
    await drawn(store, "one", 30, key_id="k1")
    assert await use(store) == (0, 0, 30)
    changed = await store.update_key("k1", {"limit": 31})
    assert changed
    assert changed.reserved == 30
    assert await store.draw("one", call(2, "a1", "k1"), AT) == Refused("key_limit", 1, 30, 31)
    assert await drawn(store, "one", 1, key_id="k1") == 1


async def test_the_narrower_of_account_and_key_is_what_refuses(store: Store) -> None:
    await account(store, amount=40)
    await key(store, limit=50)
    assert await store.draw("one", call(45, "a1", "k1"), AT) == Refused("balance", 40, 0)
    await store.update_key("k1", {"limit": 39})
    assert await store.draw("one", call(40, "a1", "k1"), AT) == Refused("key_limit", 39, 0, 39)
    assert await use(store) == (0, 0, 0)
    assert await standing(store) == (40, 0, 0, 0)


@pytest.mark.parametrize("period", ["daily", "weekly", "monthly"])
async def test_a_period_that_has_passed_is_reset_by_a_draw(store: Store, period: str) -> None:
    at = int(datetime(2027, 3, 10, 15, tzinfo=UTC).timestamp()) * 1000
    reset = next_reset(period, at)
    assert reset
    await account(store, amount=1000)
    await key(store, limit=50, period=period, reset_at=reset)
    await joined(store, "one")
    assert isinstance(await store.draw("one", call(50, "a1", "k1"), at), Drawn)
    await store.commit("one", batch(1, charge("a1", "k1", 45), at=at))
    assert await store.draw("one", call(1, "a1", "k1"), reset - 1) == Refused("key_limit", 0, 5, 50, reset, period)
    assert isinstance(await store.draw("one", call(45, "a1", "k1"), reset), Drawn)
    found = await store.key("k1")
    assert found
    assert (found.used, found.used_total, found.reserved, found.reset_at) == (0, 45, 50, next_reset(period, reset))
    await store.commit("one", batch(2, charge("a1", "k1", 50), at=reset))
    assert await use(store) == (50, 95, 0)
    assert await store.audit() == []


@pytest.mark.parametrize("period", ["daily", "weekly", "monthly"])
async def test_a_period_that_has_passed_is_reset_by_a_charge(store: Store, period: str) -> None:
    await account(store, amount=1000)
    await key(store, limit=500, period=period, reset_at=AT + 7)
    await key(store, "k2", name="k2")
    await joined(store, "one")
    await drawn(store, "one", 50, key_id="k1")
    await drawn(store, "one", 50, key_id="k2")
    await store.commit("one", batch(1, charge("a1", "k1", 20), at=AT + 6))
    assert await use(store) == (20, 20, 30)
    both = [charge("a1", "k1", 11), charge("a1", "k2", 12)]
    await store.commit("one", batch(2, *both, at=AT + 7))
    found = await store.key("k1")
    assert found
    assert (found.used, found.used_total, found.reserved) == (11, 31, 19)
    assert found.reset_at == next_reset(period, AT + 7)
    assert await use(store, "k2") == (12, 12, 38)
    assert await standing(store) == (1000, 43, 57, 0)
    assert await store.audit() == []


async def test_200_draws_at_once_never_exceed_the_balance(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=1000)
    for i, one in enumerate(stores):
        await joined(one, f"o{i}")
    done = await asyncio.gather(*(one.draw(f"o{i}", call(30), AT) for _ in range(100) for i, one in enumerate(stores)))
    assert sum(isinstance(one, Drawn) for one in done) == 33
    assert all(isinstance(one, Drawn) or one.reason == "balance" for one in done)
    assert await standing(stores[0]) == (1000, 0, 990, 0)
    assert await stores[1].audit() == []


async def test_draws_ahead_at_once_never_exceed_the_balance(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=100_000)
    for i, one in enumerate(stores):
        await joined(one, f"o{i}")
    wanted = Draw("a1", None, 700, 100, 10**9)
    done = await asyncio.gather(*(one.draw(f"o{i}", wanted, AT) for _ in range(100) for i, one in enumerate(stores)))
    taken = [one.amount for one in done if isinstance(one, Drawn)]
    assert sum(taken) == (await standing(stores[0]))[2] > 100_000 - 100
    assert max(taken) <= 2 * 100_000 // SHARE
    assert await stores[0].audit() == []


async def test_40_draws_at_once_never_exceed_a_limit(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=10_000)
    for i in range(3):
        await key(stores[0], f"k{i}", name=f"k{i}", limit=95)
    for i, one in enumerate(stores):
        await joined(one, f"o{i}")
    done = await asyncio.gather(
        *(one.draw(f"o{i}", call(30, "a1", f"k{j % 3}"), AT) for j in range(60) for i, one in enumerate(stores))
    )
    assert sum(isinstance(one, Drawn) for one in done) == 9
    assert [(await use(stores[0], f"k{i}"))[2] for i in range(3)] == [90, 90, 90]
    assert (await standing(stores[0]))[2] == 270
    assert await stores[0].audit() == []


async def test_what_one_of_two_purses_refuses_is_not_kept_in_the_other(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=100)
    for i in range(4):
        await key(stores[0], f"k{i}", name=f"k{i}", limit=40)
    for i, one in enumerate(stores):
        await joined(one, f"o{i}")
    done = await asyncio.gather(
        *(one.draw(f"o{i}", call(7, "a1", f"k{j % 4}"), AT) for j in range(40) for i, one in enumerate(stores))
    )
    taken = sum(one.amount for one in done if isinstance(one, Drawn))
    assert taken == 98
    assert (await standing(stores[0]))[2] == taken == sum([(await use(stores[0], f"k{i}"))[2] for i in range(4)])
    assert await stores[0].audit() == []


# batches


async def test_a_batch_charges_and_gives_back(store: Store) -> None:
    await account(store, amount=1000)
    await account(store, "a2", amount=1000)
    await key(store)
    await joined(store, "one")
    await drawn(store, "one", 100, key_id="k1")
    await drawn(store, "one", 200)
    await drawn(store, "one", 300, account_id="a2")
    entries = [charge("a1", "k1", 10), charge("a1", None, 5), charge("a2", None, 300), charge("a1", "k1", 20, lost=3)]
    await store.commit("one", batch(1, *entries, give_back={("a1", "k1"): 70, ("a1", None): 1}))
    assert await standing(store) == (1000, 35, 194, 3)
    assert await standing(store, "a2") == (1000, 300, 0, 0)
    assert await use(store) == (30, 30, 0)
    assert len((await store.history(HistoryFilter("a1"), 0, 10))[0]) == 3
    assert await store.audit() == []


@by_servers
async def test_a_batch_is_applied_once(another: Opener) -> None:
    store = await another()
    await account(store, amount=1000)
    await key(store)
    await joined(store, "one")
    await drawn(store, "one", 100, key_id="k1")
    for _ in range(3):
        await store.commit("one", batch(1, charge("a1", "k1", 10)))
        assert await standing(store) == (1000, 10, 90, 0)
    await store.commit("one", batch(2, charge("a1", "k1", 7)))
    await store.commit("one", batch(2, charge("a1", "k1", 7)))
    assert await use(store) == (17, 17, 83)
    assert (await store.history(HistoryFilter("a1"), 0, 10))[1] == 2
    assert await store.audit() == []


async def test_batches_of_several_owners_at_once(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=1_000_000)
    await key(stores[0])

    async def work(store: Store, owner: str) -> None:
        await joined(store, owner)
        for seq in range(1, 21):
            await drawn(store, owner, 100, key_id="k1")
            await store.commit(owner, batch(seq, charge("a1", "k1", 60), give_back={("a1", "k1"): 40}))

    await asyncio.gather(*(work(one, f"o{i}{j}") for i, one in enumerate(stores) for j in range(4)))
    assert await standing(stores[0]) == (1_000_000, 8 * 20 * 60, 0, 0)
    assert await use(stores[0]) == (9600, 9600, 0)
    assert await stores[1].audit() == []


async def test_a_batch_may_be_empty_or_free(store: Store) -> None:
    await account(store, amount=1000)
    await joined(store, "one")
    await store.commit("one", batch(1))
    await store.commit("one", batch(2, charge("a1", None, 0)))
    await store.commit("one", batch(3, charge("a1", None, 0, lost=7)))
    await store.commit("one", batch(4, charge("a1", None, 0, lost=2)))
    assert await standing(store) == (1000, 0, 0, 9)
    assert (await store.history(HistoryFilter("a1", nonzero=False), 0, 10))[1] == 3
    assert await store.audit() == []


async def test_a_large_batch(store: Store) -> None:
    await account(store, amount=10**9)
    await key(store)
    await joined(store, "one")
    await drawn(store, "one", 10**6, key_id="k1")
    await drawn(store, "one", 10**6)
    await store.rows.insert("job", "1", {})
    row = await store.rows.get("job", "1")
    assert row
    detail = b"x" * 4000
    entries = [charge("a1", ("k1", None)[i % 2], 1 + i % 7, lost=i % 3, detail=detail) for i in range(6000)]
    made = batch(1, *entries, give_back={("a1", None): 5000, ("a1", "k1"): 6000})
    made.rows = [replace(row, doc={"done": True})]
    await store.commit("one", made)
    charged, lost = sum(entry.amount for entry in entries), sum(entry.lost for entry in entries)
    assert await standing(store) == (10**9, charged, 2 * 10**6 - 11_000 - charged, lost)
    assert (await store.history(HistoryFilter("a1", nonzero=False), 0, 1))[1] == 6000
    assert await store.rows.get("job", "1") == Row("job", "1", {"done": True}, 2)
    assert await store.audit() == []


async def test_rows_change_with_a_batch_unless_somebody_was_faster(store: Store) -> None:
    await account(store, amount=1000)
    await joined(store, "one")
    await store.rows.insert("job", "1", {"n": 1}, state="run", due=AT)
    await store.rows.insert("job", "2", {"n": 1}, state="run", due=AT)
    rows = [row for row in await store.rows.find("job") if row]
    assert await store.rows.replace(rows[1], {"n": 5}, state="cancelled")
    await drawn(store, "one", 10)
    made = batch(1, charge("a1", None, 10))
    made.rows = [replace(row, doc={"n": 2}, state="done", due=None) for row in rows]
    await store.commit("one", made)
    assert await store.rows.get("job", "1") == Row("job", "1", {"n": 2}, 2, "done")
    assert await store.rows.get("job", "2") == Row("job", "2", {"n": 5}, 2, "cancelled")
    assert await standing(store) == (1000, 10, 0, 0)


async def test_hundreds_of_calls_at_the_edge(store: Store) -> None:
    """Each draws and gives back by itself, on many keys: what is empty must not pile up or be mistaken for swept."""
    await account(store, amount=1000)
    await joined(store, "one")
    for i in range(90):
        await key(store, f"k{i}", name=f"k{i}")
    for seq in range(1, 301):
        name = f"k{seq * 7 % 90}"
        await drawn(store, "one", 300, key_id=name)
        await store.commit("one", batch(seq, charge("a1", name, 2), give_back={("a1", name): 298}))
    assert await standing(store) == (1000, 600, 0, 0)
    assert sum([(await use(store, f"k{i}"))[1] for i in range(90)]) == 600
    assert await store.audit() == []


# sweeps, and what comes too late


async def test_a_sweep_returns_what_was_drawn_and_not_charged(store: Store) -> None:
    await account(store, amount=1000)
    await account(store, "a2", amount=1000)
    await key(store, limit=100)
    await joined(store, "one", "two")
    await drawn(store, "one", 100, key_id="k1")
    await drawn(store, "one", 50, account_id="a2")
    await drawn(store, "two", 70)
    await store.commit("one", batch(1, charge("a1", "k1", 30)))
    assert await store.sweep("one") == 120
    assert await store.sweep("one") == 0
    assert await standing(store) == (1000, 30, 70, 0)
    assert await standing(store, "a2") == (1000, 0, 0, 0)
    assert await use(store) == (30, 30, 0)
    assert await store.audit() == []
    assert await store.sweep("two") == 70
    assert await store.audit() == []


async def test_many_sweep_at_once_and_each_draw_returns_once(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=1000)
    await key(stores[0])
    await joined(stores[0], "one")
    await drawn(stores[0], "one", 300, key_id="k1")
    await drawn(stores[0], "one", 200)
    await stores[0].commit("one", batch(1, charge("a1", "k1", 30)))
    await asyncio.gather(*(one.sweep("one") for _ in range(5) for one in stores))
    assert await standing(stores[0]) == (1000, 30, 0, 0)
    assert await use(stores[0]) == (30, 30, 0)
    assert await stores[1].audit() == []
    assert await stores[1].owners() == []


async def test_a_batch_that_comes_after_the_sweep_is_charged_from_what_is_there(another: Opener) -> None:
    alive, sweeper = await another(), await another()
    await account(alive, amount=1000)
    await key(alive, limit=150)
    await joined(alive, "one")
    await drawn(alive, "one", 100, key_id="k1")
    await alive.commit("one", batch(1, charge("a1", "k1", 20)))
    assert await sweeper.sweep("one") == 80
    await alive.commit("one", batch(2, charge("a1", "k1", 60), give_back={("a1", "k1"): 20}))
    assert await standing(alive) == (1000, 80, 0, 0)
    assert await use(alive) == (80, 80, 0)
    assert await alive.audit() == []
    assert await alive.owners() == []
    assert (await alive.history(HistoryFilter("a1"), 0, 9))[1] == 2


async def test_what_an_account_cannot_pay_any_more_is_lost(another: Opener) -> None:
    alive, sweeper = await another(), await another()
    await account(alive, amount=100)
    await key(alive)
    await joined(alive, "one", "two")
    await drawn(alive, "one", 100, key_id="k1")
    await sweeper.sweep("one")
    await drawn(sweeper, "two", 70)
    entries = [charge("a1", "k1", 20, AT + 1), charge("a1", "k1", 25, AT + 2, lost=1), charge("a1", "k1", 5, AT + 3)]
    await alive.commit("one", batch(1, *entries))
    assert await standing(alive) == (100, 30, 70, 21)
    assert await use(alive) == (30, 30, 0)
    found, _ = await alive.history(HistoryFilter("a1", nonzero=False), 0, 9)
    assert sorted((entry.amount + entry.lost) for entry in found) == [5, 20, 26]
    assert sum(entry.amount for entry in found) == 30
    assert await alive.audit() == []
    assert [owner.id for owner in await alive.owners()] == ["two"]


@by_servers
async def test_a_late_batch_is_applied_once(another: Opener) -> None:
    alive, sweeper = await another(), await another()
    await account(alive, amount=100)
    await account(alive, "a2", amount=100)
    await key(alive)
    await joined(alive, "one")
    await drawn(alive, "one", 50, key_id="k1")
    await drawn(alive, "one", 60, account_id="a2")
    await sweeper.sweep("one")
    for _ in range(3):
        await alive.commit("one", batch(1, charge("a1", "k1", 50), charge("a2", None, 60)))
    assert await standing(alive) == (100, 50, 0, 0)
    assert await standing(alive, "a2") == (100, 60, 0, 0)
    assert (await alive.history(HistoryFilter("a1"), 0, 9))[1] == 1
    assert await alive.audit() == []


async def test_a_batch_without_a_draw_is_charged_from_what_is_there(store: Store) -> None:
    await account(store, amount=100)
    await key(store, limit=10)
    await joined(store, "one")
    await store.commit("one", batch(1, charge("a1", "k1", 60)))
    assert await standing(store) == (100, 60, 0, 0)
    await store.commit("one", batch(2, charge("a1", "k1", 60)))
    assert await standing(store) == (100, 100, 0, 20)
    assert await use(store) == (100, 100, 0)
    assert await store.audit() == []


async def test_sweeping_while_the_owner_works_doubles_and_loses_nothing(another: Opener) -> None:
    """An owner that is taken for dead in the middle of its work: every charge counts once, wherever the sweep cuts in."""
    alive, sweeper = await another(), await another()
    charged = 0
    await account(alive, amount=1_000_000)
    await key(alive)
    for turn in range(12):
        owner = f"owner {turn}"
        await joined(alive, owner)
        await drawn(alive, owner, 5000, key_id="k1")
        work = [
            alive.commit(owner, batch(seq, *(charge("a1", "k1", 3, request_id=f"{turn}.{seq}.{i}") for i in range(9))))
            for seq in range(1, 8)
        ]

        async def wait_and_sweep(owner: str, turn: int) -> None:
            await asyncio.sleep(turn * 0.002)
            await sweeper.sweep(owner)

        await asyncio.gather(*work, wait_and_sweep(owner, turn))
        charged += 7 * 9 * 3
        await sweeper.sweep(owner)
        assert await standing(alive) == (1_000_000, charged, 0, 0), turn
        assert await use(alive) == (charged, charged, 0)
        assert await sweeper.audit() == []
    found, total = await alive.history(HistoryFilter("a1"), 0, 10_000)
    assert total == len({entry.request_id for entry in found}) == 12 * 7 * 9


async def test_processes_take_turns_as_one_owner(another: Opener) -> None:
    """What a job has drawn outlives the process that drew it: each in turn charges it, with batch numbers of its own."""
    stores = [await another(), await another()]
    await account(stores[0], amount=10_000)
    await key(stores[0])
    for turn in range(1, 91):
        one = stores[turn * turn % 7 % 2]
        if turn % 9 == 1:
            await drawn(one, "job:1", 100, key_id="k1")
        returned: dict[Purse, int] = {("a1", "k1"): 10} if turn % 9 == 0 else {}
        await one.commit("job:1", batch(turn % 4, charge("a1", "k1", 10, request_id=f"{turn}"), give_back=returned))
    assert await standing(stores[1]) == (10_000, 900, 0, 0)
    assert await use(stores[1]) == (900, 900, 0)
    assert await stores[0].audit() == []
    await drawn(stores[0], "job:1", 50)
    assert await stores[1].audit() == []
    assert await stores[1].sweep("job:1") == 50
    assert await standing(stores[0]) == (10_000, 900, 0, 0)


async def test_credit_and_charge_at_once(another: Opener) -> None:
    stores = [await another(), await another()]
    await account(stores[0], amount=10_000)
    for i, one in enumerate(stores):
        await joined(one, f"o{i}")

    async def spend(store: Store, owner: str) -> None:
        for seq in range(1, 26):
            await drawn(store, owner, 10)
            await store.commit(owner, batch(seq, charge("a1", None, 10)))

    await asyncio.gather(
        *(spend(one, f"o{i}") for i, one in enumerate(stores)),
        *(one.credit(f"{i}.{j}", credit("a1", 7)) for i, one in enumerate(stores) for j in range(25)),
    )
    assert await standing(stores[0]) == (10_350, 500, 0, 0)
    assert await stores[0].audit() == []


async def test_amounts_of_64_bits(store: Store) -> None:
    await account(store, amount=9 * 10**18)
    await key(store, limit=9 * 10**18)
    await joined(store, "one")
    await drawn(store, "one", 8 * 10**18, key_id="k1")
    await store.commit("one", batch(1, charge("a1", "k1", 7 * 10**18, AT + DAY), at=AT + DAY))
    assert await standing(store) == (9 * 10**18, 7 * 10**18, 10**18, 0)
    assert await use(store) == (7 * 10**18, 7 * 10**18, 10**18)
    assert await store.audit() == []
