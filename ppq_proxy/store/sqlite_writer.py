"""SQLite's one writing thread of a process: whatever has gathered goes into one transaction, with `synchronous=FULL`.

Processes take turns by a lock on a file beside the database: SQLite's own waiting is by polling, which costs a second
process most of its speed.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.store.sqlite_schema import PRAGMAS

Write = Callable[[sqlite3.Connection], Any]


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

    def _run(
        self, db: sqlite3.Connection, turn: int, work: list[tuple[Write, asyncio.Future[Any]]]
    ) -> list[tuple[asyncio.Future[Any], Any]]:
        self.commits += 1
        self.writes += len(work)
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            return self._transaction(db, work)
        except Exception as problem:  # border: of one group; whoever waits for its writes is told
            if len(work) == 1:
                return [(work[0][1], _told(problem))]
            return [pair for one in work for pair in self._alone(db, one)]
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def _alone(
        self, db: sqlite3.Connection, one: tuple[Write, asyncio.Future[Any]]
    ) -> list[tuple[asyncio.Future[Any], Any]]:
        try:
            return self._transaction(db, [one])
        except Exception as problem:  # border: of one write; whoever waits for it is told
            return [(one[1], _told(problem))]

    @staticmethod
    def _transaction(
        db: sqlite3.Connection, work: list[tuple[Write, asyncio.Future[Any]]]
    ) -> list[tuple[asyncio.Future[Any], Any]]:
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
