"""A badly behaved OpenAI-compatible API, as a process of its own: `python -m tests.peers.upstream [--port P]`.

The model's name chooses the behaviour (`MODELS`), and a `play` object in the request tunes it:

    events   how many pieces of content, one token each, per choice (8); never more than the limits that were sent
    tick     seconds between them (0)
    delay    seconds before the answer begins (0)
    at       after how many pieces something goes wrong (3)
    usage    instead of the true usage block; "omit" leaves it out
    late     seconds between [DONE] and a usage block that comes after it (0.1)
    pause    the stage at which to wait for `POST /_go?user=TAG`: request, head, event:K, finish, usage, done, body
    status   of a `flaky` model's failures (500); `times`, how many of them there are for each `user` (1)

Every call is journalled with what it got and what it made, and can be read at `GET /_journal?user=TAG` in order of arrival.
`user` is the field of that name in the request; the tests give each call its own.
"""

import argparse
import asyncio
import hashlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvloop

WORD = " word"
PROMPT_TOKENS = 15
OPERATORS_KEY = "sk-operator-0123456789"

STATUSES = (400, 401, 402, 403, 404, 408, 413, 418, 422, 429, 500, 502, 503, 504, 529)
FAILING = (
    *(f"status-{status}" for status in STATUSES), "quota", "flaky", "reset", "hang-up", "half-head", "html", "silent",
)  # fmt: skip
EMPTY = (
    "error-200", "empty", "no-choices", "null", "not-json", "short-body", "comments-only", "role-only", "done-only", "role-then-error",
)  # fmt: skip
CUT = ("die", "die-with-usage", "break", "bad-frame", "error-mid", "silent-mid", "nonsense-mid")
ENDING = ("finish-die", "finish-end", "finish-break", "finish-bad-frame", "done-break", "done-rubbish", "done-silent")
USAGE = ("usage-each", "usage-null", "usage-twice", "usage-late", "usage-with-finish")
CONTENT = ("story", "finished-empty", "reasoning", "tools", "overrun", "endless", "umlauts")
SSE = (
    "sse-crlf", "sse-cr", "sse-no-space",
    "sse-comments", "sse-multi-line", "sse-bytes", "sse-half-character", "sse-packed", "sse-long-line",
)  # fmt: skip
MODELS = (*CONTENT, *FAILING, *EMPTY, *CUT, *ENDING, *USAGE, *SSE)


class PeerLeft(Exception):
    """The caller closed the connection before its answer was whole."""


class Done(Exception):
    """The connection cannot be used for another request."""


class Wire(asyncio.StreamReaderProtocol):
    """Knows when the caller has left, without reading ahead."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.left = asyncio.Event()
        super().connection_made(transport)

    def eof_received(self) -> bool | None:
        self.left.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.left.set()
        super().connection_lost(exc)


class Call:
    """One request and its answer on the wire."""

    def __init__(
        self, writer: asyncio.StreamWriter, left: asyncio.Event, body: dict[str, Any], gate: asyncio.Event
    ) -> None:
        self.writer, self.left, self.body, self.gate = writer, left, body, gate
        play = body.get("play")
        self.play: dict[str, Any] = play if isinstance(play, dict) else {}
        self.model: str = body["model"]
        self.n: int = body.get("n") or 1
        self.stream = bool(body.get("stream"))
        caps = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
        if self.model in ("overrun", "endless"):
            caps = []
        self.events: int = min([int(self.play.get("events", 8)), *caps])
        self.at: int = self.play.get("at", 3)
        self.notes: dict[str, Any] = {"events": 0, "tokens": 0, "stage": "request", "whole": False, "left": False}
        self.notes |= {"sent_bytes": 0, "ended": None}
        self._packed, self._sent = bytearray(), hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of what was sent of a stream, without its framing."""
        return self._sent.hexdigest()

    # the wire

    async def wait(self, seconds: float | None) -> None:
        """Wait; raises `PeerLeft` as soon as the caller has gone."""
        if seconds != 0:
            try:
                async with asyncio.timeout(seconds):
                    await self.left.wait()
            except TimeoutError:
                return
        if self.left.is_set():
            raise PeerLeft

    async def stage(self, name: str) -> None:
        """Note how far the answer is, and stop there if the request says so."""
        self.notes["stage"] = name
        if self.play.get("pause") != name or name == "end":  # from its end on the connection is the next call's
            return
        waiting = {asyncio.ensure_future(self.gate.wait()), asyncio.ensure_future(self.left.wait())}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if not self.gate.is_set():
            raise PeerLeft

    async def write(self, data: bytes) -> None:
        if self.left.is_set():
            raise PeerLeft
        self.writer.write(data)
        try:
            await self.writer.drain()
        except ConnectionError:
            raise PeerLeft from None

    async def answer(
        self, status: str, content: bytes, kind: str = "application/json", more: str = "", missing: int = 0
    ) -> None:
        """A whole answer; `missing`: so many bytes fewer than announced."""
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{more}content-length: {len(content) + missing}\r\n\r\n".encode()
        last = 1 if content and "pause" in self.play else 0
        await self.write(head + content[: len(content) - last])
        await self.stage("body")
        if last:
            await self.write(content[-last:])
        if missing:
            raise Done
        await self.stage("end")

    async def begin(self) -> None:
        await self.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await self.stage("head")

    async def chunk(self, data: bytes) -> None:
        self._sent.update(data)
        self.notes["sent_bytes"] += len(data)
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def finish(self) -> None:
        await self.write(b"0\r\n\r\n")
        await self.stage("end")

    def reset(self) -> None:
        """Close so that the caller gets a reset instead of an end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        raise Done

    # shapes

    def usage(self, events: int | None = None) -> dict[str, Any]:
        """{"usage": …} as the request wants it, {} to leave it out."""
        if "usage" in self.play:
            return {} if self.play["usage"] == "omit" else {"usage": self.play["usage"]}
        made = (self.events if events is None else events) * self.n
        return {
            "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": made, "total_tokens": PROMPT_TOKENS + made}
        }

    def base(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1_700_000_000, "model": self.model}

    def part(self, count: int, at: int = 0) -> dict[str, Any]:
        """A message's or delta's fields with so many tokens of content."""
        if self.model == "reasoning":
            return {"reasoning_content": WORD * count}
        if self.model == "tools":
            function = {"name": "f" if at == 0 else None, "arguments": WORD * count}
            return {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
        if self.model == "umlauts":
            return {"content": " ä€🙂" * count}
        return {"content": WORD * count}

    def chunk_of(self, delta: dict[str, Any], finish: str | None = None, choice: int = 0) -> dict[str, Any]:
        return self.base("chat.completion.chunk") | {
            "choices": [{"index": choice, "delta": delta, "finish_reason": finish}]
        }

    async def event(self, value: Any) -> None:
        """One event, in the shape that the model's name asks for."""
        data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        match self.model:
            case "sse-crlf":
                text = f"data: {data}\r\n\r\n"
            case "sse-cr":
                text = f"data: {data}\r\r"
            case "sse-no-space":
                text = f"data:{data}\n\n"
            case "sse-comments":
                text = f": keep-alive\n\nevent: message\nid: 7\ndata: {data}\n: behind\n\n"
            case "sse-multi-line":
                text = "".join(f"data: {line}\n" for line in data.replace(',"', ',\n"').split("\n")) + "\n"
            case _:
                text = f"data: {data}\n\n"
        await self._cut_up(text.encode(), last=data == "[DONE]")

    async def _cut_up(self, data: bytes, *, last: bool) -> None:
        if self.model == "sse-bytes":
            for at in range(len(data)):
                await self.chunk(data[at : at + 1])
        elif self.model == "sse-half-character":
            at = next((at for at, byte in enumerate(data) if byte >= 0xC0), len(data) // 2) + 1
            await self.chunk(data[:at])
            await self.wait(0.002)
            await self.chunk(data[at:])
        elif self.model == "sse-packed":
            self._packed += data
            if last or len(self._packed) > 1000:
                await self.chunk(bytes(self._packed))
                self._packed.clear()
        else:
            await self.chunk(data)

    async def content(self, at: int) -> None:
        """One token of content for each choice."""
        for choice in range(self.n):
            delta = self.part(1, at)
            if self.model == "sse-half-character":
                delta = {"content": " ä€🙂"}
            elif self.model == "sse-long-line" and at == 1:
                delta["padding"] = "x" * 10_000_000
            value = self.chunk_of({"role": "assistant", **delta} if at == 0 else delta, choice=choice)
            if self.model == "usage-each":
                value |= self.usage(at + 1)
            elif self.model == "usage-null":
                value["usage"] = None
            elif self.model == "die-with-usage":
                value["usage"] = {
                    "prompt_tokens": PROMPT_TOKENS,
                    "completion_tokens": 1,
                    "total_tokens": PROMPT_TOKENS + 1,
                }
            await self.event(value)
        self.notes["events"] += 1
        self.notes["tokens"] += self.n
        await self.stage(f"event:{at + 1}")
        await self.wait(self.play.get("tick", 0))


async def serve_call(call: Call, failed_before: int) -> None:
    """Answer one call as its model's name says."""
    await call.stage("request")
    await call.wait(call.play.get("delay", 0))
    if call.model in FAILING and await _fail(call, failed_before):
        return
    if call.model in EMPTY:
        await (_empty_stream if call.stream else _empty)(call)
    elif call.stream:
        await call.begin()
        await _stream(call)
    else:
        await _once(call)


async def _fail(call: Call, failed_before: int) -> bool:
    """A failure before anything was made; False: this one is a good answer after all."""
    match call.model:
        case "reset":
            call.reset()
        case "hang-up":
            raise Done
        case "half-head":
            await call.write(b"HTTP/1.1 200 OK\r\ncontent-ty")
            raise Done
        case "html":
            await call.answer("200 OK", b"<html><body>Gateway</body></html>", "text/html")
        case "silent":
            await call.wait(None)
        case "quota":
            await _refuse(call, 429, "insufficient_quota")
        case "flaky":
            if failed_before >= call.play.get("times", 1):
                return False
            await _refuse(call, call.play.get("status", 500))
        case _:
            await _refuse(call, int(call.model.removeprefix("status-")))
    return True


async def _refuse(call: Call, status: int, code: str = "kaputt") -> None:
    message = f"The account of {OPERATORS_KEY} in organisation org-operator said {status}."
    if status in (400, 413, 422):
        message = "The parameter is not right."
    more = f"retry-after: {call.play['retry_after']}\r\n" if "retry_after" in call.play else ""
    content = json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()
    await call.answer(f"{status} Whatever", content, more=more)


async def _empty(call: Call) -> None:
    """A 200 that delivers nothing."""
    match call.model:
        case "error-200":
            content: Any = {"error": {"message": "kaputt", "type": "server_error"}}
        case "no-choices":
            content = call.base("chat.completion") | {"choices": []} | call.usage()
        case "role-only" | "role-then-error":
            content = call.base("chat.completion") | {
                "choices": [{"index": 0, "message": {"role": "assistant"}, "finish_reason": None}]
            }
        case "null" | "done-only":
            content = None
        case _:
            content = call.model
    raw = {"empty": b"", "not-json": b"{oops", "short-body": b'{"id": "chatcmpl-1", "choices": [{"mess'}.get(call.model)
    await call.answer(
        "200 OK", json.dumps(content).encode() if raw is None else raw, missing=100 if call.model == "short-body" else 0
    )


async def _empty_stream(call: Call) -> None:
    await call.begin()
    match call.model:
        case "error-200":
            await call.event({"error": {"message": "kaputt", "type": "server_error"}})
        case "no-choices":
            await call.event(call.base("chat.completion.chunk") | {"choices": []} | call.usage())
            await call.event("[DONE]")
        case "null" | "not-json":
            await call.chunk(b"data: null\n\n" if call.model == "null" else b"data: {oops\n\n")
        case "comments-only":
            await call.chunk(b": nothing\n\n: at all\n\n")
        case "role-only" | "role-then-error":
            await call.event(call.chunk_of({"role": "assistant", "content": ""}))
            if call.model == "role-then-error":
                await call.event({"error": {"message": "kaputt", "type": "server_error"}})
        case "short-body":
            await call.write(b"40\r\ndata: {")
            raise Done
        case "done-only":
            await call.event("[DONE]")
    await call.finish()


async def _once(call: Call) -> None:
    """A whole answer."""
    await call.wait(call.play.get("tick", 0) * call.events)
    finish = "tool_calls" if call.model == "tools" else "stop"
    count = 0 if call.model == "finished-empty" else call.events
    choices = [
        {"index": i, "message": {"role": "assistant", **call.part(count)}, "finish_reason": finish}
        for i in range(call.n)
    ]
    call.notes["events"], call.notes["tokens"] = count, count * call.n
    value = call.base("chat.completion") | {"choices": choices} | call.usage(count)
    cut = call.model in CUT
    await call.answer("200 OK", json.dumps(value).encode(), missing=100 if cut else 0)


async def _stream(call: Call) -> None:
    for at in range(0 if call.model == "finished-empty" else call.events):
        if call.model in CUT and at == call.at:
            await _cut(call)
        await call.content(at)
    if call.model == "endless":
        while True:
            await call.content(1)
    finish = call.chunk_of({}, "stop")
    if call.model == "usage-with-finish":
        finish |= call.usage()
    await call.event(finish)
    await call.stage("finish")
    if call.model.startswith("finish-") and call.model != "finished-empty":
        await _end_badly(call)
        return
    if (call.body.get("stream_options") or {}).get("include_usage"):
        await _usage(call)
    await call.event("[DONE]")
    await call.stage("done")
    if call.model == "usage-late":
        await call.wait(call.play.get("late", 0.1))
        await call.event(call.base("chat.completion.chunk") | {"choices": []} | call.usage())
    elif call.model.startswith("done-"):
        await _end_badly(call)
    await call.finish()


async def _usage(call: Call) -> None:
    if call.model in ("usage-late", "usage-each", "usage-with-finish") or not call.usage(
        0 if call.model == "finished-empty" else None
    ):
        return
    block = call.base("chat.completion.chunk") | {"choices": []}
    if call.model == "usage-twice":
        await call.event(block | {"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}})
    await call.event(block | call.usage(0 if call.model == "finished-empty" else None))
    await call.stage("usage")


async def _cut(call: Call) -> None:
    """Stop in the middle."""
    await call.wait(0.02)
    match call.model:
        case "break":
            call.reset()
        case "bad-frame":
            await call.write(b"this is no chunk size\r\n")
        case "error-mid":
            await call.event({"error": {"message": "kaputt", "type": "server_error", "code": 500}})
            await call.finish()
        case "nonsense-mid":
            await call.write(b"40\r\ndata: {\r\n")
        case "silent-mid":
            await call.wait(None)
    raise Done


async def _end_badly(call: Call) -> None:
    """After the finish or the end marker: no end, or too much of it."""
    await call.wait(0.02)
    match call.model.split("-", 1)[1]:
        case "end":
            await call.finish()
            return
        case "break":
            call.reset()
        case "bad-frame":
            await call.write(b"this is no chunk size\r\n")
        case "rubbish":
            await call.chunk(b"data: {what is this\n\n\x00\xff\xfe rubbish")
            await call.finish()
            return
        case "silent":
            await call.wait(None)
    raise Done


class Server:
    """The process's state: the journal, and who is paused."""

    def __init__(self) -> None:
        self.journal: list[dict[str, Any]] = []
        self.gates: dict[str, asyncio.Event] = {}

    def _of(self, tag: str | None) -> Iterator[dict[str, Any]]:
        return (entry for entry in self.journal if tag is None or entry["user"] == tag)

    def control(self, path: str) -> Any:
        """What the tests ask."""
        url = urlsplit(path)
        tag = parse_qs(url.query).get("user", [None])[0]
        match url.path:
            case "/_journal":
                return list(self._of(tag))
            case "/_go":
                self.gates.setdefault(tag or "", asyncio.Event()).set()
                return {}
            case _:
                return {
                    "object": "list",
                    "data": [{"id": name, "object": "model", "created": 1, "owned_by": "peer"} for name in MODELS],
                }

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        left: asyncio.Event = writer.transport.get_protocol().left  # type: ignore[attr-defined]
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {
                    name.strip().lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head[1:] if line)
                }
                body = await _body(reader, headers)
                if path.startswith("/_") or path.endswith("/models"):
                    content = json.dumps(self.control(path)).encode()
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                        % (len(content), content)
                    )
                    await writer.drain()
                else:
                    await self.call(writer, left, method, path, headers, body)
        except (Done, PeerLeft, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def call(
        self,
        writer: asyncio.StreamWriter,
        left: asyncio.Event,
        method: str,
        path: str,
        headers: dict[str, str],
        raw: bytes,
    ) -> None:
        """One call: journalled, answered."""
        body = json.loads(raw)
        tag = str(body.get("user") or "")
        call = Call(writer, left, body, self.gates.setdefault(tag, asyncio.Event()))
        before = sum(1 for _ in self._of(tag))
        call.notes |= {"user": tag, "method": method, "path": path, "headers": headers, "body": body, "at": time.time()}
        self.journal.append(call.notes)
        try:
            await serve_call(call, before)
            call.notes["whole"] = True
        except PeerLeft:
            call.notes["left"] = True
            raise
        except Done:
            call.notes["whole"] = True  # as far as this behaviour goes
            raise
        finally:
            call.notes["ended"], call.notes["sent_sha256"] = time.time(), call.digest


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


async def serve(port: int, ready: Callable[[str], None]) -> None:
    """Serve for ever on 127.0.0.1; `ready` gets the base URL."""
    server, loop = Server(), asyncio.get_running_loop()

    def connection() -> Wire:
        return Wire(asyncio.StreamReader(limit=1 << 26), server.connected)

    listener = await loop.create_server(connection, "127.0.0.1", port, backlog=2048)
    ready(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1")
    await listener.serve_forever()


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.peers.upstream")
    options.add_argument("--port", type=int, default=0)
    port: int = options.parse_args().port
    uvloop.run(serve(port, lambda url: print(f"ready {url}", flush=True)))


if __name__ == "__main__":
    main()
