"""Nostr Wallet Connect (NIP-47): requests to a wallet over a Nostr relay, encrypted and signed, and its answers.

`nostr-sdk` signs and encrypts; the relay is spoken to here, since it may be one that a customer chose: its address is
checked as that of every other foreign URL, and a request that was never sent is told apart from one without an answer.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.wallets.base import OutcomeUnknown, WalletError, WalletRefused, WalletUnreachable
from ppq_proxy.payments.wallets.public_http import PublicTransport

_INFO, _REQUEST, _RESPONSE, _NOTIFICATION_NIP04, _NOTIFICATION = 13194, 23194, 23195, 23196, 23197
_CONNECT_SECONDS = 8
_ANSWER_SECONDS = 20
_LONGEST_MESSAGE = 256 * 1024
_MOST_RELAYS = 4

log = logging.getLogger(__name__)


class NwcError(WalletRefused):
    """The wallet's answer is an error. `reason` is NIP-47's code, `said` the wallet's words."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(f"the wallet answered {reason}: {said[:200]}")
        self.reason = reason
        self.said = said


class NwcConnection:
    """One connection, opened at the first request and again whenever it is lost."""

    def __init__(self, url: str, *, trusted: bool) -> None:
        """`url` is `nostr+walletconnect://…`. `trusted`: the operator's own, whose relay may be anywhere.

        Raises:
            SettingsError: it is no such URL, or the extra `nwc` is not installed.
        """
        if importlib.util.find_spec("nostr_sdk") is None:
            raise SettingsError("Nostr Wallet Connect needs the extra: pip install 'ppq-proxy[nwc]'")
        import nostr_sdk

        self._sdk = nostr_sdk
        try:
            parts = urlsplit(url)
            query = parse_qs(parts.query)
            self._wallet = nostr_sdk.PublicKey.parse(parts.netloc or parts.path.strip("/"))
            self._keys = nostr_sdk.Keys.parse(query["secret"][0])
            self._relays = query["relay"][:_MOST_RELAYS]
        except (KeyError, ValueError, nostr_sdk.NostrSdkError):
            raise SettingsError("not a connection string of Nostr Wallet Connect (nostr+walletconnect://…)") from None
        if parts.scheme != "nostr+walletconnect" or not all(r.startswith(("wss://", "ws://")) for r in self._relays):
            raise SettingsError("not a connection string of Nostr Wallet Connect (nostr+walletconnect://…)")
        transport = PublicTransport(self._relays if trusted else ())
        self._client = httpx2.AsyncClient(transport=transport, timeout=_CONNECT_SECONDS, follow_redirects=False)
        self._lock = asyncio.Lock()
        self._session: _Session | None = None

    async def request(
        self, method: str, params: dict[str, Any], answer_seconds: int = _ANSWER_SECONDS
    ) -> dict[str, Any]:
        """Ask the wallet.

        Raises:
            NwcError: it answered with an error.
            WalletUnreachable: the request was never sent.
            OutcomeUnknown: it was, and no answer came.
        """
        session = await self._connected()
        return await session.request(method, params, answer_seconds)

    async def notifications(self) -> AsyncGenerator[dict[str, Any], None]:
        """`{"notification_type": …, "notification": {…}}` as they come, until the connection is lost."""
        session = await self._connected()
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(1000)
        session.listeners.append(queue)
        try:
            while not session.lost and (event := await queue.get()) is not None:
                yield event
        finally:
            session.listeners.remove(queue)

    async def close(self) -> None:
        if self._session:
            await self._session.close()
        await self._client.aclose()

    async def _connected(self) -> "_Session":
        async with self._lock:
            if self._session is None or self._session.lost:
                self._session = await self._open()
            return self._session

    async def _open(self) -> "_Session":
        failures: list[str] = []
        for relay in self._relays:
            session = _Session(self._sdk, self._client, relay, self._wallet, self._keys)
            try:
                await session.open()
            except WalletError as problem:
                failures.append(problem.detail)
                await session.close()
            else:
                return session
        raise WalletUnreachable("; ".join(failures))


class _Session:
    """One WebSocket to a relay, read by a task of its own."""

    def __init__(self, sdk: Any, client: httpx2.AsyncClient, relay: str, wallet: Any, keys: Any) -> None:
        self._sdk, self._client, self._relay, self._wallet, self._keys = sdk, client, relay, wallet, keys
        self.lost = False
        self.listeners: list[asyncio.Queue[dict[str, Any] | None]] = []
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._outgoing: asyncio.Queue[str] = asyncio.Queue()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._modern = False
        self._task = asyncio.create_task(self._run(), name="nwc")

    async def open(self) -> None:
        """Wait until the relay has told what it knows of the wallet, which includes how it wants to be written to."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.shield(self._ready)
        except TimeoutError:
            raise WalletUnreachable(f"{self._host()} does not answer") from None

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def request(self, method: str, params: dict[str, Any], answer_seconds: int) -> dict[str, Any]:
        sealed = self._seal(json.dumps({"method": method, "params": params}))
        tags = [["p", self._wallet.to_hex()], *([["encryption", "nip44_v2"]] if self._modern else [])]
        built = self._sdk.EventBuilder(self._sdk.Kind(_REQUEST), sealed).tags([self._sdk.Tag.parse(t) for t in tags])
        event = built.finalize(self._keys)
        ident = event.id().to_hex()
        answer = self._waiting[ident] = asyncio.get_running_loop().create_future()
        try:
            await self._outgoing.put(f'["EVENT",{event.as_json()}]')
            async with asyncio.timeout(answer_seconds):
                document = await answer
        except TimeoutError:
            raise OutcomeUnknown(f"the wallet did not answer {method}") from None
        finally:
            self._waiting.pop(ident, None)
        error = document.get("error")
        if isinstance(error, dict):
            raise NwcError(str(error.get("code") or "OTHER"), str(error.get("message") or ""))
        result = document.get("result")
        if not isinstance(result, dict):
            raise NwcError("OTHER", "an answer without a result")
        return result

    async def _run(self) -> None:
        from httpx2.websockets import HTTPXWSException

        try:
            url = self._relay
            async with self._client.websocket(url, max_message_size_bytes=_LONGEST_MESSAGE) as socket:
                with contextlib.suppress(HTTPXWSException):
                    await self._converse(socket)
        except (httpx2.HTTPError, HTTPXWSException) as problem:
            log.info("relay %s: %s", self._host(), type(problem).__name__)
        finally:
            self._end()

    async def _converse(self, socket: Any) -> None:
        since, me, wallet = (
            self._sdk.Timestamp.now().as_secs() - 10,
            self._keys.public_key().to_hex(),
            self._wallet.to_hex(),
        )
        kinds = [_RESPONSE, _NOTIFICATION_NIP04, _NOTIFICATION]
        await socket.send_text(
            json.dumps(["REQ", "answers", {"kinds": kinds, "authors": [wallet], "#p": [me], "since": since}])
        )
        await socket.send_text(json.dumps(["REQ", "info", {"kinds": [_INFO], "authors": [wallet], "limit": 1}]))
        sender = asyncio.create_task(self._send(socket))
        try:
            while True:
                self._hear(await socket.receive_text())
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self, socket: Any) -> None:
        while True:
            await socket.send_text(await self._outgoing.get())

    def _hear(self, text: str) -> None:
        try:
            message = json.loads(text)
            kind, rest = message[0], message[1:]
            if kind == "EVENT":
                self._take(rest[1])
            elif kind == "EOSE" and rest[0] == "info" and not self._ready.done():
                self._ready.set_result(None)
            elif kind == "OK" and rest[1] is False and rest[0] in self._waiting:
                self._fail(self._waiting[rest[0]], WalletUnreachable(f"{self._host()} refused the request: {rest[2]}"))
        except (ValueError, TypeError, LookupError, RecursionError, self._sdk.NostrSdkError):
            log.info("relay %s sent something that is no message of ours", self._host())

    def _take(self, event: dict[str, Any]) -> None:
        """An event of the wallet; those of others, or with a wrong signature, are nothing."""
        if event["pubkey"] != self._wallet.to_hex() or not self._sdk.Event.from_json(json.dumps(event)).verify():
            return
        kind, tags = event["kind"], [tag for tag in event["tags"] if len(tag) > 1]
        if kind == _INFO:
            self._modern = any(tag[0] == "encryption" and "nip44_v2" in " ".join(tag[1:]).split() for tag in tags)
            return
        document = json.loads(self._unseal(event["content"]))
        if kind in (_NOTIFICATION, _NOTIFICATION_NIP04):
            for queue in self.listeners:
                with contextlib.suppress(asyncio.QueueFull):
                    queue.put_nowait(document)
            return
        for tag in tags:
            if tag[0] == "e" and (answer := self._waiting.get(tag[1])) and not answer.done():
                answer.set_result(document)

    def _seal(self, text: str) -> str:
        secret = self._keys.secret_key()
        if self._modern:
            return str(self._sdk.nip44_encrypt(secret, self._wallet, text, self._sdk.Nip44Version.V2))
        return str(self._sdk.nip04_encrypt(secret, self._wallet, text))

    def _unseal(self, text: str) -> str:
        # The two look different, and a wallet may well answer in another form than it announces.
        decrypt = self._sdk.nip04_decrypt if "?iv=" in text else self._sdk.nip44_decrypt
        return str(decrypt(self._keys.secret_key(), self._wallet, text))

    def _end(self) -> None:
        self.lost = True
        host = self._host()
        if not self._ready.done():
            self._fail(self._ready, WalletUnreachable(f"{host} cannot be reached"))
        for answer in self._waiting.values():
            self._fail(answer, OutcomeUnknown(f"{host} closed the connection"))
        for queue in self.listeners:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)

    def _fail(self, future: "asyncio.Future[Any]", problem: WalletError) -> None:
        if not future.done():
            future.set_exception(problem)
            future.exception()  # marks it as seen: there may be nobody left who waits for it

    def _host(self) -> str:
        return urlsplit(self._relay).netloc or "the relay"
