"""Facilitators: who checks a signed payment and brings it to the chain. Here is what they have in common, and a remote one;
`x402_in_process` is the other.

Verifying may be repeated at will. Settling moves money, so its outcome has four values, and what is not known for certain
is never taken for a failure.
"""

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

import httpx2

from ppq_proxy.errors import Unavailable
from ppq_proxy.payments.x402_wire import Document

VERIFY_SECONDS = 10
CONNECT_SECONDS = 3
_LONGEST_REASON = 120
_BROADCAST = ("transaction", "settle", "pending", "timeout", "timed_out", "unexpected", "unknown", "used", "broadcast")
"""Words in the reasons that facilitators give once they may have sent something; other reasons come before."""


class FacilitatorUnavailable(Unavailable):
    """The facilitator was not reached or makes no sense; no money has moved. `detail` is for the operator."""

    code: ClassVar[str] = "payment_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__("Payments by x402 cannot be taken at the moment.", headers={"retry-after": "5"})
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class Outcome(StrEnum):
    """How settling ended."""

    SETTLED = "settled"
    REFUSED = "refused"  # nothing was sent to the chain
    UNREACHED = "unreached"  # nor was the facilitator
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Settlement:
    """An outcome, the transaction's hash where one is known, and the facilitator's reason where it did not settle."""

    outcome: Outcome
    transaction: str = ""
    reason: str = ""


class Facilitator(Protocol):
    """Checks and settles payments. `document` and `requirement` are those of the wire, of one version."""

    async def verify(self, version: int, document: Document, requirement: Document) -> str:
        """Why a payment is no good, "" if it is. Raises `FacilitatorUnavailable`."""
        ...

    async def settle(self, version: int, document: Document, requirement: Document) -> Settlement:
        """Bring it to the chain and wait for that. Raises nothing but cancellation."""
        ...

    async def binds(self) -> str:
        """The address that a payment by upto is bound to, "" if it does not serve upto. Raises `FacilitatorUnavailable`."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class RemoteFacilitator:
    """A facilitator's REST interface: POST /verify and /settle, GET /supported."""

    def __init__(self, url: str, key: str, network: str, settle_seconds: int) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.network, self.settle_seconds = network, settle_seconds
        self._client = httpx2.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, follow_redirects=False, trust_env=False
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def verify(self, version: int, document: Document, requirement: Document) -> str:
        answer, said = await self._ask("POST", "/verify", VERIFY_SECONDS, _request(version, document, requirement))
        valid = said.get("isValid")
        if valid is True and answer.is_success:
            return ""
        if valid is False and answer.status_code < 500:
            return reason_of(said.get("invalidReason"), "invalid_payment")
        raise FacilitatorUnavailable(f"the facilitator answers {answer.status_code} to /verify")

    async def settle(self, version: int, document: Document, requirement: Document) -> Settlement:
        try:
            request = _request(version, document, requirement)
            answer, said = await self._ask("POST", "/settle", self.settle_seconds, request)
        except _NoAnswer as problem:
            return Settlement(Outcome.UNKNOWN if problem.sent else Outcome.UNREACHED, reason=str(problem))
        transaction = str(said.get("transaction") or "").lower()
        if said.get("success") is True and answer.is_success:
            return Settlement(Outcome.SETTLED, transaction)
        if said.get("success") is False and answer.status_code < 500:
            reason = reason_of(said.get("errorReason"), "not_settled")
            return Settlement(failed(reason, transaction), transaction, reason)
        rejected = 400 <= answer.status_code < 500 and answer.status_code != 408
        reason = f"the facilitator answers {answer.status_code} to /settle"
        return Settlement(Outcome.UNREACHED if rejected else Outcome.UNKNOWN, transaction, reason)

    async def binds(self) -> str:
        _, said = await self._ask("GET", "/supported", VERIFY_SECONDS)
        for kind in said.get("kinds") or []:
            if isinstance(kind, dict) and (kind.get("scheme"), kind.get("network")) == ("upto", self.network):
                return str((kind.get("extra") or {}).get("facilitatorAddress") or "")
        return ""

    async def _ask(
        self, method: str, path: str, seconds: int, request: Document | None = None
    ) -> tuple[httpx2.Response, Document]:
        timeout = httpx2.Timeout(seconds, connect=CONNECT_SECONDS)
        try:
            async with asyncio.timeout(seconds + CONNECT_SECONDS):
                answer = await self._client.request(method, path, json=request, timeout=timeout)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as problem:
            raise _NoAnswer(f"the facilitator cannot be reached: {type(problem).__name__}", sent=False) from None
        except (httpx2.HTTPError, TimeoutError) as problem:
            raise _NoAnswer(f"the facilitator did not answer: {type(problem).__name__}", sent=True) from None
        try:
            said = answer.json()
        except ValueError:
            said = None
        return answer, said if isinstance(said, dict) else {}


class _NoAnswer(FacilitatorUnavailable):
    """No answer came; `sent` says whether the request may have arrived."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


def _request(version: int, document: Document, requirement: Document) -> Document:
    return {"x402Version": version, "paymentPayload": document, "paymentRequirements": requirement}


def failed(reason: str, transaction: str) -> Outcome:
    """What a facilitator's "no" to settling means."""
    sent = bool(transaction) or any(word in reason for word in _BROADCAST)
    return Outcome.UNKNOWN if sent else Outcome.REFUSED


def reason_of(given: Any, otherwise: str) -> str:
    """A facilitator's reason code as it may be shown: short and of harmless characters."""
    said = "".join(char for char in str(given or "") if char.isascii() and (char.isalnum() or char in "_-. "))
    return said[:_LONGEST_REASON] or otherwise
