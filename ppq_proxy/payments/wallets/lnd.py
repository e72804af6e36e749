"""LND over its REST interface (`/v1/invoices` and its relatives), as lnd 0.20 was seen to behave.

The macaroon needs no more than `uri:/lnrpc.Lightning/AddInvoice`, `…/LookupInvoice` and `…/SubscribeInvoices`, and for
`pay` `uri:/routerrpc.Router/SendPaymentV2`. The preimage is ours, which makes it the key of idempotency: an invoice
whose answer got lost is looked up by its hash, and cannot be made twice.
"""

import base64
import hashlib
import secrets
from collections.abc import AsyncGenerator
from typing import Any

from ppq_proxy.payments.invoice import InvalidInvoice, read
from ppq_proxy.payments.wallets.base import (
    Invoice,
    OutcomeUnknown,
    Payment,
    PaymentFailed,
    State,
    Status,
    Told,
    Wallet,
    WalletError,
    WalletUnreachable,
    accept,
    now,
)
from ppq_proxy.payments.wallets.http import Answer, Backend, read_json

_STATES = {"OPEN": State.PENDING, "ACCEPTED": State.PENDING, "SETTLED": State.SETTLED, "CANCELED": State.EXPIRED}
_STARTING = (
    "waiting to start",
    "wallet locked",
    "wallet not created",
    "not yet ready",
    "server is still in the process",
)
_NOT_FOUND, _ALREADY_EXISTS = 5, 6
_LONGEST_MEMO = 639
_PAY_SECONDS = 60


class LndWallet(Wallet):
    """An lnd node of the operator."""

    name = "lnd"
    can_tell = True
    pushes = True

    def __init__(self, url: str, macaroon: str, certificate: str, network: str) -> None:
        """`macaroon` is hex, `certificate` the path of lnd's `tls.cert` or empty for a publicly signed one."""
        self.network = network
        self._backend = Backend(self.name, url, {"Grpc-Metadata-macaroon": macaroon}, certificate=certificate)
        self._settle_index = 0

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        preimage = secrets.token_bytes(32)
        payment_hash = hashlib.sha256(preimage).hexdigest()
        asked_at = now()
        wanted = {
            "r_preimage": base64.b64encode(preimage).decode(),
            "value_msat": str(amount_msat),
            "memo": memo.encode()[:_LONGEST_MEMO].decode(errors="ignore"),
            "expiry": str(expiry_seconds),
            "private": True,  # route hints where all channels are unannounced: without them nobody could pay
        }
        bolt11 = await self._add(wanted, payment_hash)
        return accept(
            bolt11,
            wallet=self,
            amount_msat=amount_msat,
            expiry_seconds=expiry_seconds,
            asked_at=asked_at,
            payment_hash=payment_hash,
        )

    async def status(self, handle: str) -> Status:
        found = await self._look_up(handle)
        if found is None:
            return Status(State.UNKNOWN)
        state = _STATES.get(str(found.get("state")), State.PENDING)
        return Status(state, int(found.get("amt_paid_msat") or 0) if state == State.SETTLED else 0)

    async def watch(self) -> AsyncGenerator[str, None]:
        # With an index lnd first repeats what was settled after it, so nothing is missed over a broken connection. It
        # sends no headers before the first event, so there is nothing to wait for at the start.
        params = {"settle_index": self._settle_index} if self._settle_index else {}
        async with self._backend.stream("/v1/invoices/subscribe", params=params) as response:
            if response.status_code != 200:
                await response.aread()
                raise self._error(Answer(response.status_code, read_json(response.text)))
            async for line in response.aiter_lines():
                event = (read_json(line) or {}).get("result") or {}
                if event.get("state") == "SETTLED":
                    self._settle_index = max(self._settle_index, int(event.get("settle_index") or 0))
                    yield base64.b64decode(event["r_hash"]).hex()

    async def pay(self, bolt11: str, max_fee_msat: int) -> Payment:
        try:
            payment_hash = read(bolt11).payment_hash
        except InvalidInvoice as problem:
            raise PaymentFailed(str(problem)) from None
        wanted = {
            "payment_request": bolt11,
            "timeout_seconds": _PAY_SECONDS,
            "fee_limit_msat": str(max_fee_msat),
            "no_inflight_updates": True,
        }
        answer = await self._backend.call("POST", "/v2/router/send", json=wanted, answer_seconds=_PAY_SECONDS + 10)
        document = answer.document if isinstance(answer.document, dict) else {}
        result = document.get("result") or {}
        if answer.ok and result.get("status") == "SUCCEEDED":
            amount, fee = int(result["value_msat"]), int(result["fee_msat"])
            return Payment(payment_hash, result["payment_preimage"], amount, fee)
        if answer.ok and result.get("status") == "FAILED":
            raise PaymentFailed(f"not paid: {result.get('failure_reason')}")
        if answer.ok:
            raise OutcomeUnknown(f"lnd says {result.get('status')} of the payment")
        if _code(answer) == _ALREADY_EXISTS:
            raise PaymentFailed("the invoice has been paid already")
        failure = self._error(answer)
        if "invoice expired" in failure.detail:
            raise PaymentFailed("the invoice has expired")
        raise failure

    async def info(self) -> Told:
        answer = await self._backend.call("GET", "/v1/state")
        if not answer.ok or not isinstance(answer.document, dict):
            raise self._error(answer)
        await self._look_up("00" * 32)  # shows that the macaroon is good for something
        state = str(answer.document.get("state"))
        return {"wallet": self.name, "network": self.network, "can_tell": True, "state": state}

    async def close(self) -> None:
        await self._backend.close()

    async def _add(self, wanted: dict[str, Any], payment_hash: str) -> str:
        """Make the invoice, or find it when the answer to that got lost."""
        lost: WalletError | None = None
        try:
            answer = await self._backend.call("POST", "/v1/invoices", json=wanted)
            if answer.ok and isinstance(answer.document, dict):
                return str(answer.document.get("payment_request"))
            lost = self._error(answer)
            if "already exists" not in lost.detail:
                raise lost
        except OutcomeUnknown as problem:
            lost = problem
        found = await self._look_up(payment_hash)
        if found is None:
            raise WalletUnreachable(f"no invoice was made: {lost.detail}")
        return str(found.get("payment_request"))

    async def _look_up(self, payment_hash: str) -> dict[str, Any] | None:
        answer = await self._backend.call("GET", f"/v1/invoice/{payment_hash}")
        if answer.ok and isinstance(answer.document, dict):
            return answer.document
        if answer.status == 404 and _code(answer) == _NOT_FOUND:
            return None
        raise self._error(answer)

    def _error(self, answer: Answer) -> WalletError:
        document = answer.document if isinstance(answer.document, dict) else {}
        said = str(document.get("message") or (document.get("error") or {}).get("message") or "")
        if any(words in said.lower() for words in _STARTING):
            return WalletUnreachable(f"lnd is not ready: {said}")
        return self._backend.refused(answer, said)


def _code(answer: Answer) -> int | None:
    document = answer.document if isinstance(answer.document, dict) else {}
    found = document.get("code", (document.get("error") or {}).get("code"))
    return found if isinstance(found, int) else None
