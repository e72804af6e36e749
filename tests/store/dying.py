"""A MongoStore to which something happens at a chosen write: it dies, loses the server, or others get in between."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import AutoReconnect

from ppq_proxy.store.mongo import MongoStore
from ppq_proxy.store.mongo_books import Books, Doc

WRITES = {
    *("insert_one", "insert_many", "update_one", "replace_one", "find_one_and_update"),
    *("bulk_write", "delete_one", "delete_many"),
}
Mishap = Literal[
    "dies before",
    "dies after",
    "request lost",
    "answer lost",
    "others before",
    "others after",
    "others, request lost",
    "others, answer lost",
]


class DeadError(Exception):
    """The process is no more: whatever it still tries does not happen."""


@dataclass
class Fuse:
    """What happens at which write. A lost connection is back for the next try; a death is for good.

    `others` is what other processes do while this one waits.
    """

    mishap: Mishap
    at: int
    writes: int = 0
    dead: bool = False
    others: Callable[[], Awaitable[None]] | None = None

    async def run(self, name: str, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.dead:
            raise DeadError
        if name not in WRITES:
            return await work(*args, **kwargs)
        self.writes += 1
        hit = self.writes == self.at
        before = self.mishap in ("dies before", "request lost", "others before", "others, request lost")
        if hit and before:
            await self._burn()
        try:
            return await work(*args, **kwargs)
        finally:
            if (hit and not before) or self.dead:
                await self._burn()

    async def _burn(self) -> None:
        if self.others:
            await self.others()
            if self.mishap in ("others before", "others after"):
                return
        if self.mishap.endswith("lost"):
            raise AutoReconnect(self.mishap)
        self.dead = True
        raise DeadError


class Collection:
    """A collection on a fuse. Reading with a cursor is left alone: it changes nothing."""

    def __init__(self, real: Any, fuse: Fuse) -> None:
        self._real, self._fuse = real, fuse

    def __getattr__(self, name: str) -> Any:
        work = getattr(self._real, name)
        if name not in WRITES and name not in ("find_one", "distinct", "count_documents"):
            return work

        async def run(*args: Any, **kwargs: Any) -> Any:
            return await self._fuse.run(name, work, args, kwargs)

        return run


class DyingStore(MongoStore):
    """A store whose collections are on a fuse once it is open."""

    def __init__(self, url: str, fuse: Fuse) -> None:
        super().__init__(url)
        self.fuse = fuse

    def _open_books(self, database: AsyncDatabase[Doc]) -> Books:
        books = super()._open_books(database)
        for name in ("accounts", "keys", "journal", "entries", "owners", "rates", "rows", "meta"):
            setattr(books, name, Collection(getattr(books, name), self.fuse))
        return books
