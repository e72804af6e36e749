"""Draws in MongoDB: taking money out of an account and a key in steps of one document each.

A draw looks at both purses, decides (`base.grant`), and takes from both on the condition that what it saw still holds;
where one of them refuses, the other is put back and the draw looks again. A process that dies in between leaves a draw
in one purse that its owner's sweep returns.

A step whose answer was lost may have been taken or not. So every draw leaves a mark in what it took, and one of which
we do not know is put back, by its mark and so once, as soon as the database answers again.
"""

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pymongo import ReturnDocument, UpdateOne
from pymongo.results import UpdateResult

from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.store.base import SHARE, Draw, Drawn, Refused, grant
from ppq_proxy.store.mongo_books import Books, Doc, Docs, element, reaching
from ppq_proxy.store.periods import next_reset

LOOKS = 60
"""How often a draw looks anew when others were faster, before it gives up."""

MARKS = 32
"""How many of the newest draws are remembered in a purse, for each owner and key."""

CHUNK = 500

AVAILABLE = {"$subtract": ["$credited", {"$add": ["$charged", "$reserved"]}]}
ROOM = {"$subtract": ["$limit", {"$add": ["$used", "$reserved"]}]}

ACCOUNT_VIEW = {"credited": 1, "charged": 1, "reserved": 1, "expires_at": 1}
KEY_VIEW = {
    **{"limit": 1, "period": 1, "used": 1, "reserved": 1},
    **{"reset_at": 1, "deleted_at": 1, "expire_at": 1},
}


@dataclass(slots=True, frozen=True)
class Taking:
    """A draw that was decided: `amount`, if `floor` is still there; `mark` tells it from others."""

    owner: str
    draw: Draw
    at: int
    amount: int
    floor: int
    mark: int

    @property
    def purse(self) -> Doc:
        return {"o": self.owner, "k": self.draw.key_id or ""}


class Draws:
    """Draws of all owners that this process acts for."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self._doubtful: list[Taking] = []

    @reaching
    async def draw(self, owner: str, draw: Draw, at: int, number: int) -> Drawn | Refused:
        """`base.Store.draw`. `number` is that of the owner's last batch that is settled: it and those before it do
        not touch what is drawn now."""
        await self.put_back_doubtful()
        for look in range(LOOKS):
            if look > 5:
                await asyncio.sleep(secrets.randbelow(look) / 1000)  # not money: seconds
            account, key = await self._look(owner, draw)
            if key is not None and key["reset_at"] is not None and key["reset_at"] <= at:
                await reset_period(self.books.keys, key, at)
                key["used"], key["reset_at"] = 0, next_reset(key["period"], at)
            decided = decide(owner, draw, at, account, key)
            if isinstance(decided, Refused):
                return decided
            left = await self._take(decided, account, key, number)
            if left is not None:
                return Drawn(decided.amount, left, decided.amount > draw.need)
        raise StoreUnavailable("too many draw on this account at once")

    async def _look(self, owner: str, draw: Draw) -> tuple[Doc | None, Doc | None]:
        mine = {"draws": {"$elemMatch": {"o": owner, "k": draw.key_id or ""}}}
        account = self.books.accounts.find_one({"_id": draw.account_id}, {**ACCOUNT_VIEW, **mine})
        if not draw.key_id:
            return await account, None
        key = self.books.keys.find_one({"_id": draw.key_id}, {**KEY_VIEW, **mine})
        found = await asyncio.gather(account, key)
        return found[0], found[1]

    async def _take(self, taking: Taking, account: Doc | None, key: Doc | None, number: int) -> int | None:
        """Take from both purses; what is left in the account, or None if one of them refused and nothing was taken."""
        try:
            steps = [self._take_from_account(taking, account, number)]
            if key is not None:
                steps.append(self._take_from_key(taking, key, number))
            done = await asyncio.gather(*steps, return_exceptions=True)
            for one in done:
                if isinstance(one, BaseException):
                    raise one
            # A sweeper ends the owner's journal first and looks for draws then. So either it sees this one, or we see
            # the end here, and nobody's money is left behind in the name of the dead.
            ended = None not in done and await self.is_ended(taking.owner)
        except BaseException:  # border: whatever happened, what may have been taken must not stay taken
            self._doubtful.append(taking)
            raise
        if ended or None in done:
            self._doubtful.append(taking)
            await self.put_back_doubtful()
        if ended:
            raise StoreUnavailable("this process was taken for dead and goes on under another name")
        left: Any = None if None in done else done[0]
        return left if left is None else int(left)

    async def _take_from_account(self, taking: Taking, account: Doc | None, number: int) -> int | None:
        enough = {"$expr": {"$gte": [AVAILABLE, taking.floor]}}
        where = {"_id": taking.draw.account_id, "expires_at": {"$not": {"$lte": taking.at}}, **enough}
        found = await self.books.accounts.find_one_and_update(
            {**where, "draws": drawn_before(taking, account)},
            take(taking, account, number),
            ACCOUNT_VIEW,
            return_document=ReturnDocument.AFTER,
        )
        return None if found is None else int(found["credited"] - found["charged"] - found["reserved"])

    async def _take_from_key(self, taking: Taking, key: Doc, number: int) -> int | None:
        passed = {"$not": {"$lte": taking.at}}
        limit: Doc = {"limit": None} if key["limit"] is None else {"$expr": {"$gte": [ROOM, taking.floor]}}
        where = {"_id": key["_id"], "deleted_at": None, "expire_at": passed, "reset_at": passed, **limit}
        done = await self.books.keys.update_one(
            {**where, "draws": drawn_before(taking, key)}, take(taking, key, number)
        )
        return done.matched_count or None

    async def put_back_doubtful(self) -> None:
        """Put back draws of which it is not known whether they were taken."""
        while self._doubtful:
            taking = self._doubtful.pop()
            try:
                await self._put_back(taking)
            except BaseException:  # border: it stays doubtful until it is put back
                self._doubtful.append(taking)
                raise

    async def _put_back(self, taking: Taking) -> None:
        """Undo a draw where it was taken, by its mark."""
        marked = {"$elemMatch": {**taking.purse, "t": taking.mark, "a": {"$gte": taking.amount}}}
        undo = {
            "$inc": {"reserved": -taking.amount, "draws.$.a": -taking.amount},
            "$pull": {"draws.$.t": taking.mark},
        }
        steps = [self.books.accounts.update_one({"_id": taking.draw.account_id, "draws": marked}, undo)]
        if taking.draw.key_id:
            steps.append(self.books.keys.update_one({"_id": taking.draw.key_id, "draws": marked}, undo))
        await all_done(steps)

    async def is_ended(self, owner: str) -> bool:
        """Whether the owner was swept."""
        newest = await self.books.journal.find_one(journal_of(owner), {"ended_at": 1}, sort=[("_id", -1)])
        return newest is not None and "ended_at" in newest

    async def return_all(self, owner: str) -> int:
        """Return whatever an owner has drawn; what that was, of the accounts.

        Only for a sweep, when the owner's last batch is settled: where a draw is missing, that one counts as settled.
        """
        await self._return(self.books.keys, owner)
        return await self._return(self.books.accounts, owner)

    async def _return(self, purses: Docs, owner: str) -> int:
        total = 0
        while found := await purses.find({"draws.o": owner}, {"draws": 1}, limit=CHUNK).to_list():
            held = [(doc["_id"], one) for doc in found for one in doc["draws"] if one["o"] == owner]
            steps = [
                UpdateOne(
                    {"_id": purse, "draws": {"$elemMatch": {name: one[name] for name in ("o", "k", "a", "s")}}},
                    {"$inc": {"reserved": -one["a"]}, "$pull": {"draws": {"o": owner, "k": one["k"]}}},
                )
                for purse, one in held
            ]
            done = await purses.bulk_write(steps, ordered=False)
            if done.matched_count == len(steps):
                total += sum(one["a"] for _, one in held)
        return total


def decide(owner: str, draw: Draw, at: int, account: Doc | None, key: Doc | None) -> Taking | Refused:
    """What a draw takes out of purses as they were seen, or why it takes nothing."""
    if account is None or (account["expires_at"] is not None and account["expires_at"] <= at):
        return Refused("gone", 0)
    available, room = account["credited"] - account["charged"] - account["reserved"], None
    refusal = Refused("balance", available, account["reserved"])
    if draw.key_id:
        if key is None or key["deleted_at"] is not None or (key["expire_at"] is not None and key["expire_at"] <= at):
            return Refused("gone", 0)
        if (limit := key["limit"]) is not None:
            room = limit - key["used"] - key["reserved"]
            if room < available:
                more = (key["reserved"], limit, key["reset_at"], key["period"])
                refusal = Refused("key_limit", max(0, room), *more)
    amount = grant(draw, available, room)
    if not amount:
        return refusal
    # A draw ahead is a small share of what is there. Others may draw at the same time, so twice that share will do
    # when it is taken: asking for exactly one would let one of them through and send all the others back to look anew.
    ahead = draw.need <= (available if room is None else min(available, room)) // SHARE
    floor = max(draw.need * SHARE, amount * SHARE // 2) if ahead else amount
    return Taking(owner, draw, at, amount, floor, secrets.randbits(62))


def drawn_before(taking: Taking, purse: Doc | None) -> Doc:
    """The condition that the owner's draw on a purse is there, or is not, as it was when the purse was looked at."""
    match = {"$elemMatch": taking.purse}
    return match if element(purse, taking.owner, taking.draw.key_id) else {"$not": match}


def take(taking: Taking, purse: Doc | None, number: int) -> Doc:
    """The update that takes from a purse."""
    amount = taking.amount
    if element(purse, taking.owner, taking.draw.key_id):
        marks = {"draws.$.t": {"$each": [taking.mark], "$slice": -MARKS}}
        return {"$inc": {"reserved": amount, "draws.$.a": amount}, "$push": marks}
    return {
        "$inc": {"reserved": amount},
        "$push": {"draws": {**taking.purse, "a": amount, "s": number, "t": [taking.mark]}},
    }


async def reset_period(keys: Docs, key: Doc, at: int) -> None:
    """Start a key's next period, unless somebody else has."""
    where = {"_id": key["_id"], "reset_at": key["reset_at"], "period": key["period"]}
    await keys.update_one(where, {"$set": {"used": 0, "reset_at": next_reset(key["period"], at)}})


def journal_of(owner: str) -> Doc:
    """The condition on the journal that picks what is an owner's, in order of `_id` that of the numbers."""
    return {"_id": {"$gte": {"o": owner, "n": 0}, "$lt": {"o": owner, "n": 1 << 62}}}


async def all_done(steps: Iterable[Any]) -> list[UpdateResult]:
    """Run steps at once and wait for all, also where one fails: none may still be under way when its error is told."""
    done = await asyncio.gather(*steps, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done  # type: ignore[return-value]
