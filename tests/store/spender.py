"""A process that serves calls as fast as it can and says which of them were charged, until it is killed.

    python -m tests.store.spender DATABASE_URL

Each line on stdout is the id of a request whose charge was acknowledged.
"""

import asyncio
import contextlib
import os
import secrets
import sys

from ppq_proxy.errors import InsufficientBalance, KeyLimitReached, StoreUnavailable
from ppq_proxy.money.ledger import Ledger, now_ms
from ppq_proxy.money.owner import host_name, owner_name
from ppq_proxy.store import open_store
from ppq_proxy.store.base import Entry

PURSES = [("rich", None), ("rich", "k1"), ("thin", None), ("thin", "k2")]


async def serve(ledger: Ledger, number: int) -> None:
    """Call after call, some with what was drawn ahead and some at the edge, some given up."""
    account_id, key_id = PURSES[number % len(PURSES)]
    allotment = ledger.allotment(account_id, key_id)
    while True:
        need = 1 + secrets.randbelow(50)
        try:
            hold = ledger.try_hold(allotment, need) or await ledger.hold(allotment, need)
            if secrets.randbelow(8) == 0:
                ledger.release(hold)
                continue
            request_id = secrets.token_hex(12)
            entry = Entry(account_id, key_id, now_ms(), "charge", secrets.randbelow(need * 6 // 5) + 1, request_id)
            await ledger.capture(hold, entry)
            os.write(1, f"{request_id}\n".encode())
        except (InsufficientBalance, KeyLimitReached, StoreUnavailable):
            await asyncio.sleep(0.01)


async def main(url: str) -> None:
    store = open_store(url)
    await store.open()
    ledger = Ledger(store, owner_name())
    at = now_ms()
    await store.join(ledger.owner, host_name(), os.getpid(), at, at + 3_600_000)
    os.write(1, b"ready\n")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*(serve(ledger, number) for number in range(12)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
