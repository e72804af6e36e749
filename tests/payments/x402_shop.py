"""Shops that sell by x402, and orders at them: what the tests of this rail have in common."""

import asyncio
import contextlib
import itertools
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from eth_abi.abi import encode
from eth_account import Account
from eth_utils.crypto import keccak

from tests.gateway.wire import Answer
from tests.gateway.world import Gateway, World, eventually
from tests.peers.anvil import DOLLAR, ORACLE, Anvil
from tests.peers.x402_buyer import Buyer, offered

SETTLE_SECONDS = 3
addresses = itertools.count(1)


class Shop:
    """A gateway that sells by x402, on SQLite."""

    def __init__(self, world: World) -> None:
        self.world = world

    def order(self, **fields: Any) -> "Order":
        return Order(self, fields)

    def rows(self, kind: str = "x402_payment") -> dict[str, str]:
        """The states of a kind of rows by their id."""
        with contextlib.closing(sqlite3.connect(self.world.database.removeprefix("sqlite:///"))) as db:
            return dict(db.execute("SELECT id, state FROM rows WHERE kind = ?", (kind,)).fetchall())

    def state(self, buyer: Buyer) -> str:
        """The state of a buyer's one payment, "" if there is none."""
        found = [state for name, state in self.rows().items() if buyer.address.lower() in name]
        assert len(found) < 2
        return found[0] if found else ""

    def credited(self) -> int:
        """What guests were credited, in nano-dollars."""
        with contextlib.closing(sqlite3.connect(self.world.database.removeprefix("sqlite:///"))) as db:
            return int(db.execute("SELECT coalesce(sum(credited), 0) FROM accounts WHERE kind = 'guest'").fetchone()[0])


class Order:
    """One request, asked again and again by the same peer."""

    def __init__(self, shop: Shop, fields: dict[str, Any]) -> None:
        number = next(addresses)
        self.shop, self.fields = shop, {"max_tokens": 100, "tag": f"x{secrets.token_hex(6)}"} | fields
        self.peer = f"198.51.{number // 250}.{number % 250}"

    async def ask(
        self, headers: dict[str, str] | None = None, gateway: Gateway | None = None, **changes: Any
    ) -> Answer:
        fields: dict[str, Any] = self.fields | changes
        model = fields.pop("model", "story")
        shown = {"x-forwarded-for": self.peer} | (headers or {})
        return await (gateway or self.shop.world.gateway).chat(None, model, headers=shown, **fields)

    async def until_served(self, headers: dict[str, str], seconds: float = 15, **changes: Any) -> Answer:
        """The first answer that is not "not known yet"."""
        last = Answer()

        async def served() -> bool:
            nonlocal last
            last = await self.ask(headers, **changes)
            return last.status != 503

        await eventually(served, seconds, 0.3)
        return last


def price(answer: Answer) -> int:
    return int(offered(answer)["amount"])


def remaining(answer: Answer) -> Decimal:
    return Decimal(answer.headers["x-credit-remaining-usd"])


class Market(Shop):
    """A gateway that settles on a chain."""

    def __init__(self, world: World, chain: Anvil, pay_to: str, sender: str) -> None:
        super().__init__(world)
        self.chain, self.pay_to, self.sender = chain, pay_to, sender
        self.unearned = 0
        """Units that came in and that nobody is to be credited with."""

    def buyer(self, dollars: int = 100) -> Buyer:
        return Buyer(self.chain.payer(dollars * DOLLAR))

    def earned(self) -> bool:
        """Whether guests were credited with what came in, since the market began."""
        return self.credited() == 1000 * (self.chain.balance(self.pay_to) - self.unearned)

    def spent(self, buyer: Buyer, dollars: int = 100) -> int:
        return dollars * DOLLAR - self.chain.balance(buyer.address)


def market_on(folder: Path, chain: Anvil, rows: Sequence[Mapping[str, Any]] = (), **more: str) -> Market:
    """A gateway's world on a new database, not started, with an address of its own to pay to."""
    sender, pay_to = Account.create(), str(Account.create().address)
    chain.rpc("anvil_setBalance", sender.address, hex(10**18))
    settings: dict[str, Any] = {
        "PPQ_X402_PAY_TO": pay_to,
        "PPQ_X402_NETWORK": "base-sepolia",
        "PPQ_X402_KEY": sender.key.hex(),
        "PPQ_X402_RPC_URL": chain.url,
        "PPQ_X402_SETTLE_SECONDS": str(SETTLE_SECONDS),
        "PPQ_X402_SANCTIONS_ORACLE": ORACLE,
    }
    world = World(f"sqlite:///{folder}/gateway.db", folder, rows=rows, **settings | more)
    return Market(world, chain, pay_to, str(sender.address))


def asked_body(order: Order, **changes: Any) -> bytes:
    """The body that an order sends."""
    fields: dict[str, Any] = order.fields | changes
    request = order.shop.world.gateway.chat_request(None, fields.pop("model", "story"), **fields)
    return request.partition(b"\r\n\r\n")[2]


async def use(market: Market, document: dict[str, Any], sender: Buyer) -> int:
    """Bring somebody's authorization to the chain; the units that it moved."""

    signed, given = document["payload"]["signature"], document["payload"]["authorization"]
    names = "address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32"
    raw = bytes.fromhex(signed[2:])
    values = [given["from"], given["to"], *(int(given[name]) for name in ("value", "validAfter", "validBefore"))]
    values += [bytes.fromhex(given["nonce"][2:]), raw[64], raw[:32], raw[32:64]]
    data = keccak(text=f"transferWithAuthorization({names})")[:4] + encode(names.split(","), values)
    await asyncio.to_thread(market.chain.transfer, sender.account, "", 0, data="0x" + data.hex())
    return int(given["value"])


async def timed(market: Market) -> float:
    began = time.monotonic()
    assert (await market.world.http("GET", "/health")).status == 200
    return time.monotonic() - began
