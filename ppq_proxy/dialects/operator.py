"""For the operator: live, ready, metrics, and the OpenAPI document."""

import asyncio
import time
from collections.abc import Callable

from ppq_proxy.dialects import schemas
from ppq_proxy.dialects.openai import envelope
from ppq_proxy.dialects.openapi import JSON, described, document, operation_of
from ppq_proxy.errors import StoreUnavailable
from ppq_proxy.exchange import JSON_TYPE, Exchange, dump
from ppq_proxy.front import Path
from ppq_proxy.providers.router import Router
from ppq_proxy.store.base import Store
from ppq_proxy.telemetry import Telemetry

PROBE_SECONDS = 2.0
GUIDE = """# ppq_proxy

> An OpenAI-compatible gateway that charges each call exactly: from a prepaid account by its API key, or without an account by
> answering a 402 with Lightning (L402, MPP) or x402.

- With a key: POST /accounts/create, top up with POST /topup/create/btc-lightning, then send Authorization: Bearer <key>.
- Without one: call, pay the invoice of the 402, repeat the call with Authorization: L402 <macaroon>:<preimage>. What the call
  does not use stays as credit on the same credential.
- Models and prices: GET /v1/models. What a call cost: the header x-cost-usd, GET /v1/requests/{x-request-id}.
- The whole API: /openapi.json

## Paths

"""


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
            Path("/llms.txt", {"GET": self.guide}, envelope),
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

    @described("A guide for agents and coding assistants", tag="operating", ok={"text/plain": schemas.STRING})
    async def guide(self, exchange: Exchange) -> None:
        """GET /llms.txt: what this gateway is and how to pay, and every path with what it does (llmstxt.org)."""
        lines = [
            f"- {method} {path.path.replace(':path', '')}: {operation_of(handler).summary}"
            for path in self._paths()
            for method, handler in path.handlers.items()
        ]
        text = GUIDE + "\n".join(lines) + "\n"
        await exchange.answer(200, text.encode(), [(b"content-type", b"text/plain; charset=utf-8")])

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
