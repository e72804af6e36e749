"""The OpenAPI document: valid, complete, and true to what the gateway answers."""

import json
import re
from typing import Any

import pytest
import schemathesis
from jsonschema_rs import Draft202012Validator

from ppq_proxy.dialects.openapi import MARK, Named, Operation, described, document, operation_of, shaped
from ppq_proxy.exchange import Exchange
from ppq_proxy.front import Path
from tests.gateway.world import Customer, World

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
async def served(world: World) -> dict[str, Any]:
    answer = await world.http("GET", "/openapi.json")
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The operations by `METHOD /path`."""
    return {
        f"{method.upper()} {path}": one
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    }


def validator(document: dict[str, Any], schema: Any) -> Draft202012Validator:
    """For a schema of the document, with its components at hand."""
    return Draft202012Validator({**schema, "components": document["components"]})


async def test_the_document_fits_the_specification(served: dict[str, Any]) -> None:
    assert served["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(served).validate()
    for schema in served["components"]["schemas"].values():
        Draft202012Validator({**schema, "components": served["components"]})


async def test_every_reference_leads_somewhere_and_every_component_is_used(served: dict[str, Any]) -> None:
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(served)))
    assert used == set(served["components"]["schemas"])


PATHS = """
POST /v1/chat/completions · POST /chat/completions · GET /v1/models · GET /models · GET /v1/models/{id} · GET /models/{id} ·
POST /accounts/create · POST /credits/balance · GET /keys · POST /keys · GET /keys/{id} · PATCH /keys/{id} · DELETE /keys/{id} ·
GET /queries/history · GET /v1/requests/{id} · GET /health · GET /readyz · GET /metrics · GET /openapi.json
"""


async def test_every_path_is_there_and_says_what_it_does(served: dict[str, Any]) -> None:
    found = operations(served)
    assert {one.strip() for one in PATHS.split("·")} <= set(found)
    ids = [one["operationId"] for one in found.values()]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", one) for one in ids)
    for name, one in found.items():
        assert len(one["summary"]) > 8 and one["tags"] != ["other"], f"{name} is not described"
        assert any(status.startswith("2") for status in one["responses"]), name
        for path_parameter in re.findall(r"\{(\w+)\}", name):
            assert any(p["name"] == path_parameter and p["in"] == "path" and p["required"] for p in one["parameters"])


async def test_every_answer_has_a_request_id_and_every_error_the_envelope(served: dict[str, Any]) -> None:
    for name, one in operations(served).items():
        for status, response in one["responses"].items():
            assert "x-request-id" in response["headers"], f"{name} {status}"
            if status >= "400" and name != "GET /readyz":
                assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
                assert status != "500"


async def test_parameters_bodies_and_headers_are_described(served: dict[str, Any]) -> None:
    found = operations(served)

    def names(operation: str, where: str) -> set[str]:
        return {one["name"] for one in found[operation]["parameters"] if one["in"] == where}

    assert names("POST /v1/chat/completions", "header") == {"x-request-id", "Idempotency-Key"}
    assert names("GET /v1/models", "query") == {"type"}
    assert names("GET /keys", "query") == {"include_disabled", "show_key"}
    assert names("GET /queries/history", "query") == {
        "all_keys", "api_key", "start_date", "end_date", "model", "query_source", "query_type", "page", "page_count",
    }  # fmt: skip
    for operation in ("POST /v1/chat/completions", "POST /keys", "PATCH /keys/{id}", "POST /credits/balance"):
        assert "application/json" in found[operation]["requestBody"]["content"]
    chat = found["POST /v1/chat/completions"]["responses"]
    assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"x-cost-usd", "x-max-tokens-clamped"} <= set(chat["200"]["headers"])
    assert {"400", "401", "402", "403", "404", "409", "413", "422", "429", "502", "503", "504"} <= set(chat)
    assert {"retry-after", "x-ratelimit-limit-requests", "x-ratelimit-remaining-tokens"} <= set(chat["429"]["headers"])
    assert "www-authenticate" in chat["402"]["headers"]


async def test_credentials_are_described_and_asked_for(served: dict[str, Any]) -> None:
    schemes = served["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    headers = {name: one["name"] for name, one in schemes.items() if one["type"] == "apiKey" and one["in"] == "header"}
    assert headers == {"api_key": "api-key", "x_api_key": "x-api-key", "credit_id": "x-credit-id"}
    found = operations(served)

    def ways(operation: str) -> set[str]:
        return {name for one in found[operation]["security"] for name in one}

    assert {"bearer", "api_key", "x_api_key", "credit_id"} <= ways("POST /chat/completions")
    assert ways("GET /keys") == ways("DELETE /keys/{id}") == {"credit_id"}
    assert "credit_id_query" in ways("GET /queries/history")
    for public in ("GET /v1/models", "POST /accounts/create", "GET /health", "GET /openapi.json"):
        assert found[public]["security"] == []
    assert {} in found["POST /credits/balance"]["security"], "its body may name the account"


async def test_what_is_answered_fits_its_schema(world: World, customer: Customer, served: dict[str, Any]) -> None:
    head = {"x-credit-id": customer.credit_id}
    chat = await customer.chat()
    await customer.chat("mid", stream=True)
    key = (
        await world.http("POST", "/keys", {"name": "x", "usage_limit_usd": 1, "reset_period": "daily"}, headers=head)
    ).json["data"]
    found = operations(served)
    tried = {
        "GET /v1/models": await world.http("GET", "/v1/models?type=all"),
        "GET /v1/models/{id}": await world.http("GET", "/v1/models/test/story"),
        "POST /v1/chat/completions": chat,
        "POST /accounts/create": await world.http("POST", "/accounts/create"),
        "POST /credits/balance": await world.http("POST", "/credits/balance", key=customer.key),
        "GET /keys": await world.http("GET", "/keys?show_key=true&include_disabled=true", headers=head),
        "POST /keys": await world.http("POST", "/keys", {"name": "y"}, headers=head),
        "GET /keys/{id}": await world.http("GET", f"/keys/{key['_id']}", headers=head),
        "PATCH /keys/{id}": await world.http("PATCH", f"/keys/{key['_id']}", {"expire_at": "2099-01-01"}, headers=head),
        "GET /queries/history": await world.http("GET", "/queries/history", key=customer.key),
        "GET /v1/requests/{id}": await world.http("GET", f"/v1/requests/{chat.request_id}", key=customer.key),
        "DELETE /keys/{id}": await world.http("DELETE", f"/keys/{key['_id']}", headers=head),
        "GET /readyz": await world.http("GET", "/readyz"),
        "GET /health": await world.http("GET", "/health"),
    }
    for name, answer in tried.items():
        schema = found[name]["responses"][str(answer.status)]["content"]["application/json"]["schema"]
        problems = [
            f"{problem.instance_path}: {problem.message}"
            for problem in validator(served, schema).iter_errors(answer.json)
        ]
        assert answer.status == 200 and not problems, f"{name}: {problems}"
    error = validator(served, {"$ref": "#/components/schemas/Error"})
    for refusal in (
        await world.chat("sk-wrong"),
        await customer.chat("nothing"),
        await world.http("GET", "/keys"),
        await world.http("PUT", "/keys"),
    ):
        assert error.is_valid(refusal.json), refusal.body


async def test_the_schemas_judge_requests_as_the_gateway_does(served: dict[str, Any]) -> None:
    chat = validator(served, {"$ref": "#/components/schemas/ChatRequest"})
    good = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    right: list[dict[str, Any]] = [
        *({}, {"stream": None}, {"n": 128}, {"max_tokens": 1}, {"anything": [1]}),
        {"stream_options": {"include_usage": True, "x": 1}},
    ]
    wrong: list[dict[str, Any]] = [
        *({"model": ""}, {"model": 1}, {"messages": []}, {"messages": [5]}, {"messages": [{"content": "x"}]}, {"n": 0}),
        *({"n": 129}, {"stream": 1}, {"max_tokens": 0}, {"max_completion_tokens": "5"}, {"stream_options": [1]}),
        {"messages": [{"role": "user", "content": 5}]},
    ]
    assert [one for one in right if not chat.is_valid(good | one)] == []
    assert [one for one in wrong if chat.is_valid(good | one)] == []
    key = validator(served, {"$ref": "#/components/schemas/NewKey"})
    whole = {"name": "x", "usage_limit_usd": 0.01, "reset_period": "weekly", "expire_at": "2099-01-01T00:00:00Z"}
    assert key.is_valid(whole)
    wrong = [{}, {"name": ""}, {"name": "x" * 26}, {"name": "x", "usage_limit_usd": 0.001}, {"name": "x", "other": 1}]
    assert [one for one in wrong if key.is_valid(one)] == []


# the machinery


@shaped(Named("Fault", {"type": "object", "required": ["fault"]}))
def envelope(problem: Exception, request_id: str) -> dict[str, Any]:
    return {"fault": str(problem)}


TREE = Named("Tree", {"type": "object", "properties": {"value": Named("Leaf", {"type": "string"})}})


class Dialect:
    """A dialect as it would be added later."""

    @described(
        "Plants a tree",
        tag="garden",
        auth=("bearer",),
        body=TREE,
        ok={"application/json": TREE},
        status=201,
        errors=(400, 404),
    )
    async def plant(self, exchange: Exchange) -> None:
        """POST /trees/{id}."""

    async def silent(self, exchange: Exchange) -> None:
        """GET /trees/{id}."""


def test_a_dialect_describes_itself_beside_its_handlers() -> None:
    dialect = Dialect()
    made = document([Path("/trees/{id:path}", {"POST": dialect.plant, "GET": dialect.silent}, envelope)])
    schemathesis.openapi.from_dict(made).validate()
    plant, silent = made["paths"]["/trees/{id}"]["post"], made["paths"]["/trees/{id}"]["get"]
    assert plant["summary"] == "Plants a tree" and plant["tags"] == ["garden"] and plant["security"] == [{"bearer": []}]
    assert plant["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Tree"}
    assert set(plant["responses"]) == {"201", "400", "404"}
    assert plant["responses"]["404"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Fault"}
    assert set(made["components"]["schemas"]) == {"Fault", "Leaf", "Tree"}
    assert made["components"]["schemas"]["Tree"]["properties"]["value"] == {"$ref": "#/components/schemas/Leaf"}
    assert silent["tags"] == ["other"] and silent["summary"] == "silent"
    assert operation_of(dialect.plant).summary == "Plants a tree" and getattr(envelope, MARK).name == "Fault"
    assert isinstance(operation_of(dialect.silent), Operation)


def test_a_schema_may_refer_to_itself() -> None:
    inner: dict[str, Any] = {"type": "object", "properties": {}}
    nested = Named("Nested", inner)
    inner["properties"]["child"] = nested

    @described("Nests", tag="garden", ok={"application/json": nested})
    async def nest(exchange: Exchange) -> None:
        """GET /nest."""

    made = document([Path("/nest", {"GET": nest}, envelope)])
    assert made["components"]["schemas"]["Nested"]["properties"]["child"] == {"$ref": "#/components/schemas/Nested"}
