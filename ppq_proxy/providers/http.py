"""One upstream: its connections, timeouts, concurrency and health, and what its failures mean to a customer."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import orjson
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    BuilderError,
    ConnectError,
    PoolTimeoutError,
    PyreqwestError,
    RequestTimeoutError,
)
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

from ppq_proxy.errors import GatewayError, UpstreamNonsense, UpstreamRefused, UpstreamTimeout, UpstreamUnavailable
from ppq_proxy.histogram import Histogram

CUSTOMERS_FAULT = {400, 413, 415, 422}
OPERATORS_FAULT = {401, 402, 403}


class Failed(Exception):
    """An attempt that delivered nothing. `error` is what the customer would be told, were it the last one."""

    def __init__(self, error: GatewayError, *, again: bool = False, elsewhere: bool = True, ill: bool = True) -> None:
        super().__init__(error.message)
        self.error, self.again, self.elsewhere, self.ill = error, again, elsewhere, ill


class Breaker:
    """Keeps calls away from an upstream that fails in a row, for a second or a few; then lets one try."""

    THRESHOLD = 4
    LONGEST = 4.0

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0

    @property
    def open(self) -> bool:
        return self.failures >= self.THRESHOLD and time.monotonic() < self.until

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= self.THRESHOLD:
            self.until = time.monotonic() + min(self.LONGEST, 2.0 ** (self.failures - self.THRESHOLD))


class Upstream:
    """An OpenAI-compatible API at `url` (ending in /v1), called with the operator's key."""

    def __init__(
        self,
        name: str,
        url: str,
        key: str = "",
        *,
        connect_seconds: float = 10,
        first_byte_seconds: float = 300,
        idle_seconds: float = 120,
        concurrency: int = 0,
        retries: int = 1,
        usage: str = "always",
    ) -> None:
        self.name, self.url, self.retries, self.usage = name, url.rstrip("/"), retries, usage
        self._key = key
        self.first_byte_seconds = first_byte_seconds
        self.slots = asyncio.Semaphore(concurrency) if concurrency else None
        self.slot_seconds = connect_seconds
        self.breaker = Breaker()
        self.latency = Histogram()
        self.failures: dict[str, int] = {}
        self._once = self._client(connect_seconds, first_byte_seconds)
        # This client's limit holds for the wait for the head too, so that whoever reads looks after a shorter silence.
        self._streams = self._client(connect_seconds, max(first_byte_seconds, idle_seconds))
        self.idle_seconds = idle_seconds
        self._urls: dict[str, str] = {}

    def _client(self, connect_seconds: float, read_seconds: float) -> Client:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        builder = ClientBuilder().default_headers(headers).user_agent("ppq-proxy").http1_only().max_connections(None)
        builder = builder.connect_timeout(timedelta(seconds=connect_seconds)).read_timeout(
            timedelta(seconds=read_seconds)
        )
        return builder.pool_idle_timeout(timedelta(seconds=30)).tcp_nodelay(True).build()

    async def close(self) -> None:
        await self._once.close()
        await self._streams.close()

    def _url(self, path: str) -> str:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = self.url + path
        return url

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of a whole answer. Raises `Failed`."""
        slots = self.slots
        if slots is not None:
            await self._slot(slots)
        began = time.perf_counter()
        try:
            response = await self._once.post(self._url(path)).body_bytes(body).build().send()
            content = (await response.bytes()).to_bytes()
            if response.status != 200:
                raise self.refused(response, content)
        except PyreqwestError as problem:
            raise self._broken(problem) from None
        finally:
            if slots is not None:
                slots.release()
            self.latency.observe(time.perf_counter() - began)
        return content

    @asynccontextmanager
    async def stream(self, path: str, body: bytes) -> AsyncIterator[Response]:
        """An answer to be read in pieces; whoever reads translates `PyreqwestError` by `broken`. Raises `Failed`."""
        slots = self.slots
        if slots is not None:
            await self._slot(slots)
        began = time.perf_counter()
        try:
            request = (
                self._streams.post(self._url(path)).body_bytes(body).streamed_read_buffer_limit(0).build_streamed()
            )
            response = await self._head(request)
            try:
                self.latency.observe(time.perf_counter() - began)
                if response.status != 200:
                    raise self.refused(response, (await response.bytes()).to_bytes())
                yield response
            finally:
                await request.__aexit__(None, None, None)
        except PyreqwestError as problem:
            raise self._broken(problem) from None
        finally:
            if slots is not None:
                slots.release()

    async def _head(self, request: StreamRequest) -> Response:
        """An answer's status and headers. Raises `Failed`, `PyreqwestError`."""
        limit = asyncio.timeout(self.first_byte_seconds)
        try:
            async with limit:
                return await request.__aenter__()
        except TimeoutError:  # the client's own errors are such too
            if not limit.expired():
                raise
            raise self._late() from None

    async def get(self, path: str) -> Any:
        """A JSON document. Raises `Failed`."""
        try:
            response = await self._once.get(self._url(path)).build().send()
            content = (await response.bytes()).to_bytes()
        except PyreqwestError as problem:
            raise self._broken(problem) from None
        if response.status != 200:
            raise self.refused(response, content)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise Failed(UpstreamNonsense("The upstream's answer is not JSON.")) from None

    async def reachable(self, seconds: float) -> bool:
        """True if it answers at all, whatever it says."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._once.get(self._url("/models")).build().send()
                await response.bytes()
        except (PyreqwestError, TimeoutError):
            return False
        return response.status < 500

    async def _slot(self, slots: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self.slot_seconds):
                await slots.acquire()
        except TimeoutError:
            error = UpstreamUnavailable(
                "The model's upstream is busy. Try again shortly.", headers={"retry-after": "1"}
            )
            raise Failed(error, ill=False) from None

    def note(self, failed: Failed | None) -> None:
        """Tell breaker and counters how an attempt went."""
        if failed is None:
            if self.breaker.failures:
                self.breaker.succeeded()
            return
        code = failed.error.code
        self.failures[code] = self.failures.get(code, 0) + 1
        if failed.ill:
            self.breaker.failed()

    def _broken(self, problem: PyreqwestError) -> Failed:
        """A transport error as a failed attempt."""
        retry = {"retry-after": "1"}
        if isinstance(problem, ConnectError | PoolTimeoutError) or _connecting(problem):
            return Failed(UpstreamUnavailable("The model's upstream cannot be reached.", headers=retry), again=True)
        if isinstance(problem, RequestTimeoutError):
            return self._late()
        if isinstance(problem, BuilderError):
            return Failed(UpstreamUnavailable("The model's upstream is set up wrongly."))
        return Failed(UpstreamNonsense("The model's upstream broke off its answer."), again=True)

    @staticmethod
    def _late() -> Failed:
        """It may be at work on the call still: it is not asked again, another one may be."""
        return Failed(UpstreamTimeout("The model's upstream took too long to answer."))

    def refused(self, response: Response, content: bytes) -> Failed:
        """An answer other than 200 as a failed attempt. The text of a refusal that concerns the operator stays here."""
        status = response.status
        if status in CUSTOMERS_FAULT:
            return Failed(UpstreamRefused(self._message(content), status), elsewhere=False, ill=False)
        retry = {"retry-after": self._retry_after(response)}
        if status in OPERATORS_FAULT or b"insufficient_quota" in content:
            return Failed(
                UpstreamUnavailable("The model's upstream refuses this gateway at the moment.", headers=retry)
            )
        if status == 429:
            return Failed(
                UpstreamUnavailable("The model's upstream is busy. Try again shortly.", headers=retry), ill=False
            )
        if status == 504:
            return Failed(UpstreamTimeout("The model's upstream took too long to answer."))
        if status >= 500 or status == 408:
            return Failed(UpstreamUnavailable("The model's upstream failed.", headers=retry), again=True)
        if status == 404:
            return Failed(
                UpstreamUnavailable("The model's upstream does not serve it at the moment.", headers=retry), ill=False
            )
        return Failed(UpstreamNonsense(f"The model's upstream answered with status {status}."))

    @staticmethod
    def _retry_after(response: Response) -> str:
        given = response.get_header("retry-after") or ""
        return str(min(60, max(1, int(given)))) if given.isdigit() and len(given) < 6 else "1"

    def _message(self, content: bytes) -> str:
        """The upstream's own words about the customer's request, without the operator's key."""
        try:
            error = orjson.loads(content)["error"]
            message = error if isinstance(error, str) else str(error["message"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return "The model's upstream does not accept this request."
        if self._key:
            message = message.replace(self._key, "…")
        return message[:2000] or "The model's upstream does not accept this request."


def _connecting(problem: PyreqwestError) -> bool:
    """True if there was no connection yet. The client calls every timeout before the head one of connecting; its causes know."""
    causes = (getattr(problem, "details", None) or {}).get("causes") or ()
    return any("(Connect)" in cause.get("message", "") for cause in causes)
