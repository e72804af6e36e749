"""Stands in for Core Lightning's clnrest, in the shapes of its `doc/schemas`, over TLS with a certificate of its own.

Its first argument is the folder for certificate and key. `POST /_pay/{hash}` pays an invoice. Switches: `lie_msat` and
`lie_hash` change what is made, `fail` answers with that JSON-RPC error, `old` writes amounts as old versions did.
"""

import asyncio
import datetime
import ipaddress
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.peers.fake_invoices import Made, make
from tests.peers.fake_server import application, serve

RUNE = "a-rune"
state: dict[str, Any] = {"lie_msat": None, "lie_hash": None, "fail": None, "old": False}
invoices: dict[str, Made] = {}
changes: list[Made] = []
changed = asyncio.Event()


def shown(made: Made) -> dict[str, Any]:
    status = "paid" if made.paid_msat is not None else "expired" if made.expired else "unpaid"
    said: dict[str, Any] = {
        "label": made.name,
        "bolt11": made.bolt11,
        "payment_hash": made.payment_hash,
        "amount_msat": f"{made.amount_msat}msat" if state["old"] else made.amount_msat,
        "status": status,
        "expires_at": made.expires_at,
        "created_index": made.index,
    }
    if made.paid_msat is not None:
        said |= {
            "pay_index": 1,
            "amount_received_msat": f"{made.paid_msat}msat" if state["old"] else made.paid_msat,
            "paid_at": made.created_at,
            "payment_preimage": made.preimage,
            "updated_index": changes.index(made) + 1,
        }
    return said


def error(code: int, message: str, status: int = 500) -> Response:
    return JSONResponse({"code": code, "message": message, "data": None}, status)


async def invoice(params: dict[str, Any]) -> Response:
    if params["label"] in invoices:
        return error(900, "Duplicate label")
    made = make(
        state["lie_msat"] or params["amount_msat"], params["description"], params["expiry"], name=params["label"]
    )
    made.index = len(invoices) + 1
    invoices[made.name] = made
    said = {
        "payment_hash": state["lie_hash"] or made.payment_hash,
        "expires_at": made.expires_at,
        "bolt11": made.bolt11,
        "payment_secret": "00" * 32,
        "created_index": made.index,
        "warning_capacity": "Insufficient incoming channel capacity to pay invoice",
    }
    return JSONResponse(said, 201)


async def listinvoices(params: dict[str, Any]) -> Response:
    found = list(invoices.values())
    if "label" in params:
        found = [i for i in found if i.name == params["label"]]
    if "payment_hash" in params:
        found = [i for i in found if i.payment_hash == params["payment_hash"]]
    if params.get("index") == "updated":
        found = changes[params["start"] - 1 :]
    return JSONResponse({"invoices": [shown(i) for i in found]}, 201)


async def wait(params: dict[str, Any]) -> Response:
    while len(changes) < params["nextvalue"]:
        changed.clear()
        await changed.wait()
    return JSONResponse({"subsystem": "invoices", "updated": max(len(changes), params["nextvalue"])}, 201)


async def pay(params: dict[str, Any]) -> Response:
    made = next((i for i in invoices.values() if i.bolt11 == params["bolt11"]), None)
    if made is None:
        return error(-32602, "Invalid bolt11: Bad bech32 string")
    if made.expired:
        return error(207, "Invoice expired")
    if made.paid_msat is not None:
        return error(203, "permanent failure: incorrect or unknown payment details")
    settle(made)
    said = {
        "payment_hash": made.payment_hash,
        "payment_preimage": made.preimage,
        "status": "complete",
        "amount_msat": made.amount_msat,
        "amount_sent_msat": made.amount_msat + 5,
        "parts": 1,
    }
    return JSONResponse(said, 201)


def settle(made: Made) -> None:
    made.paid_msat = made.amount_msat
    changes.append(made)
    changed.set()


async def rpc(request: Request) -> Response:
    if request.headers.get("rune") != RUNE:
        return JSONResponse({"error": {"code": 1502, "message": "Not authorized: Invalid rune"}}, 401)
    if state["fail"]:
        return error(state["fail"], "as told")
    methods = {"invoice": invoice, "listinvoices": listinvoices, "wait": wait, "pay": pay}
    return await methods[request.path_params["method"]](await request.json())


async def paid(request: Request) -> Response:
    settle(next(i for i in invoices.values() if i.payment_hash == request.path_params["hash"]))
    return JSONResponse({})


def certificate(folder: Path) -> tuple[str, str]:
    """A fresh self-signed certificate for 127.0.0.1; paths of key and certificate."""
    key, at = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cln")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(at).not_valid_after(at + datetime.timedelta(days=1))
    signed = built.add_extension(names, critical=False).sign(key, hashes.SHA256())
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return str(folder / "key.pem"), str(folder / "ca.pem")


if __name__ == "__main__":
    routes = [Route("/v1/{method}", rpc, methods=["POST"]), Route("/_pay/{hash}", paid, methods=["POST"])]
    key_file, certificate_file = certificate(Path(sys.argv[1]))
    serve(application(routes, state), key=key_file, certificate=certificate_file)
