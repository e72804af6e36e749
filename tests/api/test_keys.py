"""The /keys family, line by line of the requirements."""

import asyncio
import json
import re
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pytest

from tests.api.refusals import costs_nothing, refused
from tests.gateway.wire import Answer
from tests.gateway.world import Customer, World, cost

LISTED = {
    "_id", "name", "usage_limit_usd", "current_period_usage_usd", "total_usage_all_time_usd", "reset_period", "reset_at",
    "expire_at", "created_at", "updated_at", "deleted_at",
}  # fmt: skip
MADE = {"_id", "name", "api_key", "usage_limit_usd", "reset_period", "reset_at", "expire_at", "created_at"}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
NOBODY = "00000000-0000-4000-8000-000000000000"


class Keys:
    """The keys of a customer, over HTTP."""

    def __init__(self, world: World, customer: Customer) -> None:
        self.world, self.head = world, {"x-credit-id": customer.credit_id}

    async def http(self, method: str, path: str = "", body: Any = None) -> Answer:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return await self.world.http(method, f"/keys{path}", content, headers=self.head)

    async def data(self, method: str, path: str = "", body: Any = None) -> Any:
        answer = await self.http(method, path, body)
        assert answer.status == 200, answer.body
        found = orjson.loads(answer.body)
        assert found["status"] == "success" and set(found) == {"status", "data"}
        return found["data"]

    async def make(self, name: str = "made", **fields: Any) -> dict[str, Any]:
        made: dict[str, Any] = await self.data("POST", body={"name": name, **fields})
        return made

    async def row(self, key_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.data("GET", f"/{key_id}")
        return found


@pytest.fixture
def keys(world: World, customer: Customer) -> Keys:
    return Keys(world, customer)


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_PPQ_197_PPQ_196_PPQ_191_the_documented_creation(world: World, keys: Keys) -> None:
    body = b'{"name":"my-app-key","usage_limit_usd":10.00,"reset_period":"monthly","expire_at":"2099-01-01T00:00:00Z"}'
    made = await keys.data("POST", body=body)
    assert set(made) == MADE
    assert re.fullmatch(r"[0-9a-f]{24}", made["_id"]) and made["api_key"].startswith("sk-")
    assert (made["name"], made["usage_limit_usd"], made["reset_period"]) == ("my-app-key", 10, "monthly")
    assert made["expire_at"] == "2099-01-01T00:00:00.000Z"
    assert ISO.fullmatch(made["created_at"]) and ISO.fullmatch(made["reset_at"])
    assert (await world.chat(made["api_key"])).status == 200


async def test_PPQ_186_PPQ_189_the_list_and_its_fields(keys: Keys, customer: Customer) -> None:
    await keys.make("plain")
    rows = await keys.data("GET")
    assert [one["name"] for one in rows] == ["Default", "plain"]
    for one in rows:
        assert set(one) >= LISTED and "api_key" not in one
        assert (
            one["usage_limit_usd"]
            is one["reset_period"]
            is one["reset_at"]
            is one["expire_at"]
            is one["deleted_at"]
            is None
        )
        assert one["current_period_usage_usd"] == one["total_usage_all_time_usd"] == 0


async def test_PPQ_187_revoked_keys_are_listed_on_request(keys: Keys) -> None:
    made = await keys.make()
    await keys.http("DELETE", f"/{made['_id']}")
    assert [one["name"] for one in await keys.data("GET")] == ["Default"]
    assert [one["name"] for one in await keys.data("GET", "?include_disabled=false")] == ["Default"]
    rows = await keys.data("GET", "?include_disabled=true")
    assert [(one["name"], bool(one["deleted_at"])) for one in rows] == [("Default", False), ("made", True)]


async def test_PPQ_188_PPQ_191_values_are_shown_on_request_only(keys: Keys, customer: Customer) -> None:
    made = await keys.make()
    for query in ("", "?show_key=false", "?show_key=0"):
        assert not any("api_key" in one for one in await keys.data("GET", query))
        assert "api_key" not in await keys.data("GET", f"/{made['_id']}{query}")
    values = {one["name"]: one["api_key"] for one in await keys.data("GET", "?show_key=true")}
    assert values == {"Default": customer.key, "made": made["api_key"]}


async def test_PPQ_198_one_key(keys: Keys) -> None:
    made = await keys.make()
    one = await keys.data("GET", f"/{made['_id']}?show_key=true")
    assert set(one) >= {"_id", "name", "api_key", "created_at", "updated_at", "deleted_at"}
    assert one["api_key"] == made["api_key"] and one["deleted_at"] is None
    assert set(one) >= LISTED
    refused(await keys.http("GET", "/aaaaaaaaaaaaaaaaaaaaaaaa"), 404)
    refused(await keys.http("GET", f"/{made['_id']}?show_key=maybe"), 400, "true or false", param="show_key")


async def test_PPQ_007_PPQ_185_every_path_needs_the_credit_id(world: World, keys: Keys, customer: Customer) -> None:
    made = await keys.make()
    for method, path in (
        ("GET", "/keys"), ("POST", "/keys"), ("GET", f"/keys/{made['_id']}"), ("PATCH", f"/keys/{made['_id']}"),
        ("DELETE", f"/keys/{made['_id']}"),
    ):  # fmt: skip
        refused(await world.http(method, path, {"name": "x"}), 401, "x-credit-id")
        refused(await world.http(method, path, {"name": "x"}, customer.key), 401, "x-credit-id")
        refused(await world.http(method, path, {"name": "x"}, headers={"x-credit-id": NOBODY}), 401, "credit id")
    assert (await keys.row(made["_id"]))["deleted_at"] is None


async def test_PPQ_185_a_strangers_key_does_not_exist(world: World, keys: Keys) -> None:
    made = await keys.make()
    stranger = {"x-credit-id": (await world.customer()).credit_id}
    for method in ("GET", "PATCH", "DELETE"):
        refused(await world.http(method, f"/keys/{made['_id']}", {"name": "stolen"}, headers=stranger), 404)
    assert (await keys.row(made["_id"]))["name"] == "made"
    assert (await world.chat(made["api_key"])).status == 200


async def test_PPQ_192_a_name_is_unique_in_its_account_only(world: World, keys: Keys) -> None:
    await keys.make("mine")
    refused(await keys.http("POST", body={"name": "mine"}), 400, "mine", "unique", param="name")
    other = Keys(world, await world.customer())
    assert (await other.make("mine"))["name"] == "mine"


async def test_PPQ_192_the_name_of_a_revoked_key_is_free_again(keys: Keys) -> None:
    first = await keys.make("again")
    await keys.http("DELETE", f"/{first['_id']}")
    assert (await keys.make("again"))["_id"] != first["_id"]


async def test_PPQ_192_twenty_at_once_with_one_name_are_one_key(keys: Keys) -> None:
    answers = await asyncio.gather(*(keys.http("POST", body={"name": "race"}) for _ in range(20)))
    assert sorted(one.status for one in answers) == [200] + 19 * [400]


NAMES = ["x", "x" * 25, "ä€🙂 key", "a b", "0", "Ω" * 25]
BAD_NAMES: list[Any] = ["", " ", "x" * 26, None, 5, ["x"], {}, True, "a\nb", "\u0000", "Ω" * 26]


@pytest.mark.parametrize("name", NAMES)
async def test_PPQ_192_names_of_1_to_25_characters(keys: Keys, name: str) -> None:
    assert (await keys.make(name))["name"] == name


BAD_VALUES: dict[str, list[Any]] = {
    "usage_limit_usd": [0.009, 0, -1, "much", True, [], {}, "NaN", 1e300, "1e400", "", "0.001"],
    "reset_period": ["hourly", "Daily", "", 1, True, ["daily"], {}],
    "expire_at": [
        *(
            "2001-01-01T00:00:00Z",
            "tomorrow",
            "",
            5,
            True,
            [],
            "2027-13-01",
            "2027-02-30T00:00:00Z",
            "2027-01-01T25:00:00Z",
        ),
        *("9999999999", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"),
    ],
    "requests_per_minute": [0, -1, 1.5, "7", True, [], 10**30],
    "tokens_per_minute": [0, -1, 1.5, "7", True, {}, 10**30],
    "usage_limit": [5],
    "api_key": ["sk-chosen-by-me"],
}
BAD: list[tuple[dict[str, Any], str]] = [
    *(({"name": name}, "name") for name in BAD_NAMES),
    *(
        ({"name": "x", "usage_limit_usd": 1, field: bad}, field)
        for field, values in BAD_VALUES.items()
        for bad in values
    ),
    ({}, "name"),
    ({"usage_limit_usd": 1}, "name"),
    ({"name": "x", "reset_period": "daily"}, "reset_period"),
    ({"name": "x", "usage_limit_usd": None, "reset_period": "daily"}, "reset_period"),
]


async def test_PPQ_192_PPQ_193_PPQ_194_PPQ_195_bad_fields_make_no_key(keys: Keys) -> None:
    for body, param in BAD:
        answer = await keys.http("POST", body=body)
        try:
            refused(answer, 400, param, param=param)
        except AssertionError as problem:
            raise AssertionError(f"{body}: {problem}") from None
    assert len(await keys.data("GET", "?include_disabled=true")) == 1


async def test_PPQ_202_bad_changes_change_nothing(keys: Keys) -> None:
    made = await keys.make("steady", usage_limit_usd=5, reset_period="daily")
    before = await keys.row(made["_id"])
    for body, param in BAD:
        if "name" not in body or body == {"name": "x", "reset_period": "daily"}:
            continue
        answer = await keys.http("PATCH", f"/{made['_id']}", body)
        try:
            refused(answer, 400, param, param=param)
        except AssertionError as problem:
            raise AssertionError(f"{body}: {problem}") from None
    refused(await keys.http("PATCH", f"/{made['_id']}", {"name": "Default"}), 400, "Default", "unique", param="name")
    assert await keys.row(made["_id"]) == before


async def test_PPQ_185_bodies_that_are_no_object(keys: Keys) -> None:
    made = await keys.make()
    for body in (b"[]", b"null", b'"x"', b"5"):
        refused(await keys.http("POST", body=body), 400, "object")
        refused(await keys.http("PATCH", f"/{made['_id']}", body), 400, "object")
    for body in (b"{", b"\xff", b'{"name": "x"} x', b'{"name": NaN}'):
        refused(await keys.http("POST", body=body), 400, "JSON")
    refused(await keys.http("POST", body=b" " * 100_000), 413)


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (0.01, "0.01"),
        (10, "10"),
        (0.1 + 0.2, "0.3"),
        (1.123456789, "1.123456789"),
        (2.9999999999999996, "2.999999999"),
        ("7.5", "7.5"),
    ],
)
async def test_PPQ_193_limits_are_dollars_rounded_down_to_what_is_counted(keys: Keys, given: Any, limit: str) -> None:
    made = await keys.make(usage_limit_usd=given)
    assert Decimal(str(made["usage_limit_usd"])) == Decimal(limit)


async def test_PPQ_193_no_limit_or_null_is_unlimited(keys: Keys) -> None:
    for name, fields in (("a", {}), ("b", {"usage_limit_usd": None})):
        assert (await keys.make(name, **fields))["usage_limit_usd"] is None


@pytest.mark.parametrize("period", ["daily", "weekly", "monthly"])
async def test_PPQ_194_reset_at_is_the_next_start_of_the_period(keys: Keys, period: str) -> None:
    before = datetime.now(UTC)
    made = await keys.make(usage_limit_usd=1, reset_period=period)
    at = datetime.fromisoformat(made["reset_at"])
    assert at > before and (at.hour, at.minute, at.second, at.microsecond) == (0, 0, 0, 0)
    today = before.replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "daily":
            assert at - today == timedelta(days=1)
        case "weekly":
            assert at.weekday() == 0 and at - today <= timedelta(days=7)
        case "monthly":
            assert at.day == 1 and at - today <= timedelta(days=31)


async def test_PPQ_195_PPQ_208_an_expired_key_is_refused(world: World, keys: Keys, customer: Customer) -> None:
    made = await keys.make(expire_at=in_seconds(0.8))
    assert (await world.chat(made["api_key"])).status == 200
    await customer.books()
    await asyncio.sleep(0.9)
    refused(await world.chat(made["api_key"]), 401, "expired")
    refused(await world.http("GET", "/queries/history", key=made["api_key"]), 401, "expired")
    await keys.data("PATCH", f"/{made['_id']}", {"expire_at": in_seconds(60)})
    assert (await world.chat(made["api_key"])).status == 200


async def test_PPQ_195_times_with_a_zone_or_without_a_time(keys: Keys) -> None:
    for name, given, shown in (
        ("zone", "2099-01-01T02:00:00+02:00", "2099-01-01T00:00:00.000Z"),
        ("naive", "2099-01-01T00:00:00", "2099-01-01T00:00:00.000Z"),
        ("date", "2099-01-01", "2099-01-01T00:00:00.000Z"),
        ("fraction", "2099-01-01T00:00:00.123456Z", "2099-01-01T00:00:00.123Z"),
    ):
        assert (await keys.make(name, expire_at=given))["expire_at"] == shown


async def test_PPQ_203_PPQ_199_PPQ_201_the_documented_change(keys: Keys) -> None:
    made = await keys.make(
        "my-app-key", usage_limit_usd=10.00, reset_period="monthly", expire_at="2099-01-01T00:00:00Z"
    )
    body = b'{"name":"updated-key-name","usage_limit_usd":25.00,"reset_period":"weekly"}'
    changed = await keys.data("PATCH", f"/{made['_id']}", body)
    assert set(changed) >= (MADE - {"api_key"}) | {"current_period_usage_usd", "updated_at"}
    assert "api_key" not in changed
    assert (changed["name"], changed["usage_limit_usd"], changed["reset_period"]) == ("updated-key-name", 25, "weekly")
    assert changed["expire_at"] == "2099-01-01T00:00:00.000Z", "what is not given stays"
    assert changed["_id"] == made["_id"] and changed["updated_at"] > made["created_at"]
    assert await keys.row(made["_id"]) == changed


async def test_PPQ_199_null_clears_and_only_given_fields_change(keys: Keys) -> None:
    made = await keys.make("k", usage_limit_usd=3, reset_period="daily", expire_at="2099-01-01", requests_per_minute=5)
    path = f"/{made['_id']}"
    assert (await keys.data("PATCH", path, {"expire_at": None}))["expire_at"] is None
    assert (await keys.data("PATCH", path, {"requests_per_minute": None}))["requests_per_minute"] is None
    one = await keys.data("PATCH", path, {"reset_period": None})
    assert one["reset_period"] is one["reset_at"] is None and one["usage_limit_usd"] == 3
    assert (await keys.data("PATCH", path, {"usage_limit_usd": None}))["usage_limit_usd"] is None
    one = await keys.data("PATCH", path, {})
    assert (one["name"], one["usage_limit_usd"], one["expire_at"]) == ("k", None, None)


async def test_PPQ_199_without_its_limit_a_key_has_no_period(keys: Keys) -> None:
    made = await keys.make(usage_limit_usd=3, reset_period="daily")
    one = await keys.data("PATCH", f"/{made['_id']}", {"usage_limit_usd": None})
    assert one["usage_limit_usd"] is one["reset_period"] is one["reset_at"] is None


async def test_PPQ_200_another_period_starts_the_usage_at_zero(world: World, keys: Keys, customer: Customer) -> None:
    made = await keys.make(usage_limit_usd=1, reset_period="daily")
    await world.chat(made["api_key"])
    await customer.books()
    path, spent = f"/{made['_id']}", cost(15, 8)
    assert Decimal(str((await keys.row(made["_id"]))["current_period_usage_usd"])) == spent
    same = await keys.data("PATCH", path, {"reset_period": "daily", "name": "renamed"})
    assert Decimal(str(same["current_period_usage_usd"])) == spent, "the same period again resets nothing"
    for period in ("weekly", None):
        one = await keys.data("PATCH", path, {"reset_period": period})
        assert one["current_period_usage_usd"] == 0
        assert Decimal(str(one["total_usage_all_time_usd"])) == spent


async def test_PPQ_204_PPQ_205_PPQ_206_revoked_at_once_and_for_good(
    world: World, keys: Keys, customer: Customer
) -> None:
    made = await keys.make()
    for _ in range(3):  # so that it is remembered
        assert (await world.chat(made["api_key"])).status == 200
    answer = await keys.http("DELETE", f"/{made['_id']}")
    assert answer.status == 200
    assert answer.json == {"status": "success", "message": "API key revoked successfully"}
    for headers in (
        {"authorization": f"Bearer {made['api_key']}"},
        {"api-key": made["api_key"]},
        {"x-api-key": made["api_key"]},
    ):
        refused(await world.chat(None, headers=headers), 401, "revoked")
    refused(await world.http("GET", "/queries/history", key=made["api_key"]), 401, "revoked")
    refused(await keys.http("DELETE", f"/{made['_id']}"), 404)
    refused(await keys.http("PATCH", f"/{made['_id']}", {"name": "back"}), 404)
    row = await keys.row(made["_id"])
    assert ISO.fullmatch(row["deleted_at"]) and row["name"] == "made"
    assert (await customer.chat()).status == 200, "the account's other key goes on"


async def test_PPQ_204_the_last_key_may_be_revoked_and_another_one_made(keys: Keys, customer: Customer) -> None:
    (only,) = await keys.data("GET")
    assert (await keys.http("DELETE", f"/{only['_id']}")).status == 200
    refused(await customer.chat(), 401, "revoked")
    made = await keys.make("fresh")
    assert (await customer.world.chat(made["api_key"])).status == 200


async def test_PPQ_207_a_key_at_its_cap_is_refused_and_says_why(world: World, keys: Keys, customer: Customer) -> None:
    made = await keys.make(usage_limit_usd=0.01, reset_period="daily")
    spent = Decimal(0)
    while (answer := await world.chat(made["api_key"], "mid", max_tokens=8)).status == 200 and spent < 1:
        spent += answer.cost
    assert Decimal("0.0055") <= spent <= Decimal("0.01")
    error = refused(answer, 403, "limit", "0.01", "daily", "resets at", code="key_limit_reached")
    assert Decimal(error["limit"]) == Decimal("0.01")
    assert Decimal(error["available"]) == Decimal("0.01") - spent < Decimal(error["required"])
    at = datetime.fromisoformat((await keys.row(made["_id"]))["reset_at"])
    assert at.strftime("%Y-%m-%dT%H:%M:%SZ") in error["message"]
    assert (await customer.chat("mid", max_tokens=8)).status == 200, "the account's other key goes on"
    books = await customer.books()
    assert books.charged == spent + Decimal("0.0055")


async def test_PPQ_207_forty_at_once_never_exceed_the_cap(world: World, keys: Keys, customer: Customer) -> None:
    made = await keys.make(usage_limit_usd=0.02)
    answers = await asyncio.gather(*(world.chat(made["api_key"], "mid", max_tokens=8) for _ in range(40)))
    assert {one.status for one in answers} == {200, 403}
    spent = sum(one.cost for one in answers if one.status == 200)
    assert 0 < spent <= Decimal("0.02")
    assert (await customer.books()).charged == spent
    row = await keys.row(made["_id"])
    assert Decimal(str(row["total_usage_all_time_usd"])) == spent


async def test_PPQ_207_a_higher_cap_serves_again(world: World, keys: Keys, customer: Customer) -> None:
    made = await keys.make(usage_limit_usd=0.01)
    refused(await world.chat(made["api_key"], "dear", max_tokens=8), 403, "limit")
    await costs_nothing(customer)
    await keys.data("PATCH", f"/{made['_id']}", {"usage_limit_usd": 0.99})
    assert (await world.chat(made["api_key"], "dear", max_tokens=8)).cost == Decimal("0.31")


async def test_PPQ_207_a_lower_cap_holds_at_once(world: World, keys: Keys) -> None:
    made = await keys.make()
    assert (await world.chat(made["api_key"], "mid", max_tokens=8)).status == 200
    await keys.data("PATCH", f"/{made['_id']}", {"usage_limit_usd": 0.01})
    answers = [await world.chat(made["api_key"], "mid", max_tokens=8) for _ in range(3)]
    assert answers[-1].status == 403


@pytest.mark.parametrize("period", ["daily", "weekly", "monthly"])
async def test_PPQ_207_the_counter_starts_anew_with_each_period(world: World, keys: Keys, period: str) -> None:
    """The period's end is moved into the past, as if it had come."""
    made = await keys.make(usage_limit_usd=0.01, reset_period=period)
    assert (await world.chat(made["api_key"], "mid", max_tokens=8)).status == 200
    refused(await world.chat(made["api_key"], "mid", max_tokens=8), 403, period)
    db = sqlite3.connect(world.database.removeprefix("sqlite:///"), isolation_level=None, timeout=10)
    db.execute("UPDATE keys SET reset_at = ? WHERE id = ?", (int(time.time() * 1000) - 1, made["_id"]))
    db.close()
    row = await keys.row(made["_id"])
    assert row["current_period_usage_usd"] == 0 and row["reset_at"] == made["reset_at"], "what has passed is not shown"
    assert (await world.chat(made["api_key"], "mid", max_tokens=8)).status == 200
    refused(await world.chat(made["api_key"], "mid", max_tokens=8), 403, period)
    row = await keys.row(made["_id"])
    assert Decimal(str(row["current_period_usage_usd"])) == Decimal("0.0055")
    assert Decimal(str(row["total_usage_all_time_usd"])) == Decimal("0.011")
