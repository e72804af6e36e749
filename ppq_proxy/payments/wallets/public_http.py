"""HTTP to addresses that others chose, which must not lead into the operator's own network.

Each host name is resolved once, every address that it has is checked to be a public one, and the connection goes to the
address that was checked, while TLS and the Host header keep the name. What the operator named is left alone.
"""

import asyncio
import ipaddress
import json
import socket
import ssl
from collections.abc import Collection
from typing import Any

import httpx2

from ppq_proxy.payments.wallets.base import OutcomeUnknown, WalletRefused, WalletUnreachable

_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 10
_LONGEST_ANSWER = 64 * 1024
_MOST_HOSTS = 64


class ForbiddenAddress(httpx2.RequestError):
    """A URL that must not be fetched: not TLS, or not a public address."""


class PublicTransport(httpx2.AsyncBaseTransport):
    """Connects to public addresses over TLS only, except for scheme, host and port of the URLs in `trusted`."""

    def __init__(self, trusted: Collection[str] = (), verify: ssl.SSLContext | bool = True) -> None:
        self._verify = verify
        self._trusted = frozenset(_origin(httpx2.URL(url)) for url in trusted)
        # One pool a host: connections are kept by address, and two names with one address must not share a TLS session.
        self._pools: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host.lower()
        if _origin(request.url) in self._trusted:
            return await (await self._pool(host)).handle_async_request(request)
        if request.url.scheme not in ("https", "wss"):
            raise ForbiddenAddress("only https is fetched", request=request)
        address = await self._public_address(request, host)
        request.extensions = {**request.extensions, "sni_hostname": host}
        request.url = request.url.copy_with(host=address)
        return await (await self._pool(host)).handle_async_request(request)

    async def aclose(self) -> None:
        pools, self._pools = list(self._pools.values()), {}
        await asyncio.gather(*(pool.aclose() for pool in pools))

    async def _pool(self, host: str) -> httpx2.AsyncHTTPTransport:
        if host not in self._pools:
            if len(self._pools) >= _MOST_HOSTS:
                await self._pools.pop(next(iter(self._pools))).aclose()
            self._pools[host] = httpx2.AsyncHTTPTransport(verify=self._verify, trust_env=False)
        return self._pools[host]

    async def _public_address(self, request: httpx2.Request, host: str) -> str:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, request.url.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise httpx2.ConnectError(f"{host} has no address", request=request) from None
        addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
        if not addresses or not all(is_public(address) for address in addresses):
            raise ForbiddenAddress(f"{host} is not a public address", request=request)
        return addresses[0]


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    # A WebSocket begins as a request of http.
    return url.scheme.replace("ws", "http"), url.host.lower(), url.port


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, whatever form it is wrapped in."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.IPv6Network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def public_client(trusted: Collection[str] = ()) -> httpx2.AsyncClient:
    """A client for the public internet and the origins of `trusted` URLs, without redirects and long waits."""
    timeout = httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
    return httpx2.AsyncClient(transport=PublicTransport(trusted), timeout=timeout, follow_redirects=False)


async def fetch_json(client: httpx2.AsyncClient, url: str, params: dict[str, str] | None = None) -> Any:
    """The JSON behind a URL, whatever the status, up to 64 KiB. `params` are added to those of the URL.

    Raises:
        WalletError: refused, unreachable, too long, or no JSON.
    """
    try:
        target = httpx2.URL(url).copy_merge_params(params or {})
    except httpx2.InvalidURL:
        raise WalletRefused("something that is no URL was to be fetched") from None
    body = await _read(client, target)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise WalletRefused(f"{target.host} answered without JSON") from None


async def _read(client: httpx2.AsyncClient, target: httpx2.URL) -> bytes:
    body = b""
    try:
        # Raw: a body that was compressed all the same could grow to anything.
        headers = {"Accept-Encoding": "identity"}
        async with asyncio.timeout(_ANSWER_SECONDS), client.stream("GET", target, headers=headers) as response:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _LONGEST_ANSWER:
                    raise WalletRefused(f"{target.host} sends too much")
    except ForbiddenAddress as problem:
        raise WalletRefused(str(problem)) from None
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as problem:
        raise WalletUnreachable(f"{target.host} cannot be reached: {type(problem).__name__}") from None
    except (httpx2.HTTPError, TimeoutError) as problem:
        raise OutcomeUnknown(f"{target.host} did not answer: {type(problem).__name__}") from None
    return body
