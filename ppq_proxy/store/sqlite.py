"""The embedded database: one SQLite file.

Every write is a function of the connection, queued for the process's writer; reads have a connection of their own.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from ppq_proxy.errors import Conflict, StoreUnavailable
from ppq_proxy.store import sqlite_books as books
from ppq_proxy.store.base import Account, Batch, Draw, Drawn, Entry, HistoryFilter, Key, Owner, Refused, Row, Rows
from ppq_proxy.store.sqlite_audit import audit
from ppq_proxy.store.sqlite_schema import SCHEMA, VERSION
from ppq_proxy.store.sqlite_writer import Write, Writer, connect

ACCOUNT = "id, kind, credited, charged, reserved, lost, created_at, expires_at"
KEY = (
    'id, account_id, name, sealed, created_at, updated_at, "limit", period, used, used_total, reserved, reset_at, '
    "expire_at, deleted_at, rpm, tpm"
)


class SqliteRows:
    """Durable records (see `base.Rows`) in a table."""

    def __init__(self, store: "SqliteStore") -> None:
        self.store = store

    async def insert(self, kind: str, id: str, doc: dict[str, Any], *, state: str = "", due: int | None = None) -> bool:
        values = (kind, id, state, due, orjson.dumps(doc))
        sql = "INSERT INTO rows (kind, id, version, state, due, doc) VALUES (?,?,1,?,?,?) ON CONFLICT DO NOTHING"
        return bool(await self.store.write(lambda db: db.execute(sql, values).rowcount))

    async def get(self, kind: str, id: str) -> Row | None:
        found = await self.store.read("SELECT version, state, due, doc FROM rows WHERE kind=? AND id=?", (kind, id))
        return Row(kind, id, orjson.loads(found[0][3]), *found[0][:3]) if found else None

    async def replace(self, row: Row, doc: dict[str, Any], *, state: str | None = None, due: int | None = None) -> bool:
        state = row.state if state is None else state
        return bool(await self.store.write(lambda db: books.replace(db, row, doc, state, due)))

    async def find(
        self, kind: str, *, state: str | None = None, due_before: int | None = None, limit: int = 100
    ) -> list[Row]:
        sql, values = "SELECT id, version, state, due, doc FROM rows WHERE kind=?", [kind]
        for clause, value in ((" AND state=?", state), (" AND due<=?", due_before)):
            if value is not None:
                sql, values = sql + clause, [*values, value]  # type: ignore[list-item]
        found = await self.store.read(f"{sql} ORDER BY due, id LIMIT ?", (*values, limit))
        return [Row(kind, r[0], orjson.loads(r[4]), r[1], r[2], r[3]) for r in found]

    async def delete(self, row: Row) -> bool:
        values = (row.kind, row.id, row.version)
        return bool(
            await self.store.write(
                lambda db: db.execute("DELETE FROM rows WHERE kind=? AND id=? AND version=?", values).rowcount
            )
        )


class SqliteStore:
    """`base.Store` on one SQLite file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: Rows = SqliteRows(self)
        self.writer: Writer | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()

    async def open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(self._create)
        except (sqlite3.Error, OSError) as problem:
            raise StoreUnavailable(f"cannot open the database {self.path.name}: {problem}") from None
        self.writer = Writer(self.path, asyncio.get_running_loop())
        self.writer.start()

    def _create(self) -> None:
        fresh = not self.path.exists()
        if fresh:
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        self._reader = connect(self.path)
        found = self._reader.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            raise StoreUnavailable(f"the database {self.path.name} was made by a newer release")
        if found < VERSION:
            self._reader.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT")

    async def close(self) -> None:
        if self.writer:
            self.writer.queue.put(None)
            await asyncio.to_thread(self.writer.join)
        if self._reader:
            self._reader.close()
        self.writer = self._reader = None

    def write(self, write: Write) -> asyncio.Future[Any]:
        """Queue a write; the future resolves once its transaction is on disk."""
        if self.writer is None:
            raise StoreUnavailable("the database is closed")
        future: asyncio.Future[Any] = self.writer.loop.create_future()
        self.writer.queue.put((write, future))
        return future

    async def read(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows of a query, outside the loop: a reader never waits for the writer, but a disk may be slow."""
        return await asyncio.to_thread(self._read, sql, values)

    def _read(self, sql: str, values: Sequence[Any]) -> list[Any]:
        if self._reader is None:
            raise StoreUnavailable("the database is closed")
        try:
            with self._reading:
                return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as problem:
            raise StoreUnavailable(f"the database cannot be read: {problem}") from None

    async def ping(self) -> None:
        await self.write(lambda db: db.execute("SELECT 1 FROM meta").fetchone())

    # accounts and keys

    async def create_account(
        self, account_id: str, digest: bytes, kind: str, at: int, expires_at: int | None = None
    ) -> bool:
        values = (account_id, digest, kind, at, expires_at)
        sql = (
            "INSERT INTO accounts (id, digest, kind, created_at, expires_at) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING"
        )
        return bool(await self.write(lambda db: db.execute(sql, values).rowcount))

    async def account(self, account_id: str) -> Account | None:
        found = await self.read(f"SELECT {ACCOUNT} FROM accounts WHERE id=?", (account_id,))
        return Account(*found[0]) if found else None

    async def account_id(self, digest: bytes) -> str | None:
        found = await self.read("SELECT id FROM accounts WHERE digest=?", (digest,))
        return found[0][0] if found else None

    async def create_key(self, key: Key, digest: bytes) -> bool:
        values = (
            key.id, key.account_id, digest, key.sealed, key.name, key.created_at, key.updated_at, key.expire_at,
            key.limit, key.period, key.reset_at, key.rpm, key.tpm,
        )  # fmt: skip
        sql = (
            "INSERT INTO keys (id, account_id, digest, sealed, name, created_at, updated_at, expire_at,"
            ' "limit", period, reset_at, rpm, tpm) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING'
        )
        return bool(await self.write(lambda db: db.execute(sql, values).rowcount))

    async def key(self, key_id: str) -> Key | None:
        return await self._key("id=?", key_id)

    async def key_by_digest(self, digest: bytes) -> Key | None:
        return await self._key("digest=?", digest)

    async def _key(self, clause: str, value: Any) -> Key | None:
        found = await self.read(f"SELECT {KEY} FROM keys WHERE {clause}", (value,))
        return Key(*found[0][:6], *found[0][6:]) if found else None

    async def keys(self, account_id: str) -> list[Key]:
        return [
            Key(*row)
            for row in await self.read(
                f"SELECT {KEY} FROM keys WHERE account_id=? ORDER BY created_at, id", (account_id,)
            )
        ]

    async def update_key(self, key_id: str, changes: dict[str, Any]) -> Key | None:
        def update(db: sqlite3.Connection) -> Key | None:
            sets = ", ".join(f'"{name}"=?' for name in changes)
            try:
                done = db.execute(
                    f"UPDATE keys SET {sets} WHERE id=? AND deleted_at IS NULL", (*changes.values(), key_id)
                ).rowcount
            except sqlite3.IntegrityError:
                raise Conflict("the account has another key of that name") from None
            if not done:
                return None
            db.execute("INSERT INTO meta VALUES ('version', 1) ON CONFLICT (name) DO UPDATE SET value=value+1")
            return Key(*db.execute(f"SELECT {KEY} FROM keys WHERE id=?", (key_id,)).fetchone())

        found: Key | None = await self.write(update)
        return found

    # the ledger

    async def credit(self, ref: str, entry: Entry) -> bool:
        def credit(db: sqlite3.Connection) -> bool:
            if not db.execute(f"{books.INSERT_ENTRY} ON CONFLICT DO NOTHING", (*books.values(entry), ref)).rowcount:
                return False
            done = db.execute(
                "UPDATE accounts SET credited=credited+? WHERE id=?", (entry.amount, entry.account_id)
            ).rowcount
            if not done:
                raise ValueError("no such account")
            return True

        return bool(await self.write(credit))

    async def draw(self, owner: str, draw: Draw, at: int) -> Drawn | Refused:
        result: Drawn | Refused = await self.write(lambda db: books.draw(db, owner, draw, at))
        return result

    async def commit(self, owner: str, batch: Batch) -> None:
        await self.write(lambda db: books.commit(db, owner, batch))

    async def take(self, key_id: str, what: str, window: int, amount: int, limit: int) -> int:
        def take(db: sqlite3.Connection) -> int:
            found = db.execute(
                'SELECT used FROM rates WHERE key_id=? AND what=? AND "window"=?', (key_id, what, window)
            ).fetchone()
            granted = max(0, min(amount, limit - (found[0] if found else 0)))
            if found is None:
                db.execute('DELETE FROM rates WHERE key_id=? AND what=? AND "window"<?', (key_id, what, window))
            sql = 'INSERT INTO rates VALUES (?,?,?,?) ON CONFLICT (key_id, what, "window") DO UPDATE SET used=used+excluded.used'
            db.execute(sql, (key_id, what, window, granted))
            return granted

        return int(await self.write(take))

    async def history(self, wanted: HistoryFilter, offset: int, limit: int) -> tuple[list[Entry], int]:
        where, values = ["account_id=?", "kind='charge'"], [wanted.account_id]
        if wanted.nonzero:
            where.append("(amount>0 OR lost=0)")
        for clause, value in (
            ("key_id=?", wanted.key_id), ("at>=?", wanted.since), ("at<=?", wanted.until),
            ("model=?", wanted.model), ("query_source=?", wanted.query_source), ("query_type=?", wanted.query_type),
        ):  # fmt: skip
            if value is not None:
                where.append(clause)
                values.append(value)  # type: ignore[arg-type]
        clause = " AND ".join(where)
        total = (await self.read(f"SELECT count(*) FROM entries WHERE {clause}", values))[0][0]
        found = await self.read(
            f"SELECT {books.ENTRY} FROM entries WHERE {clause} ORDER BY id DESC LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        return [Entry(*row) for row in found], total

    async def receipts(self, request_id: str, account_id: str | None = None) -> list[Entry]:
        found = await self.read(
            f"SELECT {books.ENTRY} FROM entries WHERE request_id=? AND kind='charge' ORDER BY id DESC", (request_id,)
        )
        return [entry for row in found if (entry := Entry(*row)) and account_id in (None, entry.account_id)]

    # owners

    async def join(self, owner: str, host: str, pid: int, at: int, expires_at: int) -> int:
        def join(db: sqlite3.Connection) -> int:
            version = books.version(db)
            db.execute("INSERT OR REPLACE INTO owners VALUES (?,?,?,?,?)", (owner, host, pid, version, expires_at))
            return version

        return int(await self.write(join))

    async def beat(self, owner: str, seen: int, expires_at: int) -> bool:
        values = (seen, expires_at, owner)
        return bool(
            await self.write(
                lambda db: db.execute("UPDATE owners SET seen=?, expires_at=? WHERE id=?", values).rowcount
            )
        )

    async def version(self) -> int:
        found = await self.read("SELECT value FROM meta WHERE name='version'")
        return int(found[0][0]) if found else 0

    async def laggards(self, version: int) -> list[Owner]:
        return [
            Owner(*row)
            for row in await self.read("SELECT id, host, pid, seen, expires_at FROM owners WHERE seen<?", (version,))
        ]

    async def owners(self) -> list[Owner]:
        return [Owner(*row) for row in await self.read("SELECT id, host, pid, seen, expires_at FROM owners")]

    async def sweep(self, owner: str) -> int:
        return int(await self.write(lambda db: books.sweep(db, owner)))

    async def secret(self, fresh: bytes) -> bytes:
        def secret(db: sqlite3.Connection) -> bytes:
            db.execute("INSERT INTO meta VALUES ('secret', ?) ON CONFLICT DO NOTHING", (fresh,))
            return bytes(db.execute("SELECT value FROM meta WHERE name='secret'").fetchone()[0])

        found: bytes = await self.write(secret)
        return found

    async def audit(self) -> list[str]:
        return await asyncio.to_thread(self._audit)

    def _audit(self) -> list[str]:
        with contextlib.closing(connect(self.path)) as db:
            return list(audit(db))
