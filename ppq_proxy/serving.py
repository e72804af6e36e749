"""`ppq-proxy serve` and `run`: processes, sockets and signals."""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

from ppq_proxy import settings as settings_module
from ppq_proxy.console import FAILED, UNREACHABLE, WRONG_USE, fail
from ppq_proxy.errors import SettingsError
from ppq_proxy.settings import PREFIX, Settings
from ppq_proxy.store.base import Row

DEV_CREDIT = 10 * 10**9
DEV_BTC_USD = "100000"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM; the exit code."""
    import asyncio

    from ppq_proxy.catalog.catalog import CatalogError

    _log_problems()
    if not settings.upstream and not settings.upstream_table():
        _say("no upstream is set, so nothing can be sold yet: give --upstream URL, or PPQ_UPSTREAMS")
    if settings.workers > 1:
        return _serve_many(settings)
    try:
        with asyncio.Runner(loop_factory=_loop()) as runner:
            return runner.run(_serve_one(settings, lambda: _say(f"serving on http://{settings.host}:{settings.port}")))
    except (CatalogError, SettingsError) as problem:
        fail(str(problem), WRONG_USE if isinstance(problem, SettingsError) else FAILED)
    except OSError as problem:
        fail(f"cannot serve: {problem}", FAILED)


async def _serve_one(settings: Settings, told: Callable[[], None]) -> int:
    from ppq_proxy.app import App
    from ppq_proxy.server import Server, config

    _log_problems()
    front = App(settings, _log(settings)).asgi()
    server = Server(config(front, settings.host, settings.port, settings.drain_seconds))
    server.told = told
    try:
        await server.serve()
    except SystemExit:  # so uvicorn ends a start that failed; it has said why
        return UNREACHABLE if front.unreachable else FAILED
    return 0 if server.started else FAILED


def _log_problems() -> None:
    import logging

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )


def _loop() -> Any:
    import uvloop

    return uvloop.new_event_loop


def _log(settings: Settings) -> Any:
    return open(settings.log_file, "a") if settings.log_file else sys.stderr


def run_local(settings: Settings) -> int:
    """Serve the small local model, and print what a newcomer needs: base URL, key, and a line that works."""
    import asyncio

    import orjson

    from ppq_proxy.local_model import MODEL, LocalModel, LocalModelError

    async def main() -> int:
        _say("starting the local model (SmolLM2, 135 million parameters) …")
        async with LocalModel() as model:
            table = settings.upstream_table() | {"local": {"url": model.url}}
            local = dataclasses.replace(
                settings, upstreams=orjson.dumps(table).decode(), wallet=settings.wallet or "dev"
            )
            if local.wallet == "dev" and not local.btc_usd:
                local = dataclasses.replace(local, btc_usd=DEV_BTC_USD)
            key = await _dev_key(local)
            return await _serve_one(local, lambda: _welcome(local, key, MODEL))

    try:
        with asyncio.Runner(loop_factory=_loop()) as runner:
            return runner.run(main())
    except LocalModelError as problem:
        fail(str(problem), FAILED)
    except KeyboardInterrupt:
        return 0


async def _dev_key(settings: Settings) -> str:
    """The key of the one development account of this database, which has credit."""
    import secrets

    from ppq_proxy.money.accounts import Accounts
    from ppq_proxy.money.ledger import Ledger, now_ms
    from ppq_proxy.store import open_store

    store = open_store(settings.database)
    await store.open()
    try:
        service = Accounts(
            store, Ledger(store, "command"), settings.secret.encode() or await store.secret(secrets.token_bytes(32))
        )
        row = await store.rows.get("dev_account", "default")
        if row is not None and (key := await store.key(row.doc["key_id"])) and key.deleted_at is None:
            value = service.seal.open(key.sealed, key.id)
        else:
            _, value, account_id = await service.create()
            key_id = (await service.key_of(value)).id
            row = row or Row("dev_account", "default", {})
            doc = {"account_id": account_id, "key_id": key_id}
            if not await store.rows.insert(row.kind, row.id, doc):
                await store.rows.replace(row, doc)
        account_id = (await service.key_of(value)).account_id
        if (await service.account(account_id)).available < DEV_CREDIT // 10:
            await service.credit(account_id, DEV_CREDIT, f"dev:{now_ms()}")
        return value
    finally:
        await store.close()


def _welcome(settings: Settings, key: str, model: str) -> None:
    base = f"http://{settings.host}:{settings.port}/v1"
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Tell me a short story about a fox."}}]}}'
    _say("")
    print(f"base URL  {base}\nAPI key   {key}\n\ntry it:\n", flush=True)
    print(
        f"curl -N {base}/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'\n",
        flush=True,
    )
    _say("The wallet is the development wallet: no real money. Ctrl-C ends it.")


def _serve_many(settings: Settings) -> int:
    """Several processes behind one socket; each is started anew when it dies."""
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    from ppq_proxy.server import config

    for name in settings_module.NAMES:
        value = getattr(settings, name)
        if value != getattr(Settings(), name):
            os.environ[PREFIX + name.upper()] = str(value)
    shared = config(
        "ppq_proxy.app:from_environment",
        settings.host,
        settings.port,
        settings.drain_seconds,
        factory=True,
        workers=settings.workers,
    )
    try:
        socket = shared.bind_socket()
    except (OSError, SystemExit):
        return FAILED
    _say(f"serving on http://{settings.host}:{settings.port} with {settings.workers} workers")
    supervisor = Multiprocess(shared, sockets=[socket])
    supervisor.run()
    return FAILED if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes) else 0
