"""Nostr Wallet Connect over a real relay, with a wallet that is paid and one that pays."""

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvoiceMismatch
from ppq_proxy.payments.wallets import open_wallet
from ppq_proxy.payments.wallets.base import OutcomeUnknown, PaymentFailed, State, WalletUnreachable
from ppq_proxy.payments.wallets.nwc import NwcWallet
from ppq_proxy.payments.wallets.nwc_connection import NwcConnection, NwcError
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Rows
from tests.payments.wallets.forwarder import forwarding
from tests.peers.fake_server import Peer, running

pytest.importorskip("nostr_sdk", reason="needs the extra nwc")
USUAL = {"state": True, "silent": False, "lie_msat": None, "error": None}


def url_of(peer: Peer) -> str:
    return str(httpx2.get(f"{peer.url}/_url").json()["url"])


@pytest.fixture(scope="module", params=["nip44", "nip04"])
def service(request: pytest.FixtureRequest) -> Iterator[Peer]:
    with running("tests.peers.nostr", request.param) as peer:
        yield peer


@pytest.fixture
async def wallet(service: Peer) -> AsyncIterator[NwcWallet]:
    service.set(**USUAL)
    wallet = NwcWallet(url_of(service), "regtest")
    yield wallet
    await wallet.close()


async def test_PPQ_162_an_invoice_is_made_paid_and_settled(wallet: NwcWallet) -> None:
    made = await wallet.create(21_000, "a call", 600, "")
    assert made.amount_msat == 21_000
    assert (await wallet.status(made.handle)).state == State.PENDING
    paid = await wallet.pay(made.bolt11, 10_000)
    assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == made.payment_hash
    assert (paid.amount_msat, paid.fee_msat) == (21_000, 7)
    status = await wallet.status(made.handle)
    assert (status.state, status.amount_msat) == (State.SETTLED, 21_000)
    with pytest.raises(PaymentFailed):
        await wallet.pay(made.bolt11, 10_000)


async def test_a_wallet_without_the_newer_state_is_understood(service: Peer, wallet: NwcWallet) -> None:
    service.set(state=False)
    made, brief = await wallet.create(1000, "", 600, ""), await wallet.create(1000, "", 1, "")
    assert (await wallet.status(made.handle)).state == State.PENDING
    await wallet.pay(made.bolt11, 0)
    assert (await wallet.status(made.handle)).state == State.SETTLED
    await asyncio.sleep(1.1)
    assert (await wallet.status(brief.handle)).state == State.EXPIRED


async def test_an_unknown_invoice_is_unknown(wallet: NwcWallet) -> None:
    assert (await wallet.status("00" * 32)).state == State.UNKNOWN


async def test_settlements_are_pushed(wallet: NwcWallet) -> None:
    made = await wallet.create(1000, "", 600, "")
    async with asyncio.timeout(15), contextlib.aclosing(wallet.watch()) as watched:
        first = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(0.5)
        await wallet.pay(made.bolt11, 0)
        assert await first == made.payment_hash


async def test_an_invoice_of_another_amount_is_refused(service: Peer, wallet: NwcWallet) -> None:
    service.set(lie_msat=1000)
    with pytest.raises(InvoiceMismatch, match="amount"):
        await wallet.create(21_000, "", 600, "")


async def test_many_requests_at_once_get_their_own_answers(wallet: NwcWallet) -> None:
    made = await asyncio.gather(*(wallet.create(1000 * n, "", 600, "") for n in range(1, 21)))
    assert [invoice.amount_msat for invoice in made] == [1000 * n for n in range(1, 21)]


@pytest.mark.parametrize(
    "reason", ["INSUFFICIENT_BALANCE", "QUOTA_EXCEEDED", "PAYMENT_FAILED", "RATE_LIMITED", "RESTRICTED"]
)
async def test_PPQ_171_a_refusal_to_pay_is_no_payment(service: Peer, wallet: NwcWallet, reason: str) -> None:
    made = await wallet.create(1000, "", 600, "")
    service.set(error=reason)
    with pytest.raises(PaymentFailed, match=reason):
        await wallet.pay(made.bolt11, 0)


@pytest.mark.parametrize("reason", ["INTERNAL", "OTHER"])
async def test_PPQ_171_an_unclear_answer_may_be_a_payment(service: Peer, wallet: NwcWallet, reason: str) -> None:
    made = await wallet.create(1000, "", 600, "")
    service.set(error=reason)
    with pytest.raises(OutcomeUnknown):
        await wallet.pay(made.bolt11, 0)
    with pytest.raises(NwcError):
        await wallet.status(made.handle)


async def test_a_silent_wallet_is_an_unknown_outcome(
    service: Peer, wallet: NwcWallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppq_proxy.payments.wallets.nwc._PAY_SECONDS", 1)
    made = await wallet.create(1000, "", 600, "")
    service.set(silent=True)
    with pytest.raises(OutcomeUnknown):
        await wallet.pay(made.bolt11, 0)


async def test_rubbish_is_not_sent_to_be_paid(wallet: NwcWallet) -> None:
    with pytest.raises(PaymentFailed):
        await wallet.pay("rubbish", 0)


async def test_info_tells_the_methods(wallet: NwcWallet) -> None:
    assert "pay_invoice" in str((await wallet.info())["methods"])


async def test_a_relay_that_is_gone_is_unreachable_and_another_one_is_used(service: Peer) -> None:
    url = url_of(service)
    gone = url.replace(url.split("relay=")[1].split("&")[0], "ws://127.0.0.1:1")
    wallet = NwcWallet(gone, "regtest")
    with pytest.raises(WalletUnreachable):
        await wallet.create(1000, "", 600, "")
    await wallet.close()
    both = NwcWallet(url.replace("?relay=", "?relay=ws://127.0.0.1:1&relay="), "regtest")
    service.set(**USUAL)
    assert (await both.create(1000, "", 600, "")).amount_msat == 1000
    await both.close()


async def test_a_lost_connection_is_opened_again(service: Peer) -> None:
    service.set(**USUAL)
    url = url_of(service)
    relay = url.split("relay=")[1].split("&")[0]
    async with forwarding(int(relay.rsplit(":", 1)[1])) as middle:
        wallet = NwcWallet(url.replace(relay, f"ws://127.0.0.1:{middle.port}"), "regtest")
        await wallet.create(1000, "", 600, "")
        watched = asyncio.ensure_future(anext(wallet.watch(), None))
        await asyncio.sleep(0.2)
        middle.drop()
        assert await asyncio.wait_for(watched, 5) is None, "a watcher is told that the connection is lost"
        assert (await wallet.create(2000, "", 600, "")).amount_msat == 2000
        await wallet.close()


@contextlib.asynccontextmanager
async def bad_relay(*frames: bytes) -> AsyncIterator[str]:
    """A relay that opens the WebSocket and then sends these bytes; its address."""

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        key = next(line.split(": ")[1] for line in lines if line.lower().startswith("sec-websocket-key"))
        proof = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        upgrade = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        accepted = f"Sec-WebSocket-Accept: {base64.b64encode(proof).decode()}"
        writer.write("\r\n".join([*upgrade, accepted, "", ""]).encode() + b"".join(frames))
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def frame(text: str) -> bytes:
    data = text.encode()
    size = bytes([len(data)]) if len(data) < 126 else bytes([126]) + len(data).to_bytes(2, "big")
    return b"\x81" + size + data


END_OF_STORED = frame('["EOSE","info"]')
RUBBISH = [
    "",
    "rubbish",
    "[]",
    "5",
    '["EVENT"]',
    '["EVENT","a",{"pubkey":5}]',
    '["OK",1]',
    '["EOSE"]',
    '["EOSE","x"]',
    "[" * 500,
]


async def test_a_relay_that_talks_nonsense_is_survived(service: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppq_proxy.payments.wallets.nwc_connection._CONNECT_SECONDS", 1)
    url = url_of(service)
    for frames in ([b"\xff\xff\xff\xff" * 100], [b"HTTP/1.1 400 Bad\r\n\r\n"], [frame(text) for text in RUBBISH]):
        async with bad_relay(*frames) as relay:
            wallet = NwcWallet(url.replace(url.split("relay=")[1].split("&")[0], relay), "regtest")
            with pytest.raises(WalletUnreachable):
                await wallet.info()
            await wallet.close()
    async with bad_relay(*[frame(text) for text in RUBBISH], END_OF_STORED, b"\xff\xff\xff\xff" * 100) as relay:
        wallet = NwcWallet(url.replace(url.split("relay=")[1].split("&")[0], relay), "regtest")
        with pytest.raises((OutcomeUnknown, WalletUnreachable)):
            await wallet.info()
        await wallet.close()


async def test_answers_of_others_are_not_believed(service: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that names the wallet but is not signed by it."""
    monkeypatch.setattr("ppq_proxy.payments.wallets.nwc_connection._CONNECT_SECONDS", 1)
    url = url_of(service)
    author = url.split("://")[1].split("?")[0]
    forged = {"id": "00" * 32, "pubkey": author, "created_at": 1, "kind": 13194, "content": "", "sig": "00" * 64}
    forged["tags"] = [["encryption", "nip44_v2"]]
    async with bad_relay(frame(json.dumps(["EVENT", "info", forged])), END_OF_STORED) as relay:
        connection = NwcConnection(url.replace(url.split("relay=")[1].split("&")[0], relay), trusted=True)
        with pytest.raises(OutcomeUnknown):
            await connection.request("get_info", {}, 1)
        assert connection._session
        assert not connection._session._modern
        await connection.close()


@pytest.mark.parametrize(
    "relay",
    ["ws://127.0.0.1:7777", "wss://127.0.0.1", "wss://localhost", "wss://169.254.169.254", "ws://relay.example.com"],
)
async def test_a_customers_relay_must_be_public_and_over_tls(service: Peer, relay: str) -> None:
    url = url_of(service)
    url = url.replace(url.split("relay=")[1].split("&")[0], relay)
    wallet = NwcWallet(url, "regtest", trusted=False)
    with pytest.raises(WalletUnreachable):
        await wallet.info()
    await wallet.close()


@pytest.mark.parametrize(
    "url",
    [
        "nostr+walletconnect://nonsense?relay=wss://a&secret=b",
        "https://example.com",
        "nostr+walletconnect://" + "ab" * 32 + "?relay=wss://a",
        "nostr+walletconnect://" + "ab" * 32 + "?secret=" + "01" * 32,
        "nostr+walletconnect://" + "ab" * 32 + "?relay=http://a&secret=" + "01" * 32,
    ],
)
async def test_what_is_no_connection_string_is_refused(url: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        NwcWallet(url, "regtest")
    assert "01" * 32 not in str(refusal.value)


async def test_it_is_opened_by_the_settings(service: Peer, rows: Rows) -> None:
    opened = open_wallet(Settings(wallet="nwc", nwc_url=url_of(service), network="regtest"), rows)
    assert isinstance(opened, NwcWallet)
    await opened.close()
    with pytest.raises(SettingsError, match="PPQ_NWC_URL"):
        open_wallet(Settings(wallet="nwc"), rows)
