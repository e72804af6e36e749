"""Durable records in MongoDB (see `base.Rows`). What a record holds is kept as JSON, as SQLite keeps it."""

from collections.abc import Callable
from typing import Any

import orjson
from pymongo import ASCENDING, UpdateOne
from pymongo.errors import DuplicateKeyError

from ppq_proxy.store.base import Row
from ppq_proxy.store.mongo_books import Doc, Docs, reaching


class MongoRows:
    """`base.Rows` in a collection."""

    def __init__(self, rows: Callable[[], Docs]) -> None:
        self._rows = rows

    @reaching
    async def insert(self, kind: str, id: str, doc: dict[str, Any], *, state: str = "", due: int | None = None) -> bool:
        new = {"_id": {"kind": kind, "id": id}, "kind": kind, "version": 1, "state": state, "due": due}
        try:
            await self._rows().insert_one({**new, "doc": orjson.dumps(doc).decode()})
        except DuplicateKeyError:
            return False
        return True

    @reaching
    async def get(self, kind: str, id: str) -> Row | None:
        found = await self._rows().find_one({"_id": {"kind": kind, "id": id}})
        return row_from(found) if found else None

    @reaching
    async def replace(self, row: Row, doc: dict[str, Any], *, state: str | None = None, due: int | None = None) -> bool:
        new = Row(row.kind, row.id, doc, row.version, row.state if state is None else state, due)
        where, update = replacing(row_doc(new))
        return bool((await self._rows().update_one(where, update)).matched_count)

    @reaching
    async def find(
        self, kind: str, *, state: str | None = None, due_before: int | None = None, limit: int = 100
    ) -> list[Row]:
        where: Doc = {"kind": kind}
        if state is not None:
            where["state"] = state
        if due_before is not None:
            where["due"] = {"$lte": due_before}
        order = [("due", ASCENDING), ("_id", ASCENDING)]
        return [row_from(doc) async for doc in self._rows().find(where, sort=order, limit=limit)]

    @reaching
    async def delete(self, row: Row) -> bool:
        where = {"_id": {"kind": row.kind, "id": row.id}, "version": row.version}
        return bool((await self._rows().delete_one(where)).deleted_count)


def row_from(doc: Doc) -> Row:
    """The record of a document."""
    key = doc["_id"]
    return Row(key["kind"], key["id"], orjson.loads(doc["doc"]), doc["version"], doc["state"], doc["due"])


def row_doc(row: Row) -> Doc:
    """A record that is to take the place of the one of its kind, id and version."""
    return {
        "kind": row.kind,
        "id": row.id,
        "version": row.version,
        "state": row.state,
        "due": row.due,
        "doc": orjson.dumps(row.doc).decode(),
    }


def replacing(row: Doc) -> tuple[Doc, Doc]:
    """Condition and update that put a record in the place of its last version."""
    where = {"_id": {"kind": row["kind"], "id": row["id"]}, "version": row["version"]}
    new = {"state": row["state"], "due": row["due"], "doc": row["doc"], "version": row["version"] + 1}
    return where, {"$set": new}


def replace_row(row: Doc) -> UpdateOne:
    """The same as a step of a bulk."""
    return UpdateOne(*replacing(row))
