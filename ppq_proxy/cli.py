"""The command line. Whatever a command needs beyond this file is imported when it runs: a command starts within 0.3 s."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import NoReturn

    from ppq_proxy.money.accounts import Accounts
    from ppq_proxy.payments.wallets.base import Wallet
    from ppq_proxy.settings import Settings
    from ppq_proxy.store.base import Store

cli = typer.Typer(
    help="A gateway to AI APIs that charges every call exactly.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
accounts = typer.Typer(help="Accounts and their credit.", no_args_is_help=True)
keys = typer.Typer(help="API keys of an account.", no_args_is_help=True)
wallet = typer.Typer(help="The Lightning wallet that the settings name.", no_args_is_help=True)
cli.add_typer(accounts, name="accounts")
cli.add_typer(keys, name="keys")
cli.add_typer(wallet, name="wallet")

Database = Annotated[
    str | None, typer.Option(help="sqlite:///PATH or mongodb://HOST/DB (PPQ_DATABASE).", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, in a terminal too.")]
CreditId = Annotated[str, typer.Argument(help="The account's credit id.")]


def main() -> None:
    """The console script."""
    try:
        cli()
    except SystemExit as end:
        if "pyreqwest" in sys.modules:
            _leave(end.code if isinstance(end.code, int) else 1)
        raise


def _leave(code: int) -> "NoReturn":
    """End without the interpreter's teardown: a thread of the upstream client that still lives then aborts the process."""
    with contextlib.suppress(OSError):  # whoever read our output has left
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _service(settings: "Settings", store: "Store") -> "Accounts":
    from ppq_proxy.money.accounts import Accounts
    from ppq_proxy.money.ledger import Ledger

    return Accounts(store, Ledger(store, "command"), settings.secret.encode())


async def _unlocked(settings: "Settings", store: "Store") -> "Accounts":
    import secrets

    service = _service(settings, store)
    service.unlock(settings.secret.encode() or await store.secret(secrets.token_bytes(32)))
    return service


def _nano(usd: str) -> int:
    from ppq_proxy.console import WRONG_USE, fail
    from ppq_proxy.money.amounts import AmountError, nano_from_usd

    try:
        return nano_from_usd(usd)
    except AmountError as problem:
        fail(str(problem), WRONG_USE)


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port (8000).", show_default=False)] = None,
    database: Database = None,
    upstream: Annotated[str | None, typer.Option(help="Base URL of an OpenAI-compatible API, ending in /v1.")] = None,
    upstream_key: Annotated[str | None, typer.Option(help="The operator's key there.")] = None,
    models: Annotated[str | None, typer.Option(help="Models file with prices (models.json).")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes (1).", show_default=False)] = None,
) -> None:
    """Serve the gateway until SIGTERM."""
    from ppq_proxy.console import load
    from ppq_proxy.serving import serve as run

    options = {"host": host, "port": port, "database": database, "upstream": upstream}
    options |= {"upstream_key": upstream_key, "models": models, "workers": workers}
    raise SystemExit(run(load(**options)))


@cli.command()
def run(
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port (8000).", show_default=False)] = None,
    database: Database = None,
) -> None:
    """Serve a small local model, with an account that has credit: the whole gateway on one machine, without any key."""
    from ppq_proxy.console import load
    from ppq_proxy.serving import run_local

    raise SystemExit(run_local(load(host=host, port=port, database=database)))


@accounts.command("create")
def accounts_create(
    credit: Annotated[str, typer.Option(help="Dollars to start with.")] = "0",
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Make an account with one key."""
    from ppq_proxy.console import load, show, with_store
    from ppq_proxy.money.amounts import usd_from_nano

    settings, amount = load(database=database), _nano(credit)
    if amount < 0:
        raise typer.BadParameter("a credit cannot be negative")

    async def work(store: "Store") -> dict[str, str]:
        service = await _unlocked(settings, store)
        credit_id, key, account_id = await service.create()
        if amount:
            await service.credit(account_id, amount, f"opening:{account_id}")
        return {"credit_id": credit_id, "api_key": key, "balance_usd": usd_from_nano(amount)}

    show(with_store(settings, work), as_json)


@accounts.command("credit")
def accounts_credit(
    credit_id: CreditId,
    usd: Annotated[str, typer.Argument(help="Dollars to add.")],
    id: Annotated[str | None, typer.Option(help="A name for this credit: the same name credits once.")] = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Add money to an account."""
    import uuid

    from ppq_proxy.console import load, show, with_store
    from ppq_proxy.money.amounts import usd_from_nano

    settings, amount = load(database=database), _nano(usd)
    if amount <= 0:
        raise typer.BadParameter("a credit must be above zero")

    async def work(store: "Store") -> dict[str, str]:
        service = _service(settings, store)
        account_id = await service.holder(credit_id)
        await service.credit(account_id, amount, f"operator:{id or uuid.uuid4()}")
        return {"credit_id": credit_id, "balance_usd": usd_from_nano((await service.account(account_id)).balance)}

    show(with_store(settings, work), as_json)


@accounts.command("show")
def accounts_show(credit_id: CreditId, database: Database = None, as_json: Json = False) -> None:
    """Balance, holds, credits and charges of an account."""
    from ppq_proxy.console import load, show, with_store
    from ppq_proxy.money.amounts import usd_from_nano

    settings = load(database=database)

    async def work(store: "Store") -> dict[str, str]:
        service = _service(settings, store)
        account = await service.account(await service.holder(credit_id))
        amounts = {
            "balance_usd": account.balance,
            "held_usd": account.reserved,
            "available_usd": account.available,
            "credited_usd": account.credited,
            "charged_usd": account.charged,
            "lost_usd": account.lost,
        }
        return {"credit_id": credit_id, **{name: usd_from_nano(amount) for name, amount in amounts.items()}}

    show(with_store(settings, work), as_json)


@keys.command("create")
def keys_create(
    credit_id: CreditId,
    name: Annotated[str, typer.Argument(help="1 to 25 characters, unique in the account.")],
    limit: Annotated[str | None, typer.Option(help="Spending limit in dollars.")] = None,
    period: Annotated[str | None, typer.Option(help="daily, weekly or monthly: when the limit starts anew.")] = None,
    expires: Annotated[str | None, typer.Option(help="ISO 8601 time.")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens a minute.")] = None,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Make a key; its value is shown now."""
    from ppq_proxy.console import WRONG_USE, fail, load, show, with_store
    from ppq_proxy.errors import BadRequest
    from ppq_proxy.money.keys import parse_key, shown
    from ppq_proxy.money.ledger import now_ms

    settings = load(database=database)
    fields: dict[str, Any] = {"name": name, "usage_limit_usd": limit, "reset_period": period, "expire_at": expires}
    fields |= {"requests_per_minute": requests, "tokens_per_minute": tokens}
    try:
        wanted = parse_key(fields, new=True)
    except BadRequest as problem:
        fail(problem.message, WRONG_USE)

    async def work(store: "Store") -> dict[str, Any]:
        service = await _unlocked(settings, store)
        key, value = await service.create_key(await service.holder(credit_id), wanted)
        return {**shown(key, now_ms()), "api_key": value}

    show(with_store(settings, work), as_json)


@keys.command("list")
def keys_list(
    credit_id: CreditId,
    revoked: Annotated[bool, typer.Option(help="Revoked ones too.")] = False,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """The keys of an account, without their values."""
    from ppq_proxy.console import load, show, with_store
    from ppq_proxy.money.keys import shown
    from ppq_proxy.money.ledger import now_ms

    settings = load(database=database)

    async def work(store: "Store") -> list[dict[str, Any]]:
        found = await store.keys(await _service(settings, store).holder(credit_id))
        return [shown(key, now_ms()) for key in found if revoked or key.deleted_at is None]

    columns = ("_id", "name", "usage_limit_usd", "current_period_usage_usd", "reset_period", "expire_at", "deleted_at")
    show(with_store(settings, work), as_json, columns)


@keys.command("revoke")
def keys_revoke(
    credit_id: CreditId,
    key_id: Annotated[str, typer.Argument(help="The _id of the key.")],
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Revoke a key: done once no worker takes it any more."""
    from ppq_proxy.console import load, show, with_store

    settings = load(database=database)

    async def work(store: "Store") -> dict[str, str]:
        service = _service(settings, store)
        await service.revoke_key(await service.holder(credit_id), key_id)
        return {"status": "success", "_id": key_id}

    show(with_store(settings, work), as_json)


def _with_wallet(database: str | None, work: "Callable[[Wallet], Awaitable[Any]]") -> Any:
    """Run `work` on the configured wallet; the dev wallet where none is."""
    import dataclasses

    from ppq_proxy.console import WRONG_USE, fail, load, with_store
    from ppq_proxy.errors import SettingsError
    from ppq_proxy.payments.wallets import open_wallet

    settings = load(database=database)

    async def run(store: "Store") -> Any:
        try:
            opened = open_wallet(
                settings if settings.wallet else dataclasses.replace(settings, wallet="dev"), store.rows
            )
        except SettingsError as problem:
            fail(str(problem), WRONG_USE)
        assert opened is not None
        try:
            return await work(opened)
        finally:
            await opened.close()

    return with_store(settings, run)


@wallet.command("info")
def wallet_info(database: Database = None, as_json: Json = False) -> None:
    """What the wallet says about itself."""
    from ppq_proxy.console import show

    show(_with_wallet(database, lambda opened: opened.info()), as_json)


@wallet.command("invoice")
def wallet_invoice(
    sats: Annotated[int, typer.Argument(help="Whole sats.", min=1)], database: Database = None, as_json: Json = False
) -> None:
    """Make an invoice, as a check; nothing is credited when it is paid."""
    from ppq_proxy.console import show

    async def work(opened: "Wallet") -> dict[str, str]:
        made = await opened.create(1000 * sats, "ppq-proxy wallet invoice", 3600, "command")
        return {"invoice": made.bolt11, "payment_hash": made.payment_hash}

    show(_with_wallet(database, work), as_json)


@wallet.command("pay")
def wallet_pay(
    invoice: Annotated[str, typer.Argument(help="An invoice of the dev wallet.")],
    settle_after: Annotated[
        int, typer.Option(help="Seconds until it settles; the preimage is shown at once.", min=0)
    ] = 0,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Pay an invoice of the dev wallet. A real wallet is never asked to pay."""
    from ppq_proxy.console import FAILED, fail, show
    from ppq_proxy.payments.wallets.dev import DevWallet

    async def work(opened: "Wallet") -> dict[str, Any]:
        if not isinstance(opened, DevWallet):
            fail(f"the wallet is {opened.name}; only the dev wallet pays", FAILED)
        paid = await opened.pay(invoice, settle_after_seconds=settle_after)
        return {"preimage": paid.preimage, "payment_hash": paid.payment_hash, "amount_msat": paid.amount_msat}

    show(_with_wallet(database, work), as_json)


@cli.command()
def history(
    credit_id: CreditId,
    limit: Annotated[int, typer.Option(help="Rows.", min=1)] = 20,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """The newest charges of an account."""
    from ppq_proxy.console import load, show, with_store
    from ppq_proxy.money.amounts import usd_from_nano
    from ppq_proxy.money.keys import iso
    from ppq_proxy.store.base import HistoryFilter

    settings = load(database=database)

    async def work(store: "Store") -> list[dict[str, Any]]:
        account_id = await _service(settings, store).holder(credit_id)
        entries, _ = await store.history(HistoryFilter(account_id), 0, limit)
        return [
            {
                "timestamp": iso(e.at), "request_id": e.request_id, "model": e.model, "input_count": e.inputs,
                "output_count": e.outputs, "cost_usd": usd_from_nano(e.amount),
            }
            for e in entries
        ]  # fmt: skip

    show(with_store(settings, work), as_json)


@cli.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="The x-request-id of the answer.")],
    database: Database = None,
    as_json: Json = False,
) -> None:
    """How a charge came about: units × prices × catalogue version, usage source, attempts."""
    from ppq_proxy.console import NOT_FOUND, fail, load, show, with_store
    from ppq_proxy.dialects.ppq import receipt

    settings = load(database=database)

    async def work(store: "Store") -> list[dict[str, Any]]:
        return [receipt(entry) for entry in await store.receipts(request_id)]

    found = with_store(settings, work)
    if not found:
        fail(f"no charge was made under the request id {request_id}", NOT_FOUND)
    show(found[0] if len(found) == 1 else found, as_json)


@cli.command()
def models(
    file: Annotated[str | None, typer.Option("--models", help="Models file.")] = None,
    kind: Annotated[str, typer.Option("--type", help="chat, image, …, a comma list, or all.")] = "chat",
    as_json: Json = False,
) -> None:
    """What the models file sells, and at which prices."""
    from ppq_proxy.console import FAILED, fail, load, show

    settings = load(models=file)
    from ppq_proxy.catalog.catalog import Catalog, CatalogError, UnknownType, default_path

    try:
        catalog = Catalog.load(settings.models or default_path(), settings.margin)
        rows = [catalog.public(offering) for offering in catalog.listed(kind)]
    except (CatalogError, OSError, UnknownType) as problem:
        fail(str(problem), FAILED)
    show(rows, as_json, ("id", "name", "provider", "context_length", "pricing"))


@cli.command()
def doctor(
    database: Database = None,
    upstream: Annotated[str | None, typer.Option(help="Base URL to check.")] = None,
    models_file: Annotated[str | None, typer.Option("--models", help="Models file to check.")] = None,
    as_json: Json = False,
) -> None:
    """Check store, invariants, upstreams, catalogue, clock and settings; exit 1 if something is wrong."""
    import asyncio

    from ppq_proxy.console import FAILED, load, show
    from ppq_proxy.doctor import examine

    findings = asyncio.run(examine(load(database=database, upstream=upstream, models=models_file)))
    show(findings, as_json, ("check", "ok", "says"))
    if not all(finding["ok"] for finding in findings):
        print("ppq-proxy: something is wrong", file=sys.stderr)
        raise SystemExit(FAILED)
