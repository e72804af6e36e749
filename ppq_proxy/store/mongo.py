"""MongoDB: the same books on a server, for several machines, on a standalone server or a replica set alike.

Nothing here needs a transaction, which a standalone server does not have: every step is one on a single document, and
what takes several is laid out so that it can be finished or undone by whoever comes by (`mongo_journal`, `mongo_draws`,
`mongo_credits`). A write has happened once it is in the journal on disk, on a replica set that of a majority.
"""

from contextlib import AsyncExitStack
from typing import Any

from pymongo import AsyncMongoClient, ReadPreference, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError, DuplicateKeyError, InvalidName
from pymongo.write_concern import WriteConcern

from ppq_proxy.errors import Conflict, SettingsError, StoreUnavailable
from ppq_proxy.store.base import Account, Batch, Draw, Drawn, Entry, HistoryFilter, Key, Owner, Refused, Rows
from ppq_proxy.store.mongo_audit import Audit
from ppq_proxy.store.mongo_books import (
    ENTRY_VIEW,
    KEY_VIEW,
    Books,
    Doc,
    account_from,
    entry_from,
    key_from,
    reaching,
)
from ppq_proxy.store.mongo_credits import Credits
from ppq_proxy.store.mongo_draws import Draws
from ppq_proxy.store.mongo_journal import Journal
from ppq_proxy.store.mongo_rows import MongoRows

DEFAULT_DATABASE = "ppq"
OPTIONS = {
    "appname": "ppq-proxy",
    "connectTimeoutMS": 3_000,
    "serverSelectionTimeoutMS": 5_000,
    "socketTimeoutMS": 20_000,
}
MAJORITY_MS = 10_000
"""How long a write waits for the majority of a set before it counts as failed, for the time being."""

NEWEST_FIRST = [("at", -1), ("_id", -1)]


class MongoStore:
    """`base.Store` on MongoDB. `url` is `mongodb://HOST/DATABASE`, with any option that the driver knows."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.rows: Rows = MongoRows(lambda: self.books.rows)
        self._client: AsyncMongoClient[Doc] | None = None
        self._books: Books | None = None

    @reaching
    async def open(self) -> None:
        given = self.url.partition("?")[2].lower()
        options: dict[str, Any] = {name: value for name, value in OPTIONS.items() if f"{name.lower()}=" not in given}
        try:
            client = AsyncMongoClient[Doc](self.url, **options)
            name = client.get_default_database(DEFAULT_DATABASE).name
        except (ConfigurationError, InvalidName, ValueError) as problem:  # whose text can hold a part of the password
            kind = type(problem).__name__
            raise SettingsError(f"PPQ_DATABASE must be a URL like mongodb://HOST/DATABASE ({kind})") from None
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(client.close)
            hello = await client.admin.command("hello")
            in_a_set = "setName" in hello or hello.get("msg") == "isdbgrid"
            durable = WriteConcern("majority", wtimeout=MAJORITY_MS, j=True) if in_a_set else WriteConcern(1, j=True)
            books = self._open_books(client.get_database(name, None, ReadPreference.PRIMARY, durable))
            await books.prepare()
            self._draws = Draws(books)
            self._journal = Journal(books, self._draws)
            self._credits = Credits(books)
            await self._clear_up(books)
            self._client, self._books = client, books
            on_failure.pop_all()

    def _open_books(self, database: AsyncDatabase[Doc]) -> Books:
        return Books(database)

    @property
    def books(self) -> Books:
        if self._books is None:
            raise StoreUnavailable("the database is closed")
        return self._books

    @reaching
    async def close(self) -> None:
        if self._client:
            await self._client.close()
        self._client = self._books = None

    @reaching
    async def ping(self) -> None:
        await self.books.database.command("ping")

    # accounts and keys

    @reaching
    async def create_account(
        self, account_id: str, digest: bytes, kind: str, at: int, expires_at: int | None = None
    ) -> bool:
        new = {"_id": account_id, "digest": digest, "kind": kind, "created_at": at, "expires_at": expires_at}
        sums = dict.fromkeys(("credited", "charged", "reserved", "lost", "credits"), 0)
        try:
            await self.books.accounts.insert_one({**new, **sums, "draws": [], "crediting": []})
        except DuplicateKeyError:
            return False
        return True

    @reaching
    async def account(self, account_id: str) -> Account | None:
        found = await self.books.accounts.find_one({"_id": account_id}, {"draws": 0, "crediting": 0})
        return account_from(found) if found else None

    @reaching
    async def account_id(self, digest: bytes) -> str | None:
        found = await self.books.accounts.find_one({"digest": digest}, {"_id": 1})
        return found["_id"] if found else None

    @reaching
    async def create_key(self, key: Key, digest: bytes) -> bool:
        new = {
            **{"_id": key.id, "account_id": key.account_id, "digest": digest, "sealed": key.sealed, "name": key.name},
            **{"created_at": key.created_at, "updated_at": key.updated_at, "expire_at": key.expire_at},
            **{"limit": key.limit, "period": key.period, "reset_at": key.reset_at, "rpm": key.rpm, "tpm": key.tpm},
            **{"used": 0, "used_total": 0, "reserved": 0, "deleted_at": None, "active": True, "unseen": 0, "draws": []},
        }
        try:
            await self.books.keys.insert_one(new)
        except DuplicateKeyError:
            return False
        return True

    @reaching
    async def key(self, key_id: str) -> Key | None:
        found = await self.books.keys.find_one({"_id": key_id}, KEY_VIEW)
        return key_from(found) if found else None

    @reaching
    async def key_by_digest(self, digest: bytes) -> Key | None:
        found = await self.books.keys.find_one({"digest": digest}, KEY_VIEW)
        return key_from(found) if found else None

    @reaching
    async def keys(self, account_id: str) -> list[Key]:
        found = self.books.keys.find({"account_id": account_id}, KEY_VIEW, sort=[("created_at", 1), ("_id", 1)])
        return [key_from(doc) async for doc in found]

    @reaching
    async def update_key(self, key_id: str, changes: dict[str, Any]) -> Key | None:
        active = {"active": False} if changes.get("deleted_at") is not None else {}
        try:
            # A key says how many of its changes the version has not been raised for yet: others go by the version,
            # and must hear of a change also where this process ends right here.
            found = await self.books.keys.find_one_and_update(
                {"_id": key_id, "active": True},
                {"$set": {**changes, **active}, "$inc": {"unseen": 1}},
                {**KEY_VIEW, "unseen": 1},
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            raise Conflict("the account has another key of that name") from None
        if found is None:
            return None
        await self._raise_version(self.books, found)
        return key_from(found)

    @staticmethod
    async def _raise_version(books: Books, key: Doc) -> None:
        await books.meta.update_one({"_id": "version"}, {"$inc": {"value": 1}}, upsert=True)
        await books.keys.update_one({"_id": key["_id"], "unseen": key["unseen"]}, {"$set": {"unseen": 0}})

    async def _clear_up(self, books: Books) -> None:
        """Finish what other processes have begun and not ended: draws after a sweep, changes of keys, and credits."""
        await self._journal.sweep_left_behind()
        async for key in books.keys.find({"unseen": {"$gt": 0}}, {"unseen": 1}):
            await self._raise_version(books, key)
        await self._credits.finish_all()

    # the ledger

    @reaching
    async def credit(self, ref: str, entry: Entry) -> bool:
        self._check_open()
        return await self._credits.credit(ref, entry)

    async def draw(self, owner: str, draw: Draw, at: int) -> Drawn | Refused:
        self._check_open()
        return await self._draws.draw(owner, draw, at, self._journal.number(owner))

    @reaching
    async def commit(self, owner: str, batch: Batch) -> None:
        self._check_open()
        await self._draws.put_back_doubtful()
        await self._journal.commit(owner, batch)

    def _check_open(self) -> None:
        if self._books is None:
            raise StoreUnavailable("the database is closed")

    @reaching
    async def take(self, key_id: str, what: str, window: int, amount: int, limit: int) -> int:
        kind = f"{key_id}|{what}|"
        used = {"$ifNull": ["$used", 0]}
        granted = {"$max": [0, {"$min": [amount, {"$subtract": [limit, used]}]}]}
        this = {"_id": f"{kind}{window:016x}"}
        take = [{"$set": {"used": {"$add": [used, granted]}}}]
        try:
            before = await self.books.rates.find_one_and_update(this, take, upsert=True)
        except DuplicateKeyError:  # two were first: now it is there
            before = await self.books.rates.find_one_and_update(this, take)
        if before is None:
            await self.books.rates.delete_many({"_id": {"$gte": kind, "$lt": this["_id"]}})
        return max(0, min(amount, limit - (before["used"] if before else 0)))

    @reaching
    async def history(self, wanted: HistoryFilter, offset: int, limit: int) -> tuple[list[Entry], int]:
        where: Doc = {"account_id": wanted.account_id, "kind": "charge"}
        if wanted.nonzero:
            where["$or"] = [{"amount": {"$gt": 0}}, {"lost": 0}]
        for name in ("key_id", "model", "query_source", "query_type"):
            if (value := getattr(wanted, name)) is not None:
                where[name] = value
        span = {"$gte": wanted.since, "$lte": wanted.until}
        if given := {edge: at for edge, at in span.items() if at is not None}:
            where["at"] = given
        total = await self.books.entries.count_documents(where)
        if limit <= 0 or offset >= total:
            return [], total
        found = self.books.entries.find(where, ENTRY_VIEW, skip=offset, limit=limit, sort=NEWEST_FIRST)
        return [entry_from(doc) async for doc in found], total

    @reaching
    async def receipts(self, request_id: str, account_id: str | None = None) -> list[Entry]:
        where: Doc = {"request_id": request_id, "kind": "charge"}
        if account_id is not None:
            where["account_id"] = account_id
        return [entry_from(doc) async for doc in self.books.entries.find(where, ENTRY_VIEW, sort=NEWEST_FIRST)]

    # owners

    @reaching
    async def join(self, owner: str, host: str, pid: int, at: int, expires_at: int) -> int:
        seen = await self._version()
        new = {"host": host, "pid": pid, "seen": seen, "expires_at": expires_at}
        await self.books.owners.replace_one({"_id": owner}, new, upsert=True)
        self._journal.join(owner)
        return seen

    @reaching
    async def beat(self, owner: str, seen: int, expires_at: int) -> bool:
        where = {"_id": owner, "ended": None}
        done = await self.books.owners.update_one(where, {"$set": {"seen": seen, "expires_at": expires_at}})
        return bool(done.matched_count)

    @reaching
    async def version(self) -> int:
        return await self._version()

    async def _version(self) -> int:
        found = await self.books.meta.find_one({"_id": "version"})
        return int(found["value"]) if found else 0

    @reaching
    async def laggards(self, version: int) -> list[Owner]:
        return await self._owners({"seen": {"$lt": version}})

    @reaching
    async def owners(self) -> list[Owner]:
        return await self._owners({})

    async def _owners(self, where: Doc) -> list[Owner]:
        found = self.books.owners.find(where)
        return [Owner(o["_id"], o["host"], o["pid"], o["seen"], o["expires_at"]) async for o in found]

    @reaching
    async def sweep(self, owner: str) -> int:
        self._check_open()
        returned = await self._journal.sweep(owner)
        await self._clear_up(self.books)
        return returned

    @reaching
    async def secret(self, fresh: bytes) -> bytes:
        # A write also where there is one: what is returned must not be undone by the loss of a primary.
        found = await self.books.meta.find_one_and_update(
            {"_id": "secret"},
            {"$setOnInsert": {"value": fresh}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return fresh if found is None else bytes(found["value"])

    @reaching
    async def audit(self) -> list[str]:
        return await Audit(self.books).findings()
