"""The gateway of this project, with all that any call has: key, limits, hold, price, log, durable capture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tests.bench import shapes
from tests.bench.client import Request
from tests.bench.processes import ROOT, Child, Cores, free_port
from tests.bench.target import Place, Running, Target, Unusable, ask, wait_until
from tests.bench.upstream import Counts

_CREDIT_USD = 1_000_000
# Both are checked at every call and neither may ever refuse one.
_KEY_LIMIT_USD = 900_000
_REQUESTS_PER_MINUTE = 100_000_000


def command() -> list[str]:
    """How this environment's `ppq-proxy` is called."""
    script = Path(sys.executable).with_name("ppq-proxy")
    return [str(script)] if script.exists() else [sys.executable, "-m", "ppq_proxy"]


def _environment() -> dict[str, str]:
    """Defaults are what is measured: settings of the one who runs the benchmark are left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PPQ_")}
    return kept | {"PYTHONPATH": str(ROOT)}


@dataclass
class _Account:
    """The account that pays, and the database it is in."""

    database: str
    credit_id: str
    api_key: str


class Ours(Target):
    """On SQLite, one worker, everything at its default."""

    name = "ppq-proxy"
    about = "this project on SQLite, synchronous=FULL: key, limits, hold, price, log, durable capture"
    ours = True
    workers = 1
    settle_seconds = 30.0

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}

    def missing(self, cores: Cores) -> str | None:
        done = subprocess.run([*command(), "--help"], capture_output=True, env=_environment(), cwd=ROOT, check=False)
        return None if done.returncode == 0 else "ppq-proxy does not run here"

    def start(self, place: Place) -> Running:
        return self._start_on(f"sqlite:///{place.folder / 'bench.db'}", place)

    def _start_on(self, database: str, place: Place) -> Running:
        models = place.folder / "models.json"
        models.write_text(json.dumps(shapes.price_list()))
        account = self._create_account(database)
        port = free_port()
        argv = [*command(), "serve", "--host", "127.0.0.1", "--port", str(port), "--database", database]
        argv += ["--upstream", place.upstream, "--upstream-key", "sk-x", "--models", str(models)]
        argv += ["--workers", str(self.workers)] if self.workers > 1 else []
        cores = place.cores.pair if self.workers > 1 else place.cores.gateway
        env = _environment() | {"PPQ_RATE_LIMIT": str(_REQUESTS_PER_MINUTE)}
        child = Child(argv, cores=cores, log=place.folder / "output.log", env=env, cwd=place.folder)
        base = f"http://127.0.0.1:{port}"
        running = Running(child, base + self.path, headers={"authorization": f"Bearer {account.api_key}"})
        with ExitStack() as on_failure:
            on_failure.callback(running.stop)
            running.ready_seconds = wait_until(child, lambda: ask(f"{base}/readyz")[0] == 200, self.name)
            self._first_answer(running)
            running.headers = {"authorization": f"Bearer {self._limited_key(base, account)}"}
            on_failure.pop_all()
        self._accounts[child.pid] = account
        return running

    def wrong_charge(self, running: Running, served: Counts, events: int) -> str | None:
        assert running.child is not None
        account = self._accounts[running.child.pid]
        expected = served.answers * shapes.charge_usd(shapes.COMPLETION_TOKENS)
        expected += served.streams * shapes.charge_usd(events)
        deadline = time.monotonic() + self.settle_seconds
        while True:
            shown = self._command(["accounts", "show", account.credit_id], account.database)
            held, charged = Decimal(shown["held_usd"]), Decimal(shown["charged_usd"])
            if held == 0 and charged == expected and not served.broken:
                return None
            if time.monotonic() > deadline:
                calls = f"{served.answers} answers and {served.streams} streams ({served.broken} broken off)"
                return f"charged ${charged} for {calls}, which cost ${expected}; ${held} is still held"
            time.sleep(0.5)

    def _create_account(self, database: str) -> _Account:
        made = self._command(["accounts", "create", "--credit", str(_CREDIT_USD)], database)
        return _Account(database, made["credit_id"], made["api_key"])

    def _command(self, arguments: list[str], database: str) -> dict[str, Any]:
        argv = [*command(), *arguments, "--database", database, "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, env=_environment(), cwd=ROOT, check=False)
        if done.returncode:
            raise Unusable(f"`ppq-proxy {' '.join(arguments[:2])}` failed: {done.stderr[-500:]}")
        return dict(json.loads(done.stdout))

    def _limited_key(self, base: str, account: _Account) -> str:
        """A key of the account that has a spending limit and a request limit."""
        wanted = {
            "name": "bench",
            "usage_limit_usd": _KEY_LIMIT_USD,
            "reset_period": "monthly",
            "requests_per_minute": _REQUESTS_PER_MINUTE,
        }
        body = shapes.compact(wanted)
        status, answer = ask(f"{base}/keys", Request(f"{base}/keys", {"x-credit-id": account.credit_id}, body))
        if status not in (200, 201):
            raise Unusable(f"POST /keys answered {status}: {answer[:300]!r}")
        return str(json.loads(answer)["data"]["api_key"])


class OursTwoWorkers(Ours):
    """The same with two workers."""

    name = "ppq-proxy-2"
    about = "this project on SQLite with two workers on two cores"
    workers = 2

    def __init__(self, *, forced: bool) -> None:
        super().__init__()
        self._forced = forced

    def missing(self, cores: Cores) -> str | None:
        if not cores.pair_is_apart and not self._forced:
            return "needs a third core (--workers runs it all the same, sharing the load's core)"
        return super().missing(cores)


class OursMongo(Ours):
    """On a standalone MongoDB, journaled writes; mongod runs on the load's cores and its CPU is not counted."""

    name = "ppq-proxy-mongodb"
    about = "this project on MongoDB (mongod on the load's core)"

    def start(self, place: Place) -> Running:
        port = free_port()
        data = place.folder / "mongod"
        data.mkdir()
        argv = [sys.executable, "-m", "tests.peers.mongod", f"--port={port}", f"--data={data}"]
        log = place.folder / "mongod.log"
        mongod = Child(argv, cores=place.cores.load, log=log, cwd=ROOT)
        with ExitStack() as on_failure:
            on_failure.callback(mongod.stop)
            wait_until(mongod, lambda: "ready mongodb://" in log.read_text(), "mongod", patience=240.0)
            ready = log.read_text().split("ready ")[1].split()[0]
            running = self._start_on(urlunsplit(urlsplit(ready)._replace(path="/bench")), place)
            running.on_stop.append(mongod.stop)
            on_failure.pop_all()
        return running
