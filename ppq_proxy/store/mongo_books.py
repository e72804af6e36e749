"""The collections of the books in MongoDB, and the shapes of their documents.

    accounts  {_id, kind, digest, credited, charged, reserved, lost, created_at, expires_at, draws, credits, crediting}
    keys      {_id, account_id, digest, …the fields of `base.Key`…, active, unseen, draws}
    journal   {_id: {o: owner, n: number}, by, settlements, entries, rows, rev}: batches, see `mongo_journal`
    entries   {_id, …the fields of `base.Entry`…}; a credit also has `applied`
    owners    {_id, host, pid, seen, expires_at, ended}
    rates     {_id: "key|what|window", used}
    rows      {_id: {kind, id}, kind, version, state, due, doc}
    meta      {_id, value}

`draws` holds what owners have drawn from a purse, {o: owner, k: key or "", a: amount, s: number of the last batch that
was settled with it, t: marks of the newest draws}. That they stand in the purse's own document is what makes every
step of the ledger a step on one document, which a server without transactions takes atomically too.
"""

import functools
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.store.base import Account, Entry, Key

Doc = dict[str, Any]
Docs = AsyncCollection[Doc]
P = ParamSpec("P")
T = TypeVar("T")

VERSION = 1
NAMESPACE_EXISTS = 48
KEEP_ENDS = timedelta(days=30)
"""How long it is remembered that an owner was swept: longer than any process is cut off and then comes back."""

KEY_FIELDS = (
    *("account_id", "name", "sealed", "created_at", "updated_at", "limit", "period", "used", "used_total"),
    *("reserved", "reset_at", "expire_at", "deleted_at", "rpm", "tpm"),
)
ENTRY_FIELDS = (
    *("account_id", "key_id", "at", "kind", "amount", "request_id", "model", "query_type", "query_source"),
    *("inputs", "outputs", "lost", "detail"),
)
KEY_VIEW = dict.fromkeys(KEY_FIELDS, 1)
ENTRY_VIEW = {"_id": 0} | dict.fromkeys(ENTRY_FIELDS, 1)

# A second line of defence: the server refuses an update that would leave a purse like this, whoever sends it.
SOUND = {"$and": [{"$gte": ["$reserved", 0]}, {"$lte": [{"$add": ["$charged", "$reserved"]}, "$credited"]}]}
VALIDATORS: dict[str, Doc] = {
    "accounts": {"charged": {"$gte": 0}, "$expr": SOUND},
    "keys": {"reserved": {"$gte": 0}},
}
INDEXES: dict[str, list[IndexModel]] = {
    "accounts": [IndexModel([("digest", ASCENDING)], unique=True), IndexModel([("draws.o", ASCENDING)])],
    "keys": [
        IndexModel([("digest", ASCENDING)], unique=True),
        IndexModel([("account_id", 1), ("name", 1)], unique=True, partialFilterExpression={"active": True}),
        IndexModel([("account_id", ASCENDING), ("created_at", ASCENDING)]),
        IndexModel([("draws.o", ASCENDING)]),
        IndexModel([("unseen", ASCENDING)], partialFilterExpression={"unseen": {"$gt": 0}}),
    ],
    "entries": [
        IndexModel([("account_id", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)]),
        IndexModel([("request_id", ASCENDING)], partialFilterExpression={"request_id": {"$gt": ""}}),
        IndexModel([("applied", ASCENDING)], partialFilterExpression={"applied": False}),
    ],
    "journal": [IndexModel([("ended_at", ASCENDING)], expireAfterSeconds=int(KEEP_ENDS.total_seconds()))],
    "owners": [],
    "rates": [],
    "rows": [IndexModel([("kind", ASCENDING), ("state", ASCENDING), ("due", ASCENDING)])],
    "meta": [],
}


class Books:
    """The collections of one database."""

    def __init__(self, database: AsyncDatabase[Doc]) -> None:
        self.database = database
        self.accounts: Docs = database["accounts"]
        self.keys: Docs = database["keys"]
        self.journal: Docs = database["journal"]
        self.entries: Docs = database["entries"]
        self.owners: Docs = database["owners"]
        self.rates: Docs = database["rates"]
        self.rows: Docs = database["rows"]
        self.meta: Docs = database["meta"]

    async def prepare(self) -> None:
        """Make collections and indexes where they are not there yet. Raises `StoreUnavailable` on a newer schema."""
        found = await self.meta.find_one({"_id": "schema"})
        if found and found["value"] > VERSION:
            raise StoreUnavailable(f"the database {self.database.name} was made by a newer release")
        if found and found["value"] == VERSION:
            return
        for name, indexes in INDEXES.items():
            await self._create(name)
            if indexes:
                await self.database[name].create_indexes(indexes)
        await self.meta.update_one({"_id": "schema"}, {"$max": {"value": VERSION}}, upsert=True)

    async def settle_reads(self) -> None:
        """Wait until what was read before is as durable as a write: a write that changes nothing waits for all before it.

        For where a read tells that something has happened already, which then is told on as having happened.
        """
        await self.meta.update_one({"_id": "schema"}, {"$max": {"value": VERSION}})

    async def _create(self, name: str) -> None:
        try:
            await self.database.command({"create": name, "validator": VALIDATORS.get(name, {})})
        except OperationFailure as problem:
            if problem.code != NAMESPACE_EXISTS:
                raise


def reaching(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Tell every trouble with the database as `StoreUnavailable`, without the driver's text: it can name the host."""

    @functools.wraps(method)
    async def reached(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except PyMongoError as problem:
            raise StoreUnavailable(f"the database cannot be used now ({type(problem).__name__})") from problem

    return reached


def account_from(doc: Doc) -> Account:
    """The record of an account's document."""
    return Account(
        doc["_id"],
        doc["kind"],
        doc["credited"],
        doc["charged"],
        doc["reserved"],
        doc["lost"],
        doc["created_at"],
        doc["expires_at"],
    )


def key_from(doc: Doc) -> Key:
    """The record of a key's document."""
    return Key(doc["_id"], *(doc[name] for name in KEY_FIELDS))


def entry_from(doc: Doc) -> Entry:
    """The record of an entry's document."""
    return Entry(*(doc[name] for name in ENTRY_FIELDS))


def entry_doc(entry: Entry, entry_id: str) -> Doc:
    """The document of an entry."""
    return {
        "_id": entry_id,
        "account_id": entry.account_id,
        "key_id": entry.key_id,
        "at": entry.at,
        "kind": entry.kind,
        "amount": entry.amount,
        "request_id": entry.request_id,
        "model": entry.model,
        "query_type": entry.query_type,
        "query_source": entry.query_source,
        "inputs": entry.inputs,
        "outputs": entry.outputs,
        "lost": entry.lost,
        "detail": entry.detail,
    }


def element(doc: Doc | None, owner: str, key_id: str | None) -> Doc | None:
    """What an owner has drawn from a purse for a key, as it stands in the purse's document; None if nothing."""
    for one in (doc or {}).get("draws", ()):
        if one["o"] == owner and one["k"] == (key_id or ""):
            found: Doc = one
            return found
    return None
