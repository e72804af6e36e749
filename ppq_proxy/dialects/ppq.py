"""PPQ's own dialect: accounts, keys, balance, history (requirements PPQ-146…149, PPQ-172…208) and receipts."""

from typing import Any

import orjson

from ppq_proxy.dialects import schemas
from ppq_proxy.dialects.openapi import HOLDER, JSON, PAYER, described, in_path, query
from ppq_proxy.errors import BadRequest, NotFound, Unauthorized
from ppq_proxy.exchange import Exchange
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.money.amounts import usd_from_nano, usd_number
from ppq_proxy.money.keys import iso, parse_key, parse_time, shown
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payers import Payers
from ppq_proxy.store.base import Entry, HistoryFilter, Key

SMALL_BODY = 64 * 1024
MOST_ROWS = 100
KEY_ID = in_path("id", schemas.KEY_ID, "The _id of the key.")
SHOW_KEY = query("show_key", schemas.FLAG, "With the keys' values.")


class PPQ:
    """Handlers of the account paths."""

    def __init__(self, accounts: Accounts, payers: Payers, *, open_accounts: bool = True) -> None:
        self.accounts, self.payers, self.open_accounts = accounts, payers, open_accounts

    # accounts

    @described(
        "Make an account, without credit, and its first key",
        tag="accounts",
        ok={JSON: schemas.ACCOUNT},
        errors=(401, 413, 503),
    )
    async def create_account(self, exchange: Exchange) -> None:
        """POST /accounts/create: a new account and its key, without credit."""
        if not self.open_accounts:
            raise Unauthorized("Accounts are made by the operator here.")
        await exchange.body(SMALL_BODY)
        credit_id, key, _ = await self.accounts.create()
        await exchange.answer_json({"success": True, "credit_id": credit_id, "api_key": key, "balance": 0})

    @described(
        "The balance, by credit id in the body or by a credential",
        tag="accounts",
        auth=PAYER,
        optional_auth=True,
        body=schemas.BALANCE_REQUEST,
        body_required=False,
        ok={JSON: schemas.BALANCE},
        errors=(400, 401, 402, 413, 503),
    )
    async def balance(self, exchange: Exchange) -> None:
        """POST /credits/balance, by `credit_id` in the body, or by a key."""
        body = await exchange.json(SMALL_BODY)
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.")
        credit_id = body.get("credit_id")
        if credit_id is not None and not isinstance(credit_id, str):
            raise BadRequest("credit_id must be a string.", param="credit_id")
        if credit_id:
            account_id = await self.accounts.holder(credit_id)
        else:
            account_id = (await self._payer(exchange))[0]
        account = await self.accounts.account(account_id)
        await exchange.answer_json(
            {
                "balance": usd_number(account.balance),
                "held": usd_number(account.reserved),
                "available": usd_number(account.available),
            }
        )

    # keys

    @described(
        "The account's keys",
        tag="keys",
        auth=HOLDER,
        parameters=(query("include_disabled", schemas.FLAG, "Revoked ones too."), SHOW_KEY),
        ok={JSON: schemas.success({"type": "array", "items": schemas.API_KEY})},
        errors=(400, 401, 503),
    )
    async def keys(self, exchange: Exchange) -> None:
        """GET /keys."""
        account_id, query = await self._holder(exchange), exchange.query()
        with_revoked, with_value = _flag(query, "include_disabled"), _flag(query, "show_key")
        rows = [
            self._shown(key, with_value)
            for key in await self.accounts.store.keys(account_id)
            if with_revoked or key.deleted_at is None
        ]
        await exchange.answer_json({"status": "success", "data": rows})

    @described(
        "Make a key; its value is in this answer",
        tag="keys",
        auth=HOLDER,
        body=schemas.NEW_KEY,
        ok={JSON: schemas.success(schemas.MADE_KEY)},
        errors=(400, 401, 413, 503),
    )
    async def create_key(self, exchange: Exchange) -> None:
        """POST /keys: the only answer with the key's value, but for `show_key`."""
        account_id = await self._holder(exchange)
        wanted = parse_key(await exchange.json(SMALL_BODY), new=True)
        key, value = await self.accounts.create_key(account_id, wanted)
        fields = ("_id", "name", "usage_limit_usd", "reset_period", "reset_at", "expire_at", "created_at")
        row = shown(key, now_ms())
        data = {name: row[name] for name in fields} | {"api_key": value}
        data |= {name: row[name] for name in ("requests_per_minute", "tokens_per_minute") if row[name] is not None}
        await exchange.answer_json({"status": "success", "data": data})

    @described(
        "One key, with its limits and what it has used",
        tag="keys",
        auth=HOLDER,
        parameters=(KEY_ID, SHOW_KEY),
        ok={JSON: schemas.success(schemas.API_KEY)},
        errors=(400, 401, 404, 503),
    )
    async def key(self, exchange: Exchange) -> None:
        """GET /keys/{id}."""
        account_id = await self._holder(exchange)
        key = await self.accounts.key(account_id, exchange.scope["path_params"]["id"])
        await exchange.answer_json({"status": "success", "data": self._shown(key, _flag(exchange.query(), "show_key"))})

    @described(
        "Change a key; another reset_period starts its usage at 0",
        tag="keys",
        auth=HOLDER,
        parameters=(KEY_ID,),
        body=schemas.KEY_CHANGES,
        body_required=False,
        ok={JSON: schemas.success(schemas.API_KEY)},
        errors=(400, 401, 404, 413, 503),
    )
    async def change_key(self, exchange: Exchange) -> None:
        """PATCH /keys/{id}: only the given fields change, null clears."""
        account_id = await self._holder(exchange)
        changes = parse_key(await exchange.json(SMALL_BODY), new=False)
        key = await self.accounts.change_key(account_id, exchange.scope["path_params"]["id"], changes)
        await exchange.answer_json({"status": "success", "data": shown(key, now_ms())})

    @described(
        "Revoke a key, at once and for good",
        tag="keys",
        auth=HOLDER,
        parameters=(KEY_ID,),
        ok={JSON: schemas.REVOKED},
        errors=(401, 404, 503),
    )
    async def revoke_key(self, exchange: Exchange) -> None:
        """DELETE /keys/{id}: at once and for good."""
        account_id = await self._holder(exchange)
        await self.accounts.revoke_key(account_id, exchange.scope["path_params"]["id"])
        await exchange.answer_json({"status": "success", "message": "API key revoked successfully"})

    def _shown(self, key: Key, with_value: bool) -> dict[str, Any]:
        row = shown(key, now_ms())
        if with_value:
            row["api_key"] = self.accounts.seal.open(key.sealed, key.id)
        return row

    async def _holder(self, exchange: Exchange) -> str:
        """The account named by `x-credit-id`, which all key paths require."""
        credit_id = exchange.header(b"x-credit-id")
        if not credit_id:
            raise Unauthorized("This path needs the account's credit id in the header x-credit-id.")
        return await self.accounts.holder(credit_id)

    async def _payer(self, exchange: Exchange) -> tuple[str, str | None]:
        payer = await self.payers.payer(exchange)
        if payer is None:
            raise Unauthorized("No API key. Send Authorization: Bearer <api key>, or the header api-key.")
        return payer.account_id, payer.key_id

    # history and receipts

    @described(
        "Charges, newest first: a key's own, or the account's",
        tag="accounts",
        auth=(*PAYER, "credit_id_query"),
        parameters=(
            query("all_keys", schemas.FLAG, "The charges of all the account's keys; only with an API key."),
            query("api_key", schemas.STRING, "Only this key's, by its _id or its value; only with a credit id."),
            query("start_date", schemas.WHEN, "On or after this time."),
            query("end_date", schemas.WHEN, "On or before this time; of a bare date, its whole day."),
            query("model", schemas.STRING, "Only this model's."),
            query("query_source", schemas.STRING, "Only what came from there."),
            query("query_type", schemas.STRING, "Only this kind."),
            query("page", {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 1}, "Which page."),
            query("page_count", {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": 20}, "Rows a page."),
        ),
        ok={JSON: schemas.HISTORY},
        errors=(400, 401, 402, 404, 503),
    )
    async def history(self, exchange: Exchange) -> None:
        """GET /queries/history."""
        query = exchange.query()
        account_id, key_id = await self._history_scope(exchange, query)
        page, count = _number(query, "page", 1, 10**9), _number(query, "page_count", 20, MOST_ROWS)
        wanted = HistoryFilter(
            account_id,
            key_id,
            since=parse_time(query["start_date"], "start_date") if "start_date" in query else None,
            until=parse_time(query["end_date"], "end_date", end=True) if "end_date" in query else None,
            model=query.get("model"),
            query_source=query.get("query_source"),
            query_type=query.get("query_type"),
        )
        entries, total = await self.accounts.store.history(wanted, (page - 1) * count, count)
        pages = -(-total // count)
        await exchange.answer_json(
            {
                "status": "success",
                "data": [_record(entry) for entry in entries],
                "pagination": {"page": page, "page_count": count, "total": total, "total_pages": pages},
            }
        )

    async def _history_scope(self, exchange: Exchange, query: dict[str, str]) -> tuple[str, str | None]:
        """Whose history: a key's own, its account's with `all_keys`, or a credit id's, which may filter by key."""
        header = b"" if b"authorization" in exchange.headers else b"x-credit-id"  # a key goes first, as everywhere
        if credit_id := query.get("credit_id") or exchange.header(header):
            account_id = await self.accounts.holder(credit_id)
            if "all_keys" in query:
                raise BadRequest("all_keys is only valid with an API key; a credit id sees all keys.", param="all_keys")
            return account_id, await self._key_filter(account_id, query["api_key"]) if "api_key" in query else None
        if "api_key" in query:
            raise BadRequest("The filter api_key is only valid with a credit id.", param="api_key")
        account_id, key_id = await self._payer(exchange)
        return account_id, None if _flag(query, "all_keys") else key_id

    async def _key_filter(self, account_id: str, given: str) -> str:
        """A key by its value, or better by its id: a value does not belong into a URL."""
        try:
            key = await self.accounts.key(account_id, given) if len(given) == 24 else await self.accounts.key_of(given)
        except Unauthorized:
            raise NotFound("The account has no such key.") from None
        if key.account_id != account_id:
            raise NotFound("The account has no such key.")
        return key.id

    @described(
        "How a charge came about, for the key that paid it",
        tag="accounts",
        auth=PAYER,
        parameters=(in_path("id", schemas.STRING, "The x-request-id of the answer."),),
        ok={JSON: schemas.RECEIPT},
        errors=(401, 402, 404, 503),
    )
    async def receipt(self, exchange: Exchange) -> None:
        """GET /v1/requests/{id}: how a charge came about, for the account that paid it."""
        payer = await self.payers.payer(exchange)
        if payer is None:
            raise Unauthorized("No API key. Send the key that paid for the request.")
        found = await self.accounts.store.receipts(exchange.scope["path_params"]["id"], payer.account_id)
        mine = [entry for entry in found if payer.key_id is None or entry.key_id in (payer.key_id, None)]
        if not mine:
            raise NotFound("This key has paid for no request of that id.")
        await exchange.answer_json(receipt(mine[0]))


def receipt(entry: Entry) -> dict[str, Any]:
    """A charge explained: units × unit prices, catalogue version, usage source, attempts, cost."""
    detail = orjson.loads(entry.detail)
    return {
        "request_id": entry.request_id,
        "timestamp": iso(entry.at),
        "model": entry.model,
        "query_type": entry.query_type,
        "cost_usd": usd_from_nano(entry.amount),
        "lost_usd": usd_from_nano(entry.lost),
        "api_key_id": entry.key_id,
        **detail,
    }


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "timestamp": iso(entry.at),
        "request_id": entry.request_id,
        "model": entry.model,
        "input_count": entry.inputs,
        "output_count": entry.outputs,
        "price_in_usd": usd_number(entry.amount),
        "query_type": entry.query_type,
        "query_source": entry.query_source,
        "api_key_id": entry.key_id,
        "isOnline": bool(orjson.loads(entry.detail).get("online", False)),
        "isFreeModel": entry.amount == 0 and entry.lost == 0,
    }


def _flag(query: dict[str, str], name: str) -> bool:
    value = query.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise BadRequest(f"{name} must be true or false.", param=name)
    return value in ("true", "1")


def _number(query: dict[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise BadRequest(f"{name} must be a whole number from 1 to {most}.", param=name)
    return int(text)
