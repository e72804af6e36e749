"""Many streams at once, each opened again at its end, every one of them checked for being whole.

`python -m tests.bench.streams REQUEST.json --streams 400 --events 100 --seconds 5 --watch PID` prints one JSON object.
It reads the CPU time of the watched process itself, at the edges of the measured window: a driver would miss them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.client import Caller, Request, Tally, drain, keep_calling, quantile, read_request, write_request
from tests.bench.processes import ROOT, use_of
from tests.bench.shapes import EVENT_SECONDS, WORD
from tests.bench.upstream import run

_WORD = WORD.strip().encode()
_DONE = b"[DONE]"


@dataclass(frozen=True)
class StreamsResult:
    """One window of steady streaming, and the wholeness of every stream from the first to the last drained one."""

    events: int
    seconds: float
    streams: int
    errors: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    cpu_us_event: float
    core_share: float
    client_share: float
    problem: str


@dataclass
class StreamTally(Tally):
    """What the streams of one run share."""

    expected: int = 0
    events: int = 0
    cut: int = 0
    first_seconds: list[float] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Bad statuses, broken connections, and streams that lost an event or their end."""
        return self.bad_status + self.lost + self.cut


class Stream(Caller):
    """Counts content events as they pass."""

    def __init__(self, raw: bytes, tally: StreamTally, done: Callable[[], None]) -> None:
        super().__init__(raw, tally, done)
        self._streams = tally
        self._events = 0
        self._last = b""

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        # What may lie across two reads is found in their seam; a word can not fit in a seam of its length less one.
        events = (self._last[1 - len(_WORD) :] + body).count(_WORD)
        self._last = body if len(body) >= 64 else (self._last + body)[-64:]
        if events:
            if not self._events:
                self._streams.first_seconds.append(time.perf_counter() - self.sent_at)
            self._events += events
            self._streams.events += events

    def finished(self, good: bool) -> None:
        whole = self._events == self._streams.expected and _DONE in self._last[-64:]
        self._streams.answers += good and whole
        self._streams.cut += good and not whole
        if good and not whole and not self._streams.problem:
            self._streams.problem = f"{self._events} events, and at the end {self._last[-40:]!r}"
        self._events = 0
        self._last = b""


def run_streams(
    request: Request, *, streams: int, events: int, seconds: float, watch: int | None, folder: Path
) -> StreamsResult:
    """Stream through a gateway from this process's cores."""
    argv = [sys.executable, "-m", "tests.bench.streams", str(write_request(request, folder)), f"--streams={streams}"]
    argv += [f"--events={events}", f"--seconds={seconds}"] + ([f"--watch={watch}"] if watch else [])
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the stream client failed: {done.stderr[-500:]}")
    return StreamsResult(**json.loads(done.stdout))


@dataclass(frozen=True)
class _Mark:
    """Where things stood at one edge of the window."""

    time: float
    events: int
    firsts: int
    cpu: float
    own_cpu: float


def _mark(tally: StreamTally, watch: int | None) -> _Mark:
    cpu = use_of(watch).cpu_seconds if watch else 0.0
    return _Mark(time.perf_counter(), tally.events, len(tally.first_seconds), cpu, time.process_time())


async def _measure(request: Request, streams: int, events: int, seconds: float, watch: int | None) -> None:
    tally = StreamTally(expected=events)
    raw = request.raw()
    ramp = events * EVENT_SECONDS
    tasks: list[asyncio.Task[None]] = []
    for number in range(streams):
        # Spread over one stream's life, so that ends and new beginnings are spread as well.
        tasks.append(asyncio.create_task(keep_calling(request, tally, lambda done: Stream(raw, tally, done))))
        if number % 10 == 9:
            await asyncio.sleep(ramp * 10 / streams)
    await asyncio.sleep(max(0.2, ramp / 4))
    begin = _mark(tally, watch)
    await asyncio.sleep(seconds)
    end = _mark(tally, watch)
    late = await drain(tally, [*tasks])
    firsts = sorted(tally.first_seconds[begin.firsts : end.firsts])
    passed, took = end.events - begin.events, end.time - begin.time
    result = StreamsResult(
        events=passed,
        seconds=took,
        streams=tally.answers,
        errors=tally.errors + late,
        ttft_p50_ms=quantile(firsts, 0.5) * 1000,
        ttft_p99_ms=quantile(firsts, 0.99) * 1000,
        cpu_us_event=(end.cpu - begin.cpu) / passed * 1e6 if passed else 0.0,
        core_share=(end.cpu - begin.cpu) / took,
        client_share=(end.own_cpu - begin.own_cpu) / took,
        problem=tally.problem,
    )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("request", type=Path)
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--watch", type=int, help="the process whose CPU time is read")
    arguments = parser.parse_args()
    run(
        _measure(
            read_request(arguments.request), arguments.streams, arguments.events, arguments.seconds, arguments.watch
        )
    )
