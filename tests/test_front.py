"""The front door without a server: what goes wrong becomes an answer, once, and is counted."""

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from ppq_proxy.dialects.openai import envelope
from ppq_proxy.errors import NotFound, StoreUnavailable
from ppq_proxy.exchange import SANE_ID, ClientGone, Exchange, RequestIds, dump
from ppq_proxy.front import Front, Path
from ppq_proxy.telemetry import Telemetry


class Caller:
    """The server's side of one front door."""

    def __init__(self, handler: Callable[[Exchange], Awaitable[None]], path: str = "/x", start: Any = None) -> None:
        self.log = io.StringIO()
        self.telemetry = Telemetry(self.log)
        self.sent: list[dict[str, Any]] = []
        self.front = Front(
            [Path(path, {"GET": handler, "POST": handler}, envelope)],
            self.telemetry,
            envelope,
            start or self._nothing,
            self._nothing,
        )

    @staticmethod
    async def _nothing() -> None:
        return None

    async def call(
        self, method: str = "GET", path: str = "/x", body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            self.sent.append(message)

        lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": lines,
            "client": ("10.1.2.3", 5),
        }
        await self.front(scope, receive, send)
        starts = [one for one in self.sent if one["type"] == "http.response.start"]
        assert len(starts) <= 1, "two answers to one request"
        if not starts:
            return 0, {}, b""
        content = b"".join(one["body"] for one in self.sent if one["type"] == "http.response.body")
        return starts[0]["status"], {name.decode(): value.decode() for name, value in starts[0]["headers"]}, content


async def test_a_handler_that_breaks_is_a_500_in_the_envelope_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(exchange: Exchange) -> None:
        raise ZeroDivisionError("secret detail")

    caller = Caller(handler)
    with caplog.at_level(logging.ERROR, "ppq.front"):
        status, headers, body = await caller.call(x_request_id="mine")
    error = orjson.loads(body)["error"]
    assert status == 500 and error["code"] == "internal_error" and "secret" not in body.decode()
    assert headers["x-request-id"] == error["request_id"] == "mine" and "mine" in caplog.text
    caller.telemetry.flush()
    assert orjson.loads(caller.log.getvalue())["status"] == 500


async def test_an_error_after_the_answer_has_begun_starts_no_other() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.start(200, [])
        raise NotFound("Too late for this.")

    caller = Caller(handler)
    status, _, body = await caller.call()
    assert (status, body) == (200, b"")
    assert caller.telemetry.requests == {("/x", 200): 1}


async def test_a_client_that_leaves_is_no_error() -> None:
    async def handler(exchange: Exchange) -> None:
        raise ClientGone

    caller = Caller(handler)
    assert (await caller.call())[0] == 0
    assert caller.telemetry.requests == {("/x", 499): 1}


async def test_a_cancelled_request_is_counted_and_stays_cancelled() -> None:
    async def handler(exchange: Exchange) -> None:
        await asyncio.sleep(60)

    caller = Caller(handler)
    task = asyncio.create_task(caller.call())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.telemetry.requests == {("/x", 503): 1}


async def test_a_body_that_ends_early_is_a_client_that_left() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.body(100)
        await exchange.body(100)

    assert (await Caller(handler).call("POST", body=b"x"))[0] == 0


async def test_a_parameter_of_the_path_and_head_without_a_body() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer_json({"id": exchange.scope["path_params"]["id"]})

    status, _, body = await Caller(handler, "/x/{id:path}").call(path="/x/a/b")
    assert (status, body) == (200, b'{"id":"a/b"}')
    status, headers, body = await Caller(handler, "/x/{id:path}").call("HEAD", "/x/a/b")
    assert (status, headers["content-length"], body) == (200, "12", b"")


async def test_an_unknown_path_is_counted_under_one_name() -> None:
    async def handler(exchange: Exchange) -> None:
        raise AssertionError

    caller = Caller(handler)
    assert (await caller.call(path="/nothing"))[0] == 404
    assert caller.telemetry.requests == {("other", 404): 1}


async def lifespan(front: Front) -> list[str]:
    """What the front door says when the server starts and stops it."""
    events, said = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]), []

    async def receive() -> dict[str, Any]:
        return next(events)

    async def send(message: Any) -> None:
        said.append(message["type"])

    await front({"type": "lifespan"}, receive, send)
    return said


async def test_start_and_stop() -> None:
    async def handler(exchange: Exchange) -> None:
        return None

    caller = Caller(handler)
    assert await lifespan(caller.front) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("problem", "unreachable"), [(StoreUnavailable("no database"), True), (RuntimeError("x"), False)]
)
async def test_a_start_that_fails_is_told_to_the_server(problem: Exception, unreachable: bool) -> None:
    async def start() -> None:
        raise problem

    async def handler(exchange: Exchange) -> None:
        return None

    caller = Caller(handler, start=start)
    assert await lifespan(caller.front) == ["lifespan.startup.failed"]
    assert caller.front.unreachable is unreachable


async def test_a_websocket_is_closed() -> None:
    async def handler(exchange: Exchange) -> None:
        return None

    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    await Caller(handler).front({"type": "websocket"}, send, send)  # type: ignore[arg-type]
    assert said == [{"type": "websocket.close", "code": 1000}]


def test_request_ids_grow_and_are_sane() -> None:
    ids = RequestIds()
    made = [ids() for _ in range(1000)]
    assert made == sorted(set(made)) and all(SANE_ID.fullmatch(one.encode()) for one in made)


def test_decimals_keep_their_digits_in_json() -> None:
    from decimal import Decimal

    numbers = ["0.000000001", "9000000000.999999999", "0", "10", "100000", "-0.5"]
    assert dump({"n": [Decimal(one) for one in numbers]}) == f'{{"n":[{",".join(numbers)}]}}'.encode()
    assert dump([Decimal("1.500"), Decimal("1E+3"), Decimal("0E-9")]) == b"[1.5,1000,0]"
    with pytest.raises(TypeError):
        dump({"x": object()})
