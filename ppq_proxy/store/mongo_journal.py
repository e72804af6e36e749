"""The journal in MongoDB: batches of an owner, each written whole as one document before anything else is touched.

That one write is the moment a batch is durable, and all that follows (entries, purses, rows) can be read from it and
done again by anybody, any number of times: an entry has its id from the batch's number, a purse remembers the number of
the last batch that it was settled with, a row its version. An owner's batches follow each other without a gap, and one
is written only after the one before it was settled, so no more than the newest of a journal can be unsettled.

A journal ends with a document that says so, which takes the next number. Of a sweeper that ends it and an owner that
writes its next batch one is first, and the other is told so by the unique number. So a batch is either in the journal,
and whoever sweeps settles it, or it is late, and goes into a journal of its own without any draw behind it.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.store.base import Batch, Entry, Settlement
from ppq_proxy.store.mongo_books import Books, Doc, Docs, entry_doc
from ppq_proxy.store.mongo_draws import Draws, all_done, journal_of
from ppq_proxy.store.mongo_rows import replace_row, row_doc
from ppq_proxy.store.mongo_settling import Settling

DUPLICATE = 11000
LARGEST_PART = 4_000_000
"""Bytes, roughly, of one document of the journal; the server takes 16 MB. A larger batch is written in parts."""

ENTRY_BYTES = 400
CLEAN_EVERY = 32
EMPTY_AT_ONCE = 64
LATE_LEASE_MS = 60_000
NEVER_BEHIND = 1 << 62
"""The version that an owner has seen who serves nobody, so that nobody waits for it."""

MOST_CHAINS = 20_000


class Chain:
    """What this process knows of an owner's journal: the number of the last batch that is settled, None if it has not
    looked yet, and which batch it is at. `own`: nobody else writes batches of this owner."""

    __slots__ = ("done", "emptied", "lock", "number", "opened", "own")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.own = False
        self.number: int | None = None
        self.opened: list[int] | None = None
        self.done: list[int] | None = None
        self.emptied: dict[tuple[str, str | None], int] = {}


class Journal:
    """The journals of the owners that this process acts for, and of those that it sweeps."""

    def __init__(self, books: Books, draws: Draws) -> None:
        self.books, self.draws = books, draws
        self.settling = Settling(books)
        self._me = secrets.randbits(62)
        self._chains: dict[str, Chain] = {}

    def join(self, owner: str) -> None:
        """From now on this process is the owner. Others it may act for in turn with other processes."""
        self._chain(owner).own = True

    def number(self, owner: str) -> int:
        """The number of an owner's last batch that is settled, as far as this process knows."""
        return self._chain(owner).number or 0

    def _chain(self, owner: str) -> Chain:
        found = self._chains.get(owner)
        if found is None:
            if len(self._chains) >= MOST_CHAINS:  # what is forgotten can be read again
                self._chains = {name: one for name, one in self._chains.items() if one.own or one.opened}
            found = self._chains[owner] = Chain()
        return found

    async def commit(self, owner: str, batch: Batch) -> None:
        """`base.Store.commit`. Batches of one owner are written one after the other."""
        chain = self._chain(owner)
        async with chain.lock:
            for count, part in enumerate(parts(batch)):
                await self._write(owner, chain, [self._me, batch.seq, batch.at, count], part)

    async def _write(self, owner: str, chain: Chain, by: list[int], part: Batch) -> None:
        """Write and settle a part of a batch; `by` tells it from all others of the owner."""
        if chain.done and chain.done[:-1] == by[:-1] and chain.done[-1] >= by[-1]:
            return
        # One that was given up may be written all the same.
        if chain.number is None or not chain.own or chain.opened not in (None, by):
            await self._catch_up(owner, chain, by)
        chain.opened = by
        while True:
            doc = document(owner, (chain.number or 0) + 1, by, part)
            try:
                await self.books.journal.insert_one(doc)
                break
            except DuplicateKeyError:
                newest = await self._newest(owner)
            if newest is None:
                raise StoreUnavailable("the journal has changed under us")
            if newest["by"] == by:
                if "ended_at" in newest:  # it was written, and the sweeper has settled it or will
                    await self.books.settle_reads()
                    return self._finished(chain, by, newest["_id"]["n"] - 1)
                doc = newest
                break
            if "ended_at" in newest:
                await self._write_late(owner, by, part)
                return self._finished(chain, by, newest["_id"]["n"] - 1)
            await self._catch_up(owner, chain, by)
        await self._settle(owner, doc)
        self._finished(chain, by, doc["_id"]["n"])
        await self._tidy(owner, chain, doc)

    @staticmethod
    def _finished(chain: Chain, by: list[int], number: int) -> None:
        chain.number, chain.done, chain.opened = number, by, None

    async def _newest(self, owner: str) -> Doc | None:
        return await self.books.journal.find_one(journal_of(owner), sort=[("_id", -1)])

    async def _catch_up(self, owner: str, chain: Chain, by: list[int]) -> None:
        """Find the end of an owner's journal, and settle what others, or a batch that was given up, have left there."""
        newest = await self._newest(owner)
        if newest is None:
            chain.number = 0
        elif "ended_at" in newest or newest["by"] == by:
            chain.number = newest["_id"]["n"] - 1
        else:
            await self._settle(owner, newest)
            chain.number = newest["_id"]["n"]

    async def _write_late(self, owner: str, by: list[int], part: Batch) -> None:
        """Charge a batch whose owner was swept: under a name of its own, which has drawn nothing.

        The name is registered, so that it is swept like any other should this process end before it is done.
        """
        name = f"late:{owner}:" + ".".join(f"{one:x}" for one in by)
        lease = {"host": "", "pid": 0, "seen": NEVER_BEHIND, "expires_at": time.time_ns() // 1_000_000 + LATE_LEASE_MS}
        await self.books.owners.update_one({"_id": name}, {"$set": lease}, upsert=True)
        chain = self._chain(name)
        async with chain.lock:
            await self._write(name, chain, by, part)
        await self.sweep(name)

    async def _settle(self, owner: str, doc: Doc) -> None:
        """Do what a document of the journal says, as far as it is not done."""
        settled = await all_done(
            (
                self._insert_entries(doc),
                self.settling.accounts(owner, doc),
                self.settling.keys(owner, doc),
                self._replace_rows(doc),
            )
        )
        if not all(settled):
            await self.settling.one_by_one(owner, doc)

    async def _insert_entries(self, doc: Doc) -> bool:
        """Insert what is not there yet. False if the batch was corrected since: the entries may be older than that."""
        if not doc["entries"]:
            return True
        try:
            await self.books.entries.insert_many(doc["entries"], ordered=False)
        except BulkWriteError as problem:
            told = problem.details
            if told["writeConcernErrors"] or any(one["code"] != DUPLICATE for one in told["writeErrors"]):
                raise
        return not doc["rev"]

    async def _replace_rows(self, doc: Doc) -> bool:
        """Rows that somebody else has changed since stay as they are."""
        if doc["rows"]:
            steps = [replace_row(row) for row in doc["rows"]]
            await self.books.rows.bulk_write(steps, ordered=False)
        return True

    async def _tidy(self, owner: str, chain: Chain, doc: Doc) -> None:
        """Remove, every so often, draws that are empty and batches that are settled: nobody looks at them again."""
        number = doc["_id"]["n"]
        if len(chain.emptied) >= EMPTY_AT_ONCE:
            # With the number of a batch before this one: until the next is written this one may have to be settled
            # once more, and then has to find its own number there.
            gone, chain.emptied = chain.emptied, {}
            await all_done(
                (
                    self._remove_empty(self.books.accounts, owner, {(a, k or ""): n for (a, k), n in gone.items()}),
                    self._remove_empty(self.books.keys, owner, {(k, k): n for (_, k), n in gone.items() if k}),
                )
            )
        chain.emptied |= {(account, key): number for account, key, _, give_back, _ in doc["settlements"] if give_back}
        if number % CLEAN_EVERY == 0:
            await self.books.journal.delete_many({"_id": {"$gte": {"o": owner, "n": 0}, "$lt": doc["_id"]}})

    @staticmethod
    async def _remove_empty(purses: Docs, owner: str, gone: dict[tuple[str, str], int]) -> None:
        steps = []
        for (purse, key), number in gone.items():
            empty = {"o": owner, "k": key, "a": 0, "s": {"$lte": number}}
            steps.append(UpdateOne({"_id": purse, "draws": {"$elemMatch": empty}}, {"$pull": {"draws": empty}}))
        if steps:
            await purses.bulk_write(steps, ordered=False)

    # sweeping

    async def sweep(self, owner: str) -> int:
        """`base.Store.sweep`. Every step can be done again, so anybody goes on with a sweep that was cut short."""
        chain = self._chain(owner)
        async with chain.lock:
            ended = {"ended": True, "expires_at": 0}
            new = {"host": "", "pid": 0, "seen": NEVER_BEHIND}
            await self.books.owners.update_one({"_id": owner}, {"$set": ended, "$setOnInsert": new}, upsert=True)
            newest = await self._end(owner)
            if newest is not None and not newest.get("settled"):
                await self._settle(owner, newest)
                # From here on a draw that is missing was returned; before, it means that a batch has to do without.
                await self.books.journal.update_one({"_id": newest["_id"]}, {"$set": {"settled": True}})
            returned = await self.draws.return_all(owner)
            # The newest keeps its number taken: its owner may live, not have heard that it was written, and try again.
            if newest is not None:
                end = {"by": newest["by"], "ended_at": datetime.now(UTC)}
                await self.books.journal.replace_one({"_id": newest["_id"]}, end)
            await self.books.journal.delete_many({**journal_of(owner), "ended_at": {"$exists": False}})
            await self.books.owners.delete_one({"_id": owner})
        self._chains.pop(owner, None)
        return returned

    async def _end(self, owner: str) -> Doc | None:
        """End an owner's journal; the newest batch in it, None if there is none, or a sweep is done with it."""
        while True:
            newest = await self._newest(owner)
            if newest is not None and "ended_at" in newest:
                before = {"_id": {"$gte": {"o": owner, "n": 0}, "$lt": newest["_id"]}}
                last = await self.books.journal.find_one(before, sort=[("_id", -1)])
                return None if last is None or "ended_at" in last else last
            number = newest["_id"]["n"] + 1 if newest else 1
            by = newest["by"] if newest else None
            try:
                await self.books.journal.insert_one(
                    {"_id": {"o": owner, "n": number}, "by": by, "ended_at": datetime.now(UTC)}
                )
            except DuplicateKeyError:
                continue
            return newest

    async def sweep_left_behind(self) -> None:
        """Sweep again what was drawn in a name after it was swept, by a process that died before it noticed."""
        drawn = {*await self.books.accounts.distinct("draws.o"), *await self.books.keys.distinct("draws.o")}
        if drawn:
            ended = self.books.journal.find({"ended_at": {"$exists": True}}, {"_id": 1})
            for owner in drawn & {doc["_id"]["o"] async for doc in ended}:
                await self.sweep(owner)


def document(owner: str, number: int, by: list[int], part: Batch) -> Doc:
    """A batch as the journal has it."""
    prefix = f"{owner}.{number:010x}."
    return {
        "_id": {"o": owner, "n": number},
        "by": by,
        "at": part.at,
        "rev": 0,
        "settlements": [
            [one.account_id, one.key_id, one.charge, one.give_back, one.lost]
            for one in part.settlements.values()
            if one.charge or one.give_back or one.lost
        ],
        "entries": [entry_doc(entry, f"{prefix}{i:06x}") for i, entry in enumerate(part.entries)],
        "rows": [row_doc(row) for row in part.rows],
    }


def parts(batch: Batch) -> Iterator[Batch]:
    """A batch in parts that fit into a document each, every one with the charges of its own entries."""
    if sum(ENTRY_BYTES + len(entry.detail) for entry in batch.entries) <= LARGEST_PART:
        if batch.entries or batch.rows or batch.settlements:
            yield batch
        return
    rest = {purse: Settlement(*purse, one.charge, one.give_back, one.lost) for purse, one in batch.settlements.items()}
    for entries in chunks(batch.entries):
        mine: dict[tuple[str, str | None], Settlement] = {}
        for entry in entries:
            purse = (entry.account_id, entry.key_id)
            one = mine.setdefault(purse, Settlement(*purse))
            one.charge, one.lost = one.charge + entry.amount, one.lost + entry.lost
            left = rest.setdefault(purse, Settlement(*purse))
            left.charge, left.lost = left.charge - entry.amount, left.lost - entry.lost
        yield Batch(batch.seq, batch.at, entries, mine)
    yield Batch(batch.seq, batch.at, [], rest, batch.rows)


def chunks(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Entries in groups of about `LARGEST_PART` bytes."""
    size, start = 0, 0
    for i, entry in enumerate(entries):
        size += ENTRY_BYTES + len(entry.detail)
        if size > LARGEST_PART:
            yield entries[start : i + 1]
            size, start = 0, i + 1
    if start < len(entries):
        yield entries[start:]
