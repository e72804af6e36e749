"""Facilitators: who checks a signed payment and brings it to the chain; a remote one, or the library's own in this process.

Verifying may be repeated at will. Settling moves money, so its outcome has four values, and what is not known for certain
is never taken for a failure.
"""

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import httpx2

from ppq_proxy.errors import SettingsError, Unavailable
from ppq_proxy.payments.x402_wire import Document

if TYPE_CHECKING:
    from x402 import x402FacilitatorSync
    from x402.schemas import (
        PaymentPayload,
        PaymentPayloadV1,
        PaymentRequirements,
        PaymentRequirementsV1,
        SettleResponse,
        VerifyResponse,
    )

    Models = tuple[PaymentPayload | PaymentPayloadV1, PaymentRequirements | PaymentRequirementsV1]

T = TypeVar("T")

VERIFY_SECONDS = 10
CONNECT_SECONDS = 3
AT_ONCE = 8
_LONGEST_REASON = 120
_BROADCAST = ("transaction", "settle", "pending", "timeout", "timed_out", "unexpected", "unknown", "used", "broadcast")
"""Words in the reasons that facilitators give once they may have sent something; other reasons come before."""

log = logging.getLogger("ppq.x402")


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
            return _reason(said.get("invalidReason"), "invalid_payment")
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
            reason = _reason(said.get("errorReason"), "not_settled")
            return Settlement(_failed(reason, transaction), transaction, reason)
        rejected = 400 <= answer.status_code < 500
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


class OwnFacilitator:
    """The library's facilitator, with a key that pays the gas. It blocks, so it runs in threads of its own."""

    def __init__(self, key: str, rpc_url: str, network: str, settle_seconds: int, *, upto: bool) -> None:
        def make() -> "tuple[x402FacilitatorSync, str]":
            return _library(key, rpc_url, network, settle_seconds, upto=upto)

        self._make = make
        self._made: tuple[x402FacilitatorSync, str] | None = None
        self._lock = threading.Lock()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def close(self) -> None:
        return

    async def verify(self, version: int, document: Document, requirement: Document) -> str:
        def work() -> "VerifyResponse":
            return self._library()[0].verify(*_models(version, document, requirement))

        try:
            found = await self._in_thread(work)
        except Exception as problem:  # border: of the library, whose node may fail in any way
            if type(problem).__name__ == "ValidationError":
                return "invalid_payload"
            raise FacilitatorUnavailable(f"verifying failed: {type(problem).__name__}") from None
        return "" if found.is_valid else _reason(found.invalid_reason, "invalid_payment")

    async def settle(self, version: int, document: Document, requirement: Document) -> Settlement:
        def work() -> "SettleResponse":
            return self._library()[0].settle(*_models(version, document, requirement))

        try:
            found = await self._in_thread(work)
        except Exception as problem:  # border: of the library, whose node may fail in any way
            log.warning("settling an x402 payment failed: %s", type(problem).__name__)
            return Settlement(Outcome.UNKNOWN, reason=type(problem).__name__)
        if found.success:
            return Settlement(Outcome.SETTLED, found.transaction.lower())
        if not found.transaction:
            # A number of the sender's may be taken and never sent, which would hold up all that come after it.
            self._made = None
        reason = _reason(found.error_reason, "not_settled")
        log.warning("an x402 payment was not settled: %s %s", reason, (found.error_message or "")[:200])
        return Settlement(_failed(reason, found.transaction), found.transaction.lower(), reason)

    async def binds(self) -> str:
        return (await self._in_thread(self._library))[1]

    def _library(self) -> "tuple[x402FacilitatorSync, str]":
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    async def _in_thread(self, work: Callable[[], T]) -> T:
        async with self._room:
            return await in_daemon_thread(work)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run something that blocks; unlike with an executor, a process that ends does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, problem: BaseException | None) -> None:
        if not done.done():
            done.set_exception(problem) if problem else done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (work(), None)
        except BaseException as problem:  # border: of a thread; told to whoever waits for it
            outcome = (None, problem)
        try:
            loop.call_soon_threadsafe(tell, *outcome)
        except RuntimeError:
            log.debug("nobody waits for a payment's thread any more")

    threading.Thread(target=run, name="x402", daemon=True).start()
    return await done


def require_library() -> None:
    """Raises `SettingsError` where the extra is not installed."""
    if not all(importlib.util.find_spec(name) for name in ("x402", "web3", "eth_account")):
        raise SettingsError(
            "PPQ_X402_KEY and PPQ_X402_RPC_URL need the extra x402: pip install 'ppq-proxy[x402]'; "
            "with a remote facilitator (PPQ_X402_FACILITATOR) alone it is not needed"
        )


def load_library() -> None:
    """Import what takes seconds to import, so that the first payment does not wait for it."""
    for name in ("eth_account", "x402.mechanisms.evm.exact.facilitator"):
        importlib.import_module(name)


def _library(key: str, rpc_url: str, network: str, seconds: int, *, upto: bool) -> "tuple[x402FacilitatorSync, str]":
    """The library's facilitator for exact (both versions) and upto, and the address of its key."""
    from x402 import x402FacilitatorSync
    from x402.mechanisms.evm import FacilitatorWeb3Signer
    from x402.mechanisms.evm.exact import register_exact_evm_facilitator
    from x402.mechanisms.evm.upto.facilitator import UptoEvmScheme

    signer = FacilitatorWeb3Signer(key, rpc_url, confirmation_timeout_seconds=seconds)
    facilitator = x402FacilitatorSync()
    register_exact_evm_facilitator(facilitator, signer, networks=network)
    if upto:
        facilitator.register([network], UptoEvmScheme(signer))
    return facilitator, signer.address if upto else ""


def _models(version: int, document: Document, requirement: Document) -> "Models":
    from x402.schemas import PaymentPayload, PaymentPayloadV1, PaymentRequirements, PaymentRequirementsV1

    if version == 1:
        return PaymentPayloadV1.model_validate(document), PaymentRequirementsV1.model_validate(requirement)
    return PaymentPayload.model_validate(document), PaymentRequirements.model_validate(requirement)


def _request(version: int, document: Document, requirement: Document) -> Document:
    return {"x402Version": version, "paymentPayload": document, "paymentRequirements": requirement}


def _failed(reason: str, transaction: str) -> Outcome:
    """What a facilitator's "no" to settling means."""
    sent = bool(transaction) or any(word in reason for word in _BROADCAST)
    return Outcome.UNKNOWN if sent else Outcome.REFUSED


def _reason(given: Any, otherwise: str) -> str:
    """A facilitator's reason code as it may be shown: short and of harmless characters."""
    said = "".join(char for char in str(given or "") if char.isascii() and (char.isalnum() or char in "_-. "))
    return said[:_LONGEST_REASON] or otherwise
