"""A real store to keep rows in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ppq_proxy.store.base import Rows
from ppq_proxy.store.sqlite import SqliteStore


@pytest.fixture
async def rows(tmp_path: Path) -> AsyncIterator[Rows]:
    store = SqliteStore(str(tmp_path / "rows.db"))
    await store.open()
    yield store.rows
    await store.close()
