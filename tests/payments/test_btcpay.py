"""BTCPay's invoices and webhooks against a stand-in that signs as BTCPay does."""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import httpx2
import pytest

from ppq_proxy.payments.btcpay import BtcpayClient, WebhookEvent, verify_webhook
from ppq_proxy.payments.wallets.base import WalletRefused, WalletUnreachable
from tests.payments.wallets.forwarder import forwarding
from tests.peers.fake_server import Peer, running


@pytest.fixture(scope="module")
def server() -> Iterator[Peer]:
    with running("tests.peers.fake_btcpay") as peer:
        yield peer


@pytest.fixture
async def client(server: Peer) -> AsyncIterator[BtcpayClient]:
    client = BtcpayClient(server.url, "a-key", "a-store")
    yield client
    await client.close()


def order() -> str:
    return secrets.token_hex(8)


async def test_PPQ_151_an_invoice_is_made_and_read_again(server: Peer, client: BtcpayClient) -> None:
    name = order()
    made = await client.create_invoice(Decimal("50.00"), "USD", ["BTC-CHAIN", "LTC-CHAIN"], 60, name)
    assert (made.amount, made.currency, made.order_id, made.status) == (Decimal(50), "USD", name, "New")
    assert (made.expires_at - made.created_at, made.paid) == (3600, Decimal(0))
    assert made.checkout_url
    sent = server.seen()[-1]["body"]
    assert '"amount":"50.00"' in sent.replace(" ", ""), "an amount is a decimal string"
    assert await client.invoice(made.id) == made
    assert await client.invoice("../../../stores") is None
    changes = {"status": "Settled", "additionalStatus": "PaidOver", "paidAmount": "50.02"}
    httpx2.post(f"{server.url}/_invoice/{made.id}", json=changes).raise_for_status()
    found = await client.invoice(made.id)
    assert found
    assert (found.status, found.additional_status, found.paid) == ("Settled", "PaidOver", Decimal("50.02"))


async def test_the_ways_to_pay_are_read_exactly(client: BtcpayClient) -> None:
    made = await client.create_invoice(Decimal("50"), "USD", ["BTC-CHAIN", "LTC-CHAIN"], 60, order())
    coins = await client.methods(made.id)
    assert [(c.id, c.coin, c.rate, c.due) for c in coins] == [
        ("BTC-CHAIN", "BTC", Decimal(100000), Decimal("0.0005")),
        ("LTC-CHAIN", "LTC", Decimal(100), Decimal("0.5")),
    ]
    assert all(c.destination and c.link and c.active for c in coins)
    assert await client.payment_method_ids() == ["BTC-CHAIN", "BTC-LN", "LTC-CHAIN"]


async def test_a_lost_answer_is_found_by_its_order(server: Peer) -> None:
    async with forwarding(int(server.url.rsplit(":", 1)[1])) as middle:
        client = BtcpayClient(f"http://127.0.0.1:{middle.port}", "a-key", "a-store")
        await client.payment_method_ids()
        name, asked = order(), len(server.seen())
        middle.swallow = True
        made = await client.create_invoice(Decimal(5), "USD", ["BTC-CHAIN"], 15, name)
        assert made.order_id == name
        assert [request["method"] for request in server.seen()[asked:]] == ["POST", "GET"]
        assert await client.find(order()) is None
        await client.close()


async def test_refusals_are_told_without_the_key(server: Peer) -> None:
    for key, store in (("another-key", "a-store"), ("a-key", "another-store")):
        client = BtcpayClient(server.url, key, store)
        with pytest.raises(WalletRefused) as refusal:
            await client.create_invoice(Decimal(5), "USD", ["BTC-CHAIN"], 15, order())
        assert "another-key" not in str(refusal.value)
        await client.close()
    nobody = BtcpayClient("http://127.0.0.1:1", "a-key", "a-store")
    with pytest.raises(WalletUnreachable):
        await nobody.invoice("Inv1")
    await nobody.close()


async def test_a_delivery_is_believed_by_its_signature_alone(server: Peer, client: BtcpayClient) -> None:
    heard: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        heard.put_nowait((await reader.readexactly(int(headers["content-length"])), headers["btcpay-sig"]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(hear, "127.0.0.1", 0)
    server.set(webhook=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hook", secret="s3cret")
    made = await client.create_invoice(Decimal(5), "USD", ["BTC-CHAIN"], 15, order())
    settled = {"status": "Settled"}
    await asyncio.to_thread(httpx2.post, f"{server.url}/_invoice/{made.id}", json=settled)
    body, signature = await heard.get()
    await asyncio.to_thread(server.set, webhook=None)
    listener.close()
    event = verify_webhook("s3cret", body, signature)
    assert event == WebhookEvent("InvoiceSettled", made.id, "a-store", event.delivery_id if event else "")
    for wrong in (body + b" ", body.replace(b"Settled", b"Expired"), b""):
        assert verify_webhook("s3cret", wrong, signature) is None
    for forged in (None, "", "sha256=", signature[:-1], signature.upper(), signature.removeprefix("sha256="), "ö"):
        assert verify_webhook("s3cret", body, forged) is None
    assert verify_webhook("another", body, signature) is None


def test_without_a_secret_nothing_is_believed() -> None:
    body = b"{}"
    assert verify_webhook("", body, "sha256=" + hmac.new(b"", body, hashlib.sha256).hexdigest()) is None


@pytest.mark.parametrize("body", [b"rubbish", b"[]", b"5", b"\xff"])
def test_what_is_signed_and_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(WalletRefused):
        verify_webhook("s3cret", body, "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest())
