"""Databases for the tests: SQLite in a folder, and a real mongod, standalone and as a replica set."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ppq_proxy.store import open_store
from ppq_proxy.store.base import Store
from tests.peers.mongod import Mongod, MongodError, start_mongod

SERVERS = [pytest.param(kind, marks=pytest.mark.mongo) for kind in ("alone", "set")]


def started(folder: Path, replica_set: str | None) -> Mongod:
    try:
        return start_mongod(folder, replica_set=replica_set)
    except MongodError as problem:
        pytest.skip(f"no mongod here: {problem}")


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A standalone server: no transactions, no retryable writes."""
    server = started(tmp_path_factory.mktemp("alone"), None)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def replica_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A replica set of one."""
    server = started(tmp_path_factory.mktemp("set"), "rs0")
    yield server
    server.stop()


def fresh(server: Mongod) -> str:
    """The URL of a database that nobody has used."""
    base, _, options = server.url.partition("?")
    return f"{base}test_{secrets.token_hex(6)}" + (f"?{options}" if options else "")


@pytest.fixture(params=["sqlite", *SERVERS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/books.db"
    server: Mongod = request.getfixturevalue("alone" if request.param == "alone" else "replica_set")
    return fresh(server)


Opener = Callable[[], Awaitable[Store]]


@pytest.fixture
async def another(url: str) -> AsyncIterator[Opener]:
    """Opens one more store on the same database, as another process would."""
    opened: list[Store] = []

    async def open_one() -> Store:
        store = open_store(url)
        await store.open()
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(another: Opener) -> Store:
    """A store on an empty database."""
    return await another()
