"""The embedded database: one file, one writer thread a process, group commits with `synchronous=FULL`.

Every write is a function of the connection, queued; the writer takes whatever has gathered while its last commit was in
flight and runs it in one transaction. Processes take turns by a lock on a file beside the database: SQLite's own waiting
is by polling, which costs a second process most of its speed.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import orjson

from ppq_proxy.errors import Conflict, StoreUnavailable
from ppq_proxy.store.base import (
    Account,
    Batch,
    Draw,
    Drawn,
    Entry,
    HistoryFilter,
    Key,
    Owner,
    Refused,
    Row,
    Settlement,
    grant,
)
from ppq_proxy.store.periods import next_reset
from ppq_proxy.store.sqlite_audit import audit
from ppq_proxy.store.sqlite_schema import PRAGMAS, SCHEMA, VERSION

Write = Callable[[sqlite3.Connection], Any]

ACCOUNT = "id, kind, credited, charged, reserved, lost, created_at, expires_at"
KEY = 'id, account_id, name, sealed, created_at, updated_at, "limit", period, used, used_total, reserved, reset_at, expire_at, deleted_at, rpm, tpm'
ENTRY = "account_id, key_id, at, kind, amount, request_id, model, query_type, query_source, inputs, outputs, lost, detail"
INSERT_ENTRY = f"INSERT INTO entries ({ENTRY}, ref) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"


class Writer(threading.Thread):
    """The one thread that writes. Batches what has gathered; a write that fails does not take the others with it."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="sqlite-writer", daemon=True)
        self.queue: SimpleQueue[tuple[Write, asyncio.Future[Any]] | None] = SimpleQueue()
        self.path, self.loop = path, loop
        self.commits = self.writes = 0

    def run(self) -> None:
        db = connect(self.path)
        turn = os.open(f"{self.path}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stopping = False
        while not stopping:
            group = [self.queue.get()]
            while not self.queue.empty():
                group.append(self.queue.get())
            stopping = None in group
            work = [item for item in group if item is not None]
            if work:
                self._settle(self._run(db, turn, work))
        os.close(turn)
        db.close()

    def _run(self, db: sqlite3.Connection, turn: int, work: list[tuple[Write, asyncio.Future[Any]]]) -> list[tuple[asyncio.Future[Any], Any]]:
        self.commits += 1
        self.writes += len(work)
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            return self._transaction(db, work)
        except (sqlite3.Error, Conflict, ValueError) as problem:
            if len(work) == 1:
                return [(work[0][1], _told(problem))]
            return [pair for one in work for pair in self._alone(db, one)]
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def _alone(self, db: sqlite3.Connection, one: tuple[Write, asyncio.Future[Any]]) -> list[tuple[asyncio.Future[Any], Any]]:
        try:
            return self._transaction(db, [one])
        except (sqlite3.Error, Conflict, ValueError) as problem:
            return [(one[1], _told(problem))]

    @staticmethod
    def _transaction(db: sqlite3.Connection, work: list[tuple[Write, asyncio.Future[Any]]]) -> list[tuple[asyncio.Future[Any], Any]]:
        db.execute("BEGIN IMMEDIATE")
        try:
            done = [(future, write(db)) for write, future in work]
            db.execute("COMMIT")
            return done
        except BaseException:  # border: whatever it was, the transaction must not stay open
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _settle(self, done: list[tuple[asyncio.Future[Any], Any]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(_resolve, done)


def _told(problem: Exception) -> Exception:
    return StoreUnavailable("the database cannot be written") if isinstance(problem, sqlite3.Error) else problem


def _resolve(done: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in done:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def connect(path: Path) -> sqlite3.Connection:
    """A connection as every part of the store uses it."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    return db


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
        return bool(await self.store.write(lambda db: _replace(db, row, doc, state, due)))

    async def find(self, kind: str, *, state: str | None = None, due_before: int | None = None, limit: int = 100) -> list[Row]:
        sql, values = "SELECT id, version, state, due, doc FROM rows WHERE kind=?", [kind]
        for clause, value in ((" AND state=?", state), (" AND due<=?", due_before)):
            if value is not None:
                sql, values = sql + clause, [*values, value]  # type: ignore[list-item]
        found = await self.store.read(f"{sql} ORDER BY due, id LIMIT ?", (*values, limit))
        return [Row(kind, r[0], orjson.loads(r[4]), r[1], r[2], r[3]) for r in found]

    async def delete(self, row: Row) -> bool:
        values = (row.kind, row.id, row.version)
        return bool(await self.store.write(lambda db: db.execute("DELETE FROM rows WHERE kind=? AND id=? AND version=?", values).rowcount))


def _replace(db: sqlite3.Connection, row: Row, doc: dict[str, Any], state: str, due: int | None) -> int:
    sql = "UPDATE rows SET version=version+1, state=?, due=?, doc=? WHERE kind=? AND id=? AND version=?"
    return db.execute(sql, (state, due, orjson.dumps(doc), row.kind, row.id, row.version)).rowcount


class SqliteStore:
    """`base.Store` on one SQLite file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows = SqliteRows(self)
        self.writer: Writer | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()

    async def open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            await asyncio.to_thread(self._create)
        except sqlite3.Error as problem:
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

    async def create_account(self, account_id: str, digest: bytes, kind: str, at: int, expires_at: int | None = None) -> bool:
        values = (account_id, digest, kind, at, expires_at)
        sql = "INSERT INTO accounts (id, digest, kind, created_at, expires_at) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING"
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
        return [Key(*row) for row in await self.read(f"SELECT {KEY} FROM keys WHERE account_id=? ORDER BY created_at, id", (account_id,))]

    async def update_key(self, key_id: str, changes: dict[str, Any]) -> Key | None:
        def update(db: sqlite3.Connection) -> Key | None:
            sets = ", ".join(f'"{name}"=?' for name in changes)
            try:
                done = db.execute(f"UPDATE keys SET {sets} WHERE id=? AND deleted_at IS NULL", (*changes.values(), key_id)).rowcount
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
            if not db.execute(f"{INSERT_ENTRY} ON CONFLICT DO NOTHING", (*_values(entry), ref)).rowcount:
                return False
            done = db.execute("UPDATE accounts SET credited=credited+? WHERE id=?", (entry.amount, entry.account_id)).rowcount
            if not done:
                raise ValueError("no such account")
            return True

        return bool(await self.write(credit))

    async def draw(self, owner: str, draw: Draw, at: int) -> Drawn | Refused:
        result: Drawn | Refused = await self.write(lambda db: _draw(db, owner, draw, at))
        return result

    async def commit(self, owner: str, batch: Batch) -> None:
        await self.write(lambda db: _commit(db, owner, batch))

    async def take(self, key_id: str, what: str, window: int, amount: int, limit: int) -> int:
        def take(db: sqlite3.Connection) -> int:
            found = db.execute('SELECT used FROM rates WHERE key_id=? AND what=? AND "window"=?', (key_id, what, window)).fetchone()
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
        found = await self.read(f"SELECT {ENTRY} FROM entries WHERE {clause} ORDER BY id DESC LIMIT ? OFFSET ?", (*values, limit, offset))
        return [Entry(*row) for row in found], total

    async def receipts(self, request_id: str, account_id: str | None = None) -> list[Entry]:
        found = await self.read(f"SELECT {ENTRY} FROM entries WHERE request_id=? AND kind='charge' ORDER BY id DESC", (request_id,))
        return [entry for row in found if (entry := Entry(*row)) and account_id in (None, entry.account_id)]

    # owners

    async def join(self, owner: str, host: str, pid: int, at: int, expires_at: int) -> int:
        def join(db: sqlite3.Connection) -> int:
            version = _version(db)
            db.execute("INSERT OR REPLACE INTO owners VALUES (?,?,?,?,?)", (owner, host, pid, version, expires_at))
            return version

        return int(await self.write(join))

    async def beat(self, owner: str, seen: int, expires_at: int) -> bool:
        values = (seen, expires_at, owner)
        return bool(await self.write(lambda db: db.execute("UPDATE owners SET seen=?, expires_at=? WHERE id=?", values).rowcount))

    async def version(self) -> int:
        found = await self.read("SELECT value FROM meta WHERE name='version'")
        return int(found[0][0]) if found else 0

    async def laggards(self, version: int) -> list[Owner]:
        return [Owner(*row) for row in await self.read("SELECT id, host, pid, seen, expires_at FROM owners WHERE seen<?", (version,))]

    async def owners(self) -> list[Owner]:
        return [Owner(*row) for row in await self.read("SELECT id, host, pid, seen, expires_at FROM owners")]

    async def sweep(self, owner: str) -> int:
        return int(await self.write(lambda db: _sweep(db, owner)))

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


def _values(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.account_id, entry.key_id, entry.at, entry.kind, entry.amount, entry.request_id, entry.model,
        entry.query_type, entry.query_source, entry.inputs, entry.outputs, entry.lost, entry.detail,
    )  # fmt: skip


def _version(db: sqlite3.Connection) -> int:
    found = db.execute("SELECT value FROM meta WHERE name='version'").fetchone()
    return int(found[0]) if found else 0


def _draw(db: sqlite3.Connection, owner: str, draw: Draw, at: int) -> Drawn | Refused:
    found = db.execute("SELECT credited-charged-reserved, reserved, expires_at FROM accounts WHERE id=?", (draw.account_id,)).fetchone()
    if found is None or (found[2] is not None and found[2] <= at):
        return Refused("gone", 0)
    available, room, refusal = found[0], None, Refused("balance", found[0], found[1])
    if draw.key_id:
        key = db.execute('SELECT "limit", period, used, reserved, reset_at, deleted_at, expire_at FROM keys WHERE id=?', (draw.key_id,)).fetchone()
        if key is None or key[5] is not None or (key[6] is not None and key[6] <= at):
            return Refused("gone", 0)
        limit, period, used, reserved, reset_at = key[:5]
        if reset_at is not None and reset_at <= at:
            used, reset_at = 0, next_reset(period, at)
            db.execute("UPDATE keys SET used=0, reset_at=? WHERE id=?", (reset_at, draw.key_id))
        if limit is not None:
            room = limit - used - reserved
            if room < available:
                refusal = Refused("key_limit", max(0, room), reserved, limit, reset_at, period)
    amount = grant(draw, available, room)
    if not amount:
        return refusal
    db.execute("UPDATE accounts SET reserved=reserved+? WHERE id=?", (amount, draw.account_id))
    if draw.key_id:
        db.execute("UPDATE keys SET reserved=reserved+? WHERE id=?", (amount, draw.key_id))
    sql = "INSERT INTO draws VALUES (?,?,?,?) ON CONFLICT (owner, account_id, key_id) DO UPDATE SET amount=amount+excluded.amount"
    db.execute(sql, (owner, draw.account_id, draw.key_id or "", amount))
    return Drawn(amount, available - amount, amount > draw.need)


def _commit(db: sqlite3.Connection, owner: str, batch: Batch) -> None:
    for one in batch.settlements.values():
        taken = one.charge + one.give_back
        sql = "UPDATE draws SET amount=amount-? WHERE owner=? AND account_id=? AND key_id=? AND amount>=?"
        if not db.execute(sql, (taken, owner, one.account_id, one.key_id or "", taken)).rowcount:
            _late(db, one, batch)
            continue
        sql = "UPDATE accounts SET charged=charged+?, reserved=reserved-?, lost=lost+? WHERE id=?"
        db.execute(sql, (one.charge, taken, one.lost, one.account_id))
        if one.key_id:
            _use(db, one.key_id, one.charge, taken, batch.at)
        if one.give_back:
            db.execute("DELETE FROM draws WHERE owner=? AND account_id=? AND key_id=? AND amount=0", (owner, one.account_id, one.key_id or ""))
    db.executemany(INSERT_ENTRY, [(*_values(entry), None) for entry in batch.entries])
    for row in batch.rows:
        _replace(db, row, row.doc, row.state, row.due)


def _use(db: sqlite3.Connection, key_id: str, charge: int, taken: int, at: int) -> None:
    sql = (
        "UPDATE keys SET used=CASE WHEN reset_at<=:at THEN 0 ELSE used END + :charge, used_total=used_total+:charge,"
        " reserved=reserved-:taken, reset_at=CASE WHEN reset_at<=:at THEN"
        " CASE period WHEN 'daily' THEN :daily WHEN 'weekly' THEN :weekly ELSE :monthly END ELSE reset_at END WHERE id=:id"
    )
    resets = {period: next_reset(period, at) for period in ("daily", "weekly", "monthly")}
    db.execute(sql, {"at": at, "charge": charge, "taken": taken, "id": key_id, **resets})


def _late(db: sqlite3.Connection, one: Settlement, batch: Batch) -> None:
    """The draw is gone, swept while its owner was taken for dead: charge what the account can pay, the rest is the house's."""
    available = db.execute("SELECT credited-charged-reserved FROM accounts WHERE id=?", (one.account_id,)).fetchone()[0]
    missing = one.charge - min(one.charge, available)
    for entry in batch.entries:
        if missing and (entry.account_id, entry.key_id) == (one.account_id, one.key_id):
            short = min(missing, entry.amount)
            entry.amount, entry.lost, missing = entry.amount - short, entry.lost + short, missing - short
            one.charge, one.lost = one.charge - short, one.lost + short
    db.execute("UPDATE accounts SET charged=charged+?, lost=lost+? WHERE id=?", (one.charge, one.lost, one.account_id))
    if one.key_id:
        _use(db, one.key_id, one.charge, 0, batch.at)


def _sweep(db: sqlite3.Connection, owner: str) -> int:
    total = 0
    for account_id, key_id, amount in db.execute("SELECT account_id, key_id, amount FROM draws WHERE owner=?", (owner,)).fetchall():
        db.execute("UPDATE accounts SET reserved=reserved-? WHERE id=?", (amount, account_id))
        if key_id:
            db.execute("UPDATE keys SET reserved=reserved-? WHERE id=?", (amount, key_id))
        total += amount
    db.execute("DELETE FROM draws WHERE owner=?", (owner,))
    db.execute("DELETE FROM owners WHERE id=?", (owner,))
    return total
