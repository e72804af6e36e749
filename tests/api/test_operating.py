"""What an operator looks at: live, ready, metrics, the log, request ids; and what browsers ask before they call."""

import asyncio
import re
import sqlite3
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.refusals import refused
from tests.gateway.wire import Answer
from tests.gateway.world import PROMPT, Customer, Upstream, World, cost, eventually


class Metrics:
    """One scrape, parsed as Prometheus does."""

    def __init__(self, text: str) -> None:
        self.kinds: dict[str, str] = {}
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            self.kinds[family.name] = family.type
            assert family.documentation, f"{family.name} has no HELP"
            for sample in family.samples:
                name = (sample.name, frozenset(sample.labels.items()))
                assert name not in self.values, f"{name} twice"
                self.values[name] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """A sample, 0 if there is none."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def buckets(self, name: str, **labels: str) -> list[float]:
        """A histogram's buckets in order of their bound."""
        found: Iterable[tuple[float, float]] = (
            (float(dict(had)["le"]), value)
            for (sample, had), value in self.values.items()
            if sample == f"{name}_bucket" and labels.items() <= dict(had).items()
        )
        return [value for _, value in sorted(found)]


async def scrape(world: World) -> Metrics:
    answer = await world.http("GET", "/metrics")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Metrics(answer.body.decode())


async def test_health_is_live(world: World) -> None:
    answer = await world.http("GET", "/health")
    assert answer.status == 200 and answer.json == {"status": "ok"}


async def test_ready_with_a_store_and_an_upstream(world: World) -> None:
    answer = await world.http("GET", "/readyz")
    assert answer.status == 200 and answer.json == {"status": "ready", "store": True, "upstream": True}


@pytest.fixture
def own(tmp_path: Path) -> Iterable[World]:
    """A gateway with an upstream of its own, to be broken."""
    peer = Upstream().start()
    one = World(f"sqlite:///{tmp_path}/gateway.db", tmp_path, upstream=peer)
    one.start_now()
    try:
        yield one
    finally:
        one.stop_now()
        peer.stop()


async def test_not_ready_while_the_upstream_is_down_and_ready_again(own: World) -> None:
    own.upstream.stop()

    async def down() -> Answer | None:
        answer = await own.http("GET", "/readyz")
        return answer if answer.status == 503 else None

    answer = await eventually(down, 6, 0.1)
    assert answer and answer.json == {"status": "not ready", "store": True, "upstream": False}
    assert (await own.http("GET", "/health")).status == 200, "live all the same"
    own.upstream.start()

    async def up() -> bool:
        return (await own.http("GET", "/readyz")).status == 200

    assert await eventually(up, 5, 0.1)


async def test_not_ready_while_the_store_cannot_be_written_and_ready_again(own: World) -> None:
    customer = await own.customer()
    path = own.database.removeprefix("sqlite:///")
    thief = sqlite3.connect(path, isolation_level=None)
    thief.execute("BEGIN IMMEDIATE")
    answer = await own.http("GET", "/readyz")
    assert answer.status == 503 and answer.json == {"status": "not ready", "store": False, "upstream": True}
    assert (await own.http("GET", "/health")).status == 200
    thief.execute("ROLLBACK")
    thief.close()

    async def up() -> bool:
        return (await own.http("GET", "/readyz")).status == 200

    assert await eventually(up, 5, 0.1)
    assert (await customer.chat()).status == 200


async def test_metrics_follow_a_call(world: World, customer: Customer) -> None:
    before = await scrape(world)
    served = [await customer.chat(stream=stream) for stream in (False, True, True)]
    assert all(one.status == 200 for one in served)
    refused(await customer.chat("status-500"), 503)
    refused(await world.chat("sk-wrong"), 401)
    await customer.chat("story", play={"usage": "omit"})
    books = await customer.books()

    after = await scrape(world)

    def grown(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    route = "/v1/chat/completions"
    assert grown("ppq_requests_total", route=route, status="200") == 4
    assert grown("ppq_requests_total", route=route, status="503") == 1
    assert grown("ppq_requests_total", route=route, status="401") == 1
    assert grown("ppq_tokens_total", direction="in") == sum(row["input_count"] for row in books.rows)
    assert grown("ppq_tokens_total", direction="out") == sum(row["output_count"] for row in books.rows)
    assert grown("ppq_charged_nano_usd_total") == books.charged.scaleb(9)
    assert grown("ppq_charges_total", usage_source="upstream") == 3
    assert grown("ppq_charges_total", usage_source="counted") == 1
    assert grown("ppq_request_seconds_count") >= 6
    assert grown("ppq_request_seconds_sum") > 0
    assert grown("ppq_first_token_seconds_count") == 2
    assert grown("ppq_upstream_seconds_count", upstream="default") >= 5
    assert grown("ppq_upstream_failures_total", upstream="default", code="upstream_unavailable") >= 1
    assert grown("ppq_commit_batch_size_count") >= 1
    assert after("ppq_active_calls") == 0


async def test_metrics_are_of_the_right_kind_and_histograms_add_up(world: World, customer: Customer) -> None:
    await customer.chat(stream=True)
    metrics = await scrape(world)
    for name, kind in {
        "ppq_requests": "counter", "ppq_tokens": "counter", "ppq_charged_nano_usd": "counter", "ppq_held_nano_usd": "gauge",
        "ppq_drawn_nano_usd": "gauge", "ppq_lost_nano_usd": "counter", "ppq_active_calls": "gauge", "ppq_request_seconds": "histogram",
        "ppq_first_token_seconds": "histogram", "ppq_upstream_seconds": "histogram", "ppq_upstream_breaker_open": "gauge",
        "ppq_commit_batch_size": "histogram", "ppq_upstream_failures": "counter", "ppq_worker_pid": "gauge",
    }.items():  # fmt: skip
        assert metrics.kinds.get(name) == kind, f"{name} is {metrics.kinds.get(name)}"
    for name in ("ppq_request_seconds", "ppq_first_token_seconds", "ppq_commit_batch_size"):
        buckets = metrics.buckets(name)
        assert buckets == sorted(buckets) and buckets[-1] == metrics(f"{name}_count") > 0


async def test_metrics_show_holds_and_active_calls_while_a_call_is_open(world: World, customer: Customer) -> None:
    tag = f"open-{customer.credit_id[:8]}"
    async with customer.talk("mid", tag=tag, play={"pause": "event:1"}) as talk:
        await world.upstream.reached(tag, "event:1")
        during = await scrape(world)
        assert during("ppq_held_nano_usd") >= 5_500_000 and during("ppq_active_calls") == 1
        assert during("ppq_drawn_nano_usd") >= during("ppq_held_nano_usd")
        await world.upstream.go(tag)
        await talk.rest()
    await customer.books()
    after = await scrape(world)
    assert (after("ppq_held_nano_usd"), after("ppq_active_calls")) == (0, 0)


async def test_metrics_show_an_open_breaker(own: World) -> None:
    customer = await own.customer()
    own.upstream.stop()
    for _ in range(30):
        refused(await customer.chat(), 503)
        if (await scrape(own))("ppq_upstream_breaker_open", upstream="default"):
            break
    else:
        pytest.fail("thirty failures do not open the breaker")
    own.upstream.start()

    async def served() -> bool:
        return (await customer.chat()).status == 200

    assert await eventually(served, 5, 0.1), "not served within 5 s of the upstream's return"
    assert (await scrape(own))("ppq_upstream_breaker_open", upstream="default") == 0


async def test_metrics_have_no_label_that_a_client_can_choose(world: World) -> None:
    await world.http("GET", "/made/up/path")
    await world.http("GET", "/v1/models/made-up-model")
    await world.http("BREW", "/health")
    labels = " ".join(value for _, had in (await scrape(world)).values for _, value in had)
    assert "made" not in labels and "BREW" not in labels


async def lines_of(world: World, request_id: str) -> list[dict[str, Any]]:
    """The log lines of an answer, once there are any."""

    async def look() -> list[dict[str, Any]]:
        lines = world.gateway.log.read_bytes().splitlines()
        return [orjson.loads(line) for line in lines if request_id.encode() in line and line.startswith(b"{")]

    found: list[dict[str, Any]] = await eventually(look, 3)
    return found


async def test_one_log_line_a_request(world: World, customer: Customer) -> None:
    for stream in (False, True):
        answer = await customer.chat(stream=stream)
        (line,) = await lines_of(world, answer.request_id)
        assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/chat/completions", 200)
        assert (line["model"], line["stream"], line["upstream"]) == ("test/story", stream, "default")
        assert (line["in"], line["out"], line["usage_source"]) == (15, 8, "upstream")
        assert Decimal(line["cost_nano_usd"]).scaleb(-9) == cost(15, 8)
        assert line["ms"] >= line["first_byte_ms"] > 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])
        assert line["account"] and line["key"]


async def test_a_failed_request_has_its_line_with_the_reason(world: World, customer: Customer) -> None:
    for answer, error in (
        (await customer.chat("status-500"), "upstream_unavailable"),
        (await world.chat("sk-wrong"), "invalid_api_key"),
        (await world.http("GET", "/nothing"), "not_found"),
        (await customer.chat("no-such-model"), "model_not_found"),
    ):
        (line,) = await lines_of(world, answer.request_id)
        assert (line["status"], line["error"]) == (answer.status, error)


async def test_no_secret_prompt_completion_or_query_string_is_logged(world: World, customer: Customer) -> None:
    secret_prompt, secret_word = "Zaphod's towel is blue", "swordfish-in-a-query"
    asked = [{"role": "user", "content": secret_prompt}]
    answers = [
        await customer.chat(model, messages=asked, stream=stream)
        for model in ("story", "die", "status-400", "html")
        for stream in (False, True)
    ]
    head = {"x-credit-id": customer.credit_id}
    made = (await world.http("POST", "/keys", {"name": "quiet-name"}, headers=head)).json["data"]
    answers += [
        await world.http("GET", f"/queries/history?credit_id={customer.credit_id}&model={secret_word}"),
        await world.http("GET", f"/queries/history?credit_id={customer.credit_id}&api_key={made['api_key']}"),
        await world.http("POST", "/credits/balance", {"credit_id": customer.credit_id}),
        await world.http("GET", f"/nothing/{secret_word}?key={customer.key}", key=customer.key),
        await world.chat(f"sk-{secret_word}"),
        await world.http("POST", "/v1/chat/completions", b'{"model": "' + secret_word.encode(), customer.key),
        await world.http("GET", "/keys?show_key=true", headers=head),
        await world.http("POST", "/accounts/create"),
    ]
    for answer in answers:
        assert await lines_of(world, answer.request_id)
    log = world.gateway.log.read_text(errors="replace")
    secrets = {
        "a key": customer.key, "another key": made["api_key"], "a credit id": customer.credit_id,
        "a prompt": secret_prompt, "a query": secret_word,
        "a completion": "word word", "the operator's key": "sk-operator", "a new account": answers[-1].json["credit_id"],
        "its key": answers[-1].json["api_key"],
    }  # fmt: skip
    assert not [what for what, text in secrets.items() if text in log]


async def test_what_is_no_request_is_no_json_line(world: World, customer: Customer) -> None:
    """Besides the line that says that it serves, only warnings are there, and none of them about an exception."""
    answer = await customer.chat()
    await lines_of(world, answer.request_id)
    lines = world.gateway.log.read_text().splitlines()
    odd = [line for line in lines if not line.startswith("{")]
    assert len(odd) < len(lines)
    assert all(re.match(r"serving on http://|\d{4}-\d\d-\d\d [\d:,]+ WARNING ", line) for line in odd), odd[:3]


@pytest.mark.parametrize("given", ["my-own-id-1", "0" * 128, "a/b:c.d_e+f=", "9f8e7d6c-1234-4abc-8def-001122334455"])
async def test_a_sane_request_id_comes_back_on_every_answer(world: World, customer: Customer, given: str) -> None:
    head = {"x-request-id": given}
    answers = [
        await customer.chat(headers=head),
        await customer.chat(headers=head, stream=True),
        await customer.chat("status-500", headers=head),
        await world.http("GET", "/health", headers=head),
        await world.http("GET", "/nothing", headers=head),
        await world.http("OPTIONS", "/v1/chat/completions", headers=head),
    ]
    assert {one.headers["x-request-id"] for one in answers} == {given}
    assert answers[2].error["request_id"] == given


@pytest.mark.parametrize("given", ["no token <b>", "", "a b", "0" * 129, "ä", "-dash", "a\tb", "{}", "a;b", '"', "\\"])
async def test_another_request_id_is_replaced(world: World, customer: Customer, given: str) -> None:
    answer = await world.gateway.http("GET", "/health", headers={"x-request-id": given.encode().decode("latin-1")})
    assert answer.headers["x-request-id"] != given and re.fullmatch(
        r"req-[0-9a-f-]{20,}", answer.headers["x-request-id"]
    )


async def test_made_request_ids_are_unique_and_grow(world: World) -> None:
    ids = [(await world.http("GET", "/health")).request_id for _ in range(50)]
    assert len(set(ids)) == 50 and ids == sorted(ids)


ASKED = "authorization, content-type, x-api-key, x-stainless-os"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/chat/completions", "POST"),
        ("/keys", "GET, POST"),
        ("/keys/abc", "DELETE, GET, PATCH"),
        ("/v1/models", "GET"),
    ],
)
async def test_a_preflight_allows_what_the_path_takes(world: World, path: str, methods: str) -> None:
    head = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": ASKED,
    }
    answer = await world.http("OPTIONS", path, headers=head)
    assert answer.status in (200, 204) and answer.body == b""
    assert answer.headers["access-control-allow-origin"] == "*"
    assert set(methods.split(", ")) <= set(answer.headers["access-control-allow-methods"].split(", "))
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {
        "authorization",
        "content-type",
        "payment-authorization",
        "x-credit-id",
        "idempotency-key",
        "x-stainless-os",
    } <= allowed
    assert "*" not in allowed, "* does not cover authorization"
    assert int(answer.headers["access-control-max-age"]) > 0


async def test_a_browser_may_read_answers_errors_and_their_headers(world: World, customer: Customer) -> None:
    head = {"origin": "https://app.example"}
    for answer in (
        await customer.chat(headers=head),
        await customer.chat(headers=head, stream=True),
        await customer.chat("no-such-model", headers=head),
        await world.http("GET", "/nothing", headers=head),
        await world.http("GET", "/v1/models", headers=head),
    ):
        assert answer.headers["access-control-allow-origin"] == "*"
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"x-request-id", "x-cost-usd", "www-authenticate", "retry-after", "x-max-tokens-clamped"} <= exposed
    assert "access-control-allow-origin" not in (await customer.chat()).headers, (
        "who is no browser pays no bytes for it"
    )


async def test_a_preflight_of_anything_is_harmless(world: World) -> None:
    for asked in ("", "x" * 5000, "a\x01b", "ä", "a,b;c", '"'):
        head = {"origin": "null", "access-control-request-headers": asked.encode().decode("latin-1")}
        answer = await world.http("OPTIONS", "/v1/chat/completions", headers=head)
        assert answer.status in (200, 204, 400) and answer.headers["x-request-id"]


async def test_head_is_get_without_a_body(world: World) -> None:
    for path in ("/health", "/v1/models", "/metrics", "/openapi.json"):
        whole, head = await world.http("GET", path), await world.http("HEAD", path)
        assert head.status == whole.status == 200
        assert head.headers["content-type"] == whole.headers["content-type"]


async def test_requests_on_one_connection_and_pipelined(world: World, customer: Customer) -> None:
    """Answers come in the order of the requests, each with its own id."""
    gateway = world.gateway
    kept = {"connection": "keep-alive"}
    body = orjson.dumps({"model": "test/story", "messages": [{"role": "user", "content": PROMPT}]})
    requests = [
        gateway.request("GET", "/health", headers=kept | {"x-request-id": "first"}),
        gateway.request("POST", "/v1/chat/completions", body, customer.key, kept | {"x-request-id": "second"}),
        gateway.request("GET", "/nothing", headers=kept | {"x-request-id": "third"}),
        gateway.request("GET", "/v1/models/test/story", headers={"x-request-id": "fourth"}),
    ]
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"".join(requests))
    async with asyncio.timeout(10):
        found = await reader.read(-1)
    writer.close()
    assert re.findall(rb"x-request-id: (\w+)", found) == [b"first", b"second", b"third", b"fourth"]
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"200", b"404", b"200"]
    assert (await customer.books()).charged == cost(15, 8)


async def test_PPQ_012_a_guide_for_agents_names_every_path(world: World) -> None:
    guide = await world.http("GET", "/llms.txt")
    paths = (await world.http("GET", "/openapi.json")).json["paths"]
    assert guide.status == 200 and guide.headers["content-type"].startswith("text/plain")
    for path in paths:
        assert path in guide.body.decode(), path
