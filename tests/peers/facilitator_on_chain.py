"""A facilitator as others run it: the library that x402 publishes behind its REST interface, on a chain of the tests.

`python -m tests.peers.facilitator_on_chain RPC_URL PRIVATE_KEY`. Switch (`POST /_set`): `settle` is "ok", or "cut": it is
done, and the answer is broken off.
"""

import sys
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from x402 import x402FacilitatorSync
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import register_exact_evm_facilitator
from x402.schemas import PaymentPayload, PaymentPayloadV1, PaymentRequirements, PaymentRequirementsV1

from tests.peers.fake_server import application, serve
from tests.peers.x402_buyer import CHAIN

state: dict[str, Any] = {"settle": "ok"}


def models(body: dict[str, Any]) -> tuple[Any, Any]:
    payment, asked = body["paymentPayload"], body["paymentRequirements"]
    if body["x402Version"] == 1:
        return PaymentPayloadV1.model_validate(payment), PaymentRequirementsV1.model_validate(asked)
    return PaymentPayload.model_validate(payment), PaymentRequirements.model_validate(asked)


def shown(answer: Any) -> dict[str, Any]:
    said: dict[str, Any] = answer.model_dump(by_alias=True, exclude_none=True)
    return said


def main(rpc_url: str, key: str) -> None:
    library = x402FacilitatorSync()
    signer = FacilitatorWeb3Signer(key, rpc_url, confirmation_timeout_seconds=10)
    register_exact_evm_facilitator(library, signer, networks=CHAIN)

    def verify(body: dict[str, Any]) -> Response:
        return JSONResponse(shown(library.verify(*models(body))))

    def settle(body: dict[str, Any]) -> Response:
        said = shown(library.settle(*models(body)))
        if state["settle"] == "cut":
            return Response(b'{"succ', headers={"content-length": "200"}, media_type="application/json")
        return JSONResponse(said)

    async def verified(request: Request) -> Response:
        return verify(await request.json())

    async def settled(request: Request) -> Response:
        return settle(await request.json())

    async def supported(_: Request) -> Response:
        return JSONResponse(shown(library.get_supported()))

    routes = [
        Route("/verify", verified, methods=["POST"]),
        Route("/settle", settled, methods=["POST"]),
        Route("/supported", supported),
    ]
    serve(application(routes, state))


if __name__ == "__main__":
    main(*sys.argv[1:])
