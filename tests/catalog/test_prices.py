"""Charges are exact: the sum of units times price as fractions, rounded up once."""

import math
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.catalog.prices import (
    CONTAINED_IN,
    INPUT_CLASSES,
    NANO,
    OUTPUT_CLASSES,
    SCALE,
    UNITS_OF,
    PriceError,
    Prices,
    UnpricedUnits,
)

amounts = st.decimals(min_value="0.000000000001", max_value="99999", places=12, allow_nan=False).map(lambda d: f"{d:f}")
margins = st.sampled_from(["0", "0.055", "0.15", "0.1", "1.25", "0.000000001", "-0.5"])
counts = st.integers(min_value=0, max_value=10**9)


@st.composite
def priced(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str]:
    """Plain prices of some classes, always with input and output, and a margin."""
    classes = {"input", "output", *draw(st.sets(st.sampled_from(sorted(UNITS_OF)), max_size=6))} - {"call"}
    rows = [{"of": of, "unit": draw(st.sampled_from(UNITS_OF[of])), "usd": draw(amounts)} for of in sorted(classes)]
    return rows, draw(margins)


def exact(rows: list[dict[str, Any]], margin: str, units: dict[str, int]) -> Fraction:
    """The charge in nano-USD before rounding, by the rule in words."""
    table = {row["of"]: row for row in rows}
    total = Fraction(0)
    for of, count in units.items():
        row = table.get(of) or table[CONTAINED_IN[of]]
        total += Fraction(row["usd"]) * (1 + Fraction(margin)) * count / SCALE[row["unit"]] * NANO
    return total


@given(priced(), st.data())
def test_a_charge_is_the_exact_sum_rounded_up_once(
    price: tuple[list[dict[str, Any]], str], data: st.DataObject
) -> None:
    rows, margin = price
    classes = [row["of"] for row in rows] + list(CONTAINED_IN)
    units = data.draw(st.dictionaries(st.sampled_from(classes), counts, max_size=8))
    assert Prices.parse(rows, margin).charge(units) == math.ceil(exact(rows, margin, units))


@given(priced(), st.data())
def test_the_lines_of_a_receipt_add_up_to_the_charge(
    price: tuple[list[dict[str, Any]], str], data: st.DataObject
) -> None:
    rows, margin = price
    prices = Prices.parse(rows, margin)
    units = data.draw(st.dictionaries(st.sampled_from([row["of"] for row in rows]), counts, max_size=8))
    lines = prices.lines(units)
    total = sum((Fraction(line.usd) * line.counted / SCALE[line.unit] for line in lines), Fraction(0))
    assert math.ceil(total * NANO) == prices.charge(units)
    assert {line.of for line in lines} == {of for of, count in units.items() if count}


@given(priced(), counts, counts, st.data())
def test_no_split_costs_more_than_the_bound(
    price: tuple[list[dict[str, Any]], str], given_in: int, given_out: int, data: st.DataObject
) -> None:
    rows, margin = price
    steps = [
        {"of": "input", "unit": "mtok", "usd": data.draw(amounts), "when": {"context_above": above}}
        for above in data.draw(st.sets(st.sampled_from([0, 1000, 200_000, 10**8]), max_size=3))
    ]
    prices = Prices.parse(rows + steps, margin)
    units = {**split(given_in, INPUT_CLASSES, data), **split(given_out, OUTPUT_CLASSES, data)}
    bound = prices.bound(given_in, given_out)
    assert prices.charge(units) <= bound
    assert prices.charge({"input": given_in, "output": given_out}) <= bound
    narrow = prices.bound(given_in, given_out, inputs=("input",), outputs=("output",))
    assert prices.charge({"input": given_in, "output": given_out}) <= narrow <= bound


def split(total: int, classes: tuple[str, ...], data: st.DataObject) -> dict[str, int]:
    """A way to split tokens into classes."""
    parts = {}
    for of in classes[:-1]:
        parts[of] = data.draw(st.integers(min_value=0, max_value=total))
        total -= parts[of]
    return {**parts, classes[-1]: total}


@given(priced(), counts, st.integers(min_value=0, max_value=10**15))
def test_affordable_output_is_the_most_that_fits(
    price: tuple[list[dict[str, Any]], str], tokens: int, nano: int
) -> None:
    prices = Prices.parse(*price)
    most = prices.affordable_output(nano, tokens)
    assert most is not None
    if most < 0:
        assert prices.bound(tokens, 0) > nano
    else:
        assert prices.bound(tokens, most) <= nano < prices.bound(tokens, most + 1)


def chat(**more: str) -> list[dict[str, Any]]:
    usd = {"input": "1", "output": "2", **more}
    return [{"of": of, "unit": "mtok", "usd": price} for of, price in usd.items()]


def test_known_charges() -> None:
    prices = Prices.parse(chat(input="1.0014", output="2.00005"), "0.055")
    assert prices.charge({"input": 12, "output": 40}) == 97_080  # 12 * 1056.477 + 40 * 2110.05275 nano-USD
    assert prices.charge({"input": 1}) == 1_057
    assert prices.charge({}) == 0
    assert prices.lines({"input": 12, "output": 0})[0] == ("input", 12, "1.056477", "mtok")


def test_classes_without_a_price_are_charged_as_the_one_that_contains_them() -> None:
    prices = Prices.parse(chat(cache_read="0.1"))
    for of in INPUT_CLASSES:
        assert prices.charge({of: 1_000_000}) == (NANO // 10 if of == "cache_read" else NANO), of
    for of in OUTPUT_CLASSES:
        assert prices.charge({of: 1_000_000}) == 2 * NANO, of
    assert prices.lines({"reasoning": 5}) == [("reasoning", 5, "2", "mtok")]


def test_what_has_no_price_is_refused_rather_than_given_away() -> None:
    prices = Prices.parse(chat())
    assert prices.charge({"image": 0, "input": 5}) == 5_000
    for units in ({"image": 1}, {"no such class": 1}):
        with pytest.raises(UnpricedUnits):
            prices.charge(units)
        with pytest.raises(UnpricedUnits):
            prices.lines(units)


def test_counts_that_are_none_are_refused() -> None:
    prices = Prices.parse(chat())
    with pytest.raises(ValueError, match="-1 units"):
        prices.charge({"input": -1})
    with pytest.raises(TypeError):
        prices.charge({"input": 1.5})  # type: ignore[dict-item]


def test_a_tier_holds_for_the_whole_prompt_once_it_is_passed() -> None:
    rows = [*chat(), {"of": "input", "unit": "mtok", "usd": "3", "when": {"context_above": 200_000}}]
    prices = Prices.parse(rows)
    assert prices.charge({"input": 200_000}) == 200_000 * 1_000
    assert prices.charge({"input": 200_001}) == 200_001 * 3_000
    assert prices.charge({"input": 1, "cache_read": 200_000}) == 200_001 * 3_000
    assert prices.charge({"input": 10}, {"context": 200_001}) == 30_000
    assert prices.bound(200_000, 0) == 200_000 * 1_000
    assert prices.bound(200_001, 0) == 200_001 * 3_000
    assert prices.lines({"input": 200_001})[0].usd == "3"


def test_conditions_choose_the_most_specific_price() -> None:
    def image(usd: str, **when: str) -> dict[str, Any]:
        return {"of": "image", "unit": "image", "usd": usd, **({"when": when} if when else {})}

    prices = Prices.parse(
        [image("0.4"), image("0.1", quality="low"), image("0.2", quality="low", size="1024x1536")], "0.15"
    )
    assert prices.charge({"image": 1}) == 460_000_000
    assert prices.charge({"image": 1}, {"quality": "high"}) == 460_000_000
    assert prices.charge({"image": 2}, {"quality": "low"}) == 230_000_000
    assert prices.charge({"image": 1}, {"quality": "low", "size": "1024x1536"}) == 230_000_000
    assert prices.lines({"image": 1}, {"quality": "low"}) == [("image", 1, "0.115", "image")]


def test_a_call_is_charged_once_and_only_in_the_variants_that_are_sold() -> None:
    flat = Prices.parse([*chat(), {"of": "call", "unit": "call", "usd": "0.01"}])
    assert flat.charge({"input": 1_000}) == 10_000_000 + 1_000_000
    assert flat.charge({"input": 1_000, "call": 3}) == 30_000_000 + 1_000_000
    assert flat.bound(1_000, 0) == 11_000_000
    assert ("call", 1, "0.01", "call") in flat.lines({"input": 1})
    video = Prices.parse([{"of": "call", "unit": "call", "usd": "0.2875", "when": {"duration": "5"}}])
    assert video.charge({}, {"duration": "5"}) == 287_500_000
    for variant in (None, {"duration": "7"}):
        with pytest.raises(UnpricedUnits):
            video.charge({}, variant)


def test_seconds_and_hours_are_counted_in_milliseconds() -> None:
    assert Prices.parse([{"of": "second", "unit": "second", "usd": "0.0001"}]).charge({"second": 60_000}) == 6_000_000
    assert Prices.parse([{"of": "second", "unit": "hour", "usd": "3.6"}]).charge({"second": 1}) == 1_000


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"of": "inputs", "unit": "mtok", "usd": "1"}, "prices[0].of"),
        ({"of": "input", "unit": "second", "usd": "1"}, "prices[0].unit"),
        ({"of": "input", "unit": "mtok", "usd": 1.5}, "prices[0].usd"),
        ({"of": "input", "unit": "mtok", "usd": "-1"}, "prices[0].usd"),
        ({"of": "input", "unit": "mtok", "usd": "1e-3"}, "prices[0].usd"),
        ({"of": "input", "unit": "mtok", "usd": "NaN"}, "prices[0].usd"),
        ({"of": "input", "unit": "mtok", "usd": "\u0661"}, "prices[0].usd"),
        ({"of": "input", "unit": "mtok", "usd": "0"}, "prices[0].usd"),
        ({"of": "input", "unit": "mtok"}, "prices[0].usd"),
        ({"of": "input", "unit": "mtok", "usd": "1", "per": "day"}, "prices[0].per"),
        ({"of": "input", "unit": "mtok", "usd": "1", "when": {}}, "prices[0].when"),
        ({"of": "input", "unit": "mtok", "usd": "1", "when": {"colour": "red"}}, "prices[0].when.colour"),
        (
            {"of": "input", "unit": "mtok", "usd": "1", "when": {"context_above": "many"}},
            "prices[0].when.context_above",
        ),
        ({"of": "input", "unit": "mtok", "usd": "1", "when": {"size": "1K"}}, "prices[0].when.size"),
        ("1", "prices[0]"),
    ],
)
def test_a_wrong_price_is_refused_by_its_place(row: Any, field: str) -> None:
    with pytest.raises(PriceError) as caught:
        Prices.parse([row])
    assert caught.value.field == field


def test_two_prices_for_the_same_are_refused() -> None:
    with pytest.raises(PriceError, match="already"):
        Prices.parse([*chat(), *chat()])


def test_zero_needs_free_and_free_needs_zero() -> None:
    zero = [{"of": "input", "unit": "mtok", "usd": "0"}]
    assert Prices.parse(zero, free=True).charge({"input": 10**9}) == 0
    assert Prices.parse(zero, free=True).affordable_output(0, 5) is None
    with pytest.raises(PriceError, match="zero"):
        Prices.parse(zero)
    with pytest.raises(PriceError, match="above zero"):
        Prices.parse(chat(), free=True)


@pytest.mark.parametrize("margin", ["-1", "5%", "", "1e3", 0.055])
def test_a_wrong_margin_is_refused(margin: Any) -> None:
    with pytest.raises(PriceError):
        Prices.parse(chat(), margin)


def test_charging_a_chat_takes_microseconds() -> None:
    prices = Prices.parse(chat(input="1.0014", output="2.00005"), "0.055")
    units = {"input": 1200, "output": 400}
    best = min(timed(lambda: [prices.charge(units) for _ in range(2_000)]) for _ in range(5)) / 2_000
    assert best < 10e-6, f"{best * 1e6:.1f} µs: the usual is 0.4"


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
