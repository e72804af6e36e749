"""Requests and tokens a minute, for each key, over every process: windows of a calendar minute, drawn from the store in blocks."""

import asyncio
import time
from typing import Literal

from ppq_proxy.errors import RateLimited
from ppq_proxy.store.base import Store

BLOCKS = 32
MINUTE = 60


class Window:
    """One limit of one key as this process sees it. The rest of a block is forgotten with its minute."""

    __slots__ = ("_drawing", "granted", "key_id", "limit", "minute", "spent", "what")

    def __init__(self, key_id: str, what: Literal["requests", "tokens"], limit: int) -> None:
        self.key_id, self.what, self.limit = key_id, what, limit
        self.minute = self.granted = self.spent = 0
        self._drawing = asyncio.Lock()

    def take(self, amount: int, now: float) -> bool:  # not money: seconds
        """Take from what has been drawn already; False if it does not suffice."""
        minute = int(now) // MINUTE
        if minute != self.minute:
            self.minute, self.granted = minute, 0
        if self.granted < amount:
            return False
        self.granted -= amount
        self.spent += amount
        return True

    async def draw(self, amount: int, store: Store) -> None:
        """Take, drawing a block from the store. Raises `RateLimited`."""
        async with self._drawing:  # one block serves all who wait
            await self._draw(amount, store)

    async def _draw(self, amount: int, store: Store) -> None:
        while not self.take(amount, time.time()):
            minute, missing = self.minute, amount - self.granted
            granted = await store.take(self.key_id, self.what, minute, max(missing, self.limit // BLOCKS), self.limit)
            if minute == self.minute:
                self.granted += granted
            if granted < missing and minute == int(time.time()) // MINUTE:
                raise self.exceeded(amount)

    def give_back(self, amount: int, minute: int) -> None:
        """What was taken in that minute and not used."""
        if minute == self.minute:
            self.granted += amount

    def exceeded(self, amount: int) -> RateLimited:
        wait = MINUTE - int(time.time()) % MINUTE
        return RateLimited(
            f"This key's limit of {self.limit} {self.what} a minute is reached ({amount} more wanted); it resets in {wait} s.",
            headers={
                "retry-after": str(wait),
                f"x-ratelimit-limit-{self.what}": str(self.limit),
                f"x-ratelimit-remaining-{self.what}": "0",
                f"x-ratelimit-reset-{self.what}": f"{wait}s",
            },
            fields={"limit": self.limit, "limit_kind": f"{self.what}_per_minute", "resets_in_seconds": wait},
        )
