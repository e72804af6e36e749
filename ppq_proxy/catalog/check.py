"""Checks a models file: `python -m ppq_proxy.catalog.check [FILE]`. Exit 1 and one line a problem where there are any.

The gateway itself refuses a file with a malformed row; this goes further and is for files that are published: prices
within sane bands, limits, sources and dates there, names unique, defaults among their values. With `--write-schema` it
writes `models.schema.json`, the same rules for editors, from the same closed sets; without, it says when that is stale.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from ppq_proxy.catalog.aliases import normal
from ppq_proxy.catalog.catalog import default_path
from ppq_proxy.catalog.offerings import Offering, RowError, parse_row
from ppq_proxy.catalog.prices import PriceError, margin_factor
from ppq_proxy.catalog.schema import schema

SCHEMA_PATH: Final = Path(__file__).with_name("models.schema.json")
#: The least and the most USD for one unit that is believed, before the margin, by class (and type).
BANDS: Final[Mapping[str, tuple[str, str]]] = {
    "input": ("0.0005", "200"),
    "cache_read": ("0.0001", "100"),
    "cache_write_5m": ("0.001", "200"),
    "cache_write_1h": ("0.001", "400"),
    "audio_in": ("0.01", "200"),
    "image_in": ("0.01", "200"),
    "video_in": ("0.01", "200"),
    "output": ("0.001", "1000"),
    "reasoning": ("0.001", "1000"),
    "audio_out": ("0.1", "1000"),
    "image_out": ("0.1", "1000"),
    "image": ("0.001", "2"),
    "megapixel": ("0.001", "1"),
    "second": ("0.00001", "3"),
    "character": ("0.000005", "0.0005"),
    "page": ("0.0001", "0.5"),
    "call": ("0.001", "10"),
    "search": ("0.001", "0.1"),
}
_REQUIRED: Final = ("name", "provider", "source", "checked", "upstreams")


def problems(content: bytes) -> Iterator[str]:
    """Everything that is wrong with a models file, each as one line that names row and field."""
    repeated: list[str] = []
    try:
        parsed = json.loads(content, object_pairs_hook=lambda pairs: _object(pairs, repeated))
    except ValueError as error:
        yield f"is not JSON: {error}"
        return
    yield from (f"the name {name!r} stands twice in one object" for name in repeated)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("models"), list):
        yield 'is not an object with a list "models"'
        return
    try:
        margin = margin_factor(parsed.get("margin", "0"))
    except PriceError as error:
        yield f"margin: {error}"
        return
    offerings = []
    for at, row in enumerate(parsed["models"]):
        called = row.get("id", f"models[{at}]") if isinstance(row, dict) else f"models[{at}]"
        try:
            offering = parse_row(row, margin)
        except (RowError, PriceError) as error:
            yield f"{called}: {error.field}: {error}"
            continue
        offerings.append(offering)
        yield from (f"{called}: {problem}" for problem in _row_problems(row, offering))
    yield from _name_problems(offerings)


def _object(pairs: list[tuple[str, Any]], repeated: list[str]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated.extend(name for name in found if names.count(name) > 1)
    return found


def _row_problems(row: Mapping[str, Any], offering: Offering) -> Iterator[str]:
    if not offering.prices.rows:
        yield "prices: is empty, so it cannot be sold"
    for field in _REQUIRED:
        if not row.get(field):
            yield f"{field}: is missing"
    if row.get("source") and not str(row["source"]).startswith("https://"):
        yield "source: is not an https URL"
    if offering.type == "chat":
        for field in ("context", "max_output", "created"):
            if not row.get(field):
                yield f"{field}: is missing"
    if (offering.max_output or 0) > (offering.context or offering.max_output or 0):
        yield "max_output: is more than the context"
    yield from band_problems(row["prices"], free=offering.free)
    yield from _parameter_problems(offering)


def band_problems(prices: list[Mapping[str, Any]], *, free: bool = False) -> Iterator[str]:
    """Prices outside of their class's band."""
    for at, price in enumerate(prices):
        least, most = BANDS[price["of"]]
        usd = Decimal(price["usd"]) / (3600 if price["unit"] == "hour" else 1)
        if not free and not Decimal(least) <= usd <= Decimal(most):
            what = f"{price['usd']} for a {price['unit']} of {price['of']}"
            yield f"prices[{at}]: {what} is not between {least} and {most}"


def _parameter_problems(offering: Offering) -> Iterator[str]:
    """Defaults outside of their values, and prices for what cannot be asked for."""
    parameters = offering.parameters or {}
    for name, rules in parameters.items():
        values = rules.get("values")
        if values is not None and "default" in rules and rules["default"] not in values:
            yield f"parameters.{name}: the default {rules['default']!r} is not among its values"
    for price in offering.prices.rows:
        for name, value in price.when.items():
            if name == "context_above":
                continue
            values = parameters.get(name, {}).get("values")
            if values is None or value not in [str(one).lower() for one in values]:
                yield f"prices: {name} {value!r} is not among the parameter's values"


def _name_problems(offerings: list[Offering]) -> Iterator[str]:
    holders: dict[str, str] = {}
    for offering in offerings:
        for name in (offering.id, *offering.aliases):
            holder = holders.setdefault(normal(name), offering.id)
            if holder != offering.id:
                yield f"{offering.id}: the name {name!r} already means {holder}"
    seen: set[str] = set()
    for offering in offerings:
        if offering.id in seen:
            yield f"{offering.id}: stands twice"
        seen.add(offering.id)


def main(arguments: list[str]) -> int:
    """The command. 0: the file is good; 1: it is not; 2: wrong use."""
    text = json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
    if "--write-schema" in arguments:
        SCHEMA_PATH.write_text(text, encoding="utf-8")
        return 0
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: python -m ppq_proxy.catalog.check [--write-schema | FILE]", file=sys.stderr)
        return 2
    path = Path(arguments[0]) if arguments else default_path()
    found = list(problems(path.read_bytes()))
    if SCHEMA_PATH.read_text(encoding="utf-8") != text:
        found.append(f"{SCHEMA_PATH.name} is stale: run python -m ppq_proxy.catalog.check --write-schema")
    for problem in found:
        print(f"{path.name}: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
