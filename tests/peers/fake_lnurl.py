"""Stands in for a Lightning address service (LUD-06, -12, -16, -21), which nobody but its own operator can run.

The address is `/.well-known/lnurlp/{user}`; `POST /_pay/{hash}` pays an invoice. Switches: `verify` offers LUD-21,
`lie_msat`, `lie_metadata`, `other_invoice` (verify shows another one), `callback` and `verify_url` point elsewhere,
`metadata_hash: false` writes a plain description, `raw` answers the callback with that text, `life` is an invoice's.
"""

import hashlib
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.peers.fake_invoices import Made, make
from tests.peers.fake_server import application, serve

METADATA = json.dumps([["text/plain", "paying ö"], ["text/identifier", "gateway@example.com"]], ensure_ascii=False)
USUAL: dict[str, Any] = {
    "verify": True,
    "lie_msat": None,
    "lie_metadata": False,
    "other_invoice": False,
    "callback": None,
    "verify_url": None,
    "metadata_hash": True,
    "raw": None,
    "life": 600,
    "down": False,
}
state: dict[str, Any] = dict(USUAL)
invoices: dict[str, Made] = {}


def base(request: Request) -> str:
    return f"http://{request.headers['host']}"


async def first(request: Request) -> Response:
    if state["down"]:
        return PlainTextResponse("bad gateway", 502)
    user = request.path_params["user"]
    if user == "nobody":
        return JSONResponse({"status": "ERROR", "reason": "no such user"}, 404)
    if user == "moved":
        return RedirectResponse(f"{base(request)}/.well-known/lnurlp/gateway")
    said = {
        "tag": "payRequest" if user != "withdraw" else "withdrawRequest",
        "callback": state["callback"] or f"{base(request)}/pay?user={user}",
        "minSendable": 1000,
        "maxSendable": 100_000_000,
        "metadata": METADATA,
        "commentAllowed": 20,
        "somethingOfTheirOwn": {"a": 1},
    }
    return JSONResponse(said)


async def second(request: Request) -> Response:
    if state["raw"] is not None:
        return PlainTextResponse(state["raw"])
    if request.query_params.get("user") != "gateway":
        return JSONResponse({"status": "ERROR", "reason": "the callback's own parameters got lost"})
    told = "other" if state["lie_metadata"] else METADATA
    described = hashlib.sha256(told.encode()).hexdigest() if state["metadata_hash"] else ""
    amount = state["lie_msat"] or int(request.query_params["amount"])
    made = make(amount, "plain words", state["life"], description_hash=described)
    invoices[made.payment_hash] = made
    said: dict[str, Any] = {"pr": made.bolt11, "routes": [], "successAction": {"tag": "message", "message": "ö" * 500}}
    if state["verify"]:
        said["verify"] = state["verify_url"] or f"{base(request)}/verify/{made.payment_hash}"
    return JSONResponse(said)


async def verify(request: Request) -> Response:
    made = invoices.get(request.path_params["hash"])
    if made is None:
        return JSONResponse({"status": "ERROR", "reason": "Not found"})
    shown = next(i for i in invoices.values() if i is not made) if state["other_invoice"] else made
    settled = made.paid_msat is not None
    preimage = made.preimage if settled else None
    return JSONResponse({"status": "OK", "settled": settled, "preimage": preimage, "pr": shown.bolt11})


async def paid(request: Request) -> Response:
    made = invoices[request.path_params["hash"]]
    made.paid_msat = made.amount_msat
    return JSONResponse({"preimage": made.preimage, "at": time.time()})


async def reset(_: Request) -> Response:
    state.update(USUAL)
    return JSONResponse({})


if __name__ == "__main__":
    routes = [
        Route("/.well-known/lnurlp/{user}", first),
        Route("/pay", second),
        Route("/verify/{hash}", verify),
        Route("/_pay/{hash}", paid, methods=["POST"]),
        Route("/_reset", reset, methods=["POST"]),
    ]
    serve(application(routes, state))
