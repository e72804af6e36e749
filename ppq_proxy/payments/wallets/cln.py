"""Core Lightning over clnrest: every RPC method is a POST, allowed by a rune.

The rune needs no more than the methods `invoice`, `listinvoices` and `wait`, and `pay` for paying. The label is ours
and unique, so an invoice whose answer got lost is found by it. Source: Core Lightning's `doc/schemas`.
"""

import secrets
from collections.abc import AsyncGenerator
from typing import Any

from ppq_proxy.payments.wallets.base import (
    Invoice,
    OutcomeUnknown,
    Payment,
    PaymentFailed,
    State,
    Status,
    Told,
    Wallet,
    WalletRefused,
    WalletUnreachable,
    accept,
    now,
)
from ppq_proxy.payments.wallets.http import QUIET_SECONDS, Backend

_STATES = {"unpaid": State.PENDING, "paid": State.SETTLED, "expired": State.EXPIRED}
_PAY_SECONDS = 60
# Of `pay`: refused by the payee, no route, too dear, an expired invoice, given up in time, an unusable invoice.
_NOT_PAID = {203, 205, 206, 207, 210, -32602}


class ClnWallet(Wallet):
    """A Core Lightning node of the operator."""

    name = "cln"
    can_tell = True
    pushes = True

    def __init__(self, url: str, rune: str, certificate: str, network: str) -> None:
        """`certificate` is the path of clnrest's `ca.pem`, or empty for a publicly signed one or plain http."""
        self.network = network
        self._backend = Backend(self.name, url, {"Rune": rune}, certificate=certificate)
        self._next_update: int | None = None

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        label = f"ppq-{ref}-{secrets.token_hex(8)}"
        asked_at = now()
        wanted = {"amount_msat": amount_msat, "label": label, "description": memo, "expiry": expiry_seconds}
        made = await self._make(wanted)
        return accept(
            str(made.get("bolt11")),
            wallet=self,
            amount_msat=amount_msat,
            expiry_seconds=expiry_seconds,
            asked_at=asked_at,
            payment_hash=str(made.get("payment_hash")),
        )

    async def status(self, handle: str) -> Status:
        found = await self._invoices(payment_hash=handle)
        if not found:
            return Status(State.UNKNOWN)
        state = _STATES.get(str(found[0].get("status")), State.PENDING)
        return Status(state, _msat(found[0].get("amount_received_msat")) if state == State.SETTLED else 0)

    async def watch(self) -> AsyncGenerator[str, None]:
        # `wait` tells that the index of changes has moved, `listinvoices` what has changed since: nothing gets lost
        # between two waits, however much happens.
        if self._next_update is None:
            told = await self._rpc("wait", subsystem="invoices", indexname="updated", nextvalue=0)
            self._next_update = int(told.get("updated") or 0) + 1
        while True:
            request = {"subsystem": "invoices", "indexname": "updated", "nextvalue": self._next_update}
            try:
                await self._rpc("wait", answer_seconds=QUIET_SECONDS, **request)
            except OutcomeUnknown:
                return
            for invoice in await self._invoices(index="updated", start=self._next_update):
                self._next_update = max(self._next_update, int(invoice.get("updated_index") or 0) + 1)
                if invoice.get("status") == "paid":
                    yield str(invoice["payment_hash"])

    async def pay(self, bolt11: str, max_fee_msat: int) -> Payment:
        request = {"bolt11": bolt11, "maxfee": max_fee_msat, "retry_for": _PAY_SECONDS}
        try:
            paid = await self._rpc("pay", answer_seconds=_PAY_SECONDS + 10, **request)
        except _RpcError as problem:
            if problem.rpc_code in _NOT_PAID:
                raise PaymentFailed(f"not paid: {problem.said}") from None
            raise OutcomeUnknown(problem.detail) from None
        if paid.get("status") != "complete":
            raise OutcomeUnknown(f"cln says {paid.get('status')} of the payment")
        amount = _msat(paid["amount_msat"])
        return Payment(paid["payment_hash"], paid["payment_preimage"], amount, _msat(paid["amount_sent_msat"]) - amount)

    async def info(self) -> Told:
        await self._invoices(payment_hash="00" * 32)
        return {"wallet": self.name, "network": self.network, "can_tell": True}

    async def close(self) -> None:
        await self._backend.close()

    async def _make(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Make the invoice, or find it when the answer to that got lost."""
        try:
            return await self._rpc("invoice", **wanted)
        except OutcomeUnknown as problem:
            lost = problem
        found = await self._invoices(label=wanted["label"])
        if not found:
            raise WalletUnreachable(f"no invoice was made: {lost.detail}")
        return found[0]

    async def _invoices(self, **query: Any) -> list[dict[str, Any]]:
        found = (await self._rpc("listinvoices", **query)).get("invoices")
        return found if isinstance(found, list) else []

    async def _rpc(self, method: str, *, answer_seconds: int = 10, **params: Any) -> dict[str, Any]:
        answer = await self._backend.call("POST", f"/v1/{method}", json=params, answer_seconds=answer_seconds)
        document = answer.document if isinstance(answer.document, dict) else {}
        if answer.ok:
            return document
        error = document.get("error", document)
        error = error if isinstance(error, dict) else {"message": error}
        code = error.get("code")
        raise _RpcError(
            code if isinstance(code, int) else None,
            str(error.get("message") or ""),
            self._backend.refused(answer, error.get("message")).detail,
        )


class _RpcError(WalletRefused):
    """An error that the node itself reported, with its JSON-RPC code."""

    def __init__(self, code: int | None, said: str, detail: str) -> None:
        super().__init__(detail)
        self.rpc_code = code
        self.said = said


def _msat(value: Any) -> int:
    """Millisatoshis, which old versions write as "21000msat"."""
    return int(str(value or 0).removesuffix("msat"))
