"""The yardstick: uvicorn and pyreqwest with nothing in between. No key, no price, no log.

`BENCH_UPSTREAM=http://127.0.0.1:P/v1 python -m uvicorn tests.bench.passthrough:app --loop uvloop --http httptools`
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pyreqwest.client import Client, ClientBuilder

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class PassThrough:
    """A plain ASGI callable: read the body, send it upstream, send back what comes."""

    def __init__(self, upstream: str) -> None:
        self._url = f"{upstream}/chat/completions"
        self._client: Client

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await (self._stream if b'"stream":true' in body else self._answer)(body, send)

    async def _answer(self, body: bytes, send: Send) -> None:
        response = await self._client.post(self._url).body_bytes(body).build().send()
        content = (await response.bytes()).to_bytes()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(self, body: bytes, send: Send) -> None:
        request = self._client.post(self._url).body_bytes(body).streamed_read_buffer_limit(0).build_streamed()
        async with request as response:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            read = response.body_reader.read_chunk
            while (data := await read()) is not None:
                await send({"type": "http.response.body", "body": data.to_bytes(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        headers = {"content-type": "application/json", "authorization": "Bearer sk-x", "accept-encoding": "identity"}
        self._client = ClientBuilder().default_headers(headers).build()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._client.close()
        await send({"type": "lifespan.shutdown.complete"})


app = PassThrough(os.environ.get("BENCH_UPSTREAM", ""))
