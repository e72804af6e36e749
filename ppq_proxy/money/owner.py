"""A process as an owner of draws: it registers, keeps its lease, hears of changed keys, and sweeps owners that died."""

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.money.ledger import Ledger, now_ms
from ppq_proxy.store.base import Owner, Store

log = logging.getLogger("ppq.owner")

TICK_SECONDS = 0.1  # not money: seconds
BEATS = 4  # a lease is prolonged so many times in its life
SWEEP_SECONDS = 2.0  # not money: seconds


def owner_name() -> str:
    """Unique, and growing with time."""
    return f"{now_ms():012x}{secrets.token_hex(5)}"


def host_name() -> str:
    """Where a process id means the same process: this boot of this kernel, this PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_dead(owner: Owner, host: str, at: int) -> bool:
    """True if an owner's lease has run out, or its process is known to have gone."""
    if owner.expires_at <= at:
        return True
    if not host or owner.host != host:
        return False
    try:
        state = Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return state in ("Z", "X")


class Heart:
    """The tasks that keep a process's name good. `changed` is called when keys have changed somewhere."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        lease_seconds: float,  # not money: seconds
        idle_seconds: float,  # not money: seconds
        changed: Callable[[], None],
    ) -> None:
        self.store, self.ledger, self.changed = store, ledger, changed
        self.lease_ms = int(lease_seconds * 1000)
        self.idle_seconds = max(0.0, idle_seconds - 3 * TICK_SECONDS)  # not money: seconds
        self.host, self.pid = host_name(), os.getpid()
        self.seen = 0
        self.checked = 0.0  # not money: seconds
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.seen = await self._join()
        await self.sweep()
        self.checked = time.monotonic()
        self.task = asyncio.create_task(self._run())

    async def _join(self) -> int:
        at = now_ms()
        return await self.store.join(self.ledger.owner, self.host, self.pid, at, at + self.lease_ms)

    @property
    def current(self) -> bool:
        """True while this process may trust what it remembers of keys."""
        return time.monotonic() - self.checked < self.lease_ms / 2000  # not money: seconds

    async def _run(self) -> None:
        beat = sweep = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.ledger.return_idle(self.idle_seconds)
            now = time.monotonic()
            try:
                await self.catch_up()
                if now - beat >= self.lease_ms / 1000 / BEATS:  # not money: seconds
                    await self._beat()
                    beat = now
                if now - sweep >= SWEEP_SECONDS:
                    await self.sweep()
                    sweep = now
            except StoreUnavailable as problem:
                log.warning("the store is away: %s", problem)
            except Exception:  # border: of one beat; a process without a heart would be taken for dead
                log.exception("a beat failed")

    async def catch_up(self) -> None:
        """Hear of changed keys: drop what is remembered first, then say so."""
        began = time.monotonic()
        version = await self.store.version()
        if version != self.seen:
            self.changed()
            self.seen = version
            await self._beat()
        self.checked = began

    async def _beat(self) -> None:
        if not await self.store.beat(self.ledger.owner, self.seen, now_ms() + self.lease_ms):
            log.warning("this process was taken for dead; going on under another name")
            self.ledger.rename(owner_name())
            self.changed()
            self.seen = await self._join()

    async def sweep(self) -> None:
        """Return what dead owners had drawn."""
        at = now_ms()
        for owner in await self.store.owners():
            if owner.id != self.ledger.owner and is_dead(owner, self.host, at):
                returned = await self.store.sweep(owner.id)
                log.info("swept an owner that died, %d nano-USD returned", returned)

    async def agreed(self) -> None:
        """Wait until every process that lives knows of the newest change of a key."""
        await self.catch_up()
        await everybody_knows(self.store, self.seen, self.host)

    async def stop(self) -> None:
        if self.task:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        await self.ledger.close()
        await self.store.sweep(self.ledger.owner)


async def everybody_knows(store: Store, version: int, host: str) -> None:
    """Wait until no living owner's knowledge is older than `version`; a dead one cannot serve, so it is not waited for."""
    while any(not is_dead(owner, host, now_ms()) for owner in await store.laggards(version)):  # noqa: ASYNC110 (what is waited for happens in other processes)
        await asyncio.sleep(0.02)  # not money: seconds
