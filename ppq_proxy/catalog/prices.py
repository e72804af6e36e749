"""Exact prices.

A price is a decimal string for one *unit* of one *class* of what is sold ("0.25" for an `mtok` of `input`). A sale
price is the upstream's price times (1 + margin). When the catalogue is read, the prices of an offering become integers
over one denominator, so that a charge is a sum of integer products, one division, and one rounding upwards.

Money is integer nano-USD (1e-9 USD). Counts are integers of the *counted unit*: tokens for `mtok` (a price is for 1e6
of them), milliseconds for `second` and `hour`, and the unit itself for `image`, `megapixel`, `character`, `page` and
`call`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

NANO: Final = 10**9

#: Counted units in one priced unit.
SCALE: Final[Mapping[str, int]] = {
    "mtok": 1_000_000,
    "second": 1_000,
    "hour": 3_600_000,
    "image": 1,
    "megapixel": 1,
    "character": 1,
    "page": 1,
    "call": 1,
}
INPUT_CLASSES: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "audio_in", "image_in", "video_in")
OUTPUT_CLASSES: Final = ("output", "reasoning", "audio_out", "image_out")
#: What a request of text alone can be charged by, for a `bound` that a dear class of another kind does not raise.
TEXT_INPUT_CLASSES: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h")
TEXT_OUTPUT_CLASSES: Final = ("output", "reasoning")
#: The units that each class may be priced by. A closed set: what is not here cannot be sold.
UNITS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(INPUT_CLASSES + OUTPUT_CLASSES, ("mtok",)),
    "image": ("image",),
    "megapixel": ("megapixel",),
    "second": ("second", "hour"),
    "character": ("character",),
    "page": ("page",),
    "call": ("call",),
    "search": ("call",),
}
#: A class without a price is charged as the class that contains it.
CONTAINED_IN: Final[Mapping[str, str]] = {
    **dict.fromkeys(INPUT_CLASSES[1:], "input"),
    **dict.fromkeys(OUTPUT_CLASSES[1:], "output"),
}
#: What a price may depend on besides `context_above`; values are lower-case strings.
VARIANTS: Final = ("size", "quality", "resolution", "duration", "audio", "mode", "tier")

_AMOUNT = re.compile(r"(0|[1-9][0-9]{0,8})(?:\.([0-9]{1,15}))?\Z", re.ASCII)
_MARGIN = re.compile(r"(-?)([0-9]{1,3})(?:\.([0-9]{1,9}))?\Z", re.ASCII)


class PriceError(ValueError):
    """A price that cannot be sold by: `field` says where in the row, `str()` says what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


class UnpricedUnits(LookupError):
    """Units were counted for which the offering has no price, for instance a size that it is not sold in."""

    def __init__(self, of: str) -> None:
        super().__init__(f"there is no price for {of!r} here")
        self.of = of


class Factor(NamedTuple):
    """`digits` / 10**`decimals`, exactly."""

    digits: int
    decimals: int

    def __str__(self) -> str:
        text = str(self.digits).rjust(self.decimals + 1, "0")
        whole, part = text[: len(text) - self.decimals], text[len(text) - self.decimals :].rstrip("0")
        return f"{whole}.{part}" if part else whole


class Row(NamedTuple):
    """One sale price, margin included: `usd` for one `unit` of `of`, where `when` holds."""

    of: str
    unit: str
    usd: Factor
    when: Mapping[str, Any]

    @property
    def sold_at(self) -> str:
        """USD for one unit, an exact decimal string."""
        return str(self.usd)


class Line(NamedTuple):
    """One line of a receipt: `counted` units of `of` at `usd` for one `unit`."""

    of: str
    counted: int
    usd: str
    unit: str


#: For each threshold of the prompt's length: the dearest input, output and call that can be charged above it.
_Reach = tuple[tuple[int, int, int, int], ...]


class _Tier(NamedTuple):
    """The price of each class for prompts above so many tokens, and the row that it comes from."""

    above: int
    table: Mapping[str, int]
    places: Mapping[str, int]


def amount(text: object, field: str = "usd") -> Factor:
    """A non-negative decimal string as an exact number. Floats are refused: they are not the price that was meant."""
    match = _AMOUNT.match(text) if isinstance(text, str) else None
    if match is None:
        raise PriceError(field, f'{text!r} is not a decimal string such as "0.25"')
    part = match[2] or ""
    return Factor(int(match[1] + part), len(part))


def margin_factor(text: object, field: str = "margin") -> Factor:
    """1 + margin as an exact number; a margin below 0 is a discount and must leave something."""
    match = _MARGIN.match(text) if isinstance(text, str) else None
    if match is None:
        raise PriceError(field, f'{text!r} is not a decimal string such as "0.055"')
    part = match[3] or ""
    digits = int(match[2] + part)
    one = 10 ** len(part)
    factor = one - digits if match[1] else one + digits
    if factor <= 0:
        raise PriceError(field, f"{text!r} would leave no price")
    return Factor(factor, len(part))


def _times(one: Factor, other: Factor) -> Factor:
    return Factor(one.digits * other.digits, one.decimals + other.decimals)


def parse_rows(raw: object, margin: Factor, *, free: bool = False) -> tuple[Row, ...]:
    """The `prices` of a catalogue row as sale prices. Raises PriceError, which names the field."""
    if not isinstance(raw, list):
        raise PriceError("prices", "is not a list")
    rows = []
    seen = set()
    for at, price in enumerate(raw):
        where = f"prices[{at}]"
        row = _parse_row(price, margin, where)
        if (row.usd.digits == 0) is not free:
            problem = 'is above zero, but the row says "free": true' if free else 'is zero, which needs "free": true'
            raise PriceError(f"{where}.usd", problem)
        key = (row.of, tuple(sorted(row.when.items())))
        if key in seen:
            raise PriceError(where, f"there is already a price for {row.of!r} under the same conditions")
        seen.add(key)
        rows.append(row)
    return tuple(rows)


def _parse_row(price: object, margin: Factor, where: str) -> Row:
    if not isinstance(price, dict):
        raise PriceError(where, 'is not an object with "of", "unit" and "usd"')
    of, unit = price.get("of"), price.get("unit")
    units = UNITS_OF.get(of) if isinstance(of, str) else None
    if units is None:
        raise PriceError(f"{where}.of", f"{of!r} is not one of {', '.join(UNITS_OF)}")
    if unit not in units:
        raise PriceError(f"{where}.unit", f"{unit!r} is not a unit of {of!r}, which is priced by {' or '.join(units)}")
    when = _parse_when(price["when"], f"{where}.when") if "when" in price else {}
    if len(price) != 3 + ("when" in price):
        odd = sorted(set(price) - {"of", "unit", "usd", "when"})
        raise PriceError(f"{where}.{odd[0] if odd else 'usd'}", "is not known here" if odd else "is missing")
    return Row(str(of), str(unit), _times(amount(price["usd"], f"{where}.usd"), margin), when)


def _parse_when(when: object, where: str) -> dict[str, Any]:
    if not isinstance(when, dict) or not when:
        raise PriceError(where, "is not an object with conditions")
    for key, value in when.items():
        if key == "context_above":
            if type(value) is not int or value < 0:
                raise PriceError(f"{where}.{key}", f"{value!r} is not a number of tokens")
        elif key not in VARIANTS:
            raise PriceError(f"{where}.{key}", f"is not one of context_above, {', '.join(VARIANTS)}")
        elif not isinstance(value, str) or not value or value != value.lower():
            raise PriceError(f"{where}.{key}", f"{value!r} is not a lower-case string")
    return when


class Prices:
    """What an offering costs. Immutable; `rows` are the sale prices.

    `when` arguments choose among prices with conditions: strings for the VARIANTS, and `context`, the tokens of the
    prompt, for `context_above` (without it, the sum of the input classes counted). A price whose conditions all hold
    goes before one with fewer, and of two thresholds the higher one that was passed.
    """

    __slots__ = ("_denominator", "_flat", "_numerators", "_reaches", "_tiers", "classes", "rows")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows: Final = tuple(rows)
        #: The classes that have a price of their own, under whatever conditions.
        self.classes: Final = frozenset(row.of for row in rows)
        decimals: int = max([row.usd.decimals for row in rows], default=0)
        scale = math.lcm(*{SCALE[row.unit] for row in rows})
        numerators: list[int] = [
            row.usd.digits * 10 ** (decimals - row.usd.decimals) * NANO * (scale // SCALE[row.unit]) for row in rows
        ]
        whole: int = 10**decimals * scale
        shared = math.gcd(whole, *numerators)
        self._denominator = whole // shared
        self._numerators = tuple(n // shared for n in numerators)
        self._tiers = self._compile({})
        only = self._tiers[0].table
        self._flat = only if len(self._tiers) == 1 and "call" not in self.classes else None
        self._reaches: dict[tuple[tuple[str, ...], tuple[str, ...]], _Reach] = {}

    @classmethod
    def parse(cls, raw: object, margin: str = "0", *, free: bool = False) -> Self:
        """From the `prices` of a catalogue row, in USD as the upstream charges it."""
        return cls(parse_rows(raw, margin_factor(margin), free=free))

    def charge(self, units: Mapping[str, int], when: Mapping[str, Any] | None = None) -> int:
        """The sum of units times price in nano-USD, rounded up once.

        A price of one `call` is added once where `units` does not count calls itself. Raises UnpricedUnits for units
        that neither their class nor the one containing it has a price for, and ValueError for a negative count.
        """
        table = self._flat if when is None else None
        if table is None:
            table = self._tier(units, when).table
            total = self._fee(table) if "call" not in units else 0
        else:
            total = 0
        for of, count in units.items():
            if count > 0:
                try:
                    total += table[of] * count
                except KeyError:
                    raise UnpricedUnits(of) from None
            elif count < 0:
                raise ValueError(f"{count} units of {of!r}")
        if type(total) is not int:
            raise TypeError(f"counts are integers, not {units}")
        return -(-total // self._denominator)

    def bound(
        self,
        input_tokens: int,
        output_tokens: int,
        *,
        inputs: tuple[str, ...] = INPUT_CLASSES,
        outputs: tuple[str, ...] = OUTPUT_CLASSES,
        when: Mapping[str, Any] | None = None,
    ) -> int:
        """The most that any split of these token counts into classes can cost, in nano-USD, one call's fee included.

        Every tier counts that so many input tokens can reach. `inputs` and `outputs` narrow the classes to those that
        can occur (a request without audio makes no `audio_in`). Never below `charge` of any such split.
        """
        dear_in, dear_out, fee = self._dearest(input_tokens, inputs, outputs, when)
        return -(-(input_tokens * dear_in + output_tokens * dear_out + fee) // self._denominator)

    def affordable_output(
        self,
        nano_usd: int,
        input_tokens: int,
        *,
        inputs: tuple[str, ...] = INPUT_CLASSES,
        outputs: tuple[str, ...] = OUTPUT_CLASSES,
    ) -> int | None:
        """The most output tokens whose `bound` fits in `nano_usd`.

        Below 0 if not even the input fits, None if any number does (the output is free).
        """
        dear_in, dear_out, fee = self._dearest(input_tokens, inputs, outputs, None)
        left = nano_usd * self._denominator - input_tokens * dear_in - fee
        if left < 0:
            return -1
        return left // dear_out if dear_out else None

    def lines(self, units: Mapping[str, int], when: Mapping[str, Any] | None = None) -> list[Line]:
        """What `charge` adds up, for a receipt: exact unit prices, margin included, in USD as decimal strings."""
        tier = self._tier(units, when)
        counted = dict(units) if "call" in units or not self._fee(tier.table) else {**units, "call": 1}
        lines = []
        for of, count in counted.items():
            if count:
                if of not in tier.places:
                    raise UnpricedUnits(of)
                row = self.rows[tier.places[of]]
                lines.append(Line(of, count, row.sold_at, row.unit))
        return lines

    def _tier(self, units: Mapping[str, int], when: Mapping[str, Any] | None) -> _Tier:
        tiers = self._compile(when) if when else self._tiers
        if len(tiers) == 1:
            return tiers[0]
        context: int | None = when.get("context") if when else None
        if context is None:
            context = sum([units.get(of, 0) for of in INPUT_CLASSES])
        return next(tier for tier in tiers[::-1] if context > tier.above)

    def _fee(self, table: Mapping[str, int]) -> int:
        """The price of the call itself: where it is only sold in variants, there is none outside of them, not zero."""
        if "call" in table:
            return table["call"]
        if "call" in self.classes:
            raise UnpricedUnits("call")
        return 0

    def _dearest(
        self, input_tokens: int, inputs: tuple[str, ...], outputs: tuple[str, ...], when: Mapping[str, Any] | None
    ) -> tuple[int, int, int]:
        if when:
            reach = _reach(self._compile(when), inputs, outputs)
        else:
            known = self._reaches.get((inputs, outputs))
            if known is None:
                known = self._reaches[inputs, outputs] = _reach(self._tiers, inputs, outputs)
            reach = known
        if len(reach) == 1:
            return reach[0][1:]
        return next(entry[1:] for entry in reach[::-1] if input_tokens > entry[0])

    def _compile(self, when: Mapping[str, Any]) -> tuple[_Tier, ...]:
        """The price of every class under `when`, once for each threshold of the prompt's length, rising from -1."""
        steps = sorted({row.when["context_above"] for row in self.rows if "context_above" in row.when})
        return tuple(self._compile_tier(when, above) for above in (-1, *steps))

    def _compile_tier(self, when: Mapping[str, Any], above: int) -> _Tier:
        chosen: dict[str, tuple[tuple[int, int], int]] = {}
        for at, row in enumerate(self.rows):
            rank = _rank(row.when, when, above)
            if rank is not None and (row.of not in chosen or rank > chosen[row.of][0]):
                chosen[row.of] = (rank, at)
        places = {of: at for of, (_, at) in chosen.items()}
        for of, container in CONTAINED_IN.items():
            if of not in places and container in places:
                places[of] = places[container]
        return _Tier(above, {of: self._numerators[at] for of, at in places.items()}, places)


def _rank(conditions: Mapping[str, Any], when: Mapping[str, Any], above: int) -> tuple[int, int] | None:
    """How specific a price is under `when` for prompts just above `above` tokens; None where it does not apply."""
    named = 0
    threshold = -1
    for key, value in conditions.items():
        if key == "context_above":
            if value > above:
                return None
            threshold = value
        elif when.get(key) == value:
            named += 1
        else:
            return None
    return named, threshold


def _reach(tiers: Iterable[_Tier], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> _Reach:
    """For each threshold, the dearest input, output and call so far: a shorter prompt may still end in a lower tier."""
    reach = []
    dear_in = dear_out = fee = 0
    for above, table, _ in tiers:
        dear_in = max([dear_in, *(table[of] for of in inputs if of in table)])
        dear_out = max([dear_out, *(table[of] for of in outputs if of in table)])
        fee = max(fee, table.get("call", 0))
        reach.append((above, dear_in, dear_out, fee))
    return tuple(reach)
