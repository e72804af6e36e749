"""A target stands between client and upstream: how it is started, and how one knows that it answers."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench import nginx, shapes
from tests.bench.client import Request
from tests.bench.processes import ROOT, Child, Cores, free_port
from tests.bench.upstream import Counts

_POLL_SECONDS = 0.005
_QUIET_SECONDS = 0.2


class Unusable(Exception):
    """A target that does not start, or does not answer as it should. The message says why."""


def ask(url: str, request: Request | None = None, *, patience: float = 30.0) -> tuple[int, bytes]:
    """GET, or POST of a request; status and body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=patience)
    try:
        if request is None:
            connection.request("GET", parts.path)
        else:
            headers = {"content-type": "application/json"} | request.headers
            connection.request("POST", parts.path, request.body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class UpstreamServer:
    """The upstream of one part of the benchmark, and what it has answered."""

    def __init__(self, folder: Path, cores: frozenset[int], *, events: int, by_nginx: bool) -> None:
        self.by = "nginx" if by_nginx else "own"
        self._folder = folder / "upstream"
        self.port = free_port()
        if by_nginx:
            self.child = nginx.start_upstream(self.port, self._folder, cores)
        else:
            self._folder.mkdir(parents=True)
            argv = [sys.executable, "-m", "tests.bench.upstream", f"--port={self.port}", f"--events={events}"]
            self.child = Child(argv, cores=cores, log=self._folder / "output.log", cwd=ROOT)
        wait_until(self.child, lambda: ask(f"{self.url}/models")[0] == 200, "the upstream")

    @property
    def url(self) -> str:
        """Base URL, ending in /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def counts(self) -> Counts:
        """What it has served up to now."""
        if self.by == "nginx":
            page = ask(f"http://127.0.0.1:{self.port}/status")[1].decode()
            return Counts(answers=nginx.answers(page, self._folder))
        return Counts(**json.loads(ask(f"http://127.0.0.1:{self.port}/counts")[1]))

    def settled(self) -> Counts:
        """The counts once they have stood still: a gateway may go on with calls whose client has gone."""
        before, late = self.counts(), 0.0
        while True:
            time.sleep(_QUIET_SECONDS)
            now = self.counts()
            late = max(late, before.late_ms, now.late_ms)
            if (now.answers, now.streams, now.broken) == (before.answers, before.streams, before.broken):
                now.late_ms = late
                return now
            before = now

    @contextmanager
    def counting(self, served: Counts) -> Iterator[None]:
        """Add what is served meanwhile to `served`."""
        before = self.settled()
        yield
        after = self.settled()
        served.answers += after.answers - before.answers
        served.streams += after.streams - before.streams
        served.broken += after.broken - before.broken
        served.late_ms = max(served.late_ms, after.late_ms)


def wait_until(child: Child, ready: Callable[[], bool], name: str, patience: float = 120.0) -> float:
    """Poll until `ready`; the seconds since the process was started. Where that fails, the process is stopped."""
    with ExitStack() as on_failure:
        on_failure.callback(child.stop)
        while True:
            with suppress(OSError, http.client.HTTPException):
                if ready():
                    on_failure.pop_all()
                    return time.perf_counter() - child.started
            if child.ended() is not None:
                raise Unusable(f"{name} ended with {child.ended()}: {child.tail()}")
            if time.perf_counter() - child.started > patience:
                raise Unusable(f"{name} did not answer within {patience:.0f} s: {child.tail()}")
            time.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class Place:
    """Where a target is started: an empty folder of its own, the upstream's base URL, and the cores."""

    folder: Path
    upstream: str
    cores: Cores


@dataclass
class Running:
    """A started target. Seconds are from the start of its process; `ready_seconds` only where it has a /readyz."""

    child: Child | None
    url: str
    model: str = shapes.MODEL
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": "Bearer sk-x"})
    ready_seconds: float | None = None
    first_answer_seconds: float | None = None
    on_stop: list[Callable[[], None]] = field(default_factory=list)

    def request(self, *, stream: bool) -> Request:
        """What the load posts to it."""
        return Request(self.url, self.headers, shapes.chat_body(self.model, stream=stream))

    def stop(self) -> None:
        """End it, and what was started for it."""
        if self.child:
            self.child.stop()
        for stop in self.on_stop:
            stop()

    def answers(self) -> bool:
        """Whether one chat call gets the fixed answer, usage included."""
        status, body = ask(self.url, self.request(stream=False))
        if status != 200:
            return False
        usage = json.loads(body)["usage"]
        if (usage["prompt_tokens"], usage["completion_tokens"]) != (shapes.PROMPT_TOKENS, shapes.COMPLETION_TOKENS):
            raise Unusable(f"the answer's usage is not the upstream's: {body[:300]!r}")
        return True


class Target(ABC):
    """One row of the tables."""

    name: str
    about: str = ""
    ours: bool = False
    most_streams: int | None = None
    path: str = "/v1/chat/completions"

    def missing(self, cores: Cores) -> str | None:
        """Why it cannot be run here, or None."""
        return None

    @abstractmethod
    def start(self, place: Place) -> Running:
        """Start it and wait for the first answered chat."""

    def wrong_charge(self, running: Running, served: Counts, events: int) -> str | None:
        """How its books differ from what the upstream served; None where they agree or none are kept."""
        return None

    def _spawn(self, argv: list[str], place: Place, port: int, env: dict[str, str] | None = None) -> Running:
        child = Child(
            argv,
            cores=place.cores.gateway,
            log=place.folder / "output.log",
            env={**os.environ, **(env or {})},
            cwd=place.folder,
        )
        return Running(child, f"http://127.0.0.1:{port}{self.path}")

    def _first_answer(self, running: Running, patience: float = 120.0) -> Running:
        assert running.child is not None
        running.first_answer_seconds = wait_until(running.child, running.answers, self.name, patience)
        return running


class Direct(Target):
    """No gateway: what a client sees of the upstream itself."""

    name = "direct"
    about = "client to upstream, nothing in between"

    def start(self, place: Place) -> Running:
        return Running(None, f"{place.upstream}/chat/completions")


class NginxProxy(Target):
    """The limit."""

    name = "nginx"
    about = "nginx proxy_pass: the limit"

    def missing(self, cores: Cores) -> str | None:
        return nginx.missing()

    def start(self, place: Place) -> Running:
        port = free_port()
        upstream = urlsplit(place.upstream).netloc
        child = nginx.start_proxy(port, upstream, place.folder / "nginx", place.cores.gateway)
        return self._first_answer(Running(child, f"http://127.0.0.1:{port}{self.path}"))


class PassThroughTarget(Target):
    """The yardstick."""

    name = "pass-through"
    about = "uvicorn + pyreqwest, unmetered: the yardstick"

    def start(self, place: Place) -> Running:
        port = free_port()
        argv = [sys.executable, "-m", "uvicorn", "tests.bench.passthrough:app", f"--port={port}", "--no-access-log"]
        argv += ["--loop=uvloop", "--http=httptools", "--ws=none", "--log-level=warning", "--backlog=4096"]
        env = {"BENCH_UPSTREAM": place.upstream, "PYTHONPATH": str(ROOT)}
        return self._first_answer(self._spawn(argv, place, port, env))
