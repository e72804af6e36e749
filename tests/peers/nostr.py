"""A real Nostr relay and, on it, a wallet that serves Nostr Wallet Connect, both of `nostr-sdk`, in one process.

The wallet signs invoices of regtest with the package `bolt11`, keeps no money and pays its own invoices when told to.
Switches (`POST /_set`): `state: false` leaves the newer field `state` out of look-ups; `silent: true` does not answer;
`lie_msat` makes invoices of another amount; `error` answers everything with that NIP-47 code, or `errors` what it names
by method; `lost` lists methods that are done and not answered, `ignored` those that are neither; `methods` is what
`get_info` tells. `encryption` is what the info event announces at the start (given as argument). `GET /_asked` lists the
methods that were asked for, `GET /_open` its unpaid invoices; `POST /_pay` with `{"invoice": …}` pays one of them.
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import bolt11
import nostr_sdk as sdk
from bolt11.models.tags import TagChar, Tags
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.peers.fake_server import application, serve

METHODS = ["make_invoice", "lookup_invoice", "pay_invoice", "get_info"]
state: dict[str, Any] = {
    "state": True, "silent": False, "lie_msat": None, "error": None, "errors": {}, "lost": [], "ignored": [], "methods": METHODS,
}  # fmt: skip


class Service:
    """The wallet: invoices by payment hash."""

    def __init__(self, modern: bool) -> None:
        self.modern = modern
        self.keys, self.customer = sdk.Keys.generate(), sdk.Keys.generate()
        self.signing = secrets.token_hex(32)
        self.invoices: dict[str, dict[str, Any]] = {}
        self.client: Any = None
        self.later: list[asyncio.Task[None]] = []
        self.asked: list[str] = []

    def invoice(self, params: dict[str, Any]) -> dict[str, Any]:
        preimage, at = secrets.token_bytes(32), int(time.time())
        payment_hash = hashlib.sha256(preimage).hexdigest()
        tags = Tags()
        tags.add(TagChar.payment_hash, payment_hash)
        tags.add(TagChar.payment_secret, secrets.token_hex(32))
        tags.add(TagChar.description, params.get("description") or "")
        tags.add(TagChar.expire_time, params.get("expiry") or 3600)
        amount = bolt11.MilliSatoshi(state["lie_msat"] or params["amount"])
        text = bolt11.encode(bolt11.Bolt11("bcrt", at, tags, amount), self.signing, ignore_exceptions=True)
        self.invoices[payment_hash] = made = {
            "type": "incoming",
            "invoice": text,
            "payment_hash": payment_hash,
            "amount": params["amount"],
            "fees_paid": 0,
            "created_at": at,
            "expires_at": at + (params.get("expiry") or 3600),
            "_preimage": preimage.hex(),
        }
        return made

    def answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if code := state["error"] or state["errors"].get(method):
            return {"error": {"code": code, "message": "as told"}}
        if method == "get_info":
            return {"result": {"alias": "a wallet", "methods": state["methods"]}}
        if method == "make_invoice":
            made = self.invoice(params)
            return {"result": {k: v for k, v in made.items() if not k.startswith("_")}}
        if method == "lookup_invoice":
            found = self.invoices.get(params["payment_hash"])
            if found is None:
                return {"error": {"code": "NOT_FOUND", "message": "no such invoice"}}
            return {"result": self.shown(found)}
        if method == "pay_invoice":
            return self.pay(params["invoice"])
        return {"error": {"code": "NOT_IMPLEMENTED", "message": method}}

    def pay(self, invoice: str) -> dict[str, Any]:
        found = next((i for i in self.invoices.values() if i["invoice"] == invoice), None)
        if found is None or found.get("settled_at") or found["expires_at"] <= time.time():
            return {"error": {"code": "PAYMENT_FAILED", "message": "cannot be paid"}}
        found["settled_at"] = int(time.time())
        notification = {"notification_type": "payment_received", "notification": self.shown(found)}
        self.later.append(asyncio.create_task(self.send(23197 if self.modern else 23196, notification, [])))
        return {"result": {"preimage": found["_preimage"], "fees_paid": 7}}

    def shown(self, found: dict[str, Any]) -> dict[str, Any]:
        said = {k: v for k, v in found.items() if not k.startswith("_")}
        if found.get("settled_at"):
            said["preimage"] = found["_preimage"]
        if state["state"]:
            ended = found["expires_at"] <= time.time()
            said["state"] = "settled" if found.get("settled_at") else "expired" if ended else "pending"
        return said

    async def send(self, kind: int, document: dict[str, Any], tags: list[list[str]]) -> None:
        text, customer, secret = json.dumps(document), self.customer.public_key(), self.keys.secret_key()
        sealed = (
            sdk.nip44_encrypt(secret, customer, text, sdk.Nip44Version.V2)
            if self.modern
            else sdk.nip04_encrypt(secret, customer, text)
        )
        listed = [sdk.Tag.parse(tag) for tag in [["p", customer.to_hex()], *tags]]
        built = sdk.EventBuilder(sdk.Kind(kind), sealed).tags(listed)
        await self.client.send_event(built.finalize(self.keys))

    async def serve(self, relay: str) -> None:
        """Announce the wallet on the relay and answer what comes."""
        self.client = sdk.ClientBuilder().build()
        await self.client.add_relay(sdk.RelayUrl.parse(relay))
        await self.client.connect()
        announced = [sdk.Tag.parse(["encryption", "nip44_v2 nip04"])] if self.modern else []
        info = sdk.EventBuilder(sdk.Kind(13194), "make_invoice lookup_invoice pay_invoice get_info").tags(announced)
        await self.client.send_event(info.finalize(self.keys))
        wanted = sdk.Filter().kind(sdk.Kind(23194)).pubkey(self.keys.public_key())
        await self.client.subscribe(sdk.ReqTarget.auto([wanted]))
        stream = self.client.notifications()
        while (note := await stream.next()) is not None:
            if note.is_new_event():
                self.later.append(asyncio.create_task(self.handle(json.loads(note.event.as_json()))))

    async def handle(self, event: dict[str, Any]) -> None:
        if state["silent"] or event["pubkey"] != self.customer.public_key().to_hex():
            return
        tagged = dict(tag[:2] for tag in event["tags"])
        modern = tagged.get("encryption") == "nip44_v2"
        assert modern == self.modern, "a request in another encryption than the info event announces"
        decrypt = sdk.nip44_decrypt if modern else sdk.nip04_decrypt
        request = json.loads(decrypt(self.keys.secret_key(), self.customer.public_key(), event["content"]))
        method = request["method"]
        self.asked.append(method)
        if method in state["ignored"]:
            return
        answer = {"result_type": method, "error": None, "result": None}
        answer |= self.answer(method, request["params"])
        if method in state["lost"]:
            return
        await self.send(23195, answer, [["e", event["id"]]])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def describe(request: Request) -> Response:
    """The connection string for the wallet's customer."""
    return JSONResponse({"url": request.app.state.url})


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    service, port = Service("nip04" not in sys.argv), free_port()
    limit = sdk.RateLimit(
        max_reqs=100_000, notes_per_minute=100_000
    )  # the wallet answers more often than a person writes
    relay = sdk.LocalRelayBuilder().addr("127.0.0.1").port(port).rate_limit(limit).build()
    await relay.run()
    address = f"ws://127.0.0.1:{port}"
    secret = service.customer.secret_key().to_hex()
    app.state.url = f"nostr+walletconnect://{service.keys.public_key().to_hex()}?relay={address}&secret={secret}"
    app.state.service = service
    app.state.relay, serving = relay, asyncio.create_task(service.serve(address))
    yield
    serving.cancel()
    relay.shutdown()


async def asked(request: Request) -> Response:
    return JSONResponse(request.app.state.service.asked)


async def unpaid(request: Request) -> Response:
    made = request.app.state.service.invoices.values()
    return JSONResponse([one["invoice"] for one in made if not one.get("settled_at")])


async def pay(request: Request) -> Response:
    return JSONResponse(request.app.state.service.pay((await request.json())["invoice"]))


async def stop_relay(request: Request) -> Response:
    request.app.state.relay.shutdown()
    return JSONResponse({})


if __name__ == "__main__":
    routes = [
        Route("/_url", describe),
        Route("/_asked", asked),
        Route("/_open", unpaid),
        Route("/_pay", pay, methods=["POST"]),
    ]
    routes += [Route("/_stop_relay", stop_relay, methods=["POST"])]
    serve(application(routes, state, lifespan))
