"""`ppq-proxy doctor`: what an operator wants to know before and after trouble."""

import time
from typing import Any

from ppq_proxy.catalog.catalog import Catalog, CatalogError, default_path
from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.money.owner import host_name, is_dead
from ppq_proxy.settings import Settings
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Store

Finding = dict[str, Any]


def finding(check: str, ok: bool, says: str) -> Finding:
    """One line of the report."""
    return {"check": check, "ok": ok, "says": says}


async def examine(settings: Settings) -> list[Finding]:
    """Every check, in order; the report."""
    found = [_settings(settings), _clock(), _catalog(settings)]
    store = open_store(settings.database)
    try:
        await store.open()
        try:
            found += await _books(store)
        finally:
            await store.close()
    except StoreUnavailable as problem:
        found.append(finding("store", False, problem.message))
    return found + await _upstreams(settings)


def _settings(settings: Settings) -> Finding:
    says = "PPQ_SECRET is set" if settings.secret else "PPQ_SECRET is not set: the secret that seals keys lies in the database beside them"
    return finding("settings", True, says)


def _clock() -> Finding:
    sane = 1_767_225_600 < time.time() < 4_102_444_800
    return finding("clock", sane, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _catalog(settings: Settings) -> Finding:
    try:
        catalog = Catalog.load(settings.models or default_path(), settings.margin)
    except (CatalogError, OSError) as problem:
        return finding("catalogue", False, str(problem))
    return finding("catalogue", True, f"{len(catalog.offerings)} offerings, version {catalog.version}")


async def _books(store: Store) -> list[Finding]:
    await store.ping()
    found = [finding("store", True, "reachable and writable")]
    wrong = await store.audit()
    found += [finding("invariants", False, says) for says in wrong] or [finding("invariants", True, "all hold")]
    host, at = host_name(), now_ms()
    owners = await store.owners()
    dead = [owner for owner in owners if is_dead(owner, host, at)]
    living = len(owners) - len(dead)
    found.append(finding("processes", True, f"{living} serving, {len(dead)} died and will be swept by the next one that serves"))
    return found


async def _upstreams(settings: Settings) -> list[Finding]:
    from ppq_proxy.app import upstreams

    found = []
    for name, upstream in upstreams(settings).items():
        ok = await upstream.reachable(5)
        found.append(finding(f"upstream {name}", ok, "answers" if ok else "does not answer"))
        await upstream.close()
    return found
