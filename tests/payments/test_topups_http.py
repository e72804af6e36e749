"""Top-ups as customers see them: over HTTP, by Lightning on the development wallet and by BTCPay on chains."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from ppq_proxy.payments.invoice import read
from tests.gateway.wire import Answer
from tests.gateway.world import Customer, World
from tests.peers.fake_server import Peer, running

SECRET = "s3cret"
JUST_NOW = ("0.05", "Processing")
FIELDS = {
    *("created_at", "invoice_id", "amount", "currency", "expires_at", "checkout_url", "crypto_amount_due"),
    "payment_method",
}


@pytest.fixture(scope="module")
def btcpay() -> Iterator[Peer]:
    with running("tests.peers.fake_btcpay") as peer:
        yield peer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, btcpay: Peer) -> Iterator[World]:
    """A gateway with the development wallet and a BTCPay store."""
    folder = tmp_path_factory.mktemp("topups")
    env = {
        "PPQ_WALLET": "dev", "PPQ_BTC_USD": "100000", "PPQ_CHALLENGES_PER_MINUTE": "off",
        "PPQ_BTCPAY_URL": btcpay.url, "PPQ_BTCPAY_KEY": "a-key", "PPQ_BTCPAY_STORE": "a-store",
        "PPQ_BTCPAY_WEBHOOK_SECRET": SECRET, "PPQ_BTCPAY_METHODS": "btc,ltc,xmr",
    }  # fmt: skip
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=None, rows=(), **env)
    one.start_now()
    btcpay.set(webhook=None, secret=SECRET)
    try:
        yield one
        code, out, err = one.desk.run(["doctor", "--models", str(one.models), "--json"])
        assert code == 0, out + err
    finally:
        one.stop_now()


def exact(answer: Answer) -> Any:
    return json.loads(answer.body, parse_float=Decimal)


async def create(world: World, customer: Customer, method: str, amount: Any, currency: str, **headers: str) -> Any:
    """A top-up that is made."""
    body = {"amount": amount, "currency": currency}
    answer = await world.http("POST", f"/topup/create/{method}", body, customer.key, headers=headers)
    assert answer.status == 201, answer.body
    return answer.json


async def status(world: World, customer: Customer, made: Any) -> Any:
    answer = await world.http("GET", f"/topup/status/{made['invoice_id']}", key=customer.key)
    assert answer.status == 200, answer.body
    return exact(answer)


async def until(world: World, customer: Customer, made: Any, wanted: str, seconds: float = 10) -> Any:
    """The status, once it is as wanted."""
    end = time.monotonic() + seconds
    while (found := await status(world, customer, made))["status"] != wanted:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.1)
    return found


async def credited(world: World, customer: Customer) -> Decimal:
    return (await world.show(customer.credit_id))["credited_usd"]


async def pay(world: World, made: Any) -> str:
    return str((await world.cli("wallet", "pay", made["lightning_invoice"]))["preimage"])


async def at_btcpay(btcpay: Peer, made: Any, **changes: str) -> None:
    """Change an invoice at BTCPay, its webhook included if there is one."""
    name = made["checkout_url"].rpartition("/")[2]
    async with httpx2.AsyncClient(timeout=30) as client:
        (await client.post(f"{btcpay.url}/_invoice/{name}", json=changes)).raise_for_status()


async def coins(btcpay: Peer, made: Any, *payments: tuple[str, str]) -> None:
    """Say which payments have come to an invoice's address, and how far each is confirmed."""
    name = made["checkout_url"].rpartition("/")[2]
    listed = [{"value": value, "status": state} for value, state in payments]
    async with httpx2.AsyncClient() as client:
        (await client.post(f"{btcpay.url}/_coins/{name}", json=listed)).raise_for_status()


# Lightning


async def test_PPQ_153_155_the_documented_bodies_and_every_credential(world: World) -> None:
    customer = await world.customer("0")
    body = {"amount": 1000, "currency": "SATS"}
    for headers in (
        {"authorization": f"Bearer {customer.key}"},
        {"api-key": customer.key},
        {"x-api-key": customer.key},
        {"x-credit-id": customer.credit_id},
    ):
        answer = await world.http("POST", "/topup/create/btc-lightning", body, headers=headers)
        assert answer.status == 201, headers
        made = answer.json
        assert FIELDS | {"lightning_invoice"} == set(made)
        assert (made["amount"], made["currency"], made["crypto_amount_due"]) == ("1000", "SATS", "0.00001")
        assert made["checkout_url"] == f"lightning:{made['lightning_invoice']}"
        invoice = read(made["lightning_invoice"])
        assert (invoice.amount_msat, invoice.network) == (1_000_000, "regtest")
        assert int(made["expires_at"]) - int(made["created_at"]) == 900
        assert int(made["expires_at"]) <= invoice.expires_at
    on_chain = await create(world, customer, "btc", 0.001, "BTC")
    monero = await create(world, customer, "xmr", 50.00, "USD")
    assert (on_chain["amount"], monero["amount"]) == ("0.001", "50")


async def test_PPQ_156_157_status_of_an_unpaid_one(world: World) -> None:
    customer, stranger = await world.customer("0"), await world.customer("0")
    made = await create(world, customer, "btc-lightning", 2.5, "USD")
    found = await status(world, customer, made)
    assert found == {
        "invoice_id": made["invoice_id"], "status": "New", "amount": Decimal("2.5"), "currency": "USD",
        "payment_method": "btc-lightning", "amount_paid": 0, "amount_due": Decimal("2.5"), "credited_usd": 0,
        "created_at": int(made["created_at"]), "expires_at": int(made["expires_at"]),
        "lightning_invoice": made["lightning_invoice"],
    }  # fmt: skip
    for key, name, wanted in (
        (stranger.key, made["invoice_id"], 404),
        (customer.key, "BTCPayInvoiceId123", 404),
        (customer.key, "%2e%2e", 404),
        (None, made["invoice_id"], 401),
        ("sk-nonsense", made["invoice_id"], 401),
    ):
        answer = await world.http("GET", f"/topup/status/{name}", key=key)
        assert answer.status == wanted
        assert answer.error["message"] and answer.error["request_id"]


async def test_PPQ_158_159_payment_methods_need_no_key(world: World) -> None:
    answer = await world.http("GET", "/topup/payment-methods")
    names = ("method", "min_usd", "max_usd", "expiry_minutes", "bonus_percent")
    rows = [
        ("btc-lightning", Decimal("0.1"), 1000, 15, 5),
        ("btc", 10, 10_000, 60, 0),
        ("ltc", 2, 1000, 60, 0),
        ("xmr", 5, 10_000, 60, 0),
    ]
    wanted = [{"currencies": ["SATS", "BTC", "USD"]} | dict(zip(names, row, strict=True)) for row in rows]
    assert exact(answer) == {"data": wanted}


async def test_PPQ_160_paid_by_lightning_and_spent(world: World) -> None:
    customer = await world.customer("0")
    polled, unpolled = [await create(world, customer, "btc-lightning", 1000, "SATS") for _ in range(2)]
    assert (await world.chat(customer.key)).status == 402
    for made in (unpolled, polled):
        await pay(world, made)
    found = await until(world, customer, polled, "Settled")
    assert (found["amount_paid"], found["amount_due"], found["credited_usd"]) == (1000, 0, Decimal("1.05"))
    end = time.monotonic() + 20
    while await credited(world, customer) < Decimal("2.1"):
        assert time.monotonic() < end, "the one that nobody asks about is not credited within 20 s"
        await asyncio.sleep(0.2)
    assert (await world.chat(customer.key)).status == 200
    assert await credited(world, customer) == Decimal("2.1")


async def test_PPQ_150_idempotency_key_over_http(world: World) -> None:
    customer = await world.customer("0")
    first = await create(world, customer, "btc-lightning", 1000, "SATS", **{"idempotency-key": "k"})
    assert await create(world, customer, "btc-lightning", 1e3, "SATS", **{"idempotency-key": "k"}) == first
    body = {"amount": 1001, "currency": "SATS"}
    path, headers = "/topup/create/btc-lightning", {"idempotency-key": "k"}
    assert (await world.http("POST", path, body, customer.key, headers=headers)).status == 422
    on_chain = await create(world, customer, "btc", 10, "USD", **{"idempotency-key": "c"})
    assert await create(world, customer, "btc", 10, "USD", **{"idempotency-key": "c"}) == on_chain


@pytest.mark.parametrize(
    ("method", "body", "wanted"),
    [
        ("btc-lightning", b"", 400),
        ("btc-lightning", b"null", 400),
        ("btc-lightning", b"[" * 9000, 400),
        ("btc-lightning", b'{"amount": 1e400, "currency": "USD"}', 400),
        ("btc-lightning", b'{"amount": 1e999999999999999999999, "currency": "USD"}', 400),
        ("btc-lightning", b'{"amount": Infinity, "currency": "USD"}', 400),
        ("btc-lightning", b'{"amount": NaN, "currency": "USD"}', 400),
        ("btc-lightning", b'{"amount": ' + b"9" * 9000 + b', "currency": "SATS"}', 400),
        ("btc-lightning", b'{"amount": "5", "currency": "USD"}', 400),
        ("btc-lightning", b'{"amount": true, "currency": "USD"}', 400),
        ("btc-lightning", b'{"amount": 5}', 400),
        ("btc-lightning", b'{"amount": 5, "currency": "EUR"}', 400),
        ("btc-lightning", b'{"amount": 99, "currency": "SATS"}', 400),
        ("btc-lightning", b'{"amount": 1000.01, "currency": "USD"}', 400),
        ("btc", b'{"amount": 9.99, "currency": "USD"}', 400),
        ("xmr", b'{"amount": 50.001, "currency": "USD"}', 400),
        ("lbtc", b'{"amount": 50, "currency": "USD"}', 503),
        ("doge", b'{"amount": 50, "currency": "USD"}', 404),
        ("btc-lightning", b" " * 20_000, 413),
    ],
)
async def test_PPQ_152_bad_input_has_a_clear_answer(world: World, method: str, body: bytes, wanted: int) -> None:
    customer = await world.customer("0")
    answer = await world.http("POST", f"/topup/create/{method}", body, customer.key)
    assert answer.status == wanted, answer.body
    assert len(answer.error["message"]) > 20 and answer.error["request_id"]


async def test_PPQ_150_nobody_and_guests_cannot_top_up(world: World) -> None:
    body = {"amount": 1000, "currency": "SATS"}
    for headers in (
        {},
        {"authorization": f"L402 abc:{'00' * 32}"},
        {"authorization": "Bearer sk-nonsense"},
        {"authorization": "Basic YTpi"},
    ):
        answer = await world.http("POST", "/topup/create/btc-lightning", body, headers=headers)
        assert answer.status == 401, headers
        assert "www-authenticate" not in answer.headers


# BTCPay


async def test_PPQ_154_155_an_address_is_asked_of_btcpay(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc", 0.001, "BTC")
    assert FIELDS | {"address", "payment_link"} == set(made)
    assert (made["crypto_amount_due"], made["payment_method"]) == ("0.001", "btc")
    assert made["address"].startswith("address-Inv") and made["payment_link"] == f"btc:{made['address']}"
    assert int(made["expires_at"]) - int(made["created_at"]) == 3600
    asked = next(json.loads(one["body"]) for one in reversed(btcpay.seen()) if one["method"] == "POST")
    assert (asked["amount"], asked["currency"], asked["metadata"]["orderId"]) == (
        "0.00100000",
        "BTC",
        made["invoice_id"],
    )
    assert (asked["checkout"]["paymentMethods"], asked["checkout"]["expirationMinutes"]) == (["BTC-CHAIN"], 60)
    monero = await create(world, customer, "xmr", 50.00, "USD")
    assert monero["crypto_amount_due"] == "0.25"
    sats = await create(world, customer, "ltc", 10_000, "SATS")
    assert (sats["amount"], sats["currency"], sats["crypto_amount_due"]) == ("10000", "SATS", "0.1")


async def test_PPQ_160_on_chain_new_processing_settled(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc", 50, "USD")
    assert (await status(world, customer, made))["status"] == "New"
    await coins(btcpay, made, ("0.0005", "Processing"))
    await at_btcpay(btcpay, made, status="Processing")
    found = await until(world, customer, made, "Processing")
    assert (found["amount_paid"], found["amount_due"], found["credited_usd"]) == (50, 0, 0)
    assert "not confirmed" in found["note"]
    assert await credited(world, customer) == 0, "nothing is credited before it is confirmed"
    await coins(btcpay, made, ("0.0005", "Settled"))
    await at_btcpay(btcpay, made, status="Settled")
    found = await until(world, customer, made, "Settled")
    assert (found["amount_paid"], found["credited_usd"]) == (50, 50)
    assert await credited(world, customer) == 50


@pytest.mark.parametrize(
    ("what", "changes", "payments", "shown", "due"),
    [
        ("over", {"status": "Settled", "additionalStatus": "PaidOver"}, [("0.0006", "Settled")], "Settled", "60"),
        ("over just now", {"status": "Settled", "additionalStatus": "PaidOver"}, [("0.0005", "Settled"), JUST_NOW], "Settled", "50"),
        ("rounding", {"status": "Settled"}, [("0.00050001", "Settled")], "Settled", "50"),
        ("marked", {"status": "Settled", "additionalStatus": "Marked"}, [], "Settled", "50"),
        ("late", {"status": "Settled", "additionalStatus": "PaidLate"}, [("0.0005", "Settled")], "Settled", "50"),
        ("late and left expired", {"status": "Expired", "additionalStatus": "PaidLate"}, [("0.0005", "Settled")], "Settled", "50"),
        ("late, unconfirmed", {"status": "Expired", "additionalStatus": "PaidLate"}, [("0.0005", "Processing")], "Processing", "0"),
        ("part", {"status": "Expired", "additionalStatus": "PaidPartial"}, [("0.0002", "Settled")], "Settled", "20"),
        ("part, still open", {"status": "New", "additionalStatus": "PaidPartial"}, [("0.0002", "Settled")], "New", "0"),
        ("parts", {"status": "Expired", "additionalStatus": "PaidPartial"}, [("0.0002", "Settled"), JUST_NOW], "Settled", "20"),
        ("below the least", {"status": "Expired", "additionalStatus": "PaidPartial"}, [("0.00001", "Settled")], "Settled", "1"),
        ("nothing", {"status": "Expired"}, [], "Expired", "0"),
        ("double-spent", {"status": "Invalid"}, [("0.0005", "Invalid")], "Expired", "0"),
        ("declared invalid", {"status": "Invalid", "additionalStatus": "Marked"}, [("0.0005", "Settled")], "Expired", "0"),
    ],
)  # fmt: skip
async def test_PPQ_160_whatever_came_is_credited_once_confirmed(
    world: World,
    btcpay: Peer,
    what: str,
    changes: dict[str, str],
    payments: list[tuple[str, str]],
    shown: str,
    due: str,
) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc", 50, "USD")
    await coins(btcpay, made, *payments)
    await at_btcpay(btcpay, made, **changes)
    found = await until(world, customer, made, shown)
    await asyncio.sleep(0.6)
    found = await status(world, customer, made)
    assert (found["status"], found["credited_usd"]) == (shown, Decimal(due))
    assert await credited(world, customer) == Decimal(due)
    told = {"over": "More was paid", "part": "in part", "late": "after it had expired"}.get(what)
    assert not told or told in found["note"]


async def test_PPQ_160_parts_that_come_one_by_one_are_credited_one_by_one(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "ltc", 10, "USD")
    expired = {"status": "Expired", "additionalStatus": "PaidPartial"}
    await coins(btcpay, made, ("0.04", "Settled"))
    await at_btcpay(btcpay, made, **expired)
    assert (await until(world, customer, made, "Settled"))["credited_usd"] == 4
    await coins(btcpay, made, ("0.04", "Settled"), ("0.05", "Settled"))
    btcpay.set(webhook=f"http://127.0.0.1:{world.gateway.port}/webhooks/btcpay")
    await asyncio.gather(*(at_btcpay(btcpay, made, **expired) for _ in range(4)))
    btcpay.set(webhook=None)
    found = await status(world, customer, made)
    assert (found["credited_usd"], found["amount_paid"], found["amount_due"]) == (9, 9, 1)
    assert await credited(world, customer) == 9


async def test_PPQ_160_a_webhook_credits_at_once_and_repeated_ones_no_more(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc", 50, "USD")
    name = made["checkout_url"].rpartition("/")[2]
    btcpay.set(webhook=f"http://127.0.0.1:{world.gateway.port}/webhooks/btcpay")
    await coins(btcpay, made, ("0.0005", "Settled"))
    async with httpx2.AsyncClient(timeout=30) as client:
        wrong_order = await client.post(f"{btcpay.url}/_deliver/{name}", json={"status": "Settled"})
        assert wrong_order.json()["answered"] == 200
        assert await credited(world, customer) == 0, "a delivery is only a hint: the invoice says New"
        settled = {"status": "Settled"}
        told = await asyncio.gather(*(client.post(f"{btcpay.url}/_invoice/{name}", json=settled) for _ in range(5)))
        assert {one.json()["answered"] for one in told} == {200}
        assert await credited(world, customer) == 50, "credited by the time that the delivery was answered"
        late = await client.post(f"{btcpay.url}/_deliver/{name}", json={"status": "Expired"})
        assert late.json()["answered"] == 200
    btcpay.set(webhook=None)
    assert (await status(world, customer, made))["status"] == "Settled"
    assert await credited(world, customer) == 50


async def test_PPQ_160_a_forged_webhook_is_refused(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc", 50, "USD")
    invoice = made["checkout_url"].rpartition("/")[2]
    event = {"type": "InvoiceSettled", "invoiceId": invoice, "storeId": "a-store", "deliveryId": "d"}
    body = json.dumps(event).encode()
    good = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    another = "sha256=" + hmac.new(b"another", body, hashlib.sha256).hexdigest()

    async def deliver(body: bytes, **headers: str) -> int:
        return (await world.http("POST", "/webhooks/btcpay", body, headers=headers)).status

    assert await deliver(body) == 401
    for signature in ("", "sha256=", another, good.upper(), good[:-1], good.removeprefix("sha256=")):
        assert await deliver(body, **{"btcpay-sig": signature}) == 401
    assert await deliver(body + b" ", **{"btcpay-sig": good}) == 401
    assert await deliver(body, **{"btcpay-sig": good}) == 200

    def signed(body: bytes) -> dict[str, str]:
        return {"btcpay-sig": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}

    for document, wanted in (
        (b"rubbish", 400),
        (b"[]", 400),
        (b"{}", 200),
        (json.dumps(event | {"invoiceId": "Inv999999"}).encode(), 200),
        (json.dumps(event | {"invoiceId": "../../../stores"}).encode(), 200),
        (json.dumps(event | {"storeId": "another"}).encode(), 200),
    ):
        assert await deliver(document, **signed(document)) == wanted
    assert await credited(world, customer) == 0


async def test_PPQ_160_a_lost_webhook_is_made_up_for(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc", 50, "USD")
    await coins(btcpay, made, ("0.0005", "Settled"))
    await at_btcpay(btcpay, made, status="Settled")
    end = time.monotonic() + 20
    while not await credited(world, customer):
        assert time.monotonic() < end, "nobody asked, no delivery came, and nothing is credited within 20 s"
        await asyncio.sleep(0.2)
    assert await credited(world, customer) == 50


async def test_PPQ_160_while_btcpay_is_down_the_status_is_the_last_known(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc", 50, "USD")
    btcpay.set(down=True)
    await coins(btcpay, made, ("0.0005", "Settled"))
    await at_btcpay(btcpay, made, status="Settled")
    name = made["checkout_url"].rpartition("/")[2]
    body = json.dumps({"type": "InvoiceSettled", "invoiceId": name, "storeId": "a-store", "deliveryId": "d"}).encode()
    headers = {"btcpay-sig": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}
    answer = await world.http("POST", "/webhooks/btcpay", body, headers=headers)
    assert answer.status == 503, "so that it is delivered again"
    assert (await status(world, customer, made))["status"] == "New"
    answer = await world.http("POST", "/topup/create/btc", {"amount": 50, "currency": "USD"}, customer.key)
    assert answer.status == 503 and "wallet" in answer.error["message"]
    btcpay.set(down=False)
    await until(world, customer, made, "Settled", 20)
    assert await credited(world, customer) == 50


async def test_PPQ_154_a_method_that_btcpay_cannot_serve_is_unavailable(world: World, btcpay: Peer) -> None:
    customer = await world.customer("0")
    btcpay.set(closed=True)
    answer = await world.http("POST", "/topup/create/btc", {"amount": 50, "currency": "USD"}, customer.key)
    btcpay.set(closed=False)
    assert answer.status == 503 and "choose another" in answer.error["message"]


async def test_secrets_stay_out_of_the_log(world: World) -> None:
    customer = await world.customer("0")
    made = await create(world, customer, "btc-lightning", 1000, "SATS")
    preimage = await pay(world, made)
    await until(world, customer, made, "Settled")
    log = world.gateway.log.read_text()
    for secret in (customer.key, customer.credit_id, preimage, SECRET, "a-key", made["lightning_invoice"]):
        assert secret not in log
