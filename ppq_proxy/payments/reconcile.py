"""Looks at top-ups that nobody asks about: those that are due, and those that the wallet says are paid.

Every process does this; a row that is due goes to the one that moves its due time first.
"""

import asyncio
import contextlib
import logging

from ppq_proxy.errors import GatewayError
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payments.topup_record import Phase, TopUp
from ppq_proxy.payments.topups import KIND, LIVE, TopUps
from ppq_proxy.payments.wallets.base import Wallet, WalletError, now
from ppq_proxy.store.base import Row

TICK_SECONDS = 1
AT_ONCE = 32
AGAIN_SECONDS = 5

log = logging.getLogger(__name__)


class Reconciler:
    """The tasks that keep top-ups moving."""

    def __init__(self, topups: TopUps) -> None:
        self.topups, self.rows = topups, topups.rows
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; what was paid while no process ran is found first."""
        self._tasks.append(asyncio.create_task(self._run(), name="topups"))
        if self.topups.wallet is not None:
            self._tasks.append(asyncio.create_task(self._listen(self.topups.wallet), name="wallet"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _run(self) -> None:
        while True:
            try:
                busy = await self.sweep() >= AT_ONCE
            except Exception:  # border: of the task; whatever it was, the next round must come
                log.exception("top-ups could not be looked at")
                busy = False
            if not busy:
                await asyncio.sleep(TICK_SECONDS)

    async def sweep(self) -> int:
        """Look at the top-ups that are due; how many there were."""
        due = await self.rows.find(KIND, state=LIVE, due_before=now_ms(), limit=AT_ONCE)
        await asyncio.gather(*map(self._one, due))
        return len(due)

    async def _one(self, row: Row) -> None:
        topup = TopUp.of(row)
        if topup.phase in (Phase.ASKED, Phase.EXPIRED):  # nobody has seen its bill, or it is long over
            await self.rows.delete(row)
            return
        if not await self.rows.replace(row, row.doc, due=now_ms() + 1000 * topup.pause(now())):
            return
        try:
            await self.topups.look(row.id)
        except GatewayError as problem:
            log.warning("a top-up by %s could not be looked at: %s", topup.method, problem)

    async def _listen(self, wallet: Wallet) -> None:
        """Hear of payments where the wallet tells of them; the rounds find what is missed here."""
        if not wallet.can_tell:
            with contextlib.suppress(WalletError):
                await wallet.info()  # some find out only now whether they can tell
        while wallet.pushes:
            try:
                async for payment_hash in wallet.watch():
                    await self.topups.paid(payment_hash)
            except GatewayError as problem:
                log.info("the wallet %s does not tell of payments at the moment: %s", wallet.name, problem)
            except Exception:  # border: of the task; a wallet that talks nonsense is asked again
                log.exception("the wallet %s was not understood", wallet.name)
            await asyncio.sleep(AGAIN_SECONDS)
