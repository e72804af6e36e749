"""Two worker processes on one socket: what one of them does, the other one knows."""

import asyncio
import http.client
import json
import re
from collections.abc import Iterator

import pytest

from tests.api.refusals import refused
from tests.api.test_limits import limited, within_a_minute
from tests.gateway.wire import Answer
from tests.gateway.world import PROMPT, Customer, Upstream, World, cost


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[World]:
    """A gateway with two workers."""
    folder = tmp_path_factory.mktemp("pair")
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=upstream)
    one.start_now("--workers", "2")
    try:
        yield one
    finally:
        one.stop_now()


class Line:
    """A connection that stays, and so stays with one worker."""

    def __init__(self, world: World) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", world.gateway.port, timeout=20)
        self.pid = self.worker()

    def worker(self) -> int:
        self.connection.request("GET", "/metrics")
        text = self.connection.getresponse().read().decode()
        found = re.search(r"^ppq_worker_pid ([\d.e+]+)$", text, re.MULTILINE)
        assert found
        return int(float(found[1]))

    def chat(self, key: str) -> Answer:
        body = json.dumps({"model": "test/story", "messages": [{"role": "user", "content": PROMPT}]})
        self.connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}"})
        response = self.connection.getresponse()
        answer = Answer(response.status, [(name.lower(), value) for name, value in response.getheaders()])
        answer.body = response.read()
        return answer


@pytest.fixture
def lines(pair: World) -> Iterator[list[Line]]:
    """One connection to each worker."""
    found: dict[int, Line] = {}
    for _ in range(200):
        line = Line(pair)
        if line.pid in found:
            line.connection.close()
        else:
            found[line.pid] = line
        if len(found) == 2:
            break
    assert len(found) == 2, "only one worker answers"
    yield list(found.values())
    for line in found.values():
        line.connection.close()


async def test_PPQ_204_a_key_revoked_over_http_stops_in_every_worker_at_once(pair: World, lines: list[Line]) -> None:
    customer = await pair.customer()
    head = {"x-credit-id": customer.credit_id}
    for turn in range(5):
        made = (await pair.http("POST", "/keys", {"name": f"key {turn}"}, headers=head)).json["data"]
        for line in lines:
            assert (await asyncio.to_thread(line.chat, made["api_key"])).status == 200
        assert (await pair.http("DELETE", f"/keys/{made['_id']}", headers=head)).status == 200
        for line in lines:
            refused(await asyncio.to_thread(line.chat, made["api_key"]), 401, "revoked")
    assert (await customer.books()).charged == 10 * cost(15, 8)


async def test_PPQ_204_a_key_revoked_by_command_stops_in_every_worker_at_once(pair: World, lines: list[Line]) -> None:
    customer = await pair.customer()
    made = await pair.cli("keys", "create", customer.credit_id, "by command")
    for line in lines:
        assert (await asyncio.to_thread(line.chat, made["api_key"])).status == 200
    await pair.cli("keys", "revoke", customer.credit_id, made["_id"])
    for line in lines:
        refused(await asyncio.to_thread(line.chat, made["api_key"]), 401, "revoked")


async def test_PPQ_199_a_changed_limit_holds_in_every_worker_at_once(pair: World, lines: list[Line]) -> None:
    customer = await pair.customer()
    head = {"x-credit-id": customer.credit_id}
    made = (await pair.http("POST", "/keys", {"name": "changing"}, headers=head)).json["data"]
    for line in lines:
        assert (await asyncio.to_thread(line.chat, made["api_key"])).status == 200
    past = await pair.http("PATCH", f"/keys/{made['_id']}", {"requests_per_minute": 1}, headers=head)
    assert past.status == 200
    await within_a_minute(3)
    statuses = [(await asyncio.to_thread(line.chat, made["api_key"])).status for line in lines * 2]
    assert sorted(statuses) == [200, 429, 429, 429]


async def test_a_limit_by_the_minute_is_one_for_both_workers(pair: World, lines: list[Line]) -> None:
    customer = await pair.customer()
    key, _ = await limited(customer, requests_per_minute=10)
    await within_a_minute(5)
    answers = [await asyncio.to_thread(line.chat, key) for line in lines * 8]
    assert [one.status for one in answers].count(200) == 10
    assert {one.status for one in answers} == {200, 429}


async def test_a_balance_is_one_for_both_workers(pair: World, lines: list[Line]) -> None:
    customer: Customer = await pair.customer(cost(15, 8) * 5)
    answers = [await asyncio.to_thread(line.chat, customer.key) for line in lines * 6]
    assert {one.status for one in answers} <= {200, 402}
    books = await customer.books()
    assert books.charged == sum(one.cost for one in answers if one.status == 200) <= books.credited
