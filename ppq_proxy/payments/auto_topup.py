"""Automatic top-ups from a customer's own wallet over Nostr Wallet Connect (NIP-47; requirements PPQ-161…171).

Which top-up is to be paid is written before the wallet hears of it, and nothing else is paid while that one is pending
or its outcome is not known: it is over when our wallet has the money, or says that its invoice can no more be paid.
"""

import asyncio
import base64
import importlib.util
import logging
import secrets
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from cryptography.exceptions import InvalidTag

from ppq_proxy.errors import BadRequest, Conflict, GatewayError, NotFound, SettingsError, Unavailable
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.money.amounts import usd_from_nano, usd_number
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payments.auto_topup_record import CHECK_MS, Link, parse_wish, shown, without_secret
from ppq_proxy.payments.topup_methods import LIGHTNING, Amount
from ppq_proxy.payments.topup_record import Phase, TopUp
from ppq_proxy.payments.topups import TopUps
from ppq_proxy.payments.wallets.base import PaymentFailed, WalletError, WalletUnreachable, now
from ppq_proxy.payments.wallets.nwc import NwcWallet
from ppq_proxy.payments.wallets.nwc_connection import NwcError
from ppq_proxy.store.base import Row

KIND, ON = "auto_topup", "on"
INVOICE_SECONDS = 300  # short: after a lost answer nothing is paid before it has ended
PENDING_MS, CAPPED_MS, SOON_MS = 3_000, 600_000, 1_000
LEASE_MS = 150_000  # longer than an invoice and its payment take
TICK_SECONDS = 2
AT_ONCE = 16
TRIES = 8
# A wallet that does not tell what it can do may still pay.
_SILENT_ON_INFO = ("NOT_IMPLEMENTED", "RESTRICTED")

Change = Callable[[Link | None], Link | None]

log = logging.getLogger(__name__)


def installed() -> bool:
    """Whether the extra `nwc` is: what signs and encrypts, and what speaks WebSocket."""
    return all(importlib.util.find_spec(name) is not None for name in ("nostr_sdk", "wsproto"))


class AutoTopUps:
    """The connected wallets, and the task that pays from them."""

    def __init__(self, accounts: Accounts, topups: TopUps) -> None:
        self.accounts, self.topups, self.rows = accounts, topups, topups.rows
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.topups.wallet is not None and installed():
            self._task = asyncio.create_task(self._run(), name="auto-topups")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    # what the customer does

    async def connect(self, account_id: str, body: Any) -> dict[str, Any]:
        """Connect a wallet that can pay, or another one in its place; the settings.

        Raises `BadRequest`, `Unavailable`.
        """
        if not installed():
            raise Unavailable(
                "Automatic top-ups need an extra that is not installed here: pip install 'ppq-proxy[nwc]'."
            )
        self.topups.method(LIGHTNING.name)
        wish = parse_wish(body)
        await self._try_out(wish.url)
        sealed = base64.b64encode(self.accounts.seal.close(wish.url, f"nwc:{account_id}")).decode()

        def renewed(link: Link | None) -> Link | None:
            fresh = Link(account_id, sealed, without_secret(wish.url), wish.threshold, wish.amount, wish.daily, now())
            if link is not None:  # what is under way is not forgotten by connecting anew
                fresh.topup, fresh.day, fresh.spent = link.topup, link.day, link.spent
                fresh.last_topup, fresh.last_at = link.last_topup, link.last_at
            return fresh

        return shown(await self._change(account_id, renewed, SOON_MS), now_ms())

    async def _try_out(self, url: str) -> None:
        """Ask the wallet what it can do, so that a mistake is told now and not when the balance has run out."""
        try:
            wallet = self._wallet(url)
        except SettingsError as problem:
            raise BadRequest(f"nwc_url is {problem}.", param="nwc_url") from None
        try:
            methods = str((await wallet.info()).get("methods") or "")
        except WalletError as problem:
            if not isinstance(problem, NwcError) or problem.reason not in _SILENT_ON_INFO:
                raise BadRequest(f"The wallet does not answer: {problem.detail}.", param="nwc_url") from None
            methods = ""
        finally:
            await wallet.close()
        if methods and "pay_invoice" not in methods.split():
            raise BadRequest("The connection does not allow pay_invoice; allow it in the wallet.", param="nwc_url")

    async def settings(self, account_id: str) -> dict[str, Any]:
        """What is connected, and how it goes."""
        row = await self.rows.get(KIND, account_id)
        return shown(Link.of(row) if row else None, row.due if row else None)

    async def disconnect(self, account_id: str) -> None:
        """Forget the wallet. A payment that is under way is still credited. Raises `NotFound`."""
        for _ in range(TRIES):
            row = await self.rows.get(KIND, account_id)
            if row is None or not row.doc["sealed"]:
                raise NotFound("No wallet is connected to this account.")
            link = Link.of(row)
            link.sealed = link.shown = ""
            if await (self.rows.replace(row, link.doc(), due=row.due) if link.topup else self.rows.delete(row)):
                return
        raise Conflict("The wallet is being used at this moment; try again.")

    # the task

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:  # border: of the task; whatever it was, the next round must come
                log.exception("automatic top-ups could not be looked at")
            await asyncio.sleep(TICK_SECONDS)

    async def sweep(self) -> None:
        """Look at the accounts that are due; each by one process at a time."""
        due = await self.rows.find(KIND, state=ON, due_before=now_ms(), limit=AT_ONCE)
        await asyncio.gather(*map(self._one, due))

    async def _one(self, row: Row) -> None:
        link = Link.of(row)
        try:
            if not link.topup and await self._enough(row, link):
                return
            if await self.rows.replace(row, row.doc, due=now_ms() + LEASE_MS):
                await (self._resolve(link) if link.topup else self._begin(link))
        except GatewayError as problem:
            log.warning("an automatic top-up has to wait: %s", problem)
            await self._change(row.id, lambda found: found, CHECK_MS)

    async def _enough(self, row: Row, link: Link) -> bool:
        """Whether there is nothing to do, because the balance is not below the threshold."""
        if (await self.accounts.account(link.account)).balance < link.threshold:
            return False
        link.error, link.failures = "", 0
        await self.rows.replace(row, link.doc(), due=now_ms() + CHECK_MS)
        return True

    async def _begin(self, link: Link) -> None:
        """Choose a top-up, unless today's are used up, and have it paid."""
        chosen, at = secrets.token_hex(16), now()

        def begun(found: Link | None) -> Link | None:
            if found is None or found.topup:
                return found
            if found.left_today(at) < found.amount:
                found.error = f"the daily limit of {usd_from_nano(found.daily)} USD is used up"
            else:
                found.topup = chosen
                found.count(at, found.amount)
            return found

        written = await self._change(link.account, begun, LEASE_MS)
        if written is not None and written.topup == chosen:
            await self._pay(written)
        else:
            await self._change(link.account, lambda found: found, CAPPED_MS)

    async def _pay(self, link: Link) -> None:
        """Make the top-up that was chosen, and have it paid."""
        error = ""
        try:
            amount = Amount(usd_number(link.amount).normalize(), "USD")
            made = await self.topups.create(
                link.account, LIGHTNING, amount, topup_id=link.topup, seconds=INVOICE_SECONDS
            )
        except GatewayError as problem:
            error = f"no invoice could be made: {problem.message}"
        else:
            error = await self._send(link, made)
        if error:
            log.warning("an automatic top-up was not paid: %s", error)
            await self._end(link, error)
        else:
            await self._resolve(link)

    async def _send(self, link: Link, made: TopUp) -> str:
        """Ask the customer's wallet to pay; why it certainly did not, or nothing if it did or may have."""
        try:
            url = self.accounts.seal.open(base64.b64decode(link.sealed), f"nwc:{link.account}")
        except InvalidTag:
            return "the connection can no more be read; connect the wallet again"
        wallet = self._wallet(url)
        try:
            msat = int(Decimal(made.asked))
            await wallet.pay(made.lightning_invoice, msat // 100 + 10_000)
        except PaymentFailed as problem:
            return problem.message
        except WalletUnreachable as problem:
            return problem.detail
        except WalletError as problem:
            log.warning("whether an automatic top-up was paid will be seen: %s", problem)
        finally:
            await wallet.close()
        return ""

    async def _resolve(self, link: Link) -> None:
        """Find out how the top-up that is being paid has ended; until then no other one is paid."""
        made = await self.topups.find(link.topup)
        if made is not None and made.phase == Phase.OPEN:
            await self.topups.look(link.topup)
            made = await self.topups.find(link.topup)
        if made is None or made.phase == Phase.EXPIRED or made.dead:
            await self._end(link, link.error or "the invoice was not paid while it lived")
        elif made.phase == Phase.SETTLED:
            await self._end(link, "")
        else:
            await self._change(link.account, lambda found: found, PENDING_MS)

    async def _end(self, link: Link, error: str) -> None:
        """The one that was being paid is over."""
        at = now()

        def over(found: Link | None) -> Link | None:
            if found is not None and found.topup == link.topup:
                if error:
                    found.failed(at, error)
                else:
                    found.succeeded(at)
            return found if found is None or found.sealed or found.topup else None

        await self._change(link.account, over, None)

    async def _change(self, account_id: str, change: Change, due_in_ms: int | None) -> Link | None:
        """Change what is kept, whoever else does so at the same time; None deletes.

        `due_in_ms` None: as its failures say.
        """
        for _ in range(TRIES):
            row = await self.rows.get(KIND, account_id)
            link = change(Link.of(row) if row else None)
            if link is None:
                done = row is None or await self.rows.delete(row)
            else:
                due = now_ms() + (link.back_off() if due_in_ms is None else due_in_ms)
                if row is None:
                    done = await self.rows.insert(KIND, account_id, link.doc(), state=ON, due=due)
                else:
                    done = await self.rows.replace(row, link.doc(), due=due)
            if done:
                return link
        raise Conflict("The wallet is being used at this moment; try again.")

    def _wallet(self, url: str) -> NwcWallet:
        """A customer's wallet. Its relay must be a public one, unless no real money is about."""
        network = self.topups.wallet.network if self.topups.wallet else "mainnet"
        return NwcWallet(url, network, trusted=network == "regtest")
