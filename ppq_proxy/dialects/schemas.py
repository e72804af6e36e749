"""The JSON Schemas of what the OpenAI-compatible and the account paths take and answer (JSON Schema 2020-12).

Requests are described as far as they are checked here; what is passed on untouched is left open. Amounts are US
dollars, `_count`s are tokens, times are ISO 8601 in UTC.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ppq_proxy.catalog.offerings import TYPES
from ppq_proxy.dialects.openapi import Named
from ppq_proxy.payments.topup_methods import METHODS
from ppq_proxy.store.periods import PERIODS

Json = Mapping[str, Any]


def obj(properties: Json, required: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """An object."""
    return {"type": "object", "properties": properties, "required": list(required), **more}


def maybe(kind: str, **more: Any) -> dict[str, Any]:
    """A value of a kind, or null."""
    return {"type": [kind, "null"], **more}


def whole(properties: Json) -> dict[str, Any]:
    """An object that always has all of these."""
    return obj(properties, list(properties))


STRING: Final[Json] = {"type": "string"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
USD: Final[Json] = {"type": "number", "description": "US dollars."}
USD_TEXT: Final[Json] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?$", "description": "US dollars, exact."}
TIME: Final[Json] = {"type": "string", "format": "date-time"}
TIME_OR_NULL: Final[Json] = maybe("string", format="date-time")
#: In requests, where a bare date is as good and the parser says what is wrong.
WHEN: Final[Json] = {"type": "string", "minLength": 8, "maxLength": 40, "examples": ["2027-01-01"]}
FLAG: Final[Json] = {"type": "string", "enum": ["true", "false", "1", "0"], "default": "false"}
SUCCESS: Final[Json] = {"const": "success"}

ERROR: Final = Named(
    "Error",
    obj(
        {
            "error": obj(
                {
                    "message": {"type": "string", "minLength": 1, "description": "What is wrong and what helps."},
                    "type": STRING,
                    "param": maybe("string", description="The field or parameter that is wrong."),
                    "code": STRING,
                    "request_id": STRING,
                    "required": {**USD_TEXT, "description": "With 402 and 403: what the call may cost."},
                    "available": {**USD_TEXT, "description": "With 402 and 403: what it may use."},
                },
                ("message", "type", "param", "code", "request_id"),
            )
        },
        ("error",),
    ),
)

# OpenAI's

MESSAGE: Final = Named(
    "Message",
    obj(
        {"role": STRING, "content": {"type": ["string", "array", "null"], "description": "Text, or a list of parts."}},
        ("role",),
        description="Passed on as it is: text, images, audio, tool calls and their results.",
    ),
)
OUTPUT_CAP: Final[Json] = maybe("integer", minimum=1, maximum=10**9)
CHAT_REQUEST: Final = Named(
    "ChatRequest",
    obj(
        {
            "model": {"type": "string", "minLength": 1, "description": "An id of GET /v1/models, or an alias of one."},
            "messages": {"type": "array", "minItems": 1, "items": MESSAGE},
            "stream": maybe("boolean"),
            "stream_options": {"type": ["object", "null"], "properties": {"include_usage": maybe("boolean")}},
            "max_tokens": OUTPUT_CAP,
            "max_completion_tokens": OUTPUT_CAP,
            "n": maybe("integer", minimum=1, maximum=128),
        },
        ("model", "messages"),
        additionalProperties=True,
        description="Fields that are not named here (tools, response_format, temperature …) are passed on untouched.",
    ),
)
CHAT_ANSWER: Final = Named(
    "ChatCompletion",
    obj({"choices": {"type": "array", "items": {"type": "object"}}, "usage": maybe("object")}, ("choices",)),
)
EMBEDDING_REQUEST: Final = Named(
    "EmbeddingRequest",
    obj(
        {
            "model": {"type": "string", "minLength": 1, "description": "An id of GET /v1/models?type=embedding."},
            "input": {"type": ["string", "array"], "description": "A text, texts, token ids, or lists of token ids."},
        },
        ("model", "input"),
        additionalProperties=True,
        description="Fields that are not named here (encoding_format, dimensions …) are passed on untouched.",
    ),
)
EMBEDDING_ANSWER: Final = Named(
    "Embeddings",
    obj({"data": {"type": "array", "items": {"type": "object"}}, "usage": maybe("object")}, ("data",)),
)
EVENT_STREAM: Final[Json] = {
    "description": "Server-sent events: `data: {chat.completion.chunk}` each, and `data: [DONE]` at the end of a whole "
    'answer. One that breaks off ends with `data: {"error": …}` instead.',
}
RATE: Final = Named(
    "Rate", obj({"of": STRING, "unit": STRING, "usd": STRING, "when": {"type": "object"}}, ("of", "unit", "usd"))
)
MODEL: Final = Named(
    "Model",
    obj(
        {
            "id": STRING,
            "object": {"const": "model"},
            "created": COUNT,
            "owned_by": STRING,
            "name": STRING,
            "provider": STRING,
            "type": {"enum": list(TYPES)},
            "created_at": {**COUNT, "description": "Milliseconds since the epoch."},
            "context_length": maybe("integer"),
            "max_output_tokens": maybe("integer"),
            "capabilities": {"type": "array", "items": STRING},
            "parameters": {"type": "object", "description": "What a request may carry besides `model`, by name."},
            "pricing": obj(
                {
                    "input_per_1M_tokens": maybe("number"),
                    "output_per_1M_tokens": maybe("number"),
                    "rates": {"type": "array", "items": RATE},
                },
                ("rates",),
            ),
            "averageCost": maybe("number"),
            "promptsPer1Usd": maybe("integer"),
            "popular": {"type": "boolean"},
            "free": {"type": "boolean"},
        },
        ("id", "object", "created", "owned_by", "name", "provider", "type", "context_length", "pricing"),
    ),
)
MODELS: Final = Named("Models", whole({"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}}))

# accounts

CREDIT_ID: Final[Json] = {"type": "string", "description": "A secret: it opens the account."}
ACCOUNT: Final = Named(
    "NewAccount", whole({"success": {"const": True}, "credit_id": CREDIT_ID, "api_key": STRING, "balance": USD})
)
BALANCE_REQUEST: Final = Named(
    "BalanceRequest", obj({"credit_id": maybe("string", description=CREDIT_ID["description"])})
)
BALANCE: Final = Named(
    "Balance",
    whole(
        {
            "balance": {**USD, "description": "Credits less charges."},
            "held": {**USD, "description": "Promised to calls that are open."},
            "available": {**USD, "description": "What a new call may use."},
        }
    ),
)

# keys

KEY_ID: Final[Json] = {"type": "string", "pattern": "^[0-9a-f]{24}$"}
SETTINGS: Final[Json] = {
    "name": {"type": "string", "minLength": 1, "maxLength": 25, "description": "Printable, unique in the account."},
    "usage_limit_usd": maybe("number", minimum=0.01, maximum=9_000_000_000, description="Null: no limit."),
    "reset_period": {
        "enum": [*PERIODS, None],
        "description": "When the limit starts anew: midnight, Monday or the first of the month, UTC. Needs a limit.",
    },
    "expire_at": {**WHEN, "type": ["string", "null"], "description": "ISO 8601, in the future."},
    "requests_per_minute": maybe("integer", minimum=1, maximum=10**12),
    "tokens_per_minute": maybe("integer", minimum=1, maximum=10**12),
}
NEW_KEY: Final = Named("NewKey", obj(SETTINGS, ("name",), additionalProperties=False))
KEY_CHANGES: Final = Named(
    "KeyChanges",
    obj(SETTINGS, additionalProperties=False, description="Only the given fields change; null clears one."),
)
LIMITS: Final[Json] = {
    "usage_limit_usd": maybe("number", minimum=0.01),
    "reset_period": {"enum": [*PERIODS, None]},
    "reset_at": TIME_OR_NULL,
    "expire_at": TIME_OR_NULL,
}
USED: Final[Json] = {"current_period_usage_usd": USD, "total_usage_all_time_usd": USD}
PER_MINUTE: Final[Json] = {"requests_per_minute": maybe("integer"), "tokens_per_minute": maybe("integer")}
MADE_KEY: Final = Named(
    "MadeKey",
    obj(
        {"_id": KEY_ID, "name": STRING, "api_key": STRING, **LIMITS, "created_at": TIME, **PER_MINUTE},
        ("_id", "name", "api_key", *LIMITS, "created_at"),
    ),
)
API_KEY: Final = Named(
    "ApiKey",
    obj(
        {
            "_id": KEY_ID,
            "name": STRING,
            "api_key": {**STRING, "description": "Only with show_key."},
            **LIMITS,
            **PER_MINUTE,
            **USED,
            "created_at": TIME,
            "updated_at": TIME,
            "deleted_at": {**TIME_OR_NULL, "description": "When it was revoked."},
        },
        ("_id", "name", *LIMITS, *USED, "created_at", "updated_at", "deleted_at"),
    ),
)
REVOKED: Final = Named("Revoked", whole({"status": SUCCESS, "message": STRING}))


def success(data: Any) -> dict[str, Any]:
    """{"status": "success", "data": …}."""
    return whole({"status": SUCCESS, "data": data})


# history and receipts

CHARGE: Final = Named(
    "Charge",
    whole(
        {
            "timestamp": TIME,
            "request_id": STRING,
            "model": STRING,
            "input_count": COUNT,
            "output_count": COUNT,
            "price_in_usd": USD,
            "query_type": STRING,
            "query_source": STRING,
            "api_key_id": maybe("string"),
            "isOnline": {"type": "boolean"},
            "isFreeModel": {"type": "boolean"},
        }
    ),
)
PAGINATION: Final = Named(
    "Pagination", whole({"page": COUNT, "page_count": COUNT, "total": COUNT, "total_pages": COUNT})
)
HISTORY: Final = Named(
    "History", whole({"status": SUCCESS, "data": {"type": "array", "items": CHARGE}, "pagination": PAGINATION})
)
RECEIPT: Final = Named(
    "Receipt",
    obj(
        {
            "request_id": STRING,
            "timestamp": TIME,
            "model": STRING,
            "query_type": STRING,
            "cost_usd": USD_TEXT,
            "lost_usd": {**USD_TEXT, "description": "Delivered and not paid for: the house's loss."},
            "api_key_id": maybe("string"),
            "units": {"type": "object", "additionalProperties": COUNT, "description": "By class; none overlap."},
            "prices": {"type": "array", "items": RATE, "description": "The unit prices that were used."},
            "catalogue": {**STRING, "description": "The version of the catalogue that they come from."},
            "usage_source": {**STRING, "description": "upstream, counted or estimate."},
            "attempts": {"type": "array", "items": {"type": "object"}},
            "stream": {"type": "boolean"},
        },
        ("request_id", "timestamp", "model", "cost_usd", "units", "prices", "catalogue", "usage_source", "attempts"),
    ),
)

# top-ups

METHOD: Final[Json] = {"enum": [*METHODS]}
TOPUP_REQUEST: Final = Named(
    "TopUpRequest",
    obj(
        {
            "amount": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "In `currency`; limits hold in dollars.",
            },
            "currency": {"enum": ["SATS", "BTC", "USD"]},
        },
        ("amount", "currency"),
    ),
)
TOPUP: Final = Named(
    "TopUp",
    obj(
        {
            "invoice_id": STRING,
            "created_at": {**STRING, "description": "Seconds since the epoch."},
            "expires_at": {**STRING, "description": "Seconds since the epoch."},
            "amount": STRING,
            "currency": STRING,
            "checkout_url": STRING,
            "crypto_amount_due": STRING,
            "payment_method": METHOD,
            "lightning_invoice": STRING,
            "address": STRING,
        },
        ("invoice_id", "created_at", "expires_at", "amount", "currency", "payment_method"),
    ),
)
TOPUP_STATUS: Final = Named(
    "TopUpStatus",
    obj(
        {
            "invoice_id": STRING,
            "status": {"enum": ["New", "Processing", "Settled", "Expired"], "description": "Settled: it is credited."},
            "amount": {"type": "number"},
            "currency": STRING,
            "payment_method": METHOD,
            "amount_paid": {"type": "number"},
            "amount_due": {"type": "number"},
            "credited_usd": USD,
            "created_at": COUNT,
            "expires_at": COUNT,
        },
        ("invoice_id", "status", "amount", "currency", "payment_method", "amount_paid", "amount_due"),
    ),
)
METHOD_ROW: Final = Named(
    "TopUpMethod",
    whole(
        {
            "method": METHOD,
            "currencies": {"type": "array", "items": STRING},
            "min_usd": USD,
            "max_usd": USD,
            "expiry_minutes": COUNT,
            "bonus_percent": COUNT,
        }
    ),
)
METHOD_ROWS: Final = Named("TopUpMethods", whole({"data": {"type": "array", "items": METHOD_ROW}}))
WISH: Final[Json] = {
    "threshold_usd": maybe("number", minimum=5, default=10),
    "topup_amount_usd": maybe("number", minimum=0.1, maximum=1000, default=10),
    "daily_limit_usd": maybe("number", exclusiveMinimum=0),
}
AUTO_TOPUP_REQUEST: Final = Named(
    "AutoTopUpRequest",
    obj(
        {
            "nwc_url": {"type": "string", "minLength": 1, "maxLength": 4096, "examples": ["nostr+walletconnect://…"]},
            **WISH,
        },
        ("nwc_url",),
    ),
)
AUTO_TOPUP: Final = Named(
    "AutoTopUp",
    obj(
        {
            "connected": {"type": "boolean"},
            "enabled": {"type": "boolean"},
            "nwc_url": maybe("string", description="Without its secret."),
            **{name: maybe("number") for name in WISH},
            "status": {"enum": ["ready", "paying", "waiting", "failing"]},
            "last_error": maybe("string"),
        },
        ("connected", "enabled", "nwc_url", *WISH),
    ),
)
DISCONNECTED: Final = Named("Disconnected", whole({"status": SUCCESS, "message": STRING}))
RECEIVED: Final = Named("Received", whole({"received": {"const": True}}))

# paying by the call, operating

CLAIM_REQUEST: Final = Named(
    "ClaimRequest", obj({"preimage": {"type": "string", "description": "64 hex digits."}}, ("preimage",))
)
CLAIMED: Final = Named("Claimed", whole({"credited_usd": USD, "balance_usd": USD}))
HEALTH: Final = Named("Health", whole({"status": {"const": "ok"}}))
READINESS: Final = Named(
    "Readiness",
    whole({"status": {"enum": ["ready", "not ready"]}, "store": {"type": "boolean"}, "upstream": {"type": "boolean"}}),
)
