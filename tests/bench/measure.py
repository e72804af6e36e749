"""The rounds: every target is started once, measured in turn round by round, and held against its books at the end."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.load import LoadResult, run_load
from tests.bench.processes import Cores, use_of
from tests.bench.streams import StreamsResult, run_streams
from tests.bench.target import Place, Running, Target, Unusable, UpstreamServer
from tests.bench.upstream import Counts

_WARM_SECONDS = 1.0
_REST_SECONDS = 0.3
_REST_CHECKS = 50


@dataclass(frozen=True)
class Options:
    """How long, how many, and whether our own upstream and client are to be used where nginx and wrk are installed."""

    rounds: int = 3
    seconds: float = 5.0
    connections: int = 64
    streams: int = 400
    events: int = 100
    own_tools: bool = False


@dataclass(frozen=True)
class Round:
    """One measurement of one target; the names are those of the JSON document."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    core_share: float
    errors: int
    problem: str = ""
    streams: int = 0
    client_share: float = 0.0


@dataclass
class Row:
    """All about one target in one part. Latency is that of the whole answer, or of a stream's first content."""

    name: str
    about: str
    ours: bool = False
    rounds: list[Round] = field(default_factory=list)
    ready_seconds: float | None = None
    first_answer_seconds: float | None = None
    resident_mb: list[float] = field(default_factory=list)
    served: Counts = field(default_factory=Counts)
    failure: str | None = None
    charge: str | None = None

    def median(self, name: str) -> float | None:
        """The median over the rounds of one of their figures."""
        values = [float(getattr(one, name)) for one in self.rounds]
        return statistics.median(values) if values else None

    @property
    def errors(self) -> int:
        """Of all rounds."""
        return sum(one.errors for one in self.rounds)

    @property
    def growth_mb(self) -> float | None:
        """Resident memory after the last round less that after the first."""
        return self.resident_mb[-1] - self.resident_mb[1] if len(self.resident_mb) > 2 else None


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


class Part:
    """One half of the benchmark: `requests` or `streams`."""

    def __init__(self, name: str, folder: Path, cores: Cores, options: Options, *, by_nginx: bool) -> None:
        self.name = name
        self.rows: list[Row] = []
        self._options = options
        self._cores = cores
        self._folder = folder / name
        self._running: list[tuple[Target, Running, Row]] = []
        self.upstream = UpstreamServer(self._folder, cores.load, events=options.events, by_nginx=by_nginx)

    def run(self, targets: Sequence[Target]) -> list[Row]:
        """Start, measure, check and stop them all."""
        try:
            for target in targets:
                self._start(target)
            for number in range(self._options.rounds):
                for target, running, row in self._running:
                    if not row.failure:
                        self._round(number, target, running, row)
            for target, running, row in self._running:
                self._check(target, running, row)
        finally:
            for _, running, _ in reversed(self._running):
                running.stop()
            self.upstream.child.stop()
        return self.rows

    def _start(self, target: Target) -> None:
        row = Row(target.name, target.about, target.ours)
        self.rows.append(row)
        folder = self._folder / target.name
        folder.mkdir(parents=True)
        try:
            with self.upstream.counting(row.served):
                running = target.start(Place(folder, self.upstream.url, self._cores))
        except Unusable as problem:
            row.failure = str(problem)
            say(f"{self.name}: {target.name} did not start: {problem}")
            return
        row.ready_seconds, row.first_answer_seconds = running.ready_seconds, running.first_answer_seconds
        self._running.append((target, running, row))
        self._wait_for_rest(running)
        self._note_memory(running, row)
        if running.first_answer_seconds is not None:
            say(f"{self.name}: {target.name} started, first answer after {running.first_answer_seconds:.2f} s")

    def _wait_for_rest(self, running: Running) -> None:
        """What a gateway still does in the background after its first answer is no part of what a request costs."""
        for _ in range(_REST_CHECKS):
            before = self._cpu(running)
            time.sleep(_REST_SECONDS)
            if self._cpu(running) - before < _REST_SECONDS / 10:
                return

    def _note_memory(self, running: Running, row: Row) -> None:
        if running.child:
            row.resident_mb.append(use_of(running.child.pid).largest / 1e6)

    def _round(self, number: int, target: Target, running: Running, row: Row) -> None:
        say(f"{self.name}: round {number + 1} of {self._options.rounds}, {target.name}")
        measure = self._requests if self.name == "requests" else self._streams
        try:
            with self.upstream.counting(row.served):
                if not running.answers():
                    raise Unusable("it no longer answers with 200")
            row.rounds.append(measure(number, target, running, row))
        except (Unusable, OSError, RuntimeError) as problem:
            row.failure = f"round {number + 1}: {problem}"
            say(f"{self.name}: {target.name} failed: {problem}")
        self._note_memory(running, row)

    def _requests(self, number: int, target: Target, running: Running, row: Row) -> Round:
        request = running.request(stream=False)
        options = self._options

        def load(seconds: float, own: bool = options.own_tools) -> LoadResult:
            return run_load(request, connections=options.connections, seconds=seconds, folder=self._folder, own=own)

        if number == 0:
            with self.upstream.counting(row.served):
                load(_WARM_SECONDS)
        this = Counts()
        cpu = self._cpu(running)
        with self.upstream.counting(this):
            began = time.perf_counter()
            result = load(options.seconds)
            core_share = (self._cpu(running) - cpu) / (time.perf_counter() - began)
        spent = self._cpu(running) - cpu
        row.served.answers += this.answers
        row.served.broken += this.broken
        problem = result.problem
        if result.errors and not problem:
            # wrk counts errors without a word about them.
            with self.upstream.counting(row.served):
                problem = load(_WARM_SECONDS, own=True).problem
        return Round(
            per_second=result.answers / result.seconds,
            p50_ms=result.p50_ms,
            p99_ms=result.p99_ms,
            # The upstream's count, because the client's leaves out what was in flight when its time was up.
            cpu_us=spent / this.answers * 1e6 if this.answers else 0.0,
            core_share=core_share,
            errors=result.errors,
            problem=problem,
        )

    def _streams(self, number: int, target: Target, running: Running, row: Row) -> Round:
        options = self._options
        streams = min(options.streams, target.most_streams or options.streams)
        with self.upstream.counting(row.served):
            result: StreamsResult = run_streams(
                running.request(stream=True),
                streams=streams,
                events=options.events,
                seconds=options.seconds,
                watch=running.child.pid if running.child else None,
                folder=self._folder,
            )
        if not result.events:
            raise Unusable(f"no stream came through: {result.problem}")
        return Round(
            per_second=result.events / result.seconds,
            p50_ms=result.ttft_p50_ms,
            p99_ms=result.ttft_p99_ms,
            cpu_us=result.cpu_us_event,
            core_share=result.core_share,
            errors=result.errors,
            problem=result.problem,
            streams=streams,
            client_share=result.client_share,
        )

    def _cpu(self, running: Running) -> float:
        return use_of(running.child.pid).cpu_seconds if running.child else 0.0

    def _check(self, target: Target, running: Running, row: Row) -> None:
        if not target.ours:
            return
        wrong = target.wrong_charge(running, row.served, self._options.events)
        row.charge = wrong or "exact"
        say(f"{self.name}: {target.name}: charges {row.charge}")
