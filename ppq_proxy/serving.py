"""`ppq-proxy serve` and `run`: processes, sockets and signals."""

import os
import sys
from typing import Any

from ppq_proxy import settings as settings_module
from ppq_proxy.console import FAILED, fail
from ppq_proxy.settings import PREFIX, Settings


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM; the exit code."""
    import asyncio
    import logging

    from ppq_proxy.catalog.catalog import CatalogError
    from ppq_proxy.server import Server, config

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    if settings.workers > 1:
        return _serve_many(settings)
    from ppq_proxy.app import App

    async def main() -> bool:
        server = Server(config(App(settings, _log(settings)).asgi(), settings.host, settings.port, settings.drain_seconds))
        server.told = lambda: _say(f"serving on http://{settings.host}:{settings.port}")
        await server.serve()
        return server.started

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            started = runner.run(main())
    except CatalogError as problem:
        fail(str(problem), FAILED)
    except OSError as problem:
        fail(f"cannot serve: {problem}", FAILED)
    return 0 if started else FAILED


def _log(settings: Settings) -> Any:
    return open(settings.log_file, "a") if settings.log_file else sys.stderr  # noqa: SIM115 (open for the process's life)


def _serve_many(settings: Settings) -> int:
    """Several processes behind one socket; each is started anew when it dies."""
    from uvicorn.supervisors import Multiprocess

    from ppq_proxy.server import config

    for name in settings_module.NAMES:
        value = getattr(settings, name)
        if value != getattr(Settings(), name):
            os.environ[PREFIX + name.upper()] = str(value)
    shared = config("ppq_proxy.app:from_environment", settings.host, settings.port, settings.drain_seconds, factory=True, workers=settings.workers)
    try:
        socket = shared.bind_socket()
    except (OSError, SystemExit):
        return FAILED
    _say(f"serving on http://{settings.host}:{settings.port} with {settings.workers} workers")
    Multiprocess(shared, sockets=[socket]).run()
    return 0
