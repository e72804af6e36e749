"""How wallets speak HTTP: short timeouts, and failures told apart by whether anything may have happened."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from ppq_proxy.payments.wallets.base import OutcomeUnknown, WalletError, WalletRefused, WalletUnreachable

CONNECT_SECONDS = 3
ANSWER_SECONDS = 10
QUIET_SECONDS = 600
"""A stream of events that says nothing for so long is opened anew, since a connection can die without telling."""

_LONGEST_DETAIL = 300
_EVENTS_AHEAD = 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the JSON that came with it; None where that was no JSON."""

    status: int
    document: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Backend:
    """The HTTP side of one wallet backend. Every failure is a `WalletError`; no secret is in its text."""

    def __init__(
        self, name: str, base_url: str, headers: Mapping[str, str] | None = None, *, certificate: str = ""
    ) -> None:
        """`certificate` is the path of a PEM file to check the server's certificate against, for a self-signed one."""
        self.name = name
        self.client = httpx2.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers=dict(headers or {}),
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            verify=ssl.create_default_context(cafile=certificate) if certificate else True,
            limits=httpx2.Limits(max_connections=64, max_keepalive_connections=16),
            follow_redirects=False,
            trust_env=False,
        )

    async def call(self, method: str, path: str, *, answer_seconds: int = ANSWER_SECONDS, **request: Any) -> Answer:
        """One request, whatever its status.

        Raises:
            WalletUnreachable: it was never sent.
            OutcomeUnknown: it may have been, and no whole answer came.
        """
        timeout = httpx2.Timeout(answer_seconds, connect=CONNECT_SECONDS)
        with self.failures():
            response = await self.client.request(method, path, timeout=timeout, **request)
        try:
            return Answer(response.status_code, response.json())
        except ValueError:
            return Answer(response.status_code, None)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, **request: Any) -> AsyncIterator[httpx2.Response]:
        """A GET whose body comes bit by bit, with long pauses."""
        timeout = httpx2.Timeout(QUIET_SECONDS, connect=CONNECT_SECONDS)
        with self.failures():
            async with self.client.stream("GET", path, timeout=timeout, **request) as response:
                yield response

    async def events(self, path: str) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects that come over a WebSocket, until it is closed. Raises `WalletError` if it does not open."""
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_EVENTS_AHEAD)
        # A task of its own: the socket's cancel scopes must be left by the task that entered them, and whoever drops a
        # half-read generator may be another.
        reader = asyncio.create_task(self._read_socket(path, events))
        try:
            while (event := await events.get()) is not None:
                yield event
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read_socket(self, path: str, events: "asyncio.Queue[dict[str, Any] | None]") -> None:
        from httpx2.websockets import HTTPXWSException, WebSocketUpgradeError

        try:
            with self.failures():
                async with self.client.websocket(path) as socket:
                    with contextlib.suppress(HTTPXWSException):
                        while True:
                            event = read_json(await socket.receive_text())
                            if isinstance(event, dict):
                                await events.put(event)
        except WebSocketUpgradeError as problem:
            raise WalletRefused(f"{self.name} answered {problem.response.status_code} to a WebSocket") from None
        finally:
            await events.put(None)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Tells failures of the transport apart."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as problem:
            raise WalletUnreachable(f"{self.name} cannot be reached: {type(problem).__name__}") from None
        except httpx2.HTTPError as problem:
            raise OutcomeUnknown(f"{self.name} did not answer: {type(problem).__name__}") from None

    def refused(self, answer: Answer, *words: Any) -> WalletError:
        """The error for an answer that is none of the expected ones; `words` is what the backend said."""
        said = " ".join(str(word) for word in words if word) or "no reason given"
        return WalletRefused(f"{self.name} answered {answer.status}: {said[:_LONGEST_DETAIL]}")

    async def close(self) -> None:
        await self.client.aclose()


def read_json(text: str) -> Any:
    """The JSON of a text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None
