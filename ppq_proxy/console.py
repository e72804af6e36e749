"""How commands talk: a table in a terminal, one JSON document when piped or with --json; exit codes that scripts can read."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, NoReturn

import orjson

from ppq_proxy import settings as settings_module
from ppq_proxy.errors import GatewayError, NotFound, SettingsError, StoreUnavailable, Unauthorized
from ppq_proxy.settings import Settings
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Store

FAILED, WRONG_USE, NOT_FOUND, UNREACHABLE = 1, 2, 3, 4


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong on stderr and end."""
    print(f"ppq-proxy: {message}", file=sys.stderr)
    raise SystemExit(code)


def load(**options: Any) -> Settings:
    """Settings with a command's options; wrong ones end the command."""
    try:
        return settings_module.load(options)
    except SettingsError as problem:
        fail(str(problem), WRONG_USE)


def with_store(settings: Settings, work: Callable[[Store], Awaitable[Any]]) -> Any:
    """Run `work` on the database; what goes wrong becomes an exit code."""

    async def run() -> Any:
        store = open_store(settings.database)
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except StoreUnavailable as problem:
        fail(problem.message, UNREACHABLE)
    except (NotFound, Unauthorized) as problem:
        fail(problem.message, NOT_FOUND)
    except GatewayError as problem:
        fail(problem.message, FAILED)


def show(value: Any, as_json: bool, columns: Sequence[str] = ()) -> None:
    """Print a result: rows or an object."""
    if as_json or not sys.stdout.isatty():
        sys.stdout.write(_json(value) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=isinstance(value, list), box=None)
    if isinstance(value, list):
        names = list(columns) or list(value[0] if value else ())
        for name in names:
            table.add_column(name, overflow="fold", no_wrap=name.endswith("id"))  # ids are there to be copied
        for row in value:
            table.add_row(*(_cell(row.get(name)) for name in names))
    else:
        for name, cell in value.items():
            table.add_row(name, _cell(cell))
    Console(markup=False, emoji=False, highlight=False).print(table)  # a key's name is no markup


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else _json(value).strip('"')


def _json(value: Any) -> str:
    """One JSON document; dollars are decimal strings."""
    return orjson.dumps(value, default=_usd).decode()


def _usd(value: Any) -> str:
    if isinstance(value, Decimal):
        return format(value.normalize() if value else Decimal(0), "f")
    raise TypeError(f"{type(value).__name__} is not JSON")
