"""Selling what an upstream lists with prices."""

from typing import Any

import pytest

from ppq_proxy.catalog import Catalog, UnpricedModel


def listed(model: str, prompt: Any = "0.000001", completion: Any = "0.000002", **fields: Any) -> dict[str, Any]:
    more = fields.pop("pricing", {})
    return {"id": model, "pricing": {"prompt": prompt, "completion": completion, **more}, **fields}


def test_listed_models_are_sold_at_their_price_with_the_margin() -> None:
    row = listed(
        "openai/gpt-5",
        pricing={"input_cache_read": "0.0000001", "request": "0.005", "image": "0", "internal_reasoning": "0"},
        name="GPT-5",
        context_length=400_000,
        created=1_754_006_400,
        top_provider={"max_completion_tokens": 128_000},
        architecture={"input_modalities": ["text", "image"], "output_modalities": ["text"]},
    )
    catalog = Catalog.from_upstream([row], "0.055", "router")
    offering = catalog.resolve("gpt-5")
    assert (offering.name, offering.context, offering.max_output) == ("GPT-5", 400_000, 128_000)
    assert (offering.created, offering.provider) == ("2025-08-01", "openai")
    assert offering.upstreams == (("router", "openai/gpt-5"),)
    charge = offering.prices.charge({"input": 1_000, "cache_read": 1_000, "output": 1_000})
    assert charge == (1_000_000 + 100_000 + 2_000_000 + 5_000_000) * 1055 // 1000
    assert offering.prices.lines({"reasoning": 1})[0].usd == "2.11"


@pytest.mark.parametrize("written", ["0.00000025", "2.5e-7", "2.5E-07", 2.5e-07, " 0.00000025 "])
def test_small_prices_are_read_exactly_however_they_are_written(written: Any) -> None:
    offering = Catalog.from_upstream([listed("a", prompt=written)], "0").resolve("a")
    assert offering.prices.lines({"input": 1})[0].usd == "0.25"


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a"},
        {"id": "a", "pricing": None},
        {"id": "a", "pricing": {"prompt": "0.1"}},
        listed("a", prompt="-1", completion="-1"),
        listed("a", prompt="0"),
        listed("a", completion="0"),
        listed("a", prompt="0", completion="0", pricing={"request": "0.01"}),
        listed("a", prompt="variable"),
        listed("a", prompt=""),
        listed("a", prompt=True),
        listed("a", prompt="1e99"),
        listed("a", prompt="1e-99"),
        listed("a", prompt="NaN"),
        listed("a", architecture={"output_modalities": ["text", "image"]}),
        listed("a", architecture={"output_modalities": ["audio"]}),
        listed("x" * 300),
        listed("a\nb"),
        "a",
        None,
    ],
)
def test_what_has_no_usable_price_is_left_out_and_counted(row: Any) -> None:
    catalog = Catalog.from_upstream([row, listed("sold")], "0")
    assert [one.id for one in catalog.offerings] == ["sold"]
    assert catalog.left_out == 1
    if isinstance(row, dict):
        with pytest.raises(UnpricedModel):
            catalog.resolve(row["id"])


def test_free_is_only_what_costs_nothing_at_all() -> None:
    offering = Catalog.from_upstream([listed("a:free", "0", "0.0")], "0.055").resolve("a:free")
    assert offering.free
    assert offering.prices.charge({"input": 10**9, "output": 10**9}) == 0


def test_pictures_with_a_price_of_their_own_are_sold() -> None:
    row = listed("a", architecture={"output_modalities": ["text", "image"]}, pricing={"image_output": "0.00003"})
    assert Catalog.from_upstream([row], "0").resolve("a").prices.charge({"image_out": 1_000}) == 30_000_000


@pytest.mark.parametrize("rows", [None, {}, "models", [], [[]]])
def test_a_list_that_is_none_sells_nothing(rows: Any) -> None:
    assert Catalog.from_upstream(rows, "0").offerings == ()


def test_of_models_with_one_name_the_first_is_sold() -> None:
    catalog = Catalog.from_upstream([listed("a/m-1"), listed("a/m.1", prompt="0.5"), listed("a/m-1")], "0")
    assert [one.id for one in catalog.offerings] == ["a/m-1"]
    assert catalog.left_out == 2


def test_a_gateways_own_list_is_read_with_all_its_conditions() -> None:
    rows = [{"of": "input", "unit": "mtok", "usd": "6", "when": {"context_above": 200_000}}]
    rows += [
        {"of": of, "unit": "mtok", "usd": usd}
        for of, usd in (("input", "3"), ("cache_write_1h", "6"), ("output", "15"))
    ]
    first = Catalog.load({"margin": "0.055", "models": [{"id": "a/m", "type": "chat", "prices": rows}]})
    second = Catalog.from_upstream(first.listing()["data"], "0.1")
    for units in ({"input": 200_000, "output": 7}, {"input": 200_001}, {"cache_write_1h": 11}):
        lines = second.resolve("a/m").prices.charge(units)
        exact = sum(
            {"input": 3 if units.get("input", 0) <= 200_000 else 6, "output": 15, "cache_write_1h": 6}[of]
            * count
            * 1000
            for of, count in units.items()
        )
        assert lines == -(-exact * 11605 // 10000)
