"""What an operator sees: one log line a request, and Prometheus metrics. No secret, prompt or completion is in either.

On the hot path there are plain integers, a `bisect` and one formatted line appended to a list, which a timer writes out;
the Prometheus library renders them when it is asked.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

import orjson

from ppq_proxy.exchange import Exchange
from ppq_proxy.histogram import Histogram

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

FLUSH_SECONDS = 0.05
LINE = '{"time":"%s","request_id":"%s","method":"%s","route":"%s","status":%d,"ms":%.1f,"first_byte_ms":%.1f'
"""The fields that every line has; none of their values needs escaping."""
LOGGED = (
    "account",
    "key",
    "model",
    "upstream",
    "stream",
    "in",
    "out",
    "cost_nano_usd",
    "usage_source",
    "error",
    "cut",
    "replayed",
)
Gauges = Callable[[], Iterable["Metric"]]


class Telemetry:
    """Counters of one process and its log."""

    def __init__(self, log: TextIO, *, quiet: bool = False) -> None:
        self._log, self._quiet = log, quiet
        self._lines: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self.requests: dict[tuple[str, int], int] = {}
        self.duration = Histogram()
        self.first_token = Histogram()
        self.tokens_in = self.tokens_out = self.charged = 0
        self.usage_sources: dict[str, int] = {}
        self.gauges: list[Gauges] = []
        self._second, self._stamp = 0, ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
        self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            if self._lines:
                self.flush()

    def flush(self) -> None:
        """Write out the lines that have gathered."""
        lines, self._lines = self._lines, []
        if lines:
            self._log.write(b"\n".join(lines).decode() + "\n")
            self._log.flush()

    def request(self, exchange: Exchange, route: str) -> None:
        """Count and log an exchange that has ended."""
        now = time.perf_counter()
        took = now - exchange.began
        note, status = exchange.note, exchange.status
        counted = (route, status)
        self.requests[counted] = self.requests.get(counted, 0) + 1
        self.duration.observe(took)
        if units := note.get("units"):
            self.tokens_in += note["in"]
            self.tokens_out += note["out"]
            self.charged += note["cost_nano_usd"]
            source = note["usage_source"]
            self.usage_sources[source] = self.usage_sources.get(source, 0) + 1
            del units
        ttfb = exchange.first_byte - exchange.began if exchange.first_byte else took
        if note.get("stream"):
            self.first_token.observe(ttfb)
        if not self._quiet:
            self._lines.append(self._line(exchange, route, status, took, ttfb, note))

    def _line(
        self, exchange: Exchange, route: str, status: int, took: float, ttfb: float, note: dict[str, Any]
    ) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
        head = LINE % (self._stamp, exchange.request_id, exchange.method, route, status, took * 1000, ttfb * 1000)
        rest = orjson.dumps({name: note[name] for name in LOGGED if name in note})
        return head.encode() + b"}" if rest == b"{}" else head.encode() + b"," + rest[1:]

    def say(self, event: str, **fields: Any) -> None:
        """A log line that is no request."""
        self._lines.append(
            orjson.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **fields})
        )

    def render(self) -> bytes:
        """All metrics in the Prometheus text format."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(self._metrics))
        return generate_latest(registry)

    def _metrics(self) -> Iterable["Metric"]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily("ppq_requests", "Requests by route and status.", labels=["route", "status"])
        for (route, status), count in self.requests.items():
            requests.add_metric([route, str(status)], count)
        yield requests
        tokens = CounterMetricFamily("ppq_tokens", "Tokens charged for.", labels=["direction"])
        tokens.add_metric(["in"], self.tokens_in)
        tokens.add_metric(["out"], self.tokens_out)
        yield tokens
        sources = CounterMetricFamily("ppq_charges", "Charges by where their usage came from.", labels=["usage_source"])
        for source, count in self.usage_sources.items():
            sources.add_metric([source], count)
        yield sources
        yield CounterMetricFamily("ppq_charged_nano_usd", "Charged, in 1e-9 USD.", value=self.charged)
        for name, what, histogram in (
            ("ppq_request_seconds", "From the request's head to the end of its answer.", self.duration),
            ("ppq_first_token_seconds", "From a streamed request's head to its first content.", self.first_token),
        ):
            yield HistogramMetricFamily(name, what, buckets=histogram.cumulative(), sum_value=histogram.sum)
        yield GaugeMetricFamily("ppq_worker_pid", "The process that answered this scrape.", value=os.getpid())
        for gauges in self.gauges:
            yield from gauges()


class _Collector:
    def __init__(self, collect: Callable[[], Iterable["Metric"]]) -> None:
        self.collect = collect
