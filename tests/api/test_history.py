"""GET /queries/history and the receipts."""

import asyncio
import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from tests.api.refusals import refused
from tests.gateway.wire import Answer
from tests.gateway.world import Customer, World, cost

FIELDS = {
    "timestamp", "model", "input_count", "output_count", "price_in_usd", "query_type", "query_source", "api_key_id",
    "isOnline", "isFreeModel",
}  # fmt: skip


async def history(world: World, query: str = "", key: str | None = None, **headers: str) -> Answer:
    """An answer of the history; `api_key="…"` among the headers is `api-key`."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await world.http("GET", f"/queries/history{query}", key=key, headers=given)


async def rows(world: World, query: str = "", key: str | None = None, **headers: str) -> list[dict[str, Any]]:
    """The records of one page."""
    answer = await history(world, query, key, **headers)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["data"]
    return found


class Shop:
    """An account with two keys: `first` made three calls, `second` two."""

    def __init__(self, customer: Customer, second: dict[str, Any]) -> None:
        self.customer, self.credit_id, self.first = customer, customer.credit_id, customer.key
        self.second, self.second_id = str(second["api_key"]), str(second["_id"])


@pytest.fixture
async def shop(world: World, customer: Customer) -> Shop:
    made = await world.http("POST", "/keys", {"name": "second"}, headers={"x-credit-id": customer.credit_id})
    one = Shop(customer, made.json["data"])
    for key, model in (
        (one.first, "story"),
        (one.first, "mid"),
        (one.first, "gift"),
        (one.second, "story"),
        (one.second, "mid"),
    ):
        assert (await world.chat(key, model, max_tokens=8)).status == 200
    return one


async def test_PPQ_172_PPQ_181_PPQ_182_a_record_of_a_call(world: World, customer: Customer) -> None:
    answer = await customer.chat()
    page = (await history(world, key=customer.key)).json
    assert set(page) == {"status", "data", "pagination"} and page["status"] == "success"
    (record,) = page["data"]
    assert set(record) >= FIELDS
    assert record["model"] == "test/story" and record["request_id"] == answer.request_id
    assert (record["input_count"], record["output_count"]) == (15, 8)
    assert Decimal(str(record["price_in_usd"])) == cost(15, 8)
    assert (record["query_type"], record["query_source"]) == ("chat", "api")
    assert record["isOnline"] is False and record["isFreeModel"] is False
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["timestamp"])
    keys = (await world.http("GET", "/keys", headers={"x-credit-id": customer.credit_id})).json["data"]
    assert record["api_key_id"] == keys[0]["_id"]


async def test_PPQ_182_prices_are_numbers_with_all_their_digits(world: World, customer: Customer) -> None:
    await customer.chat("margined")
    answer = await history(world, key=customer.key)
    assert b'"price_in_usd":0.000032705' in answer.body


async def test_PPQ_182_a_free_model_is_marked(world: World, shop: Shop) -> None:
    free = {one["model"]: one["isFreeModel"] for one in await rows(world, key=shop.first)}
    assert free == {"test/story": False, "test/mid": False, "test/gift": True}


async def test_PPQ_173_every_credential(world: World, shop: Shop) -> None:
    assert len(await rows(world, key=shop.first)) == 3
    assert len(await rows(world, api_key=shop.first)) == 3
    assert len(await rows(world, x_api_key=shop.first)) == 3
    assert len(await rows(world, f"?credit_id={shop.credit_id}")) == 5
    assert len(await rows(world, x_credit_id=shop.credit_id)) == 5
    refused(await history(world), 401, "Bearer")
    refused(await history(world, key="sk-wrong"), 401, "key")
    refused(await history(world, "?credit_id=wrong"), 401, "credit id")


async def test_PPQ_174_PPQ_175_a_key_sees_its_own_or_all(world: World, shop: Shop) -> None:
    assert {one["model"] for one in await rows(world, key=shop.second)} == {"test/story", "test/mid"}
    assert len(await rows(world, key=shop.second)) == 2
    for word in ("true", "True", "1"):
        assert len(await rows(world, f"?all_keys={word}", key=shop.second)) == 5
    assert len(await rows(world, "?all_keys=false", key=shop.second)) == 2
    refused(await history(world, "?all_keys=yes", key=shop.second), 400, param="all_keys")
    refused(await history(world, f"?credit_id={shop.credit_id}&all_keys=true"), 400, "API key", param="all_keys")


async def test_PPQ_174_a_key_goes_before_the_header_of_the_account(world: World, shop: Shop) -> None:
    assert len(await rows(world, key=shop.second, x_credit_id=shop.credit_id)) == 2
    assert len(await rows(world, "?all_keys=true", key=shop.second, x_credit_id=shop.credit_id)) == 5


async def test_PPQ_176_a_credit_id_may_choose_a_key(world: World, shop: Shop) -> None:
    by_value = await rows(world, f"?credit_id={shop.credit_id}&api_key={shop.second}")
    assert len(by_value) == 2 and {one["api_key_id"] for one in by_value} == {shop.second_id}
    assert await rows(world, f"?credit_id={shop.credit_id}&api_key={shop.second_id}") == by_value
    refused(await history(world, f"?api_key={shop.second}", key=shop.first), 400, "credit id", param="api_key")
    stranger = await world.customer()
    for wrong in ("sk-nobody", stranger.key, "aaaaaaaaaaaaaaaaaaaaaaaa"):
        refused(await history(world, f"?credit_id={shop.credit_id}&api_key={wrong}"), 404, "no such key")


async def test_PPQ_176_the_calls_of_a_revoked_key_are_found_by_its_id(world: World, shop: Shop) -> None:
    await world.http("DELETE", f"/keys/{shop.second_id}", headers={"x-credit-id": shop.credit_id})
    assert len(await rows(world, f"?credit_id={shop.credit_id}&api_key={shop.second_id}")) == 2
    assert len(await rows(world, f"?credit_id={shop.credit_id}")) == 5


async def test_PPQ_177_dates_are_inclusive_on_both_ends(world: World, customer: Customer) -> None:
    for _ in range(3):
        await customer.chat()
        await asyncio.sleep(0.005)
    last, middle, first = await rows(world, key=customer.key)
    assert last["timestamp"] > middle["timestamp"] > first["timestamp"]
    at = middle["timestamp"]
    assert await rows(world, f"?start_date={at}", customer.key) == [last, middle]
    assert await rows(world, f"?end_date={at}", customer.key) == [middle, first]
    assert await rows(world, f"?start_date={at}&end_date={at}", customer.key) == [middle]
    later = (datetime.fromisoformat(at) + timedelta(milliseconds=1)).isoformat()
    assert await rows(world, f"?start_date={quote(later)}", customer.key) == [last]
    assert await rows(world, f"?start_date={later}", customer.key) == [last], "an unescaped + in a zone is understood"
    assert await rows(world, f"?start_date={at}&end_date={first['timestamp']}", customer.key) == []


async def test_PPQ_177_a_bare_date_is_its_whole_day(world: World, customer: Customer) -> None:
    await customer.chat()
    (record,) = await rows(world, key=customer.key)
    day = datetime.fromisoformat(record["timestamp"]).date()
    before, after = day - timedelta(days=1), day + timedelta(days=1)
    for query, count in (
        (f"start_date={day}", 1), (f"end_date={day}", 1), (f"start_date={day}&end_date={day}", 1),
        (f"start_date={after}", 0), (f"end_date={before}", 0),
    ):  # fmt: skip
        assert len(await rows(world, f"?{query}", customer.key)) == count, query


async def test_PPQ_178_filters(world: World, shop: Shop) -> None:
    for query, count in (
        ("model=test/story", 2), ("model=test/mid&query_type=chat", 2), ("model=test/nothing", 0), ("query_type=chat", 5),
        ("query_type=image", 0), ("query_source=api", 5), ("query_source=web", 0), ("model=test/mid&query_source=api", 2),
    ):  # fmt: skip
        answer = await history(world, f"?credit_id={shop.credit_id}&{query}")
        assert len(answer.json["data"]) == answer.json["pagination"]["total"] == count, query


async def test_PPQ_179_PPQ_180_PPQ_183_PPQ_184_pages(world: World, customer: Customer) -> None:
    answers = [await customer.chat() for _ in range(23)]
    newest_first = [one.request_id for one in reversed(answers)]

    async def page(query: str) -> tuple[list[str], dict[str, int]]:
        body = (await history(world, query, customer.key)).json
        return [one["request_id"] for one in body["data"]], body["pagination"]

    assert await page("") == (newest_first[:20], {"page": 1, "page_count": 20, "total": 23, "total_pages": 2})
    assert await page("?page=1&page_count=20") == await page("")
    assert await page("?page=2") == (newest_first[20:], {"page": 2, "page_count": 20, "total": 23, "total_pages": 2})
    assert await page("?page=3&page_count=10") == (
        newest_first[20:],
        {"page": 3, "page_count": 10, "total": 23, "total_pages": 3},
    )
    assert await page("?page=9&page_count=100") == ([], {"page": 9, "page_count": 100, "total": 23, "total_pages": 1})


async def test_PPQ_183_an_account_without_calls(world: World, customer: Customer) -> None:
    page = (await history(world, key=customer.key)).json
    assert page == {
        "status": "success",
        "data": [],
        "pagination": {"page": 1, "page_count": 20, "total": 0, "total_pages": 0},
    }


BAD = {
    "page": ("0", "-1", "x", "", "1.5", "9999999999", "%31e3", "%C2%B2"),
    "page_count": ("0", "101", "-5", "x", "", "1e2"),
    "start_date": ("yesterday", "", "2026-13-01", "5", "2026-01-01T99:00:00Z", "0" * 50),
    "end_date": ("tomorrow", "", "2026-02-30", "%00%00%00%00%00%00%00%00"),
    "all_keys": ("", "yes", "2"),
}


@pytest.mark.parametrize("name", BAD)
async def test_PPQ_180_bad_parameters_are_named(world: World, customer: Customer, name: str) -> None:
    for value in BAD[name]:
        refused(await history(world, f"?{name}={value}", customer.key), 400, name, param=name)


async def test_a_receipt_explains_its_charge(world: World, customer: Customer) -> None:
    answer = await customer.chat("margined")
    receipt = await customer.receipt(answer.request_id)
    assert receipt["units"] == {"input": 15, "output": 8} and receipt["usage_source"] == "upstream"
    prices = {one["of"]: Decimal(one["usd"]) for one in receipt["prices"]}
    assert prices == {"input": Decimal("1.055"), "output": Decimal("2.11")}
    due = sum(count * prices[of] for of, count in receipt["units"].items()) / 10**6
    assert Decimal(receipt["cost_usd"]) == due == answer.cost
    assert receipt["attempts"] == [{"upstream": "default"}] and receipt["catalogue"]
    assert receipt["request_id"] == answer.request_id and receipt["model"] == "test/margined"
    assert await world.cli("explain", answer.request_id) == orjson.loads(
        (await world.http("GET", f"/v1/requests/{answer.request_id}", key=customer.key)).body
    )


async def test_a_receipt_is_for_whoever_paid(world: World, shop: Shop) -> None:
    answer = await shop.customer.chat()
    path = f"/v1/requests/{answer.request_id}"
    assert (await world.http("GET", path, key=shop.first)).status == 200
    assert (await world.http("GET", path, headers={"x-credit-id": shop.credit_id})).status == 200
    refused(await world.http("GET", path, key=shop.second), 404)
    refused(await world.http("GET", path, key=(await world.customer()).key), 404)
    refused(await world.http("GET", path), 401)
    refused(await world.http("GET", "/v1/requests/req-nothing", key=shop.first), 404)
    refused(await world.http("GET", "/v1/requests/%00%ff", key=shop.first), 404)


async def test_the_receipt_of_a_call_that_cost_nothing_does_not_exist(world: World, customer: Customer) -> None:
    answer = await customer.chat("status-500")
    refused(answer, 503)
    refused(await world.http("GET", f"/v1/requests/{answer.request_id}", key=customer.key), 404)
    assert await rows(world, key=customer.key) == []
