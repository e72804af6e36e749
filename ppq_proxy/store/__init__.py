"""Databases: `open_store` chooses one by its URL."""

from ppq_proxy.store.base import Store


def open_store(url: str) -> Store:
    """The store of `sqlite:///PATH` or `mongodb://HOST/DB`; not opened yet. A driver is imported only if it is used."""
    if url.startswith("sqlite:///"):
        from ppq_proxy.store.sqlite import SqliteStore

        return SqliteStore(url.removeprefix("sqlite:///"))
    from ppq_proxy.store.mongo import MongoStore

    return MongoStore(url)
