"""One badly behaved upstream for all tests, and a gateway for each module."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.world import Upstream, World
from tests.peers.mongod import Mongod, MongodError, start_mongod

MONGO = pytest.param("mongo", marks=[pytest.mark.mongo, pytest.mark.slow])


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The upstream process that all worlds share. A test that stops it uses its own."""
    peer = Upstream().start()
    yield peer
    peer.stop()


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A replica set of one, for all tests that do not kill it."""
    try:
        server = start_mongod(tmp_path_factory.mktemp("mongod"), replica_set="rs0")
    except MongodError as problem:
        pytest.skip(f"no mongod here: {problem}")
    yield server
    server.stop()


def database_of(url: str) -> str:
    """The URL of a database on a server that nobody has used."""
    base, _, options = url.partition("?")
    return f"{base.rstrip('/')}/test_{secrets.token_hex(6)}" + (f"?{options}" if options else "")


def database_for(request: pytest.FixtureRequest, folder: Path) -> str:
    """A fresh database of the kind that a fixture's parameter names."""
    if request.param == "sqlite":
        return f"sqlite:///{folder}/gateway.db"
    server: Mongod = request.getfixturevalue("mongod")
    return database_of(server.url)


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Settings of the module's gateway; a module overrides this."""
    return {}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Rows of the module's models file beside one for each behaviour of the upstream; a module overrides this."""
    return []


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The module's database. A module that is about the books has itself run on each kind."""
    return f"sqlite:///{tmp_path_factory.mktemp('database')}/gateway.db"


@pytest.fixture(scope="module")
def world(
    database: str,
    tmp_path_factory: pytest.TempPathFactory,
    upstream: Upstream,
    settings: dict[str, str],
    rows: list[dict[str, Any]],
) -> Iterator[World]:
    """A running gateway; its books have to be right when the module ends."""
    one = World(database, tmp_path_factory.mktemp("gateway"), upstream=upstream, rows=rows, **settings)
    one.start_now()
    try:
        yield one
        code, out, err = one.desk.run(["doctor", "--models", str(one.models), "--json"])
        assert code == 0, out + err
    finally:
        one.stop_now()
