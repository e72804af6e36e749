"""How models are shown: OpenAI's object and what price tables need."""

from decimal import Decimal
from typing import Any

import orjson

from ppq_proxy.catalog import Catalog

CHAT: dict[str, Any] = {
    "id": "openai/gpt-5-mini",
    "type": "chat",
    "name": "GPT-5 Mini",
    "context": 400_000,
    "max_output": 128_000,
    "created": "2025-08-07",
    "popular": True,
    "capabilities": ["sampling", "tools"],
    "modalities": {"in": ["text", "image"], "out": ["text"]},
    "prices": [
        {"of": "input", "unit": "mtok", "usd": "0.25"},
        {"of": "cache_read", "unit": "mtok", "usd": "0.025"},
        {"of": "output", "unit": "mtok", "usd": "2"},
    ],
}
VIDEO: dict[str, Any] = {
    "id": "kling",
    "type": "video",
    "provider": "kling",
    "margin": "0.15",
    "parameters": {"prompt": {"required": True}, "duration": {"values": ["5", "10"], "default": "5"}},
    "prices": [{"of": "call", "unit": "call", "usd": "0.25", "when": {"duration": "5"}}],
}


def shown(row: dict[str, Any], margin: str = "0.055") -> dict[str, Any]:
    catalog = Catalog.load({"margin": margin, "models": [row]})
    return catalog.public(catalog.offerings[0])


def test_PPQ_015_a_model_is_shown_as_openai_shows_one_with_attributes_and_pricing() -> None:
    model = shown(CHAT)
    assert (model["id"], model["object"], model["owned_by"]) == ("openai/gpt-5-mini", "model", "openai")
    assert model["created"] == 1_754_524_800
    assert model["created_at"] == 1_754_524_800_000
    assert (model["context_length"], model["max_output_tokens"], model["popular"]) == (400_000, 128_000, True)
    assert model["architecture"] == {"input_modalities": ["text", "image"], "output_modalities": ["text"]}


def test_PPQ_014_every_column_of_the_model_tables_can_be_filled() -> None:
    model = shown(CHAT)
    pricing = model["pricing"]
    columns = [model[name] for name in ("name", "id", "provider", "context_length", "created_at")]
    columns += [pricing["input_per_1M_tokens"], pricing["output_per_1M_tokens"]]
    columns += [model["averageCost"], model["promptsPer1Usd"]]
    assert all(columns)
    assert pricing["input_per_1M_tokens"] == 0.26375
    assert pricing["api"] == {"input_per_1M": 0.26375, "output_per_1M": 2.11}
    average = (1000 * Decimal("0.26375") + 500 * Decimal("2.11")) / 1_000_000
    assert Decimal(str(model["averageCost"])) == average
    assert model["promptsPer1Usd"] == int(1 / average)


def test_prices_are_shown_exactly_with_the_margin() -> None:
    pricing = shown(CHAT)["pricing"]
    assert pricing["prompt"] == "0.00000026375"
    assert pricing["completion"] == "0.00000211"
    assert pricing["input_cache_read"] == "0.000000026375"
    assert pricing["rates"][0] == {"of": "input", "unit": "mtok", "usd": "0.26375"}


def test_PPQ_070_a_model_says_which_parameters_it_takes() -> None:
    video = shown(VIDEO)
    assert video["parameters"] == VIDEO["parameters"]
    chat = shown(CHAT)
    assert chat["parameters"]["messages"] == {"required": True}
    assert chat["parameters"]["max_tokens"] == {"min": 1, "max": 128_000}
    assert {"tools", "temperature"} <= set(chat["supported_parameters"])
    assert "reasoning_effort" not in chat["parameters"]


def test_the_average_use_of_other_kinds_is_one_piece() -> None:
    model = shown(VIDEO)
    assert model["averageCost"] == 0.2875
    assert model["promptsPer1Usd"] == 3
    assert model["pricing"]["input_per_1M_tokens"] is None
    assert model["pricing"]["rates"] == [{"of": "call", "unit": "call", "usd": "0.2875", "when": {"duration": "5"}}]


def test_free_models_have_no_number_of_prompts() -> None:
    prices = [{"of": of, "unit": "mtok", "usd": "0"} for of in ("input", "output")]
    model = shown({**CHAT, "prices": prices, "free": True})
    assert (model["free"], model["averageCost"], model["promptsPer1Usd"]) == (True, 0, None)


def test_private_models_are_marked() -> None:
    model = shown({**CHAT, "id": "private/gpt-oss-120b", "private": True, "provider": "tinfoil"})
    assert (model["privacyLevel"], model["owned_by"]) == ("e2e", "tinfoil")
    assert "privacyLevel" not in shown(CHAT)


def test_the_list_is_json_and_does_not_change_between_calls() -> None:
    catalog = Catalog.load({"models": [CHAT, VIDEO]})
    first = orjson.dumps(catalog.listing("all"))
    assert orjson.dumps(catalog.listing("all")) == first
    assert [one["id"] for one in orjson.loads(first)["data"]] == ["openai/gpt-5-mini", "kling"]
    assert catalog.listing()["object"] == "list"
    assert len(catalog.listing()["data"]) == 1


def test_nothing_internal_is_shown() -> None:
    text = orjson.dumps(shown({**CHAT, "upstreams": [{"upstream": "secret-upstream", "model": "m"}]}))
    assert b"secret-upstream" not in text
