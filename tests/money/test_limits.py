"""Windows of a minute, drawn from a store in blocks."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ppq_proxy.errors import RateLimited
from ppq_proxy.money.limits import BLOCKS, Window
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Store

MINUTE = 60.0


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 30_000_000 * MINUTE + 12.5

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ppq_proxy.money.limits.time", clock)
    return clock


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    one = open_store(f"sqlite:///{tmp_path}/x.db")
    await one.open()
    yield one
    await one.close()


async def drawn(window: Window, store: Store, amount: int = 1, most: int = 10_000) -> int:
    """How often it can be drawn from until it is exhausted."""
    for count in range(most):
        try:
            await window.draw(amount, store)
        except RateLimited:
            return count
    return most


@pytest.mark.parametrize("limit", [1, 2, BLOCKS, BLOCKS + 1, 1000])
async def test_a_window_gives_its_limit_and_no_more(store: Store, clock: Clock, limit: int) -> None:
    assert await drawn(Window("k", "requests", limit), store) == limit


async def test_the_next_minute_gives_it_again(store: Store, clock: Clock) -> None:
    window = Window("k", "requests", 7)
    assert await drawn(window, store) == 7
    clock.now += MINUTE
    assert await drawn(window, store) == 7
    clock.now += MINUTE / 10  # still the same minute
    assert await drawn(window, store) == 0


async def test_two_processes_share_one_limit(store: Store, clock: Clock) -> None:
    one, other = Window("k", "requests", 100), Window("k", "requests", 100)
    served = [await drawn(one, store, most=30), await drawn(other, store)]
    served.append(await drawn(one, store))
    # what one process has drawn ahead and not used may be missed by the other, never more than a block
    assert 100 - 100 // BLOCKS <= sum(served) <= 100


async def test_many_at_once_share_one_limit(store: Store, clock: Clock) -> None:
    window = Window("k", "requests", 20)
    done = await asyncio.gather(*(window.draw(1, store) for _ in range(100)), return_exceptions=True)
    assert sum(one is None for one in done) == 20
    assert all(one is None or isinstance(one, RateLimited) for one in done)


async def test_keys_and_kinds_have_their_own_windows(store: Store, clock: Clock) -> None:
    assert await drawn(Window("k", "requests", 3), store) == 3
    assert await drawn(Window("k", "tokens", 3), store) == 3
    assert await drawn(Window("other", "requests", 3), store) == 3


async def test_what_is_given_back_can_be_taken_in_the_same_minute_only(store: Store, clock: Clock) -> None:
    window = Window("k", "tokens", 100)
    await window.draw(100, store)
    window.give_back(60, window.minute)
    assert await drawn(window, store, 30) == 2
    window.give_back(50, window.minute - 1)
    assert await drawn(window, store, 1) == 0


async def test_the_refusal_says_which_limit_and_until_when(store: Store, clock: Clock) -> None:
    window = Window("k", "tokens", 10)
    with pytest.raises(RateLimited) as caught:
        await window.draw(11, store)
    problem = caught.value
    assert problem.headers["retry-after"] == "48" and problem.headers["x-ratelimit-limit-tokens"] == "10"
    assert problem.fields == {"limit": 10, "limit_kind": "tokens_per_minute", "resets_in_seconds": 48}
    assert "10 tokens a minute" in problem.message and "48 s" in problem.message
