"""Stands in for a remote x402 facilitator: /verify, /settle and /supported in the shapes of the specification.

It checks signatures and windows for real and keeps the balances of a chain that it has for itself: everybody has what
`balance` says, and what an authorization moved is at `GET /_moved`. Switches (`POST /_set`):

    settle    "ok"; "hang" or "cut": it is done, and the answer is late or broken off; "hang-undone": it is not done either;
              "refuse", "pending", "failed": success false with such a reason; "500", "401": no x402 answer at all
    verify    "ok", "500", "refuse"
    slow      seconds before settling answers
    again     what settling the same payment again says: "same" the first answer, "used" a failure
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.peers.fake_server import application, serve

ADDRESS = "0x00000000000000000000000000000000000000fa"
KEY = "facilitators-key"
PERMIT2 = "0x000000000022D473030F116dDEE9F6B43aC78BA3"
CHAINS = {"base": 8453, "base-sepolia": 84532}
HANG_SECONDS = 30

state: dict[str, Any] = {"settle": "ok", "verify": "ok", "slow": 0, "again": "same", "balance": 10**9, "key": ""}
moved: dict[str, dict[str, Any]] = {}


def _words(names: str) -> list[dict[str, str]]:
    return [dict(zip(("type", "name"), pair.split(), strict=True)) for pair in names.split(", ")]


def recovered(
    types: Mapping[str, str], primary: str, domain: dict[str, Any], message: dict[str, Any], signature: str
) -> str:
    """The address that signed EIP-712 data."""
    fields = {"name": "string", "version": "string", "chainId": "uint256", "verifyingContract": "address"}
    full = {
        "types": {name: _words(words) for name, words in types.items()}
        | {"EIP712Domain": [{"name": name, "type": fields[name]} for name in domain]},
        "primaryType": primary,
        "domain": domain,
        "message": message,
    }
    return str(Account.recover_message(encode_typed_data(full_message=full), signature=signature)).lower()


def chain_of(network: str) -> int:
    return CHAINS.get(network) or int(network.partition(":")[2])


def flaw_of_exact(payload: dict[str, Any], wanted: dict[str, Any], amount: str) -> tuple[str, str]:
    """Why an exact payment is no good, and its payer."""
    given = payload["authorization"]
    message = {name: int(given[name]) if name.startswith("val") else given[name] for name in given}
    domain = {
        "name": wanted["extra"]["name"],
        "version": wanted["extra"]["version"],
        "chainId": chain_of(wanted["network"]),
        "verifyingContract": wanted["asset"],
    }
    types = {
        "TransferWithAuthorization": "address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, "
        "bytes32 nonce"
    }
    payer = str(given["from"]).lower()
    if recovered(types, "TransferWithAuthorization", domain, message, payload["signature"]) != payer:
        return "invalid_exact_evm_payload_signature", payer
    if str(given["to"]).lower() != wanted["payTo"].lower():
        return "invalid_exact_evm_payload_recipient_mismatch", payer
    if given["value"] != amount:
        return "invalid_exact_evm_payload_authorization_value_mismatch", payer
    if not int(given["validAfter"]) <= time.time() < int(given["validBefore"]):
        return "invalid_exact_evm_payload_authorization_valid_before", payer
    return "", payer


def flaw_of_upto(payload: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, str]:
    """Why a payment by upto is no good, and its payer."""
    given = payload["permit2Authorization"]
    permitted, witness = given["permitted"], given["witness"]
    message = {
        "permitted": {"token": permitted["token"], "amount": int(permitted["amount"])},
        "spender": given["spender"],
        "nonce": int(given["nonce"]),
        "deadline": int(given["deadline"]),
        "witness": witness | {"validAfter": int(witness["validAfter"])},
    }
    types = {
        "PermitWitnessTransferFrom": "TokenPermissions permitted, address spender, uint256 nonce, uint256 deadline, "
        "Witness witness",
        "TokenPermissions": "address token, uint256 amount",
        "Witness": "address to, address facilitator, uint256 validAfter",
    }
    domain = {"name": "Permit2", "chainId": chain_of(wanted["network"]), "verifyingContract": PERMIT2}
    payer = str(given["from"]).lower()
    if recovered(types, "PermitWitnessTransferFrom", domain, message, payload["signature"]) != payer:
        return "invalid_permit2_signature", payer
    if witness["facilitator"].lower() != ADDRESS:
        return "upto_facilitator_mismatch", payer
    if int(permitted["amount"]) < int(wanted["amount"]):
        return "invalid_upto_evm_payload_settlement_exceeds_amount", payer
    return "", payer


def flaw(body: dict[str, Any]) -> tuple[str, str, str]:
    """Why a payment is no good ("" if it is), its payer, its nonce."""
    document, wanted, version = body["paymentPayload"], body["paymentRequirements"], body["x402Version"]
    accepted = document["accepted"] if version == 2 else document
    payload = document["payload"]
    signed = payload.get("authorization") or payload["permit2Authorization"]
    nonce = str(signed["nonce"]).lower()
    if (accepted["scheme"], accepted["network"]) != (wanted["scheme"], wanted["network"]):
        return "network_mismatch", "", nonce
    if wanted["scheme"] == "upto":
        reason, payer = flaw_of_upto(payload, wanted)
    else:
        amount = wanted["amount"] if version == 2 else wanted["maxAmountRequired"]
        reason, payer = flaw_of_exact(payload, wanted, amount)
    if not reason and int(wanted.get("amount") or wanted["maxAmountRequired"]) > state["balance"]:
        reason = "insufficient_funds"
    return reason, payer, nonce


async def verify(request: Request) -> Response:
    if refused := unauthorized(request):
        return refused
    if state["verify"] == "500":
        return PlainTextResponse("out of order", 500)
    reason, payer, nonce = flaw(await request.json())
    if state["verify"] == "refuse":
        reason = "insufficient_funds"
    if not reason and nonce in moved:
        reason = "invalid_exact_evm_nonce_already_used"
    if reason:
        return JSONResponse({"isValid": False, "invalidReason": reason, "payer": payer})
    return JSONResponse({"isValid": True, "payer": payer})


async def settle(request: Request) -> Response:
    body, how = await request.json(), state["settle"]
    if refused := unauthorized(request):
        return refused
    if how in ("500", "401"):
        return PlainTextResponse("out of order", int(how))
    reason, payer, nonce = flaw(body)
    network = body["paymentRequirements"]["network"]
    failure = {"success": False, "transaction": "", "network": network, "payer": payer}
    await asyncio.sleep(state["slow"])
    if how == "hang-undone":
        await asyncio.sleep(HANG_SECONDS)
    refusals = {"refuse": "insufficient_funds", "pending": "settlement_pending", "failed": "transaction_failed"}
    if reason or how in refusals:
        return JSONResponse(failure | {"errorReason": reason or refusals[how]})
    if nonce in moved and state["again"] == "used":
        return JSONResponse(failure | {"errorReason": "invalid_exact_evm_nonce_already_used"})
    wanted = body["paymentRequirements"]
    if nonce not in moved:
        transaction = "0x" + hashlib.sha256(nonce.encode()).hexdigest()
        amount = int(wanted.get("amount") or wanted["maxAmountRequired"])
        moved[nonce] = {"nonce": nonce, "payer": payer, "amount": amount, "transaction": transaction}
    answer = {"success": True, "transaction": moved[nonce]["transaction"], "network": network, "payer": payer}
    if how == "hang":
        await asyncio.sleep(HANG_SECONDS)
    if how == "cut":
        return Response(b'{"succ', headers={"content-length": "200"}, media_type="application/json")
    return JSONResponse(answer)


async def supported(_: Request) -> Response:
    kinds = [
        {"x402Version": 2, "scheme": "exact", "network": "eip155:84532"},
        {"x402Version": 1, "scheme": "exact", "network": "base-sepolia"},
        {"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {"facilitatorAddress": ADDRESS}},
    ]
    return JSONResponse({"kinds": kinds, "extensions": [], "signers": {"eip155:*": [ADDRESS]}})


async def show_moved(_: Request) -> Response:
    return JSONResponse(list(moved.values()))


def unauthorized(request: Request) -> Response | None:
    if state["key"] and request.headers.get("authorization") != f"Bearer {state['key']}":
        return PlainTextResponse("no", 401)
    return None


if __name__ == "__main__":
    routes = [
        Route("/verify", verify, methods=["POST"]),
        Route("/settle", settle, methods=["POST"]),
        Route("/supported", supported),
        Route("/_moved", show_moved),
    ]
    serve(application(routes, state))
