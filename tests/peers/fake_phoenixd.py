"""Stands in for phoenixd, in the shapes of its Api.kt of May 2026.

`POST /_pay/{hash}?fee_msat=N` pays an invoice, of which N msat go for opening a channel; `POST /_cut` closes all
WebSockets. The switch `lie_msat` changes the amount of what is made.
"""

import base64
import contextlib
import time
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.peers.fake_invoices import Made, make
from tests.peers.fake_server import application, serve

PASSWORD = "a-password"
state: dict[str, Any] = {"lie_msat": None}
invoices: dict[str, Made] = {}
sockets: list[WebSocket] = []


def allowed(headers: Any) -> bool:
    return bool(headers.get("authorization") == "Basic " + base64.b64encode(f":{PASSWORD}".encode()).decode())


def shown(made: Made) -> dict[str, Any]:
    fees = int(made.extra.get("fee_msat", "0"))
    return {
        "type": "incoming_payment",
        "subType": "lightning",
        "paymentHash": made.payment_hash,
        "preimage": made.preimage,
        "externalId": made.name,
        "invoice": made.bolt11,
        "isPaid": made.paid_msat is not None,
        "isExpired": made.expires_at <= time.time(),
        "requestedSat": made.amount_msat // 1000,
        "receivedSat": ((made.paid_msat or fees) - fees) // 1000,
        "fees": fees if made.paid_msat is not None else 0,
        "expiresAt": made.expires_at * 1000,
        "createdAt": made.created_at * 1000,
    }


async def create(request: Request) -> Response:
    if not allowed(request.headers):
        return PlainTextResponse(
            "Invalid authentication (use basic auth with the http password set in phoenix.conf)", 401
        )
    form = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
    if len(form["description"]) > 128:
        return PlainTextResponse("Request parameter description is too long (max 128 characters)", 400)
    amount = state["lie_msat"] or int(form["amountSat"]) * 1000
    made = make(amount, form["description"], int(form["expirySeconds"]), name=form["externalId"])
    invoices[made.payment_hash] = made
    said = {"amountSat": made.amount_msat // 1000, "paymentHash": made.payment_hash, "serialized": made.bolt11}
    return JSONResponse(said)


async def listed(request: Request) -> Response:
    if not allowed(request.headers):
        return PlainTextResponse("Invalid authentication", 401)
    found = [i for i in invoices.values() if i.name == request.query_params.get("externalId")]
    if request.query_params.get("all") != "true":
        found = [i for i in found if i.paid_msat is not None]
    return JSONResponse([shown(i) for i in found])


async def one(request: Request) -> Response:
    if not allowed(request.headers):
        return PlainTextResponse("Invalid authentication", 401)
    found = invoices.get(request.path_params["hash"])
    return JSONResponse(shown(found)) if found else PlainTextResponse("Not found", 404)


async def node(request: Request) -> Response:
    if not allowed(request.headers):
        return PlainTextResponse("Invalid authentication", 401)
    return JSONResponse({"nodeId": "02" * 33, "channels": [], "chain": "regtest", "blockHeight": 440, "version": "0.7"})


async def socket(websocket: WebSocket) -> None:
    if not allowed(websocket.headers):
        await websocket.close()
        return
    await websocket.accept()
    sockets.append(websocket)
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await websocket.receive_text()
    sockets.remove(websocket)


async def paid(request: Request) -> Response:
    made = invoices[request.path_params["hash"]]
    made.paid_msat, made.extra["fee_msat"] = made.amount_msat, request.query_params.get("fee_msat", "0")
    event = {"type": "payment_received", "timestamp": 1, "amountSat": made.amount_msat // 1000}
    for listener in sockets:
        await listener.send_json(event | {"paymentHash": made.payment_hash, "externalId": made.name})
    return JSONResponse({"listeners": len(sockets)})


async def cut(_: Request) -> Response:
    for listener in list(sockets):
        await listener.close()
    return JSONResponse({})


if __name__ == "__main__":
    routes = [
        Route("/createinvoice", create, methods=["POST"]),
        Route("/payments/incoming", listed),
        Route("/payments/incoming/{hash}", one),
        Route("/getinfo", node),
        WebSocketRoute("/websocket", socket),
        Route("/_pay/{hash}", paid, methods=["POST"]),
        Route("/_cut", cut, methods=["POST"]),
    ]
    serve(application(routes, state))
