"""The invariants of the books, looked up in MongoDB.

A batch that is in the journal counts as settled: what it has not reached yet is added to what was read. A replica set
shows all of it as it was at one moment. A standalone server cannot, so what looks wrong there is looked at again: calls
that are under way make sums differ for a moment, an error stays.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pymongo
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from ppq_proxy.store.mongo_books import Books, Doc, element

LOOKS = 30
PAUSE_SECONDS = 0.05  # not money: seconds
LONGEST_SECONDS = 3600
SNAPSHOTS_SINCE = 13
"""The wire protocol of MongoDB 5.0."""

SNAPSHOT_GONE = (239, 246)
"""Codes of a server that cannot show a moment: it was too long ago, or a collection was made just then."""


class SnapshotGoneError(Exception):
    """Nothing can be said about one moment."""


@dataclass(slots=True)
class Sums:
    """What entries add up to."""

    charged: int = 0
    credited: int = 0
    lost: int = 0


@dataclass(slots=True)
class Moment:
    """What one look has read, by id; batches of the journal that may not be settled come with their entries."""

    owners: set[str] = field(default_factory=set)
    accounts: list[Doc] = field(default_factory=list)
    keys: list[Doc] = field(default_factory=list)
    by_account: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    by_key: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    open: list[Doc] = field(default_factory=list)


class Audit:
    """One check of all books."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def findings(self) -> list[str]:
        """Every invariant that does not hold, in words."""
        client = self.books.database.client
        hello = await client.admin.command("hello")
        with pymongo.timeout(LONGEST_SECONDS):
            if "setName" in hello and hello["maxWireVersion"] >= SNAPSHOTS_SINCE:
                with contextlib.suppress(SnapshotGoneError):
                    async with client.start_session(snapshot=True) as session:
                        return [*check(await self._look_at_once(session)).values()]
            return await self._look_again_and_again()

    async def _look_at_once(self, session: AsyncClientSession) -> Moment:
        try:
            return await self._look(None, session)
        except OperationFailure as problem:
            if problem.code in SNAPSHOT_GONE:
                raise SnapshotGoneError from None
            raise

    async def _look_again_and_again(self) -> list[str]:
        found = check(await self._look(None, None))
        for _ in range(LOOKS):
            if not found:
                break
            await asyncio.sleep(PAUSE_SECONDS)
            again = check(await self._look({purse for _, purse in found}, None))
            found = {what: words for what, words in again.items() if what in found}
        return [*found.values()]

    async def _look(self, only: set[str] | None, session: AsyncClientSession | None) -> Moment:
        """Read the books, or those of some accounts and keys."""
        books, seen = self.books, Moment()
        these: Doc = {} if only is None else {"_id": {"$in": [*only]}}
        seen.accounts = await books.accounts.find(these, {"digest": 0}, session=session).to_list()
        seen.keys = await books.keys.find(
            these, {"used_total": 1, "reserved": 1, "draws": 1}, session=session
        ).to_list()
        await self._add_up(seen.by_account, "account_id", only, session)
        await self._add_up(seen.by_key, "key_id", only, session)
        seen.owners = {doc["_id"] async for doc in books.owners.find({}, {"_id": 1}, session=session)}
        newest: dict[str, int] = {}
        async for doc in books.journal.find({"ended_at": None}, {"settled": 1}, session=session):
            owner, number = doc["_id"]["o"], doc["_id"]["n"]
            newest[owner] = max(number, newest.get(owner, 0))
        ids = [{"o": owner, "n": number} for owner, number in newest.items()]
        seen.open = await books.journal.find({"_id": {"$in": ids}, "settled": None}, session=session).to_list()
        for doc in seen.open:
            await self._add_missing(seen, doc, session)
        return seen

    async def _add_up(
        self, sums: dict[str, Sums], name: str, only: set[str] | None, session: AsyncClientSession | None
    ) -> None:
        of: Any = {"$ne": None} if only is None else {"$in": [*only]}
        steps: Sequence[Doc] = [
            {"$match": {name: of, "applied": {"$ne": False}}},
            {
                "$group": {
                    "_id": {"purse": f"${name}", "kind": "$kind"},
                    "amount": {"$sum": "$amount"},
                    "lost": {"$sum": "$lost"},
                }
            },
        ]
        async for row in await self.books.entries.aggregate(steps, session=session, allowDiskUse=True):
            one = sums[row["_id"]["purse"]]
            one.lost += row["lost"]
            if row["_id"]["kind"] == "charge":
                one.charged += row["amount"]
            else:
                one.credited += row["amount"]

    async def _add_missing(self, seen: Moment, batch: Doc, session: AsyncClientSession | None) -> None:
        """Add what a batch's entries will change once all of them are there as the journal has them."""
        ids = [entry["_id"] for entry in batch["entries"]]
        view = {"amount": 1, "lost": 1}
        there = {e["_id"]: e async for e in self.books.entries.find({"_id": {"$in": ids}}, view, session=session)}
        for entry in batch["entries"]:
            old = there.get(entry["_id"], {"amount": 0, "lost": 0})
            amount, lost = entry["amount"] - old["amount"], entry["lost"] - old["lost"]
            for sums in (seen.by_account[entry["account_id"]], seen.by_key[entry["key_id"] or ""]):
                sums.charged, sums.lost = sums.charged + amount, sums.lost + lost


def check(seen: Moment) -> dict[tuple[str, str], str]:
    """What does not hold at a moment, by kind of finding and purse."""
    found: dict[tuple[str, str], str] = {}
    for account in seen.accounts:
        check_account(seen, account, found)
    for key in seen.keys:
        check_key(seen, key, found)
    return found


def check_account(seen: Moment, account: Doc, found: dict[tuple[str, str], str]) -> None:
    """Compare an account with its entries and with its draws."""
    name, sums = account["_id"], seen.by_account[account["_id"]]
    coming = [one for one in unsettled(seen, account, 0)]
    charged = account["charged"] + sum(one[2] for one in coming)
    lost = account["lost"] + sum(one[4] for one in coming)
    drawn = sum(one["a"] for one in account["draws"])
    for what, added, said in (
        ("charges", sums.charged, charged),
        ("credits", sums.credited, account["credited"]),
        ("losses", sums.lost, lost),
        ("draws", drawn, account["reserved"]),
    ):
        if added != said:
            on = "on" if what == "draws" else "of"
            found[what, name] = f"Σ {what} {on} {name} is {added}, its account says {said}"
    balance = account["credited"] - account["charged"]
    if not 0 <= account["reserved"] <= balance:
        found["held", name] = f"account {name} holds {account['reserved']} on a balance of {balance}"
    for one in account["draws"]:
        if one["a"] > 0 and one["o"] not in seen.owners and not one["o"].startswith("job:"):
            words = f"{one['a']} is drawn from {name} by an owner that is not registered: {one['o']}"
            found[f"owner {one['o']}", name] = words


def check_key(seen: Moment, key: Doc, found: dict[tuple[str, str], str]) -> None:
    """Compare a key with its entries and with its draws."""
    name, drawn = key["_id"], sum(one["a"] for one in key["draws"])
    if drawn != key["reserved"]:
        found["key draws", name] = f"Σ draws on key {name} is {drawn}, the key says {key['reserved']}"
    used = key["used_total"] + sum(one[2] for one in unsettled(seen, key, 1))
    if seen.by_key[name].charged != used:
        found["key charges", name] = f"Σ charges of key {name} is {seen.by_key[name].charged}, the key says {used}"


def unsettled(seen: Moment, purse: Doc, place: int) -> list[list[Any]]:
    """The settlements that are in the journal and have not reached a purse; `place`: where its id stands in them."""
    return [
        settlement
        for batch in seen.open
        for settlement in batch["settlements"]
        if settlement[place] == purse["_id"]
        and ((drawn := element(purse, batch["_id"]["o"], settlement[1])) is None or drawn["s"] < batch["_id"]["n"])
    ]
