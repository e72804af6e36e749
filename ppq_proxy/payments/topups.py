"""Top-ups: an account asks for an invoice, somebody pays it, and the account is credited once.

The row is written before the wallet is asked. What is credited is decided by a compare-and-set of that row, and each
credit has a name of its own in the ledger; making it is idempotent and done anew by whoever finds it decided. So
neither two processes nor a crash can credit twice or lose a payment. Reading the wallet again is the only way in: a
webhook, a push or a question about the status are no more than hints to do so.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict

import orjson

from ppq_proxy.errors import (
    BadRequest,
    GatewayError,
    IdempotencyMismatch,
    NotFound,
    RateLimited,
    StillRunning,
    Unauthorized,
    Unavailable,
)
from ppq_proxy.money.accounts import Accounts
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.money.owner import host_name, is_dead
from ppq_proxy.payments.btcpay import BtcpayClient, verify_webhook
from ppq_proxy.payments.patience import Minutes, network_of
from ppq_proxy.payments.processors import Bill, BtcpayProcessor, LightningProcessor, Processor
from ppq_proxy.payments.rates import Rates
from ppq_proxy.payments.topup_methods import METHODS, Amount, Method, parse_methods
from ppq_proxy.payments.topup_record import Phase, Seen, TopUp
from ppq_proxy.payments.wallets.base import Wallet, WalletError, WalletRefused, now
from ppq_proxy.settings import Settings
from ppq_proxy.store.base import Row

KIND = "topup"
LIVE, OVER = "live", "over"
ASK_MS = 60_000  # longer than any wallet takes; then the one who asked has died, and nobody has seen an invoice
KEEP_MS = 30 * 24 * 3600 * 1000
PAY_OUT_MS = 5000
LOOK_SECONDS = 0.5  # not money: however often somebody asks for the status, the wallet is asked no more often
REMEMBERED = 10_000

log = logging.getLogger(__name__)


class TopUps:
    """Every top-up of this gateway, by rows of kind `topup`."""

    def __init__(self, settings: Settings, accounts: Accounts, wallet: Wallet | None, rates: Rates) -> None:
        """Raises `SettingsError` for an unknown method in `PPQ_BTCPAY_METHODS`."""
        self.accounts, self.rows, self.rates, self.wallet = accounts, accounts.store.rows, rates, wallet
        self._lightning = LightningProcessor(wallet, f"{settings.realm or 'ppq'}: top-up") if wallet else None
        self._btcpay: BtcpayProcessor | None = None
        self._on_chain: frozenset[str] = frozenset()
        if settings.btcpay_url and settings.btcpay_key and settings.btcpay_store:
            client = BtcpayClient(settings.btcpay_url, settings.btcpay_key, settings.btcpay_store)
            self._btcpay, self._on_chain = BtcpayProcessor(client), parse_methods(settings.btcpay_methods)
        self._webhook_secret, self._store_id = settings.btcpay_webhook_secret, settings.btcpay_store
        self._most, self._asked = settings.per_minute("challenges_per_minute"), Minutes()
        self._secret = secrets.token_bytes(32)
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._looked: OrderedDict[str, int | float] = OrderedDict()  # not money: seconds
        self._hashes: OrderedDict[str, str] = OrderedDict()

    def unlock(self, secret: bytes) -> None:
        """Use the installation's secret, once it is known."""
        self._secret = hmac.digest(secret, b"ppq topup", hashlib.sha256)

    async def close(self) -> None:
        if self._btcpay:
            await self._btcpay.client.close()

    def methods(self) -> list[Method]:
        """The ways to top up that can be served now."""
        return [method for method in METHODS.values() if self._serves(method)]

    def method(self, name: str) -> Method:
        """A method by its name. Raises `NotFound`, or `Unavailable` for one that this gateway does not serve."""
        method = METHODS.get(name)
        if method is None:
            raise NotFound(f"There is no method {name[:40]!r}; methods are {', '.join(METHODS)}.", param="method")
        if not self._serves(method):
            raise Unavailable(f"This gateway takes no {name} top-ups; GET /topup/payment-methods lists what it takes.")
        return method

    def _serves(self, method: Method) -> Processor | None:
        if method.btcpay:
            return self._btcpay if method.name in self._on_chain else None
        return self._lightning if self._lightning and self._lightning.wallet.can_tell else None

    # asking for one

    async def create(
        self, account_id: str, method: Method, amount: Amount, *,
        key: bytes | None = None, peer: str = "", topup_id: str = "", seconds: int = 0,
    ) -> TopUp:  # fmt: skip
        """A top-up with a bill to pay; the same one again for the same `key` (an Idempotency-Key) of the same account.

        `peer` is the address that asks, `topup_id` a name chosen before, `seconds` another life than the method's.

        Raises:
            BadRequest, RateLimited, RateUnavailable, WalletError: there is none. StillRunning, IdempotencyMismatch
        """
        topup_id = topup_id or self._new_id(account_id, key)
        request = hashlib.sha256(f"{account_id} {method.name} {amount}".encode()).hexdigest()
        if key is not None and (known := await self._known(topup_id, request)) is not None:
            return known
        processor = self._serves(method)
        assert processor is not None
        by_rate = not (method.btcpay and amount.in_dollars)
        rate = self.rates.rate().nano_per_btc if by_rate else 1
        value = amount.value(rate)
        method.admit(amount, value)
        self._count(peer)
        # A name that comes again must not find the invoice of an attempt that was given up.
        order = topup_id if key is None else f"{topup_id}-{secrets.token_hex(4)}"
        topup = TopUp(
            topup_id, account_id, method.name, f"{amount.number:f}", amount.currency, value, method.bonus_percent,
            now(), request, processor=processor.name, owner=self.accounts.ledger.owner, order=order,
        )  # fmt: skip
        row = await self._claim(topup)
        sats = amount.sats(rate) if by_rate else None
        bill = await self._bill(row, processor, method, amount, sats, seconds or 60 * method.minutes)
        return await self._open(row, topup, bill, processor)

    def _new_id(self, account_id: str, key: bytes | None) -> str:
        """A name that cannot be guessed; the same again for the same key of the same account."""
        if key is None:
            return secrets.token_hex(16)
        if not 1 <= len(key) <= 255:
            raise BadRequest("Idempotency-Key must have 1 to 255 characters.")
        return hmac.digest(self._secret, account_id.encode() + b"\0" + key, hashlib.sha256).hex()[:32]

    def _count(self, peer: str) -> None:
        """Minting is paid by the operator: a peer may ask so many times a minute."""
        if not peer or self._most is None:
            return
        network = network_of(peer)
        if self._asked.count(network) >= self._most:
            wait = self._asked.wait(network)
            raise RateLimited("Too many top-ups were asked for within a minute.", headers={"retry-after": str(wait)})
        self._asked.add(network)

    async def _known(self, topup_id: str, request: str) -> TopUp | None:
        """A top-up that was made under this id before, if its bill is there."""
        row = await self.rows.get(KIND, topup_id)
        if row is None:
            return None
        topup = TopUp.of(row)
        if topup.request != request:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used for another top-up; use a new key for a new top-up."
            )
        if topup.phase != Phase.ASKED:
            return topup
        if not await self._abandoned(row):
            raise StillRunning("This top-up is being made; ask again for its answer.", headers={"retry-after": "1"})
        return None

    async def _claim(self, topup: TopUp) -> Row:
        """Write the row, or take over one whose process died before anybody saw a bill."""
        due = now_ms() + ASK_MS
        row = await self.rows.get(KIND, topup.id)
        if row is None:
            claimed = await self.rows.insert(KIND, topup.id, topup.doc(), state=LIVE, due=due)
        else:
            claimed = await self._abandoned(row) and await self.rows.replace(row, topup.doc(), due=due)
        mine = await self.rows.get(KIND, topup.id) if claimed else None
        if mine is None:
            raise StillRunning("This top-up is being made; ask again for its answer.", headers={"retry-after": "1"})
        return mine

    async def _abandoned(self, row: Row) -> bool:
        """Whether the process that asked for a bill is dead, or had its time."""
        topup, host, at = TopUp.of(row), host_name(), now_ms()
        if topup.phase != Phase.ASKED:
            return False
        if row.due is None or row.due <= at:
            return True
        return all(one.id != topup.owner or is_dead(one, host, at) for one in await self.accounts.store.owners())

    async def _bill(
        self, row: Row, processor: Processor, method: Method, amount: Amount, sats: int | None, seconds: int
    ) -> Bill:
        try:
            return await processor.bill(method, amount, sats, seconds, row.doc["order"])
        except GatewayError as problem:
            # Whatever the wallet may have made, nobody has seen it: a repetition begins anew.
            await self.rows.delete(row)
            log.warning("no bill for a top-up by %s: %s", method.name, problem)
            raise

    async def _open(self, row: Row, topup: TopUp, bill: Bill, processor: Processor) -> TopUp:
        topup.phase, topup.handle, topup.asked = Phase.OPEN, bill.handle, f"{bill.asked:f}"
        topup.expires_at, topup.watch_until = bill.expires_at, bill.expires_at + processor.watch_seconds
        topup.coin_due, topup.checkout_url = f"{bill.coin_due.normalize():f}", bill.checkout_url
        topup.lightning_invoice, topup.address, topup.payment_link = (
            bill.lightning_invoice, bill.address, bill.payment_link,
        )  # fmt: skip
        if not await self.rows.replace(row, topup.doc(), due=now_ms() + 1000 * topup.pause(now())):
            raise Unavailable("The top-up could not be made in time; ask for a new one.")
        if bill.payment_hash:
            self._hashes[bill.payment_hash] = row.id
            if len(self._hashes) > REMEMBERED:
                self._hashes.popitem(last=False)
        return topup

    # looking at one

    async def status(self, account_id: str, topup_id: str) -> TopUp:
        """A top-up of the account as it stands now. Raises `NotFound`."""
        row = await self.rows.get(KIND, topup_id)
        if row is None or row.doc["account"] != account_id or row.doc["phase"] == Phase.ASKED:
            raise NotFound("This account has no such top-up.")
        if row.state == LIVE:
            try:
                await self.look(topup_id, at_leisure=True)
            except WalletError as problem:
                log.warning("the status of a top-up is not known: %s", problem)
            row = await self.rows.get(KIND, topup_id) or row
        return TopUp.of(row)

    async def find(self, topup_id: str) -> TopUp | None:
        """A top-up as it was last seen."""
        row = await self.rows.get(KIND, topup_id)
        return TopUp.of(row) if row else None

    async def paid(self, payment_hash: str) -> None:
        """The wallet says that an invoice was paid, perhaps one of ours."""
        if topup_id := self._hashes.get(payment_hash):
            await self.look(topup_id)

    async def look(self, topup_id: str, *, at_leisure: bool = False) -> None:
        """Ask the processor how a top-up stands, and credit what came. Many who ask at once share one look.

        `at_leisure`: a look that was just taken will do. Raises `WalletError`, `StoreUnavailable`.
        """
        task = self._looking.get(topup_id)
        if task is None:
            if at_leisure and time.monotonic() < self._looked.get(topup_id, 0) + LOOK_SECONDS:
                return
            task = self._looking[topup_id] = asyncio.create_task(self._look(topup_id))
            task.add_done_callback(lambda _: self._looking.pop(topup_id, None))
        await asyncio.shield(task)

    async def _look(self, topup_id: str) -> None:
        row = await self.rows.get(KIND, topup_id)
        topup = TopUp.of(row) if row else None
        if row is None or topup is None or topup.phase == Phase.ASKED:
            return
        if topup.phase == Phase.PAID:
            await self._pay_out(row, topup)
            return
        processor = self._by_name(topup.processor)
        seen = await processor.look(topup) if processor else None
        self._looked[topup_id] = time.monotonic()
        if len(self._looked) > REMEMBERED:
            self._looked.popitem(last=False)
        await self._apply(row, topup, seen)

    def _by_name(self, name: str) -> Processor | None:
        """The processor that made the bill, if it is still the one in use."""
        return next((one for one in (self._lightning, self._btcpay) if one and one.name == name), None)

    async def _apply(self, row: Row, topup: TopUp, seen: Seen | None) -> None:
        """Keep what was seen, and decide on a credit."""
        before, at = topup.doc(), now()
        if seen is not None:
            topup.progress, topup.paid, topup.dead = seen.progress, f"{seen.paid:f}", seen.dead
            topup.late = topup.late or seen.late
        more = topup.worth(seen.confirmed) - topup.credited if seen is not None else 0
        if more > 0:
            topup.phase, topup.credits = Phase.PAID, [*topup.credits, more]
            if await self.rows.replace(row, topup.doc(), state=LIVE, due=now_ms() + PAY_OUT_MS):
                paid = await self.rows.get(KIND, row.id)
                if paid is not None and paid.doc["phase"] == Phase.PAID:
                    await self._pay_out(paid, TopUp.of(paid))
            return
        if topup.phase == Phase.OPEN and topup.is_over(at):
            topup.phase = Phase.EXPIRED
            await self.rows.replace(row, topup.doc(), due=now_ms() + KEEP_MS)
        elif topup.phase == Phase.SETTLED and at > topup.watch_until:
            await self.rows.replace(row, topup.doc(), state=OVER, due=None)
        elif topup.doc() != before:
            due = row.due if topup.phase == Phase.EXPIRED else now_ms() + 1000 * topup.pause(at)
            await self.rows.replace(row, topup.doc(), due=due)

    async def _pay_out(self, row: Row, topup: TopUp) -> None:
        """Make the credits that were decided; each is made once, whoever repeats it."""
        detail = {"source": "topup", "topup": row.id, "method": topup.method, "bonus_percent": topup.bonus_percent}
        for number, nano in enumerate(topup.credits):
            name = f"topup:{row.id}:{number}" if number else f"topup:{row.id}"
            await self.accounts.credit(topup.account, nano, name, orjson.dumps(detail))
        topup.phase = Phase.SETTLED
        # Only a chain can bring more to the same address.
        more = not topup.lightning_invoice and now() <= topup.watch_until
        due = now_ms() + 1000 * topup.pause(now()) if more else None
        await self.rows.replace(row, topup.doc(), state=LIVE if more else OVER, due=due)

    # BTCPay's webhook

    async def delivered(self, body: bytes, signature: str | None) -> None:
        """A delivery of BTCPay: the invoice that it names is read again. Deliveries may be repeated, late or lost.

        Raises:
            NotFound: no webhook is set up. Unauthorized: not signed by BTCPay. WalletError: deliver it again later.
        """
        if self._btcpay is None or not self._webhook_secret:
            raise NotFound("This gateway has no BTCPay webhook; it needs PPQ_BTCPAY_WEBHOOK_SECRET.")
        try:
            event = verify_webhook(self._webhook_secret, body, signature)
        except WalletRefused as problem:
            raise BadRequest(f"{problem.detail}.") from None
        if event is None:
            raise Unauthorized("The signature in BTCPay-Sig is not that of this body.")
        if event.store_id != self._store_id or not event.invoice_id:
            return
        invoice = await self._btcpay.client.invoice(event.invoice_id)
        row = await self.rows.get(KIND, invoice.order_id.partition("-")[0]) if invoice else None
        if invoice and row and row.doc["handle"] == invoice.id:
            await self.look(row.id)
