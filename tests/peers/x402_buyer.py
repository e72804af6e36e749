"""A buyer with a key, who signs what a 402 asks for with the library that x402 itself publishes."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from x402 import x402ClientSync
from x402.mechanisms.evm import EthAccountSigner
from x402.mechanisms.evm.exact import ExactEvmClientScheme
from x402.mechanisms.evm.exact.v1.client import ExactEvmSchemeV1
from x402.mechanisms.evm.upto.client import UptoEvmScheme
from x402.schemas import PaymentRequired, PaymentRequiredV1

from tests.gateway.wire import Answer

CHAIN = "eip155:84532"
NAME_IN_V1 = "base-sepolia"
Change = Callable[[dict[str, Any]], None]


def decoded(text: str) -> dict[str, Any]:
    """The JSON of a header in base64."""
    document: dict[str, Any] = json.loads(base64.b64decode(text, validate=True))
    return document


def encoded(document: Any) -> str:
    """A header's value."""
    return base64.b64encode(json.dumps(document).encode()).decode()


def offered(answer: Answer) -> dict[str, Any]:
    """The first requirement of a 402 by version 2."""
    assert answer.status == 402, (answer.status, answer.body)
    found: dict[str, Any] = decoded(answer.headers["payment-required"])["accepts"][0]
    return found


def told(answer: Answer) -> dict[str, Any]:
    """What an answer says about the payment's settlement."""
    return decoded(answer.headers.get("payment-response") or answer.headers["x-payment-response"])


class Buyer:
    """Whoever pays. `account` holds the key."""

    def __init__(self, account: LocalAccount | None = None) -> None:
        self.account: LocalAccount = account or Account.create()
        self.client = x402ClientSync()
        signer = EthAccountSigner(self.account)
        self.client.register(CHAIN, ExactEvmClientScheme(signer))
        self.client.set_spend_controls(False)  # a test may offer any asset
        self.client.register_v1(NAME_IN_V1, ExactEvmSchemeV1(signer))
        self.by_upto = x402ClientSync().register(CHAIN, UptoEvmScheme(signer))

    @property
    def address(self) -> str:
        return str(self.account.address)

    def document(self, answer: Answer, *, change: Change | None = None, upto: bool = False) -> dict[str, Any]:
        """A signed payment of version 2 for a 402; `change` is applied to the requirement before it is signed."""
        required = decoded(answer.headers["payment-required"])
        if change:
            for one in required["accepts"]:
                change(one)
        client = self.by_upto if upto else self.client
        made = client.create_payment_payload(PaymentRequired.model_validate(required))
        document: dict[str, Any] = made.model_dump(by_alias=True, exclude_none=True)
        return document

    def v2(self, answer: Answer, *, change: Change | None = None, upto: bool = False) -> dict[str, str]:
        """The header of a payment by version 2."""
        return {"payment-signature": encoded(self.document(answer, change=change, upto=upto))}

    def v1(self, answer: Answer, *, change: Change | None = None) -> dict[str, str]:
        """The header of a payment by version 1."""
        accepts = answer.json["accepts"]
        if change:
            for one in accepts:
                change(one)
        # Its model of a 402 wants a string for `error`, where OpenAI's clients want an object.
        required = PaymentRequiredV1.model_validate({"x402Version": 1, "accepts": accepts})
        made = self.client.create_payment_payload(required)
        return {"x-payment": encoded(made.model_dump(by_alias=True, exclude_none=True))}

    def transfer(self, transaction: str, quote_id: str, body: bytes, **changes: Any) -> dict[str, str]:
        """The header that shows a transaction of the buyer's, signed as its sender."""
        lines = [
            "x402 payment by transaction",
            f"network: {CHAIN}",
            f"transaction: {transaction}",
            f"quote: {quote_id}",
            f"body: {hashlib.sha256(body).hexdigest()}",
        ]
        signed = self.account.sign_message(encode_defunct(text="\n".join(lines)))
        document = {
            "txHash": transaction,
            "from": self.address,
            "quoteId": quote_id,
            "signature": "0x" + signed.signature.hex().removeprefix("0x"),
        }
        return {"x-payment": encoded(document | changes)}
