"""How an offering is shown to customers: OpenAI's model object with what price tables need besides.

Prices are sale prices. Those for display are JSON numbers; the same are there as exact decimal strings, in USD for one
token (`prompt`, `completion`, …: the form that price-reading clients and gateways know) and in `rates` for one unit.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from ppq_proxy.catalog.listed import KEYS
from ppq_proxy.catalog.offerings import Offering
from ppq_proxy.catalog.prices import NANO, Factor, Prices, Row, UnpricedUnits

#: What an average use is, for "average cost": a chat turn of 1000 tokens with an answer of 500, one picture of a usual
#: size, a minute of speech to read, 1000 characters to speak, five seconds of video, one request for data.
AVERAGE: Final[Mapping[str, Mapping[str, int]]] = {
    "chat": {"input": 1000, "output": 500},
    "embedding": {"input": 1000},
    "image": {"image": 1, "megapixel": 1, "input": 100, "image_out": 1056},
    "audio": {"second": 60_000, "character": 1000},
    "video": {"second": 5_000},
    "data": {"call": 1},
}
_CHAT_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "sampling": ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"),
    "tools": ("tools", "tool_choice"),
    "parallel_tools": ("parallel_tool_calls",),
    "json_schema": ("response_format",),
    "reasoning": ("reasoning_effort",),
    "search": ("web_search_options",),
}


def show(offering: Offering) -> dict[str, Any]:
    """The object of `GET /v1/models/{id}`. Since the epoch, `created` is in seconds, `created_at` in milliseconds."""
    created = _seconds(offering.created or offering.checked)
    parameters = parameters_of(offering)
    average = average_cost(offering)
    shown: dict[str, Any] = {
        "id": offering.id,
        "object": "model",
        "created": created,
        "owned_by": offering.provider or "unknown",
        "name": offering.name,
        "provider": offering.provider or "unknown",
        "type": offering.type,
        "created_at": created * 1000,
        "context_length": offering.context,
        "max_output_tokens": offering.max_output,
        "top_provider": {"context_length": offering.context, "max_completion_tokens": offering.max_output},
        "architecture": {
            "input_modalities": list((offering.modalities or {}).get("in", ())),
            "output_modalities": list((offering.modalities or {}).get("out", ())),
        },
        "capabilities": list(offering.capabilities),
        "parameters": parameters,
        "supported_parameters": list(parameters),
        "pricing": pricing(offering.prices),
        "averageCost": None if average is None else _dollars(average),
        "promptsPer1Usd": NANO // average if average else None,
        "popular": offering.popular,
        "free": offering.free,
    }
    if offering.method:
        shown["method"] = offering.method
    if offering.private:
        shown["privacyLevel"] = "e2e"
    if offering.aliases:
        shown["aliases"] = list(offering.aliases)
    if offering.description:
        shown["description"] = offering.description
    return shown


def parameters_of(offering: Offering) -> dict[str, Any]:
    """What a request to this offering may carry besides `model`; a chat model's follow from what it can do."""
    if offering.parameters is not None or offering.type != "chat":
        return {name: dict(rules) for name, rules in (offering.parameters or {}).items()}
    most = {"min": 1, "max": offering.max_output} if offering.max_output else {"min": 1}
    shown: dict[str, Any] = {"messages": {"required": True}, "stream": {"values": [True, False], "default": False}}
    shown.update({"max_tokens": most, "max_completion_tokens": most, "n": {"min": 1, "default": 1}, "stop": {}})
    for capability, names in _CHAT_PARAMETERS.items():
        if capability in offering.capabilities:
            shown.update({name: {} for name in names})
    return shown


def pricing(prices: Prices) -> dict[str, Any]:
    """The price object: per 1e6 tokens for display, per token as strings, and all rates with their conditions."""
    base = {row.of: row for row in prices.rows if not row.when}
    per_mtok = {of: _number(row) for of, row in base.items() if row.unit == "mtok"}
    shown: dict[str, Any] = {
        "input_per_1M_tokens": per_mtok.get("input"),
        "output_per_1M_tokens": per_mtok.get("output"),
        "api": {"input_per_1M": per_mtok.get("input"), "output_per_1M": per_mtok.get("output")},
    }
    for key, of, unit in KEYS:
        if of in base and base[of].unit == unit:
            shift = 6 if unit == "mtok" else 0
            shown[key] = str(Factor(base[of].usd.digits, base[of].usd.decimals + shift))
    shown["rates"] = [
        {"of": row.of, "unit": row.unit, "usd": row.sold_at, **({"when": dict(row.when)} if row.when else {})}
        for row in prices.rows
    ]
    return shown


def average_cost(offering: Offering) -> int | None:
    """What an average use costs in nano-USD, or None where the row has no price for one."""
    variant = offering.variant({})
    classes = offering.prices.classes
    units = {of: count for of, count in AVERAGE[offering.type].items() if of in classes}
    if "second" in units and variant.get("duration", "").isdecimal():
        units["second"] = int(variant["duration"]) * 1000
    try:
        return offering.prices.charge(units, variant or None)
    except UnpricedUnits:
        return None


def _seconds(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) if day else 0


def _number(row: Row) -> float:
    return float(Decimal(row.sold_at))


def _dollars(nano_usd: int) -> float:
    return float(Decimal(nano_usd).scaleb(-9))
