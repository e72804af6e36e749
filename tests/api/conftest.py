"""One gateway for all tests of the API; a test that needs its own makes one."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.api.catalog import ROWS
from tests.gateway.world import Customer, Upstream, World


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The upstream process of these tests."""
    peer = Upstream().start()
    yield peer
    peer.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[World]:
    """A gateway on SQLite; its books have to be right when the tests end."""
    folder = tmp_path_factory.mktemp("api")
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=upstream, rows=ROWS, PPQ_MAX_BODY_BYTES="1000000")
    one.start_now()
    try:
        yield one
        done = one.run("doctor", "--models", str(one.models), "--json")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        one.stop_now()


@pytest.fixture
async def customer(world: World) -> AsyncIterator[Customer]:
    """An account with a dollar."""
    yield await world.customer("1")
