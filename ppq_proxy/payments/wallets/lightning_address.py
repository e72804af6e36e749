"""A Lightning address, or any LNURL-pay address: the operator needs no node, somebody else's makes the invoices.

Two steps (LUD-06, LUD-16): the address tells where to ask and within what limits, which is kept for a while; then each
invoice is asked for there. Where the service offers LUD-21 it can be asked whether an invoice is settled; where it does
not, the preimage alone proves payment. The responses are read here and not by the models of `lnurl`, which refuse a
service that adds a field of its own.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppq_proxy.errors import SettingsError
from ppq_proxy.payments.invoice import InvalidInvoice, check, read
from ppq_proxy.payments.wallets.base import Invoice, State, Status, Told, Wallet, WalletError, WalletRefused, now
from ppq_proxy.payments.wallets.public_http import fetch_json, public_client

_KEEP_SECONDS = 600
_LEAST_LIFE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class _Service:
    """What the first step told. Amounts in msat."""

    callback: str
    least: int
    most: int
    description_hash: str
    comment_length: int


class LightningAddressWallet(Wallet):
    """`can_tell` is known after the first invoice, or after `info`. The service decides how long its invoices live."""

    name = "lightning-address"
    can_tell = False

    def __init__(self, address: str, network: str, clock: Callable[[], int] = lambda: int(time.monotonic())) -> None:
        """`address` is `user@host`, an `lnurl1…` code, or the URL that either stands for."""
        self.network = network
        self._url = _pay_url(address)
        self._client = public_client(trusted=[self._url])
        self._clock = clock
        self._service: tuple[int, _Service] | None = None

    async def create(self, amount_msat: int, memo: str, expiry_seconds: int, ref: str) -> Invoice:
        service = await self._told()
        if not service.least <= amount_msat <= service.most:
            raise WalletRefused(
                f"the Lightning address takes {service.least} to {service.most} msat, not {amount_msat}"
            )
        params = {"amount": str(amount_msat)}
        if memo and service.comment_length:
            params["comment"] = memo[: service.comment_length]
        asked_at = now()
        made = await self._ask(service.callback, params)
        found = check(
            str(made.get("pr")),
            payment_hash=None,
            amount_msat=amount_msat,
            network=self.network,
            lives_until=asked_at + min(_LEAST_LIFE_SECONDS, expiry_seconds),
        )
        # Services that write the description out instead of its hash break LUD-06, and nobody's payment.
        if found.description_hash not in (None, service.description_hash):
            raise WalletRefused("the Lightning address made an invoice for another description than it told")
        verify = made.get("verify")
        self.can_tell = isinstance(verify, str) and bool(verify)
        handle = f"{found.payment_hash} {verify}" if self.can_tell else ""
        return Invoice(str(made["pr"]), found.payment_hash, handle, amount_msat, found.expires_at)

    async def status(self, handle: str) -> Status:
        if not handle:
            return Status(State.UNTOLD)
        payment_hash, _, verify = handle.partition(" ")
        found = await fetch_json(self._client, verify)
        if not isinstance(found, dict) or str(found.get("status") or "OK").upper() != "OK":
            return Status(State.UNKNOWN)
        try:
            invoice = read(str(found.get("pr")))
        except InvalidInvoice:
            raise WalletRefused("the Lightning address verifies something that is no invoice") from None
        if invoice.payment_hash != payment_hash:
            raise WalletRefused("the Lightning address verifies another invoice than was asked for")
        if found.get("settled") is True:
            return Status(State.SETTLED, invoice.amount_msat or 0)
        return Status(State.EXPIRED if invoice.expires_at <= now() else State.PENDING)

    async def info(self) -> Told:
        service = await self._told()
        await self.create(max(1000, service.least), "", _LEAST_LIFE_SECONDS, "")
        told: Told = {"wallet": self.name, "network": self.network, "can_tell": self.can_tell}
        return told | {"least_msat": service.least, "most_msat": service.most}

    async def close(self) -> None:
        await self._client.aclose()

    async def _told(self) -> _Service:
        """The first step, remembered. An old answer is better than none while the service is down."""
        at = self._clock()
        if self._service and at < self._service[0] + _KEEP_SECONDS:
            return self._service[1]
        try:
            service = _read_service(await self._ask(self._url))
        except WalletError:
            if self._service:
                return self._service[1]
            raise
        self._service = (at, service)
        return service

    async def _ask(self, url: str, params: dict[str, str] | None = None) -> dict[str, Any]:
        found = await fetch_json(self._client, url, params)
        if not isinstance(found, dict):
            raise WalletRefused("the Lightning address answered something other than LNURL")
        if str(found.get("status")).upper() == "ERROR":
            raise WalletRefused(f"the Lightning address says: {str(found.get('reason'))[:200]}")
        return found


def _read_service(told: dict[str, Any]) -> _Service:
    callback, metadata = told.get("callback"), told.get("metadata")
    least, most, comment = told.get("minSendable"), told.get("maxSendable"), told.get("commentAllowed") or 0
    if told.get("tag") != "payRequest" or not isinstance(callback, str) or not isinstance(metadata, str):
        raise WalletRefused("the Lightning address does not take payments (no LNURL payRequest)")
    if not isinstance(least, int) or not isinstance(most, int) or not isinstance(comment, int):
        raise WalletRefused("the Lightning address does not tell its limits")
    return _Service(callback, least, most, hashlib.sha256(metadata.encode()).hexdigest(), comment)


def _pay_url(address: str) -> str:
    """The URL of the first step."""
    # Imported late: it brings a second HTTP client and a validation framework, for a few rules on addresses.
    from lnurl import LnAddress, Lnurl, LnurlException

    try:
        if "@" in address and "://" not in address:
            return str(LnAddress(address).url)
        return str(Lnurl(address).url)
    except (ValueError, LnurlException):
        raise SettingsError(
            f"PPQ_LIGHTNING_ADDRESS must be user@host, an LNURL or its URL, not {address[:60]!r}"
        ) from None
