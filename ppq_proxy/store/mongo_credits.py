"""Credits in MongoDB: each `ref` once, in steps that anybody can finish.

The entry comes first, not yet `applied`; its id is the ref, so there is only one. Then the account: its balance and
`credits`, which counts, rise together, on the condition that the count is what was seen *before* the entry was seen not
to be applied, and the entry's id stands in `crediting` until the entry says that it is applied. So whoever looks at the
account and then at the entry either finds the id there, or the entry applied, or the count moves under him.
"""

from pymongo.errors import DuplicateKeyError

from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.store.base import Entry
from ppq_proxy.store.mongo_books import Books, Doc, entry_doc

LOOKS = 500
VIEW = {"credits": 1, "crediting": 1}


class Credits:
    """Adds money to accounts."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def credit(self, ref: str, entry: Entry) -> bool:
        """`base.Store.credit`: True if it was this call that moved the money."""
        account = await self._account(entry.account_id)
        if account is None:
            raise ValueError("no such account")
        doc = {**entry_doc(entry, f"credit:{ref}"), "applied": False}
        try:
            await self.books.entries.insert_one(doc)
        except DuplicateKeyError:
            return await self._finish(doc["_id"])
        return await self._apply(account, doc) or await self._finish(doc["_id"])

    async def finish_all(self) -> None:
        """Finish credits that somebody has begun and not ended."""
        async for doc in self.books.entries.find({"applied": False}, {"_id": 1}):
            await self._finish(doc["_id"])

    async def _finish(self, entry_id: str) -> bool:
        entry = await self.books.entries.find_one({"_id": entry_id})
        for _ in range(LOOKS):
            if entry is None or entry["applied"]:
                break
            account = await self._account(entry["account_id"])
            entry = await self.books.entries.find_one({"_id": entry_id})
            if account is None or entry is None or entry["applied"]:
                break
            if entry_id in account["crediting"]:
                await self._mark(entry)
                break
            if await self._apply(account, entry):
                return True
        else:
            raise StoreUnavailable("too many credit this account at once")
        await self.books.settle_reads()
        return False

    async def _apply(self, account: Doc, entry: Doc) -> bool:
        """Move the money if nothing was credited since the account was looked at."""
        done = await self.books.accounts.update_one(
            {"_id": account["_id"], "credits": account["credits"], "crediting": {"$ne": entry["_id"]}},
            {"$inc": {"credited": entry["amount"], "credits": 1}, "$push": {"crediting": entry["_id"]}},
        )
        if done.matched_count:
            await self._mark(entry)
        return bool(done.matched_count)

    async def _mark(self, entry: Doc) -> None:
        await self.books.entries.update_one({"_id": entry["_id"]}, {"$set": {"applied": True}})
        await self.books.accounts.update_one({"_id": entry["account_id"]}, {"$pull": {"crediting": entry["_id"]}})

    async def _account(self, account_id: str) -> Doc | None:
        return await self.books.accounts.find_one({"_id": account_id}, VIEW)
