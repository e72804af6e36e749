"""Paths of money coming in: top-ups, automatic ones, and BTCPay's webhook (requirements PPQ-150…171)."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from ppq_proxy.dialects import schemas
from ppq_proxy.dialects.openai import envelope
from ppq_proxy.dialects.openapi import HOLDER, IDEMPOTENCY_KEY, JSON, KEY, described, in_path
from ppq_proxy.errors import BadRequest, Unauthorized
from ppq_proxy.exchange import Exchange
from ppq_proxy.front import Path
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.payers import Payers
from ppq_proxy.payments.auto_topup import AutoTopUps
from ppq_proxy.payments.topup_methods import parse_amount
from ppq_proxy.payments.topups import TopUps

SMALL_BODY = 16 * 1024
DELIVERY = 256 * 1024
ACCOUNT = (*KEY, *HOLDER)


class TopUp:
    """Handlers of the top-up paths."""

    def __init__(self, accounts: Accounts, topups: TopUps, auto: AutoTopUps) -> None:
        self.accounts, self.topups, self.auto = accounts, topups, auto
        # Payments by the call are not even read here: one that is shown by mistake stays unspent.
        self.payers = Payers(accounts)

    def paths(self) -> list[Path]:
        """The paths, for the table."""
        return [
            Path("/topup/create/{method}", {"POST": self.create}, envelope),
            Path("/topup/status/{id}", {"GET": self.status}, envelope),
            Path("/topup/payment-methods", {"GET": self.methods}, envelope),
            Path("/nwc-auto-topup/connect", {"POST": self.connect}, envelope),
            Path("/nwc-auto-topup", {"GET": self.settings}, envelope),
            Path("/nwc-auto-topup/connection", {"DELETE": self.disconnect}, envelope),
            Path("/webhooks/btcpay", {"POST": self.btcpay}, envelope),
        ]

    @described(
        "Ask for an invoice or an address that tops up the account",
        tag="top-ups",
        auth=ACCOUNT,
        parameters=(
            in_path("method", schemas.METHOD, "GET /topup/payment-methods lists those taken."),
            IDEMPOTENCY_KEY,
        ),
        body=schemas.TOPUP_REQUEST,
        ok={JSON: schemas.TOPUP},
        status=201,
        errors=(400, 401, 404, 409, 413, 422, 429, 503),
    )
    async def create(self, exchange: Exchange) -> None:
        """POST /topup/create/{method}: an invoice or an address, and what to pay there."""
        account_id = await self._account(exchange)
        body = await exact_json(exchange)
        method = self.topups.method(exchange.scope["path_params"]["method"])
        key = exchange.headers.get(b"idempotency-key")
        made = await self.topups.create(account_id, method, parse_amount(body), key=key, peer=exchange.peer)
        await exchange.answer_json(made.created(), 201, [(b"cache-control", b"no-store")])

    @described(
        "How far a top-up is",
        tag="top-ups",
        auth=ACCOUNT,
        parameters=(in_path("id", schemas.STRING, "Its invoice_id."),),
        ok={JSON: schemas.TOPUP_STATUS},
        errors=(401, 404, 503),
    )
    async def status(self, exchange: Exchange) -> None:
        """GET /topup/status/{id}, for the account that asked for it."""
        account_id = await self._account(exchange)
        topup = await self.topups.status(account_id, exchange.scope["path_params"]["id"])
        await exchange.answer_json(topup.status(), headers=[(b"cache-control", b"no-store")])

    @described("The ways to top up that are taken, and their limits", tag="top-ups", ok={JSON: schemas.METHOD_ROWS})
    async def methods(self, exchange: Exchange) -> None:
        """GET /topup/payment-methods: the ways to pay that this gateway takes, with their limits."""
        await exchange.answer_json({"data": [method.shown() for method in self.topups.methods()]})

    @described(
        "Connect a wallet that tops up when the balance runs low",
        tag="top-ups",
        auth=HOLDER,
        body=schemas.AUTO_TOPUP_REQUEST,
        ok={JSON: schemas.AUTO_TOPUP},
        errors=(400, 401, 409, 413, 503),
    )
    async def connect(self, exchange: Exchange) -> None:
        """POST /nwc-auto-topup/connect: a wallet that pays when the balance runs low."""
        account_id = await self._holder(exchange)
        await exchange.answer_json(await self.auto.connect(account_id, await exact_json(exchange)))

    @described(
        "The connected wallet, and how it goes",
        tag="top-ups",
        auth=HOLDER,
        ok={JSON: schemas.AUTO_TOPUP},
        errors=(401, 503),
    )
    async def settings(self, exchange: Exchange) -> None:
        """GET /nwc-auto-topup: the settings, and how it goes."""
        await exchange.answer_json(await self.auto.settings(await self._holder(exchange)))

    @described(
        "Forget the connected wallet",
        tag="top-ups",
        auth=HOLDER,
        ok={JSON: schemas.DISCONNECTED},
        errors=(401, 404, 409, 503),
    )
    async def disconnect(self, exchange: Exchange) -> None:
        """DELETE /nwc-auto-topup/connection: the wallet is forgotten."""
        await self.auto.disconnect(await self._holder(exchange))
        await exchange.answer_json({"status": "success", "message": "Wallet disconnected; automatic top-ups are off"})

    @described(
        "Where BTCPay Server delivers, signed by BTCPay-Sig",
        tag="top-ups",
        body={"type": "object"},
        ok={JSON: schemas.RECEIVED},
        errors=(400, 401, 404, 413, 503),
    )
    async def btcpay(self, exchange: Exchange) -> None:
        """POST /webhooks/btcpay: a delivery of BTCPay Server, signed over its very bytes."""
        body = await exchange.body(DELIVERY)
        await self.topups.delivered(body, exchange.header(b"btcpay-sig") or None)
        await exchange.answer_json({"received": True})

    async def _account(self, exchange: Exchange) -> str:
        """The account of a key or a credit id."""
        payer = await self.payers.payer(exchange)
        if payer is None:
            raise Unauthorized("No API key. Send the key of the account that is to be topped up.")
        return payer.account_id

    async def _holder(self, exchange: Exchange) -> str:
        credit_id = exchange.header(b"x-credit-id")
        if not credit_id:
            raise Unauthorized("This path needs the account's credit id in the header x-credit-id.")
        return await self.accounts.holder(credit_id)


async def exact_json(exchange: Exchange) -> Any:
    """The body as JSON whose numbers are `Decimal`, digit by digit as they were sent. Raises `BadRequest`."""
    raw = await exchange.body(SMALL_BODY)
    try:
        return json.loads(raw, parse_float=Decimal, parse_int=Decimal, parse_constant=_no_number)
    except (ValueError, InvalidOperation, RecursionError):
        raise BadRequest("The body is not valid JSON.") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
