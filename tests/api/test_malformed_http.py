"""Bytes that are no HTTP, or hardly: never a 5xx, never silence, and the gateway goes on."""

import random
import re
import socket

import pytest

from tests.api.refusals import costs_nothing, refused
from tests.gateway.wire import ask
from tests.gateway.world import PROMPT, Customer, World, cost

END = b"connection: close\r\nhost: x\r\n\r\n"
CHAT = b'{"model":"test/story","messages":[{"role":"user","content":"%b"}]}' % PROMPT.encode()

NO_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an unknown method": b"FOO /health HTTP/1.1\r\n" + END,
    "a method in small letters": b"get /health HTTP/1.1\r\n" + END,
    "an unknown version": b"GET /health HTTP/9.9\r\n" + END,
    "a path that is no ASCII": b"GET /\xff\xfe HTTP/1.1\r\n" + END,
    "a path of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + END,
    "a header without a colon": b"GET /health HTTP/1.1\r\nnonsense\r\n" + END,
    "a header with NUL": b"GET /health HTTP/1.1\r\nx: a\x00b\r\n" + END,
    "a header's name with a blank": b"GET /health HTTP/1.1\r\nx y: a\r\n" + END,
    "two lengths": b"POST /keys HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n" + END + b"{}",
    "a negative length": b"POST /keys HTTP/1.1\r\ncontent-length: -2\r\n" + END + b"{}",
    "a length that is no number": b"POST /keys HTTP/1.1\r\ncontent-length: two\r\n" + END + b"{}",
    "a length and chunks": b"POST /keys HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n"
    + END
    + b"0\r\n\r\n",
    "a chunk's size that is none": b"POST /credits/balance HTTP/1.1\r\ntransfer-encoding: chunked\r\n"
    + END
    + b"zz\r\n{}\r\n",
    "a tunnel": b"CONNECT example.org:443 HTTP/1.1\r\n" + END,
    "a response": b"HTTP/1.1 200 OK\r\n" + END,
    "blanks": b"   \r\n\r\n",
}


@pytest.mark.parametrize("what", NO_HTTP)
async def test_what_is_no_http_is_refused_in_the_envelope(world: World, what: str) -> None:
    answer = await ask(world.gateway.port, NO_HTTP[what], 5)
    refused(answer, 400, "HTTP", code="invalid_request")
    assert answer.headers["connection"] == "close"


ODD = {
    "version 1.0": (b"GET /health HTTP/1.0\r\n" + END, 200),
    "no host": (b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 200),
    "an absolute form": (b"GET http://elsewhere.example/health HTTP/1.1\r\n" + END, 200),
    "options of the server": (b"OPTIONS * HTTP/1.1\r\n" + END, 404),
    "a websocket": (
        b"GET /health HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nconnection: upgrade, close\r\n\r\n",
        200,
    ),
    "HTTP/2 over an upgrade": (
        b"GET /health HTTP/1.1\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\nconnection: upgrade, close\r\n\r\n",
        200,
    ),
    "an expectation": (b"GET /health HTTP/1.1\r\nexpect: 100-continue\r\n" + END, 200),
    "escapes that are no UTF-8": (b"GET /%ff%fe%00 HTTP/1.1\r\n" + END, 404),
    "a query of rubbish": (b"GET /v1/models?&&==&%zz&type=chat&\x7f HTTP/1.1\r\n" + END, 400),
    "a header twice": (b"GET /health HTTP/1.1\r\nx-request-id: a\r\nx-request-id: b\r\n" + END, 200),
    "a header of bytes": (b"GET /queries/history HTTP/1.1\r\nauthorization: Bearer \xff\xfe\r\n" + END, 401),
    "two credentials": (
        b"GET /queries/history HTTP/1.1\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n" + END,
        401,
    ),
    "a GET with a body": (b"GET /health HTTP/1.1\r\ncontent-length: 5\r\n" + END + b"hello", 200),
    "chunks with extensions": (
        b"POST /credits/balance HTTP/1.1\r\ntransfer-encoding: chunked\r\n"
        + END
        + b"2;a=b\r\n{}\r\n0\r\ntrailer: x\r\n\r\n",
        401,
    ),
}


@pytest.mark.parametrize("what", ODD)
async def test_what_is_odd_gets_an_answer(world: World, what: str) -> None:
    request, status = ODD[what]
    answer = await ask(world.gateway.port, request, 5)
    assert answer.status == status, answer.body
    assert answer.headers["x-request-id"]


async def test_a_client_that_sends_half_a_body_and_shuts_its_side_is_let_go(world: World, customer: Customer) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n" % (
        customer.key.encode(), len(CHAT) + 10,
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", world.gateway.port), timeout=5) as line:
        line.sendall(head + CHAT)
        line.shutdown(socket.SHUT_WR)
        assert line.recv(1000) == b"", "half a request is answered"
    await costs_nothing(customer)


async def test_a_body_that_comes_byte_by_byte_is_one_request(world: World, customer: Customer) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n" % (
        customer.key.encode(),
        len(CHAT),
    )
    with socket.create_connection(("127.0.0.1", world.gateway.port), timeout=5) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head + END + CHAT:
            line.sendall(bytes([byte]))
        assert line.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
    assert (await customer.books()).charged == cost(15, 8)


async def test_rubbish_behind_a_whole_request_does_not_take_its_answer_away(world: World, customer: Customer) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\nhost: x\r\n\r\n"
    whole = head % (customer.key.encode(), len(CHAT)) + CHAT
    for rubbish in (b"rubbish", b"\x00" * 100, b"}]}\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"):
        found = answers(world.gateway.port, whole + rubbish)
        assert found and found.startswith(b"HTTP/1.1 200 ") and found.count(b"HTTP/1.1 ") == 1, found
    assert (await customer.books()).charged == 4 * cost(15, 8)


def mutated(seed: int, key: str) -> bytes:
    """A good request with a few bytes changed, cut out, doubled or moved."""
    chance = random.Random(seed)
    lengths = b"content-length: %d\r\n" % len(CHAT)
    target = chance.choice(
        [
            b"POST /v1/chat/completions",
            b"POST /keys",
            b"GET /queries/history?page=1",
            b"PATCH /keys/a",
            b"OPTIONS /keys",
        ]
    )
    data = bytearray(target + b" HTTP/1.1\r\nauthorization: Bearer " + key.encode() + b"\r\n" + lengths + END + CHAT)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randint(1, 20)]
            case 2:
                data[at:at] = chance.choice(
                    [
                        b"\r\n",
                        b"\x00",
                        b"\r",
                        b"\n\n",
                        b": ",
                        b"\xff",
                        b"%",
                        b'"',
                        b"{",
                        b"\\u0000",
                        b"transfer-encoding: chunked\r\n",
                    ]
                )
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 50)]
            case 4:
                data[at : at + 1] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
    return bytes(data)


def answers(port: int, request: bytes) -> bytes | None:
    """All that comes back, the sending side shut; None where rubbish behind a request resets the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        try:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            return line.makefile("rb").read()
        except ConnectionError:
            return None


@pytest.mark.parametrize(
    "seeds", [range(600), pytest.param(range(600, 20_000), marks=pytest.mark.slow)], ids=["600", "20000"]
)
async def test_mutated_requests_never_break_anything(world: World, seeds: range) -> None:
    customer = await world.customer("100")
    served = resets = 0
    for seed in seeds:
        request = mutated(seed, customer.key)
        found = answers(world.gateway.port, request)
        if found is None:
            resets += 1
            continue
        statuses = re.findall(rb"(?:^|\})HTTP/1.1 (\d+) ", found)
        assert all(int(status) < 500 for status in statuses), f"seed {seed}: {request!r} got {found!r}"
        finals = [status for status in statuses if status != b"100"]
        assert found.count(b"x-request-id: ") >= len(finals), f"seed {seed}: {request!r} got {found!r}"
        served += b'"object":"chat.completion"' in found or b'"object": "chat.completion"' in found
    assert (await world.http("GET", "/health")).status == 200
    books = await customer.books()
    assert served <= len(books.rows) <= served + resets
    assert served > len(seeds) // 1000 and resets < len(seeds) // 4
