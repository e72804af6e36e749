"""Settling a batch of the journal with the purses it names: each purse once, in one step on its own document.

The plain way is one bulk of updates, each on the condition that the purse has not been settled with this batch yet and
that the draw is there. Whatever that does not match is looked at one by one: a purse that was settled before, a period
of a key that has passed, or a draw that is not there, which is made then from what the account has left. What it has
not is lost, and the batch is corrected in the journal before it is settled.
"""

import asyncio
from typing import Any

from pymongo import UpdateOne

from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.store.mongo_books import Books, Doc, element
from ppq_proxy.store.mongo_draws import AVAILABLE, reset_period

ROUNDS = 200
"""How often a purse is looked at anew while others change it, before the batch is put off."""

ACCOUNT_VIEW = {"credited": 1, "charged": 1, "reserved": 1, "lost": 1, "draws": 1}
KEY_VIEW = {"used_total": 1, "reset_at": 1, "period": 1, "draws": 1}


class Settling:
    """Charges accounts and keys with what a batch says. A settlement is [account, key, charge, give back, lost]."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def accounts(self, owner: str, doc: Doc) -> bool:
        """Settle all accounts that are as expected; False if there is one that was not."""
        number = doc["_id"]["n"]
        steps = []
        for account_id, key_id, charge, give_back, lost in doc["settlements"]:
            taken = charge + give_back
            drawn = {"o": owner, "k": key_id or "", "s": {"$lt": number}, "a": {"$gte": taken}}
            more = {"charged": charge, "lost": lost, "reserved": -taken, "draws.$.a": -taken}
            steps.append(
                UpdateOne(
                    {"_id": account_id, "draws": {"$elemMatch": drawn}},
                    {"$inc": more, "$set": {"draws.$.s": number}},
                )
            )
        return not steps or (await self.books.accounts.bulk_write(steps, ordered=False)).matched_count == len(steps)

    async def keys(self, owner: str, doc: Doc) -> bool:
        """Settle all keys that are as expected; False if there is one that was not."""
        number, at = doc["_id"]["n"], doc["at"]
        steps = []
        for _, key_id, charge, give_back, _ in doc["settlements"]:
            taken = charge + give_back
            if not key_id or not taken:
                continue
            drawn = {"o": owner, "k": key_id, "s": {"$lt": number}, "a": {"$gte": taken}}
            more = {"used": charge, "used_total": charge, "reserved": -taken, "draws.$.a": -taken}
            steps.append(
                UpdateOne(
                    {"_id": key_id, "reset_at": {"$not": {"$lte": at}}, "draws": {"$elemMatch": drawn}},
                    {"$inc": more, "$set": {"draws.$.s": number}},
                )
            )
        return not steps or (await self.books.keys.bulk_write(steps, ordered=False)).matched_count == len(steps)

    async def one_by_one(self, owner: str, doc: Doc) -> None:
        """Settle whatever is not settled yet, until nothing is left."""
        for attempt in range(ROUNDS):
            await asyncio.sleep(attempt // 10 / 100)  # not money: seconds
            accounts = await self._left(owner, doc, self.books.accounts, 0, ACCOUNT_VIEW)
            keys = await self._left(owner, doc, self.books.keys, 1, KEY_VIEW)
            # Looked at after the purses: where a draw is missing because a sweeper has returned it, this tells.
            now = await self.books.journal.find_one({"_id": doc["_id"]})
            if now is None or "ended_at" in now or now.get("settled"):
                return await self.books.settle_reads()
            if now["rev"] != doc["rev"]:
                doc = now
                continue
            if accounts:
                for settlement, account in accounts:
                    await self._make_ready(owner, doc, settlement, account)
                await self.accounts(owner, doc)
            elif keys:
                for settlement, key in keys:
                    await self._make_key_ready(owner, doc, settlement, key)
                await self.keys(owner, doc)
            else:
                await self._correct_entries(doc)
                return
        raise StoreUnavailable("too many change this account at once")

    @staticmethod
    async def _left(owner: str, doc: Doc, purses: Any, place: int, view: Doc) -> list[tuple[list[Any], Doc]]:
        """The settlements that a kind of purse has not seen, each with the purse. `place`: where its id stands."""
        wanted = [one for one in doc["settlements"] if one[place] and (place == 0 or one[2] or one[3])]
        found = {one["_id"]: one async for one in purses.find({"_id": {"$in": [one[place] for one in wanted]}}, view)}
        left = []
        for one in wanted:
            purse = found.get(one[place])
            drawn = element(purse, owner, one[1])
            if purse is not None and (drawn is None or drawn["s"] < doc["_id"]["n"]):
                left.append((one, purse))
        return left

    async def _make_ready(self, owner: str, doc: Doc, settlement: list[Any], account: Doc) -> None:
        """Make a settlement and the draw behind it fit: draw what is missing, or correct the settlement to what is."""
        account_id, key_id, charge, give_back, _ = settlement
        drawn = element(account, owner, key_id)
        have = drawn["a"] if drawn else 0
        if drawn and have >= charge + give_back:
            return
        available = account["credited"] - account["charged"] - account["reserved"]
        more = max(0, min(charge - have, available))
        if drawn and not more:
            await self._correct(doc, settlement, have)
            return
        # Both sums only ever grow, and grow where this batch is settled: unchanged, nobody has settled it meanwhile.
        same = {"charged": account["charged"], "lost": account["lost"], "$expr": {"$gte": [AVAILABLE, more]}}
        match, update = draw_more(owner, key_id, drawn, more, doc["_id"]["n"])
        await self.books.accounts.update_one({"_id": account_id, **same, **match}, update)

    async def _make_key_ready(self, owner: str, doc: Doc, settlement: list[Any], key: Doc) -> None:
        """As `_make_ready`, for a key, whose limit does not count here: the account has been charged."""
        _, key_id, charge, give_back, _ = settlement
        if key["reset_at"] is not None and key["reset_at"] <= doc["at"]:
            await reset_period(self.books.keys, key, doc["at"])
        drawn = element(key, owner, key_id)
        more = charge + give_back - (drawn["a"] if drawn else 0)
        if more > 0:
            match, update = draw_more(owner, key_id, drawn, more, doc["_id"]["n"])
            await self.books.keys.update_one({"_id": key_id, "used_total": key["used_total"], **match}, update)

    async def _correct(self, doc: Doc, settlement: list[Any], have: int) -> None:
        """Charge no more than `have`; the rest is lost, in the settlement and in the entries it is the sum of."""
        account_id, key_id, charge, give_back, lost = settlement
        missing = charge - min(charge, have)
        place = doc["settlements"].index(settlement)
        corrected = [account_id, key_id, charge - missing, min(give_back, have - charge + missing), lost + missing]
        settlements = [*doc["settlements"][:place], corrected, *doc["settlements"][place + 1 :]]
        entries = []
        for entry in doc["entries"]:
            short = (
                min(missing, entry["amount"]) if (entry["account_id"], entry["key_id"]) == (account_id, key_id) else 0
            )
            missing -= short
            entries.append({**entry, "amount": entry["amount"] - short, "lost": entry["lost"] + short})
        changes = {"settlements": settlements, "entries": entries, "rev": doc["rev"] + 1}
        done = await self.books.journal.update_one({"_id": doc["_id"], "rev": doc["rev"]}, {"$set": changes})
        if done.matched_count:
            doc.update(changes)

    async def _correct_entries(self, doc: Doc) -> None:
        if doc["rev"] and doc["entries"]:
            steps = [
                UpdateOne({"_id": one["_id"]}, {"$set": {"amount": one["amount"], "lost": one["lost"]}})
                for one in doc["entries"]
            ]
            await self.books.entries.bulk_write(steps, ordered=False)


def draw_more(owner: str, key_id: str | None, drawn: Doc | None, more: int, number: int) -> tuple[Doc, Doc]:
    """The condition and the update that add to a draw, or make it, for the batch of that number to find."""
    purse = {"o": owner, "k": key_id or ""}
    if drawn:
        match = {"draws": {"$elemMatch": {**purse, "a": drawn["a"], "s": drawn["s"]}}}
        return match, {"$inc": {"reserved": more, "draws.$.a": more}}
    fresh = {**purse, "a": more, "s": number - 1, "t": []}
    return {"draws": {"$not": {"$elemMatch": purse}}}, {"$inc": {"reserved": more}, "$push": {"draws": fresh}}
