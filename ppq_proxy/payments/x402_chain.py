"""What the chain says about a payment, by JSON-RPC: was an authorization used, did a transaction pay, is an address sanctioned.

Whatever a facilitator answers or fails to, the chain decides where its node can be asked. Amounts are base units of the
asset, times unix seconds, addresses and hashes lower-case hex with 0x.
"""

import itertools
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import httpx2

from ppq_proxy.errors import Unavailable

# keccak-256 of the events and functions named beside them
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"  # Transfer(address,address,uint256)
USED = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"  # AuthorizationUsed(address,bytes32)
CANCELED = (
    "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"  # AuthorizationCanceled(address,bytes32)
)
AUTHORIZATION_STATE = "0xe94a0102"  # authorizationState(address,bytes32)
IS_SANCTIONED = "0xdf592f7d"  # isSanctioned(address)

BLOCKS_A_SEARCH = 2000  # what public nodes allow in one eth_getLogs
MOST_SEARCHES = 50
REORGANISED_BLOCKS = 12
_TIMEOUT = httpx2.Timeout(10, connect=3)
_TRUE, _FALSE = 1, 0


class ChainUnavailable(Unavailable):
    """The node did not answer, or not sensibly: nothing is known. `detail` is for the operator."""

    code: ClassVar[str] = "payment_unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__("Payments on this chain cannot be checked at the moment.", headers={"retry-after": "5"})
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class Use(StrEnum):
    """What became of an authorization."""

    UNUSED = "unused"
    PAID = "paid"  # it moved the amount from the payer to the recipient
    ELSEWHERE = "elsewhere"  # cancelled, or its nonce was used for another transfer
    UNCLEAR = "unclear"  # used, and where cannot be seen (yet)


@dataclass(frozen=True, slots=True)
class Found:
    """What became of an authorization, and in which transaction if it PAID."""

    use: Use
    transaction: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest block: its number and time."""

    number: int
    time: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction of a payer as it stands: what of the asset went to the recipient, since when, how deep below the head.

    `confirmations` is 0 while it is not in a block; `reverted` and `indirect` (not sent by the payer, or a transfer by
    authorization) say why nothing counts.
    """

    amount: int = 0
    confirmations: int = 0
    time: int = 0
    reverted: bool = False
    indirect: bool = False


class Chain:
    """A node of one chain, and the asset on it. All methods raise `ChainUnavailable`."""

    def __init__(self, url: str, chain_id: int, asset: str, oracle: str = "") -> None:
        self.chain_id, self.asset, self.oracle = chain_id, asset.lower(), oracle
        self._url = url
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT, follow_redirects=False, trust_env=False)
        self._ids = itertools.count(1)
        self._checked = False

    async def close(self) -> None:
        await self._client.aclose()

    async def call(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call; its result."""
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        try:
            answer = (await self._client.post(self._url, json=request)).json()
        except (httpx2.HTTPError, ValueError) as problem:
            raise ChainUnavailable(f"the node of chain {self.chain_id}: {type(problem).__name__}") from None
        if not isinstance(answer, dict) or "result" not in answer:
            said = answer.get("error") if isinstance(answer, dict) else None
            raise ChainUnavailable(f"the node of chain {self.chain_id} refuses {method}: {str(said)[:200]}")
        return answer["result"]

    async def head(self) -> Head:
        """The newest block."""
        await self._right_chain()
        block = await self.call("eth_getBlockByNumber", "latest", False)
        if not isinstance(block, dict):
            raise ChainUnavailable(f"the node of chain {self.chain_id} has no newest block")
        return Head(_integer(block.get("number")), _integer(block.get("timestamp")))

    async def _right_chain(self) -> None:
        if self._checked:
            return
        found = _integer(await self.call("eth_chainId"))
        if found != self.chain_id:
            raise ChainUnavailable(f"PPQ_X402_RPC_URL is a node of chain {found}, not of {self.chain_id}")
        self._checked = True

    # authorizations (EIP-3009)

    async def use(self, payer: str, nonce: str, pay_to: str, value: int, since: int) -> Found:
        """What became of an authorization that was reserved at the block `since`."""
        state = await self._view(self.asset, AUTHORIZATION_STATE + _word(payer) + nonce[2:])
        if state == _FALSE:
            return Found(Use.UNUSED)
        topics = [[USED, CANCELED], _topic(payer), nonce]
        last = (await self.head()).number
        first = max(0, since - REORGANISED_BLOCKS)
        for start in itertools.islice(range(first, last + 1, BLOCKS_A_SEARCH), MOST_SEARCHES):
            span = {"fromBlock": hex(start), "toBlock": hex(min(last, start + BLOCKS_A_SEARCH - 1))}
            for log in await self.call("eth_getLogs", {"address": self.asset, "topics": topics, **span}):
                return await self._used_in(log, payer, pay_to, value)
        return Found(Use.UNCLEAR)

    async def _used_in(self, log: Any, payer: str, pay_to: str, value: int) -> Found:
        if log["topics"][0] != USED:
            return Found(Use.ELSEWHERE)
        transaction = str(log["transactionHash"]).lower()
        receipt = await self.call("eth_getTransactionReceipt", transaction)
        if not isinstance(receipt, dict):
            return Found(Use.UNCLEAR)
        paid = value in self._transfers(receipt, payer, pay_to)
        return Found(Use.PAID, transaction) if paid else Found(Use.ELSEWHERE)

    # transactions

    async def sent(self, transaction: str, payer: str, pay_to: str) -> Sent | None:
        """What a transaction of `payer` brought to `pay_to`; None if the node knows none of that hash."""
        head = await self.head()
        receipt = await self.call("eth_getTransactionReceipt", transaction)
        if not isinstance(receipt, dict) or receipt.get("blockNumber") is None:
            return Sent() if await self.call("eth_getTransactionByHash", transaction) else None
        block = await self.call("eth_getBlockByNumber", receipt["blockNumber"], False)
        if not isinstance(block, dict) or block.get("hash") != receipt.get("blockHash"):
            return Sent()  # the chain is being reorganised at this moment
        return Sent(
            amount=sum(self._transfers(receipt, payer, pay_to)),
            confirmations=max(0, head.number - _integer(receipt["blockNumber"]) + 1),
            time=_integer(block.get("timestamp")),
            reverted=_integer(receipt.get("status")) != _TRUE,
            indirect=str(receipt.get("from")).lower() != payer or self._authorized(receipt, payer),
        )

    async def reverted(self, transaction: str) -> bool:
        """Whether a transaction is in a block and did nothing."""
        receipt = await self.call("eth_getTransactionReceipt", transaction)
        return isinstance(receipt, dict) and _integer(receipt.get("status")) != _TRUE

    def _transfers(self, receipt: dict[str, Any], payer: str, pay_to: str) -> list[int]:
        wanted = [TRANSFER, _topic(payer), _topic(pay_to)]
        return [_integer(log["data"]) for log in self._logs(receipt) if _lower(log["topics"]) == wanted]

    def _authorized(self, receipt: dict[str, Any], payer: str) -> bool:
        """Whether an authorization of the payer was used: that payment is counted by its nonce, never by its transaction."""
        return any(_lower(log["topics"])[:2] == [USED, _topic(payer)] for log in self._logs(receipt))

    def _logs(self, receipt: dict[str, Any]) -> list[dict[str, Any]]:
        return [log for log in receipt.get("logs") or [] if str(log.get("address")).lower() == self.asset]

    # sanctions

    async def sanctioned(self, address: str) -> bool:
        """What the sanctions oracle says of an address; False where none is configured."""
        return bool(self.oracle) and await self._view(self.oracle, IS_SANCTIONED + _word(address)) != _FALSE

    async def _view(self, contract: str, data: str) -> int:
        """A contract's answer that is one word; none at all (no contract there) is no answer."""
        await self._right_chain()
        said = await self.call("eth_call", {"to": contract, "data": data}, "latest")
        if not isinstance(said, str) or len(said) != 66:
            raise ChainUnavailable(f"{contract} on chain {self.chain_id} is not the contract that was expected")
        return _integer(said)


def _word(address: str) -> str:
    return address[2:].lower().rjust(64, "0")


def _topic(address: str) -> str:
    return "0x" + _word(address)


def _lower(topics: Any) -> list[str]:
    return [str(topic).lower() for topic in topics]


def _integer(text: Any) -> int:
    try:
        return int(str(text), 16)
    except ValueError:
        raise ChainUnavailable("the node sent something that is no number") from None
