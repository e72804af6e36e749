"""For the operator: live, ready, metrics, and the OpenAPI document."""

import asyncio
import time
from collections.abc import Callable

from ppq_proxy.dialects import schemas
from ppq_proxy.dialects.openai import envelope
from ppq_proxy.dialects.openapi import JSON, described, document
from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.exchange import JSON_TYPE, Exchange, dump
from ppq_proxy.front import Path
from ppq_proxy.providers.router import Router
from ppq_proxy.store.base import Store
from ppq_proxy.telemetry import Telemetry

PROBE_SECONDS = 2.0


class Operator:
    """Handlers of the operator's paths."""

    def __init__(self, store: Store, router: Router, telemetry: Telemetry, paths: Callable[[], list[Path]]) -> None:
        self.store, self.router, self.telemetry, self._paths = store, router, telemetry, paths
        self._probed, self._reachable = -PROBE_SECONDS, False
        self._document = b""

    def paths(self) -> list[Path]:
        """The paths, for the table."""
        return [
            Path("/health", {"GET": self.health}, envelope),
            Path("/readyz", {"GET": self.ready}, envelope),
            Path("/metrics", {"GET": self.metrics}, envelope),
            Path("/openapi.json", {"GET": self.openapi}, envelope),
        ]

    @described("The process lives", tag="operating", ok={JSON: schemas.HEALTH})
    async def health(self, exchange: Exchange) -> None:
        """GET /health: the process lives."""
        await exchange.answer_json({"status": "ok"})

    @described(
        "Whether there is a store and at least one upstream",
        tag="operating",
        ok={JSON: schemas.READINESS},
        more={503: schemas.READINESS},
    )
    async def ready(self, exchange: Exchange) -> None:
        """GET /readyz: 200 with a store and at least one upstream that answers, else 503 saying which is missing."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self.store.ping()
            store = True
        except (StoreUnavailable, TimeoutError):
            store = False
        upstream = await self._upstream()
        ready = store and upstream
        await exchange.answer_json(
            {"status": "ready" if ready else "not ready", "store": store, "upstream": upstream}, 200 if ready else 503
        )

    async def _upstream(self) -> bool:
        if time.monotonic() - self._probed > PROBE_SECONDS or not self._reachable:
            probes = [
                asyncio.ensure_future(upstream.reachable(PROBE_SECONDS)) for upstream in self.router.upstreams.values()
            ]
            self._reachable = any(await asyncio.gather(*probes))
            self._probed = time.monotonic()
        return self._reachable

    @described("Metrics for Prometheus", tag="operating", ok={"text/plain": schemas.STRING})
    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics, in Prometheus' text format."""
        await exchange.answer(
            200, self.telemetry.render(), [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        )

    @described("This document", tag="operating", ok={JSON: {"type": "object"}})
    async def openapi(self, exchange: Exchange) -> None:
        """GET /openapi.json."""
        if not self._document:
            self._document = dump(document(self._paths()))
        await exchange.answer(200, self._document, [JSON_TYPE])
