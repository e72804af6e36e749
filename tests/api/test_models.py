"""GET /v1/models, as the requirements and as OpenAI's clients read it."""

from typing import Any

import pytest

from tests.api.refusals import refused
from tests.gateway.world import Customer, World, cost


async def listed(world: World, query: str = "", path: str = "/v1/models") -> dict[str, dict[str, Any]]:
    """The models of a list, by id."""
    answer = await world.http("GET", path + query)
    assert answer.status == 200, answer.body
    body = answer.json
    assert body["object"] == "list"
    rows: dict[str, dict[str, Any]] = {one["id"]: one for one in body["data"]}
    assert len(rows) == len(body["data"])
    return rows


async def test_PPQ_015_models_with_attributes_and_prices_without_credentials(world: World) -> None:
    one = (await listed(world))["anthropic/claude-sonnet-4.6"]
    assert one["object"] == "model" and one["owned_by"] == "anthropic" and one["created"] > 1_700_000_000
    assert one["context_length"] == 1_000_000 and one["max_output_tokens"] == 64_000
    assert one["pricing"]["input_per_1M_tokens"] == 1 and one["pricing"]["output_per_1M_tokens"] == 2
    assert one["pricing"]["api"] == {"input_per_1M": 1, "output_per_1M": 2}
    assert (one["pricing"]["prompt"], one["pricing"]["completion"]) == ("0.000001", "0.000002")
    assert "tools" in one["capabilities"] and "response_format" in one["parameters"]


async def test_PPQ_015_prices_are_those_that_are_charged(world: World, customer: Customer) -> None:
    rates = {rate["of"]: rate["usd"] for rate in (await listed(world))["test/margined"]["pricing"]["rates"]}
    assert rates == {"input": "1.055", "output": "2.11"}
    answer = await customer.chat("margined")
    assert answer.cost == cost(15, 8) * 1055 / 1000


async def test_PPQ_014_every_column_of_the_tables_can_be_filled(world: World) -> None:
    one = (await listed(world))["anthropic/claude-sonnet-4.6"]
    columns = {
        "Model Name": one["name"],
        "Model ID": one["id"],
        "Provider": one["provider"],
        "Max Context": one["context_length"],
        "Date Added": one["created_at"],
        "Input Rate": one["pricing"]["input_per_1M_tokens"],
        "Output Rate": one["pricing"]["output_per_1M_tokens"],
        "Average Cost": one["averageCost"],
        "Prompts / $1": one["promptsPer1Usd"],
    }
    assert all(value not in (None, "") for value in columns.values()), columns
    assert one["created_at"] == 1_771_286_400_000  # milliseconds: 2026-02-17
    assert one["averageCost"] == 0.002 and one["promptsPer1Usd"] == 500


async def test_PPQ_017_type_all_lists_every_kind_and_private_ids(world: World) -> None:
    everything = await listed(world, "?type=all")
    assert {one["type"] for one in everything.values()} == {"chat", "embedding", "image", "video", "audio", "data"}
    assert "private/story" in everything
    assert "private/story" not in await listed(world)


async def test_PPQ_018_comma_list_of_types(world: World) -> None:
    rows = await listed(world, "?type=image,video")
    assert set(rows) == {"test/picture", "test/clip"}
    assert rows["test/picture"]["pricing"]["rates"] == [{"of": "image", "unit": "image", "usd": "0.04"}]
    assert set(await listed(world, "?type=image,%20video")) == set(rows)


async def test_PPQ_019_type_embedding(world: World) -> None:
    assert set(await listed(world, "?type=embedding")) == {"test/words"}


async def test_PPQ_021_without_type_the_chat_models(world: World) -> None:
    rows = await listed(world)
    assert {one["type"] for one in rows.values()} == {"chat"}
    assert rows.keys() == (await listed(world, "?type=chat")).keys() == (await listed(world, "?type=")).keys()


async def test_a_model_without_a_price_is_not_listed(world: World) -> None:
    assert "test/no-price" not in await listed(world, "?type=all")
    refused(await world.http("GET", "/v1/models/test/no-price"), 404)


async def test_the_list_without_v1_is_the_same(world: World) -> None:
    assert await listed(world, path="/models") == await listed(world)


@pytest.mark.parametrize(
    "name",
    [
        "anthropic/claude-sonnet-4.6",
        "claude-sonnet-4.6",
        "claude-sonnet-4-6",
        "anthropic/claude-sonnet-4-6",
        "Claude-Sonnet-4.6",
    ],
)
@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_PPQ_025_one_model_by_any_of_its_names(world: World, prefix: str, name: str) -> None:
    answer = await world.http("GET", f"{prefix}/models/{name}")
    assert answer.status == 200 and answer.json["id"] == "anthropic/claude-sonnet-4.6"


async def test_one_model_with_an_escaped_slash(world: World) -> None:
    answer = await world.http("GET", "/v1/models/anthropic%2Fclaude-sonnet-4.6")
    assert answer.status == 200 and answer.json["id"] == "anthropic/claude-sonnet-4.6"


async def test_an_unknown_model_or_type(world: World) -> None:
    refused(await world.http("GET", "/v1/models/test/stori"), 404, "stori", param="model")
    refused(await world.http("GET", "/v1/models?type=smell"), 400, "smell", "chat", "image", param="type")
