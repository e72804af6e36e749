"""Accounts and their balance over HTTP."""

import uuid
from decimal import Decimal

import orjson

from tests.api.refusals import refused
from tests.gateway.world import Customer, World, cost


async def test_PPQ_146_an_account_needs_no_body_and_no_credential(world: World) -> None:
    answer = await world.http("POST", "/accounts/create")
    assert answer.status == 200
    made = answer.json
    assert made["success"] is True and made["balance"] == 0
    assert made["api_key"].startswith("sk-")
    again = (await world.http("POST", "/accounts/create", {"any": "thing"})).json
    assert again["credit_id"] != made["credit_id"] and again["api_key"] != made["api_key"]


async def test_PPQ_009_a_credit_id_is_a_uuid(world: World) -> None:
    credit_id = (await world.http("POST", "/accounts/create")).json["credit_id"]
    assert str(uuid.UUID(credit_id)) == credit_id and uuid.UUID(credit_id).version == 4


async def test_PPQ_146_a_new_account_has_one_key_named_default_and_no_money(world: World) -> None:
    made = (await world.http("POST", "/accounts/create")).json
    keys = (await world.http("GET", "/keys?show_key=true", headers={"x-credit-id": made["credit_id"]})).json["data"]
    assert [(one["name"], one["api_key"]) for one in keys] == [("Default", made["api_key"])]
    error = refused(await world.chat(made["api_key"]), 402, "balance", "0.0", code="insufficient_balance")
    assert Decimal(error["required"]) > 0 and Decimal(error["available"]) == 0
    answer = await world.chat(made["api_key"])
    assert "www-authenticate" not in answer.headers, "a key without money is not asked to pay by the call"


async def test_PPQ_148_PPQ_149_PPQ_008_balance_by_the_credit_id_in_the_body(world: World, customer: Customer) -> None:
    answer = await world.http("POST", "/credits/balance", {"credit_id": customer.credit_id})
    assert answer.json == {"balance": 1, "held": 0, "available": 1}
    await customer.chat()
    await customer.books()
    answer = await world.http("POST", "/credits/balance", {"credit_id": customer.credit_id})
    assert Decimal(str(answer.json["balance"])) == 1 - cost(15, 8)


async def test_PPQ_148_balance_by_any_other_credential(world: World, customer: Customer) -> None:
    for headers in (
        {"authorization": f"Bearer {customer.key}"},
        {"api-key": customer.key},
        {"x-api-key": customer.key},
        {"x-credit-id": customer.credit_id},
    ):
        for body in ({}, None, {"credit_id": None}, {"credit_id": ""}):
            answer = await world.http("POST", "/credits/balance", body, headers=headers)
            assert answer.status == 200 and answer.json["balance"] == 1


async def test_PPQ_148_the_balance_has_all_its_digits(world: World) -> None:
    rich = await world.customer("1234567.000000001")
    answer = await world.http("POST", "/credits/balance", {"credit_id": rich.credit_id})
    assert b'"balance":1234567.000000001' in answer.body


async def test_PPQ_148_nobody_sees_a_balance_without_a_credential(world: World, customer: Customer) -> None:
    path = "/credits/balance"
    refused(await world.http("POST", path), 401, "Bearer")
    refused(await world.http("POST", path, {"credit_id": str(uuid.uuid4())}), 401, "credit id")
    refused(await world.http("POST", path, {"credit_id": 5}, customer.key), 400, param="credit_id")
    refused(await world.http("POST", path, b"{", customer.key), 400, "JSON")
    for body in ([], [None], "text", 5, True):
        refused(await world.http("POST", path, orjson.dumps(body), customer.key), 400, "object")


async def test_a_credit_made_by_command_is_there_at_once(world: World) -> None:
    made = (await world.http("POST", "/accounts/create")).json
    await world.cli("accounts", "credit", made["credit_id"], "0.5")
    assert (await world.chat(made["api_key"])).status == 200
