"""The one factory that builds the application from its settings, and starts and stops it."""

import asyncio
import gc
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, TextIO

from ppq_proxy import settings as settings_module
from ppq_proxy.catalog.offerings import DEFAULT_UPSTREAM
from ppq_proxy.checkout import Checkout
from ppq_proxy.delivery import Delivery
from ppq_proxy.dialects.openai import OpenAI, envelope
from ppq_proxy.dialects.operator import Operator
from ppq_proxy.dialects.payment import Payment
from ppq_proxy.dialects.ppq import PPQ
from ppq_proxy.dialects.topup import TopUp
from ppq_proxy.front import Front, Path
from ppq_proxy.idempotency import Answers
from ppq_proxy.metering.stream import Patience, Watch
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.money.ledger import Ledger
from ppq_proxy.money.owner import Heart, owner_name
from ppq_proxy.payers import Payers
from ppq_proxy.payments.auto_topup import AutoTopUps
from ppq_proxy.payments.guests import Guests, Rail
from ppq_proxy.payments.rates import Rates, parse_sources
from ppq_proxy.payments.reconcile import Reconciler
from ppq_proxy.payments.topups import TopUps
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.x402 import open_x402
from ppq_proxy.providers.http import Upstream
from ppq_proxy.providers.router import Router
from ppq_proxy.sale import Gate
from ppq_proxy.settings import Settings
from ppq_proxy.shelf import Shelf
from ppq_proxy.store import open_store
from ppq_proxy.telemetry import Telemetry

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("ppq.app")

SWEEP_ANSWERS_SECONDS = 300.0
GC_ALLOCATIONS = 20_000


class App:
    """Every part of one process, made in `start` where a part needs the running loop."""

    def __init__(self, settings: Settings, log: TextIO) -> None:
        self.settings = settings
        self.store = open_store(settings.database)
        self.ledger = Ledger(self.store, owner_name())
        self.telemetry = Telemetry(log)
        self.watch = Watch(
            Patience(
                settings.client_gone_read_on_seconds, settings.client_gone_read_on_bytes, settings.client_stall_seconds
            )
        )
        self.upstreams = upstreams(settings)
        self.router = Router(self.upstreams)
        self.shelf = Shelf(settings, self.upstreams)
        self.accounts = Accounts(self.store, self.ledger, b"", settings.per_minute("rate_limit"))
        self.heart = Heart(
            self.store, self.ledger, settings.owner_lease_seconds, settings.allotment_idle_seconds, self.accounts.forget
        )
        self.accounts.heart = self.heart
        self.rates = Rates(
            parse_sources(settings.rate_sources),
            fixed_usd=settings.btc_usd,
            max_age_seconds=int(settings.rate_max_age_seconds),
        )
        self.wallet = open_wallet(settings, self.store.rows)
        self.x402 = open_x402(settings, self.store.rows)
        rails: list[Rail] = [self.x402] if self.x402 else []
        paid_by_the_call = self.wallet or rails
        self.guests = Guests(settings, self.accounts, self.wallet, self.rates, rails) if paid_by_the_call else None
        self.topups = TopUps(settings, self.accounts, self.wallet, self.rates)
        self.reconciler = Reconciler(self.topups)
        self.auto_topups = AutoTopUps(self.accounts, self.topups)
        self.payers = Payers(self.accounts, self.guests)
        self.gate = Gate(self.ledger, self.shelf)
        self.delivery = Delivery(self.gate, self.router, self.watch)
        self.answers = Answers(self.store)
        self.checkout = Checkout(self.payers, self.gate, self.delivery, self.answers)
        self.telemetry.gauges.append(self._gauges)
        self._tasks: list[asyncio.Task[None]] = []

    def asgi(self) -> Front:
        """The application as the server calls it."""
        operator = Operator(self.store, self.router, self.telemetry, lambda: front.paths)
        head = self.guests.head if self.guests else None
        front = Front(
            [*self._paths(), *operator.paths()],
            self.telemetry,
            envelope,
            self.start,
            self.stop,
            head,
            self.settings.trusted_proxies,
        )
        return front

    def _paths(self) -> list[Path]:
        openai = OpenAI(self.checkout, self.shelf, self.settings.max_body_bytes)
        ppq = PPQ(self.accounts, self.payers, open_accounts=self.settings.accounts_open)
        return [
            *(Path(f"{prefix}/chat/completions", {"POST": openai.chat}, envelope, paid=True) for prefix in ("/v1", "")),
            *(Path(f"{prefix}/embeddings", {"POST": openai.embeddings}, envelope, paid=True) for prefix in ("/v1", "")),
            *(Path(f"{prefix}/models", {"GET": openai.models}, envelope) for prefix in ("/v1", "")),
            *(Path(f"{prefix}/models/{{id:path}}", {"GET": openai.model}, envelope) for prefix in ("/v1", "")),
            Path("/accounts/create", {"POST": ppq.create_account}, envelope),
            Path("/credits/balance", {"POST": ppq.balance}, envelope),
            Path("/keys", {"GET": ppq.keys, "POST": ppq.create_key}, envelope),
            Path("/keys/{id}", {"GET": ppq.key, "PATCH": ppq.change_key, "DELETE": ppq.revoke_key}, envelope),
            Path("/queries/history", {"GET": ppq.history}, envelope),
            Path("/v1/requests/{id}", {"GET": ppq.receipt}, envelope),
            *Payment(self.accounts, self.payers).paths(),
            *TopUp(self.accounts, self.topups, self.auto_topups).paths(),
        ]

    async def start(self) -> None:
        await self.store.open()
        secret = self.settings.secret.encode() or await self.store.secret(secrets.token_bytes(32))
        self.accounts.unlock(secret)
        self.topups.unlock(secret)
        if self.guests:
            self.guests.unlock(secret)
        if self.wallet or self.topups.methods():
            await self.rates.start()
        await self.heart.start()
        if self.x402 and self.guests:
            self.x402.start(self.guests)
        self.watch.start()
        self.telemetry.start()
        await self.shelf.start()
        spare_the_collector()
        self._tasks.append(asyncio.create_task(self._sweep()))
        self.reconciler.start()
        self.auto_topups.start()

    async def stop(self) -> None:
        await self.delivery.drained(4)
        await self.auto_topups.stop()
        await self.reconciler.stop()
        await self.topups.close()
        if self.x402:
            await self.x402.stop()
        for task in self._tasks:
            task.cancel()
        await self.shelf.stop()
        await self.watch.stop()
        await self.heart.stop()
        await self.router.close()
        await self.rates.close()
        if self.wallet:
            await self.wallet.close()
        await self.store.close()
        await self.telemetry.stop()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_ANSWERS_SECONDS)
            try:
                await self.answers.sweep()
                if self.guests:
                    await self.guests.sweep()
            except Exception:  # border: of one round; the next one comes
                log.exception("a sweep failed")

    def _gauges(self) -> Iterable["Metric"]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        ledger = self.ledger
        yield GaugeMetricFamily(
            "ppq_held_nano_usd", "Promised to open calls of this process, in 1e-9 USD.", value=ledger.held
        )
        drawn = sum(one.drawn for one in ledger.allotments.values())
        yield GaugeMetricFamily("ppq_drawn_nano_usd", "Drawn from accounts by this process, in 1e-9 USD.", value=drawn)
        yield CounterMetricFamily("ppq_lost_nano_usd", "Delivered and not paid for, in 1e-9 USD.", value=ledger.lost)
        yield GaugeMetricFamily("ppq_active_calls", "Calls that are not settled yet.", value=self.delivery.active)
        yield HistogramMetricFamily(
            "ppq_commit_batch_size",
            "Captures a commit.",
            buckets=ledger.batch_sizes.cumulative(),
            sum_value=ledger.batch_sizes.sum,
        )
        yield from upstream_metrics(self.upstreams)


def spare_the_collector() -> None:
    """What lives as long as the process is not looked at again: a full collection would else stop it for 30 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def upstream_metrics(upstreams: dict[str, Upstream]) -> Iterable["Metric"]:
    """Latency, failures and breaker state by upstream."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    latency = HistogramMetricFamily(
        "ppq_upstream_seconds", "Until an upstream's answer began or was whole.", labels=["upstream"]
    )
    failures = CounterMetricFamily("ppq_upstream_failures", "Failed attempts.", labels=["upstream", "code"])
    breaker = GaugeMetricFamily("ppq_upstream_breaker_open", "1 while calls are kept away.", labels=["upstream"])
    for name, upstream in upstreams.items():
        latency.add_metric([name], upstream.latency.cumulative(), upstream.latency.sum)
        breaker.add_metric([name], int(upstream.breaker.open))
        for code, count in upstream.failures.items():
            failures.add_metric([name, code], count)
    yield latency
    yield failures
    yield breaker


def upstreams(settings: Settings) -> dict[str, Upstream]:
    """The upstreams of the settings, by name."""
    table = dict(settings.upstream_table())
    if settings.upstream:
        table[DEFAULT_UPSTREAM] = {"url": settings.upstream, "key": settings.upstream_key}
    return {
        name: Upstream(
            name,
            row["url"],
            row.get("key", ""),
            connect_seconds=row.get("connect_seconds", settings.upstream_connect_seconds),
            first_byte_seconds=row.get("first_byte_seconds", settings.upstream_first_byte_seconds),
            idle_seconds=row.get("idle_seconds", settings.upstream_idle_seconds),
            concurrency=row.get("concurrency", settings.upstream_concurrency),
            retries=row.get("retries", settings.upstream_retries),
            usage=row.get("usage", "always"),
        )
        for name, row in table.items()
    }


def from_environment() -> Front:
    """The application from the environment, as a worker process makes it."""
    settings = settings_module.load()
    log = FilePath(settings.log_file).open("a") if settings.log_file else sys.stderr  # noqa: SIM115 (open for the process's life)
    return App(settings, log).asgi()


def started_at() -> float:
    """Seconds since this process began, for the line that says it serves."""
    try:
        ticks = int(FilePath("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(FilePath("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()
