"""Stands in for a BTCPay Server with one store, in the shapes of its Greenfield API, webhooks and signatures included.

`POST /_invoice/{id}` with `{"status": …, "additionalStatus": …, "paidAmount": …}` changes an invoice and, if `webhook`
is set to a URL, delivers the event; `_deliver` of the same body delivers without changing. `POST /_coins/{id}` with a list
of `{"value": coins, "status": "Processing" | "Settled" | "Invalid"}` says what has come to its address, `paidAmount`
with it. `POST /_pay/{id}` pays a Lightning invoice. Switches: `lie_msat`, `webhook`, `secret`; `down` answers 503;
`closed` lists payment methods without an address.
"""

import hashlib
import hmac
import itertools
import json
import time
from decimal import Decimal
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.peers.fake_invoices import Made, make
from tests.peers.fake_server import application, serve

KEY, STORE = "a-key", "a-store"
RATES = {"BTC": "100000", "LTC": "100", "LBTC": "100000", "XMR": "200"}
EVENTS = {
    "Processing": "InvoiceProcessing",
    "Settled": "InvoiceSettled",
    "Expired": "InvoiceExpired",
    "Invalid": "InvoiceInvalid",
}
state: dict[str, Any] = {"lie_msat": None, "webhook": None, "secret": "s3cret", "down": False, "closed": False}
lightning: dict[str, Made] = {}
invoices: dict[str, dict[str, Any]] = {}
coins: dict[str, list[dict[str, str]]] = {}
numbers = itertools.count(1)


def refusal(request: Request) -> Response | None:
    if state["down"]:
        return JSONResponse({"code": "generic-error", "message": "down"}, 503)
    if request.headers.get("authorization") != f"token {KEY}":
        return JSONResponse(
            {"code": "unauthenticated", "message": "Authentication is required for accessing this endpoint"}, 401
        )
    if request.path_params["store"] != STORE:
        return JSONResponse({"code": "missing-permission", "message": "Insufficient API Permissions"}, 403)
    return None


def shown(made: Made) -> dict[str, Any]:
    status = "Paid" if made.paid_msat is not None else "Expired" if made.expired else "Unpaid"
    said: dict[str, Any] = {
        "id": made.name,
        "status": status,
        "BOLT11": made.bolt11,
        "paymentHash": made.payment_hash,
        "expiresAt": made.expires_at,
        "amount": str(made.amount_msat),
    }
    if made.paid_msat is not None:
        said |= {"amountReceived": str(made.paid_msat), "paidAt": made.created_at, "preimage": made.preimage}
    return said


async def make_lightning(request: Request) -> Response:
    if refused := refusal(request):
        return refused
    wanted = await request.json()
    if not isinstance(wanted["amount"], str):
        return JSONResponse([{"path": "amount", "message": "amount must be a string"}], 422)
    made = make(
        state["lie_msat"] or int(wanted["amount"]), wanted["description"], wanted["expiry"], name=f"ln-{next(numbers)}"
    )
    lightning[made.name] = made
    return JSONResponse(shown(made))


async def show_lightning(request: Request) -> Response:
    if refused := refusal(request):
        return refused
    found = lightning.get(request.path_params["id"])
    if found is None:
        return JSONResponse({"code": "invoice-not-found", "message": "Impossible to find a lightning invoice"}, 404)
    return JSONResponse(shown(found))


async def make_invoice(request: Request) -> Response:
    if refused := refusal(request):
        return refused
    wanted, ident, at = await request.json(), f"Inv{next(numbers)}", int(time.time())
    minutes = wanted["checkout"]["expirationMinutes"]
    invoices[ident] = made = {
        "id": ident,
        "storeId": STORE,
        "amount": wanted["amount"],
        "paidAmount": "0.0",
        "currency": wanted["currency"],
        "type": "Standard",
        "checkoutLink": f"https://btcpay.example/i/{ident}",
        "createdTime": at,
        "expirationTime": at + 60 * minutes,
        "monitoringExpiration": at + 60 * minutes + 86400,
        "status": "New",
        "additionalStatus": "None",
        "metadata": wanted["metadata"],
        "checkout": wanted["checkout"],
    }
    return JSONResponse(made)


async def list_invoices(request: Request) -> Response:
    if refused := refusal(request):
        return refused
    wanted = request.query_params.getlist("orderId")
    return JSONResponse([i for i in invoices.values() if not wanted or i["metadata"].get("orderId") in wanted])


async def show_invoice(request: Request) -> Response:
    if refused := refusal(request):
        return refused
    found = invoices.get(request.path_params["id"])
    if found is None:
        return JSONResponse({"code": "invoice-not-found", "message": "The invoice was not found"}, 404)
    return JSONResponse(found)


async def show_methods(request: Request) -> Response:
    if refused := refusal(request):
        return refused
    found = invoices[request.path_params["id"]]
    said = []
    for method in found["checkout"]["paymentMethods"]:
        coin = method.partition("-")[0]
        rate = price(coin, found["currency"])
        amount = f"{Decimal(found['amount']) / rate:.8f}"
        one = {
            "paymentMethodId": method,
            "currency": coin,
            "destination": "" if state["closed"] else f"address-{found['id']}",
            "rate": f"{rate:f}",
        }
        one |= {
            "paymentLink": f"{coin.lower()}:address-{found['id']}",
            "amount": amount,
            "due": amount,
            "totalPaid": str(total(coins.get(found["id"], []))),
        }
        said.append(one | {"activated": True, "payments": coins.get(found["id"], [])})
    return JSONResponse(said)


async def show_store_methods(request: Request) -> Response:
    if refused := refusal(request):
        return refused
    listed = [("BTC-CHAIN", True), ("BTC-LN", True), ("LTC-CHAIN", True), ("XMR-CHAIN", False)]
    return JSONResponse([{"paymentMethodId": name, "enabled": enabled} for name, enabled in listed])


def price(coin: str, currency: str) -> Decimal:
    """A coin's price in dollars or BTC."""
    return Decimal(RATES[coin]) / (1 if currency == "USD" else Decimal(RATES["BTC"]))


def total(payments: list[dict[str, str]]) -> Decimal:
    return sum((Decimal(one["value"]) for one in payments if one["status"] != "Invalid"), Decimal(0))


async def receive(request: Request) -> Response:
    found = invoices[request.path_params["id"]]
    coins[found["id"]] = await request.json()
    coin = found["checkout"]["paymentMethods"][0].partition("-")[0]
    found["paidAmount"] = str(total(coins[found["id"]]) * price(coin, found["currency"]))
    return JSONResponse({})


async def pay_lightning(request: Request) -> Response:
    made = lightning[request.path_params["id"]]
    made.paid_msat = made.amount_msat
    return JSONResponse({})


async def change(request: Request) -> Response:
    found = invoices[request.path_params["id"]]
    found.update(await request.json())
    return await deliver(request)


async def deliver(request: Request) -> Response:
    found, changed = invoices[request.path_params["id"]], await request.json()
    if not state["webhook"] or changed.get("status") not in EVENTS:
        return JSONResponse({})
    number = next(numbers)
    event = {
        "deliveryId": f"d{number}",
        "webhookId": "w1",
        "originalDeliveryId": f"d{number}",
        "isRedelivery": False,
        "type": EVENTS[changed["status"]],
        "timestamp": int(time.time()),
        "storeId": STORE,
        "invoiceId": found["id"],
        "metadata": found["metadata"],
    }
    body = json.dumps(event, indent=2).encode()
    signature = hmac.new(state["secret"].encode(), body, hashlib.sha256).hexdigest()
    async with httpx2.AsyncClient(timeout=20) as client:
        headers = {"BTCPay-Sig": f"sha256={signature}", "Content-Type": "application/json"}
        answer = await client.post(state["webhook"], content=body, headers=headers)
    return JSONResponse({"answered": answer.status_code, "body": body.decode(), "signature": f"sha256={signature}"})


if __name__ == "__main__":
    base = "/api/v1/stores/{store}"
    routes = [
        Route(f"{base}/lightning/BTC/invoices", make_lightning, methods=["POST"]),
        Route(f"{base}/lightning/BTC/invoices/{{id}}", show_lightning),
        Route(f"{base}/invoices", make_invoice, methods=["POST"]),
        Route(f"{base}/invoices", list_invoices),
        Route(f"{base}/invoices/{{id}}", show_invoice),
        Route(f"{base}/invoices/{{id}}/payment-methods", show_methods),
        Route(f"{base}/payment-methods", show_store_methods),
        Route("/_coins/{id}", receive, methods=["POST"]),
        Route("/_pay/{id}", pay_lightning, methods=["POST"]),
        Route("/_invoice/{id}", change, methods=["POST"]),
        Route("/_deliver/{id}", deliver, methods=["POST"]),
    ]
    serve(application(routes, state))
