"""Prices as the sources write them, turned into those of a catalogue row."""

import re
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from ppq_proxy.catalog.build.literals import Record

#: genai-prices' keys, the classes here, and how many of the key's units make one of ours.
CLASSES: Final[Mapping[str, tuple[str, str, int]]] = {
    "input_mtok": ("input", "mtok", 1),
    "cache_read_mtok": ("cache_read", "mtok", 1),
    "cache_write_mtok": ("cache_write_5m", "mtok", 1),
    "cache_write_5m_mtok": ("cache_write_5m", "mtok", 1),
    "cache_write_1h_mtok": ("cache_write_1h", "mtok", 1),
    "input_audio_mtok": ("audio_in", "mtok", 1),
    "input_image_mtok": ("image_in", "mtok", 1),
    "input_video_mtok": ("video_in", "mtok", 1),
    "output_mtok": ("output", "mtok", 1),
    "output_reasoning_mtok": ("reasoning", "mtok", 1),
    "output_audio_mtok": ("audio_out", "mtok", 1),
    "output_image_mtok": ("image_out", "mtok", 1),
    "requests_kcount": ("call", "call", 1000),
    "web_searches_kcount": ("search", "call", 1000),
}
#: Left out on purpose: such tokens are charged as cached ones, and nobody asks a gateway to store files.
IGNORED: Final = frozenset(("cache_audio_read_mtok", "cache_image_read_mtok", "storage_searches_kcount"))


Prices = dict[str, list[tuple[int, Decimal]]]
"""Class to (context above, USD for one unit), the plain price first with -1."""


class Unsellable(ValueError):
    """A price that cannot be expressed here; the message says which."""


def prices_of(model: Mapping[str, Any], day: date) -> Prices:
    """A genai-prices model's prices on a day. Raises Unsellable for units that a chat cannot be charged by."""
    chosen = model["prices"]
    if isinstance(chosen, list):
        chosen = _on(chosen, day)
    prices: Prices = {}
    for key, price in chosen.items():
        if key in IGNORED:
            continue
        if key not in CLASSES:
            raise Unsellable(f"is also charged by {key}")
        of, _, per = CLASSES[key]
        steps = [(-1, price)] if isinstance(price, Decimal) else [(-1, price["base"])]
        if not isinstance(price, Decimal):
            steps += [(tier["start"], tier["price"]) for tier in price["tiers"]]
        prices[of] = [(above, usd / per) for above, usd in steps]
    return prices


def _on(conditional: list[Mapping[str, Any]], day: date) -> Mapping[str, Any]:
    chosen = conditional[0]["prices"]
    for entry in conditional:
        constraint = entry.get("constraint")
        if constraint is None or ("start_date" in constraint and constraint["start_date"] <= day):
            chosen = entry["prices"]
    return dict(chosen)


def matches(clause: Record, name: str) -> bool:
    """Whether a match clause accepts a model's name."""
    match clause.kind:
        case "ClauseEquals":
            return bool(name == clause["equals"])
        case "ClauseStartsWith":
            return name.startswith(clause["starts_with"])
        case "ClauseEndsWith":
            return name.endswith(clause["ends_with"])
        case "ClauseContains":
            return clause["contains"] in name
        case "ClauseRegex":
            return re.search(clause["regex"], name) is not None
        case "ClauseOr":
            return any(matches(part, name) for part in clause["or_"])
        case "ClauseAnd":
            return all(matches(part, name) for part in clause["and_"])
        case other:
            raise ValueError(f"the clause {other} is not known")


def equal_names(clause: Record) -> Iterator[str]:
    """The names that a clause spells out."""
    if clause.kind == "ClauseEquals":
        yield clause["equals"]
    elif clause.kind == "ClauseOr":
        for part in clause["or_"]:
            yield from equal_names(part)


def litellm_prices(row: Mapping[str, Any]) -> Prices:
    """LiteLLM's text prices (USD for one token) as ours, plain ones only; zeros there are free tiers, no prices."""
    keys = {
        "input_cost_per_token": "input",
        "output_cost_per_token": "output",
        "cache_read_input_token_cost": "cache_read",
        "cache_creation_input_token_cost": "cache_write_5m",
        "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    }
    return {of: [(-1, Decimal(row[key]) * 1_000_000)] for key, of in keys.items() if row.get(key)}


def rows(prices: Prices) -> list[dict[str, Any]]:
    """The `prices` of a catalogue row. What costs nothing is left to the class that contains it: zero is no price."""
    units = {of: unit for of, unit, _ in CLASSES.values()}
    order = list(dict.fromkeys(of for of, _, _ in CLASSES.values()))
    listed = []
    for of in sorted(prices, key=order.index):
        for above, usd in prices[of]:
            if usd:
                row: dict[str, Any] = {"of": of, "unit": units[of], "usd": plain(usd)}
                listed.append(row if above < 0 else {**row, "when": {"context_above": above}})
    return listed


def plain(usd: Decimal) -> str:
    """A decimal string without an exponent or trailing zeros; a 13th decimal is rounded up."""
    text = f"{usd.quantize(Decimal('1e-12'), ROUND_CEILING).normalize():f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
