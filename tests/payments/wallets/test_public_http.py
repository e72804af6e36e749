"""Foreign URLs are fetched from public addresses only, from the address that was checked, and under their own name."""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ppq_proxy.payments.wallets import public_http
from ppq_proxy.payments.wallets.public_http import ForbiddenAddress, PublicTransport, is_public, public_client

PRIVATE = [
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:db8::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://localhost/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://127.1/",
        "http://1.1.1.1/",
        "ws://1.1.1.1/",
    ],
)
async def test_nothing_inside_is_fetched_however_it_is_spelt(url: str) -> None:
    async with public_client() as client:
        with pytest.raises((ForbiddenAddress, httpx2.ConnectError, httpx2.InvalidURL)) as refusal:
            await client.get(url)
        assert "refused" not in str(refusal.value).lower(), "it was connected to"


async def test_a_name_with_any_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(2, 1, 6, "", ("1.1.1.1", 443)), (2, 1, 6, "", ("10.0.0.1", 443))]
    resolve(monkeypatch, answers)
    async with public_client() as client:
        with pytest.raises(ForbiddenAddress):
            await client.get("https://both.example/")


async def test_what_the_operator_named_is_fetched_but_not_its_neighbours() -> None:
    heard: list[int] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(writer.get_extra_info("sockname")[1])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    servers = [await asyncio.start_server(hear, "127.0.0.1", 0) for _ in range(2)]
    named, neighbour = (server.sockets[0].getsockname()[1] for server in servers)
    async with public_client([f"http://127.0.0.1:{named}/some/path"]) as client:
        assert (await client.get(f"http://127.0.0.1:{named}/other")).status_code == 302, (
            "and redirects are not followed"
        )
        for url in (f"http://127.0.0.1:{neighbour}/", f"https://127.0.0.1:{named}/", f"http://localhost:{named}/"):
            with pytest.raises(ForbiddenAddress):
                await client.get(url)
    assert heard == [named]
    for server in servers:
        server.close()


def resolve(monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> list[str]:
    """A resolver as an attacker may run one."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return answers

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    return asked


@pytest.fixture
async def named_server(tmp_path: Path) -> AsyncIterator[tuple[int, str, list[str]]]:
    """A TLS server with a certificate for wallet.example; its port, the certificate and what clients asked for."""
    certificate = make_certificate(tmp_path, "wallet.example")
    asked: list[str] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: asked.append(f"sni {name}")

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        asked.extend(line for line in lines if line.startswith("host:"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1], certificate, asked
    server.close()


async def test_the_checked_address_is_connected_to_under_the_urls_name(
    named_server: tuple[int, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificate, asked = named_server
    resolved = resolve(monkeypatch, [(2, 1, 6, "", ("127.0.0.1", port))])
    monkeypatch.setattr(public_http, "is_public", lambda address: ipaddress.ip_address(address).is_loopback)
    transport = PublicTransport(verify=ssl.create_default_context(cafile=certificate))
    async with httpx2.AsyncClient(transport=transport) as client:
        assert (await client.get(f"https://wallet.example:{port}/x")).json() == {}
        assert asked == ["sni wallet.example", f"host: wallet.example:{port}"]
        assert resolved == ["wallet.example"], "resolved once"
        with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate|hostname"):
            await client.get(f"https://another.example:{port}/x")


def make_certificate(folder: Path, name: str) -> str:
    """The path of a self-signed certificate with its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, at = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(at).not_valid_after(at + datetime.timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    signed = built.add_extension(names, critical=False).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path = folder / "server.pem"
    path.write_bytes(pem + signed.public_bytes(serialization.Encoding.PEM))
    return str(path)
