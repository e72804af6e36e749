"""Offerings from the list of models that an upstream serves with prices (OpenRouter's `pricing` object, and ours).

Such a list has USD for one token, picture or request as decimal strings: {"id", "pricing": {"prompt": "0.000001",
"completion": "0.000002", …}, "context_length", "top_provider": {"max_completion_tokens"}}.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from ppq_proxy.catalog.offerings import DEFAULT_UPSTREAM, Offering, Target
from ppq_proxy.catalog.prices import Factor, PriceError, Prices, Row, amount, parse_rows

#: Each key of the price object, and the class and unit that it is here.
KEYS: Final = (
    ("prompt", "input", "mtok"),
    ("completion", "output", "mtok"),
    ("input_cache_read", "cache_read", "mtok"),
    ("input_cache_write", "cache_write_5m", "mtok"),
    ("audio", "audio_in", "mtok"),
    ("audio_output", "audio_out", "mtok"),
    ("image_output", "image_out", "mtok"),
    ("internal_reasoning", "reasoning", "mtok"),
    ("request", "call", "call"),
    ("web_search", "search", "call"),
)
#: What an answer may hold besides text, and the price without which it would be sold as text.
_MADE: Final = {"image": "image_out", "audio": "audio_out"}


def read(row: object, margin: Factor, upstream: str = DEFAULT_UPSTREAM) -> Offering | None:
    """A chat offering from one listed model, or None where it cannot be sold.

    It cannot without a price for both prompt and answer, with a variable one ("-1"), with one of the two at zero, or
    when it makes pictures or sound that have no price. Both at zero, and nothing else, is a free model.
    """
    if not isinstance(row, dict) or not isinstance(row.get("pricing"), dict):
        return None
    model = row.get("id")
    if not isinstance(model, str) or not 0 < len(model) <= 200 or not model.isprintable():
        return None
    prices = _prices(row["pricing"], margin)
    made = _strings(row, "architecture", "output_modalities")
    if prices is None or any(kind in made and of not in {price.of for price in prices} for kind, of in _MADE.items()):
        return None
    taken = _strings(row, "architecture", "input_modalities")
    top = row.get("top_provider")
    name = row.get("name")
    return Offering(
        id=model,
        type="chat",
        name=name if isinstance(name, str) else model,
        provider=model.split("/", 1)[0] if "/" in model else "",
        prices=Prices(prices),
        upstreams=(Target(upstream, model),),
        context=_whole(row.get("context_length")),
        max_output=_whole(top.get("max_completion_tokens")) if isinstance(top, dict) else None,
        free=not any(price.usd.digits for price in prices),
        modalities={"in": taken, "out": made} if taken and made else None,
        created=_day(row.get("created")),
    )


def _prices(pricing: Mapping[str, Any], margin: Factor) -> Sequence[Row] | None:
    rates = pricing.get("rates")
    if isinstance(rates, list) and rates:
        # A gateway like this one: its list has every price and condition, not only the plain ones.
        try:
            rows = parse_rows(
                rates, margin, free=all(isinstance(rate, dict) and rate.get("usd") == "0" for rate in rates)
            )
        except PriceError:
            return None
        return rows if {"input", "output"} <= {row.of for row in rows if not row.when} else None
    prices = []
    for key, of, unit in KEYS:
        upstream = _for_unit(pricing.get(key), 6 if unit == "mtok" else 0)
        required = of in ("input", "output")
        if upstream is None and required:
            return None
        if upstream is not None and (upstream.digits or required):
            usd = Factor(upstream.digits * margin.digits, upstream.decimals + margin.decimals)
            prices.append(Row(of, unit, usd, {}))
    zeros = sum(not price.usd.digits for price in prices)
    return prices if zeros in (0, len(prices)) else None


def _for_unit(listed: object, shift: int) -> Factor | None:
    """A price for one as a price for 10**`shift`; small ones come as "0.00000025" or "2.5e-7", some lists send numbers.

    The shortest text of a JSON number is the number that was written, so nothing is lost by going through it.
    """
    text = str(listed) if isinstance(listed, str | float) or type(listed) is int else ""
    mantissa, _, exponent = text.strip().lower().partition("e")
    try:
        value = amount(mantissa)
        decimals = value.decimals - int(exponent or "0") - shift
    except (PriceError, ValueError):
        return None
    if not -12 <= decimals <= 30:
        return None
    return Factor(value.digits, decimals) if decimals >= 0 else Factor(value.digits * 10**-decimals, 0)


def _strings(row: Mapping[str, Any], outer: str, inner: str) -> list[str]:
    inside = row.get(outer)
    listed = inside.get(inner) if isinstance(inside, dict) else None
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


def _whole(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _day(value: object) -> str:
    """The ISO date of a time in epoch seconds; "" for what is none."""
    seconds = _whole(value)
    return datetime.fromtimestamp(seconds, UTC).date().isoformat() if seconds and seconds < 1 << 33 else ""
