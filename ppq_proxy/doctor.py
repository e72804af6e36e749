"""`ppq-proxy doctor`: what an operator wants to know before and after trouble."""

import time
from typing import Any

from ppq_proxy.catalog.catalog import Catalog, CatalogError, default_path
from ppq_proxy.errors import SettingsError, StoreUnavailable
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.money.owner import host_name, is_dead
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.settings import Settings
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Rows, Store

Finding = dict[str, Any]
INVOICE_SATS, INVOICE_SECONDS = 100, 600


def finding(check: str, ok: bool, says: str) -> Finding:
    """One line of the report."""
    return {"check": check, "ok": ok, "says": says}


async def examine(settings: Settings) -> list[Finding]:
    """Every check, in order; the report."""
    found = [_settings(settings), _clock(), _catalog(settings)]
    store = open_store(settings.database)
    try:
        await store.open()
        try:
            found += await _books(store)
            found += await _wallet(settings, store.rows)
        finally:
            await store.close()
    except StoreUnavailable as problem:
        found.append(finding("store", False, problem.message))
    return found + await _btcpay(settings) + await _upstreams(settings)


def _settings(settings: Settings) -> Finding:
    says = (
        "PPQ_SECRET is set"
        if settings.secret
        else "PPQ_SECRET is not set: the secret that seals keys lies in the database beside them"
    )
    return finding("settings", True, says)


def _clock() -> Finding:
    sane = 1_767_225_600 < time.time() < 4_102_444_800
    return finding("clock", sane, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _catalog(settings: Settings) -> Finding:
    try:
        catalog = Catalog.load(settings.models or default_path(), settings.margin)
    except (CatalogError, OSError) as problem:
        return finding("catalogue", False, str(problem))
    return finding("catalogue", True, f"{len(catalog.offerings)} offerings, version {catalog.version}")


async def _books(store: Store) -> list[Finding]:
    await store.ping()
    found = [finding("store", True, "reachable and writable")]
    wrong = await store.audit()
    found += [finding("invariants", False, says) for says in wrong] or [finding("invariants", True, "all hold")]
    host, at = host_name(), now_ms()
    owners = await store.owners()
    dead = [owner for owner in owners if is_dead(owner, host, at)]
    living = len(owners) - len(dead)
    found.append(
        finding("processes", True, f"{living} serving, {len(dead)} died and will be swept by the next one that serves")
    )
    return found


async def _wallet(settings: Settings, rows: Rows) -> list[Finding]:
    """Makes an invoice that nobody will pay, and asks how it stands."""
    from ppq_proxy.payments.wallets import open_wallet
    from ppq_proxy.payments.wallets.base import State, WalletError

    try:
        wallet = open_wallet(settings, rows)
    except SettingsError as problem:
        return [finding("wallet", False, str(problem))]
    if wallet is None:
        return []
    try:
        made = await wallet.create(1000 * INVOICE_SATS, "ppq-proxy doctor", INVOICE_SECONDS, "doctor")
        status = await wallet.status(made.handle)
    except (WalletError, InvoiceMismatch) as problem:
        return [finding("wallet", False, f"{wallet.name}: {problem}")]
    finally:
        await wallet.close()
    known = {State.PENDING: "knows it", State.UNTOLD: "cannot tell of payments, so it takes no top-ups"}
    says = f"{wallet.name} on {wallet.network} makes invoices, and {known.get(status.state, f'calls a new one {status.state}')}"
    return [finding("wallet", status.state in known, says)]


async def _btcpay(settings: Settings) -> list[Finding]:
    """Whether the store of BTCPay takes the methods that are offered for top-ups."""
    from ppq_proxy.payments.btcpay import BtcpayClient
    from ppq_proxy.payments.topup_methods import METHODS, parse_methods
    from ppq_proxy.payments.wallets.base import WalletError

    if not (settings.btcpay_url and settings.btcpay_key and settings.btcpay_store):
        return []
    client = BtcpayClient(settings.btcpay_url, settings.btcpay_key, settings.btcpay_store)
    try:
        wanted = {METHODS[name].btcpay for name in parse_methods(settings.btcpay_methods)}
        missing = sorted(wanted - set(await client.payment_method_ids()))
    except (SettingsError, WalletError) as problem:
        return [finding("btcpay", False, str(problem))]
    finally:
        await client.close()
    if missing:
        return [finding("btcpay", False, f"the store has not switched on {', '.join(missing)}; see PPQ_BTCPAY_METHODS")]
    secret = (
        "" if settings.btcpay_webhook_secret else "; without PPQ_BTCPAY_WEBHOOK_SECRET payments are found by asking"
    )
    return [finding("btcpay", True, f"the store takes {', '.join(sorted(wanted))}{secret}")]


async def _upstreams(settings: Settings) -> list[Finding]:
    from ppq_proxy.app import upstreams

    found = []
    for name, upstream in upstreams(settings).items():
        ok = await upstream.reachable(5)
        found.append(finding(f"upstream {name}", ok, "answers" if ok else "does not answer"))
        await upstream.close()
    return found
