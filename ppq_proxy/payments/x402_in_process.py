"""The facilitator in this process: the library that x402 publishes, with the operator's node and a key that pays the gas.

The library blocks for as long as a block takes, so it runs in threads of its own. Only its second version is used: what a
payment of version 1 signs is the same, so it is written anew for it.
"""

import asyncio
import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.x402_facilitator import (
    VERIFY_SECONDS,
    FacilitatorUnavailable,
    Outcome,
    Settlement,
    failed,
    reason_of,
)
from ppq_proxy.payments.x402_wire import Document

if TYPE_CHECKING:
    from x402 import x402FacilitatorSync
    from x402.pending_settlement_store import PendingSettlementStore
    from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse, VerifyResponse

T = TypeVar("T")

AT_ONCE = 32
_SHARED = ("scheme", "asset", "payTo", "maxTimeoutSeconds", "extra")
_LONGEST = 200

log = logging.getLogger("ppq.x402")


class InProcessFacilitator:
    """`Facilitator` by the library. `key` is a private key in hex, `network` a CAIP-2 id."""

    def __init__(self, key: str, rpc_url: str, network: str, settle_seconds: int, *, upto: bool) -> None:
        self.key, self.rpc_url, self.network, self.settle_seconds, self.upto = (
            key,
            rpc_url,
            network,
            settle_seconds,
            upto,
        )
        self._library: x402FacilitatorSync | None = None
        self._address = ""
        self._sent: PendingSettlementStore | None = None
        self._lock = threading.Lock()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def close(self) -> None:
        return

    async def verify(self, version: int, document: Document, requirement: Document) -> str:
        def work() -> "VerifyResponse | None":
            from pydantic import ValidationError

            try:
                payment, asked = self._models(version, document, requirement)
            except ValidationError:
                return None
            return self._opened().verify(payment, asked)

        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                found = await self._in_thread(work)
        except Exception as problem:  # border: of the library, whose node may fail in any way
            raise FacilitatorUnavailable(f"verifying failed: {type(problem).__name__}") from None
        if found is None:
            return "invalid_payload"
        return "" if found.is_valid else reason_of(found.invalid_reason, "invalid_payment")

    async def settle(self, version: int, document: Document, requirement: Document) -> Settlement:
        def work() -> "SettleResponse":
            return self._opened().settle(*self._models(version, document, requirement))

        try:
            async with asyncio.timeout(VERIFY_SECONDS + self.settle_seconds):
                found = await self._in_thread(work)
        except Exception as problem:  # border: of the library, whose node may fail in any way
            log.warning("settling an x402 payment failed: %s", type(problem).__name__)
            return Settlement(Outcome.UNKNOWN, reason=type(problem).__name__)
        if found.success:
            return Settlement(Outcome.SETTLED, found.transaction.lower())
        if not found.transaction:
            # A number of the sender's may be taken and never sent, which would hold up all that come after it.
            self._library = None
        reason = reason_of(found.error_reason, "not_settled")
        log.warning("an x402 payment was not settled: %s: %s", reason, self._shown(found.error_message or ""))
        return Settlement(failed(reason, found.transaction), found.transaction.lower(), reason)

    async def binds(self) -> str:
        await self._in_thread(self._opened)
        return self._address if self.upto else ""

    def _shown(self, message: str) -> str:
        """A message without the node's address, which can hold the operator's key there."""
        url = urlsplit(self.rpc_url)
        for secret in (self.rpc_url, url.netloc, url.path, url.query):
            message = message.replace(secret, "…") if len(secret) > 1 else message
        return message[:_LONGEST]

    def _opened(self) -> "x402FacilitatorSync":
        with self._lock:
            if self._library is None:
                self._library = self._open()
            return self._library

    def _open(self) -> "x402FacilitatorSync":
        from x402 import x402FacilitatorSync
        from x402.mechanisms.evm import FacilitatorWeb3Signer
        from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme
        from x402.mechanisms.evm.upto.facilitator import UptoEvmScheme
        from x402.pending_settlement_store import InMemoryPendingSettlementStore

        logging.getLogger("x402").setLevel(logging.CRITICAL)  # its messages hold the node's whole address
        self._sent = self._sent or InMemoryPendingSettlementStore()
        signer = FacilitatorWeb3Signer(self.key, self.rpc_url, confirmation_timeout_seconds=self.settle_seconds)
        self._address = signer.address
        library = x402FacilitatorSync()
        library.register([self.network], ExactEvmScheme(signer, pending_store=self._sent))
        if self.upto:
            library.register([self.network], UptoEvmScheme(signer, pending_store=self._sent))
        return library

    def _models(
        self, version: int, document: Document, requirement: Document
    ) -> "tuple[PaymentPayload, PaymentRequirements]":
        from x402.schemas import PaymentPayload, PaymentRequirements

        if version == 1:
            shared = {name: requirement[name] for name in _SHARED}
            requirement = shared | {"network": self.network, "amount": requirement["maxAmountRequired"]}
            document = {"x402Version": 2, "accepted": requirement, "payload": document["payload"]}
        return PaymentPayload.model_validate(document), PaymentRequirements.model_validate(requirement)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        async with self._room:
            return await in_daemon_thread(work)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run something that blocks; unlike with an executor, a process that ends does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if not done.done():
            done.set_result(result)

    def fail(problem: Exception) -> None:
        if not done.done():
            done.set_exception(problem)

    def run() -> None:
        try:
            tell = _bound(succeed, work())
        except Exception as problem:  # border: of a thread; told to whoever waits for it
            tell = _bound(fail, problem)
        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            log.debug("nobody waits for a payment's thread any more")

    threading.Thread(target=run, name="x402", daemon=True).start()
    return await done


def _bound(tell: Callable[[T], None], what: T) -> Callable[[], None]:
    return lambda: tell(what)


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
