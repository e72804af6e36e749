"""The x402 clients that people use, paying at a gateway for a call, a streamed one, and a second one from its credit."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.clients.httpx import x402HttpxClient
from x402.http.utils import encode_payment_signature_header
from x402.mechanisms.evm import EthAccountSigner
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.schemas import NoMatchingRequirementsError, PaymentCreatedContext

from tests.gateway.world import ROOT, eventually, new_tag
from tests.payments.x402_shop import Market, market_on, price
from tests.peers.anvil import Anvil, anvil, client_folder, why_not
from tests.peers.fake_server import running
from tests.peers.x402_buyer import Buyer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    with anvil(tmp_path_factory.mktemp("anvil")) as running_chain:
        yield running_chain


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, chain: Anvil) -> Iterator[Market]:
    """A gateway that offers Lightning beside x402: what clients have to find their way through."""
    one = market_on(tmp_path_factory.mktemp("x402"), chain, PPQ_WALLET="dev", PPQ_BTC_USD="100000")
    one.world.start_now()
    try:
        yield one
        assert one.earned()
        code, out, err = one.world.desk.run(["doctor", "--models", str(one.world.models), "--json"])
        assert code == 0, out + err
    finally:
        one.world.stop_now()


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for npm's clients, where it finds them."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "node_modules").symlink_to(client_folder() / "node_modules")
    return Path(shutil.copy(ROOT / "tests" / "peers" / "x402_client.mjs", folder))


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "test/story", "messages": [{"role": "user", "content": "Hello"}], "user": new_tag(), **fields}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_GB_013_npms_clients(market: Market, script: Path, version: str, stream: bool) -> None:
    """`x402-fetch` is version 1, `@x402/fetch` version 2."""
    buyer = market.buyer()
    first, second = body(max_tokens=500, stream=stream), body(max_tokens=20)
    url = f"http://127.0.0.1:{market.world.gateway.port}/v1/chat/completions"
    key = "0x" + buyer.account.key.hex().removeprefix("0x")
    command = ["node", str(script), version, url, key, json.dumps(first), json.dumps(second)]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    paid, again = said["paid"], said["again"]
    assert (paid["status"], again["status"]) == (200, 200), said
    assert said["requests"] == 2, "paid once"
    assert ("[DONE]" in paid["body"]) is stream
    assert ("x-payment-response" if version == "v1" else "payment-response") in paid["headers"]
    spent = Decimal(market.spent(buyer)).scaleb(-6)
    assert 0 < Decimal(again["headers"]["x-credit-remaining-usd"]) < spent


@pytest.mark.parametrize("stream", [False, True])
async def test_the_python_client(market: Market, stream: bool) -> None:
    buyer = market.buyer()
    client = x402Client()
    register_exact_evm_client(client, EthAccountSigner(buyer.account))
    made = []

    async def keep(context: PaymentCreatedContext) -> None:
        made.append(encode_payment_signature_header(context.payment_payload))

    client.on_after_payment_creation(keep)
    base = f"http://127.0.0.1:{market.world.gateway.port}"
    async with x402HttpxClient(client, base_url=base, timeout=60) as http:
        paid = await http.post("/v1/chat/completions", json=body(max_tokens=500, stream=stream))
        assert paid.status_code == 200, paid.text
        assert ("[DONE]" in paid.text) is stream
        shown = {"payment-signature": made[0]}
        again = await http.post("/v1/chat/completions", json=body(max_tokens=20), headers=shown)
    assert (again.status_code, len(made)) == (200, 1)
    spent = Decimal(market.spent(buyer)).scaleb(-6)
    assert 0 < Decimal(again.headers["x-credit-remaining-usd"]) < spent


@pytest.mark.parametrize("version", [1, 2])
async def test_a_real_facilitator_elsewhere(tmp_path: Path, chain: Anvil, version: int) -> None:
    sender = Account.create()
    chain.rpc("anvil_setBalance", sender.address, hex(10**18))
    with running("tests.peers.facilitator_on_chain", chain.url, sender.key.hex()) as facilitator:
        market = market_on(
            tmp_path, chain, PPQ_X402_FACILITATOR=facilitator.url, PPQ_X402_RPC_URL="", PPQ_X402_SANCTIONS_ORACLE=""
        )
        await market.world.start()
        try:
            order, buyer = market.order(), market.buyer()
            asked = await order.ask()
            answer = await order.ask(buyer.v1(asked) if version == 1 else buyer.v2(asked))
            assert answer.status == 200, answer.body
            assert market.spent(buyer) == price(asked)
            assert market.earned()
        finally:
            await market.world.stop()


@pytest.mark.parametrize("node", [True, False])
async def test_a_facilitator_that_cannot_say_is_checked_on_the_chain(tmp_path: Path, chain: Anvil, node: bool) -> None:
    """A lost answer, and "failed" when asked again: with a node the payment is found, without one it stays open."""
    sender = Account.create()
    chain.rpc("anvil_setBalance", sender.address, hex(10**18))
    with running("tests.peers.facilitator_on_chain", chain.url, sender.key.hex()) as facilitator:
        url = chain.url if node else ""
        market = market_on(
            tmp_path, chain, PPQ_X402_FACILITATOR=facilitator.url, PPQ_X402_RPC_URL=url, PPQ_X402_SANCTIONS_ORACLE=""
        )
        await market.world.start()
        try:
            order, buyer = market.order(), market.buyer()
            asked = await order.ask()
            payment = buyer.v2(asked)
            facilitator.set(settle="cut")
            answer = await order.ask(payment)
            assert market.spent(buyer) == price(asked), "it was made"
            if node:
                assert answer.status == 200, "and seen on the chain at once"
                assert market.earned()
                return
            assert (answer.status, answer.error["code"]) == (503, "payment_pending")
            facilitator.set(settle="ok")
            asked_before = len(facilitator.seen())

            async def asked_again() -> bool:
                return len(facilitator.seen()) > asked_before

            assert await eventually(asked_again, 15)
            assert (await order.ask(payment)).status == 503, "nobody knows, so nobody pays again"
            assert market.credited() == 0
            assert market.spent(buyer) == price(asked)
        finally:
            await market.world.stop()


async def test_a_buyer_of_upto_is_not_offered_it_unasked(market: Market) -> None:
    asked = await market.order().ask()
    assert [one["scheme"] for one in asked.json["accepts"]] == ["exact"]
    with pytest.raises(NoMatchingRequirementsError):
        Buyer().v2(asked, upto=True)
