"""A top-up paid between two real lnd nodes, and the doctor's look at a wallet that is there and one that is not."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppq_proxy.doctor import examine
from ppq_proxy.payments.wallets.lnd import LndWallet
from ppq_proxy.settings import Settings
from tests.gateway.world import World, eventually
from tests.peers.fake_server import running
from tests.peers.lnd import Network, lnd_network, why_not

LEAST = [f"/lnrpc.Lightning/{name}" for name in ("AddInvoice", "LookupInvoice", "SubscribeInvoices", "GetInfo")]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with lnd_network(tmp_path_factory.mktemp("lnd")) as network:
        yield network


@pytest.fixture(scope="module")
def wallet(network: Network) -> dict[str, Any]:
    """The merchant's node in settings, with a macaroon that can do no more than is needed."""
    node = network.merchant
    return {
        "wallet": "lnd",
        "lnd_url": node.url,
        "lnd_macaroon": node.bake(*LEAST),
        "lnd_cert": str(node.certificate),
        "network": "regtest",
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, wallet: dict[str, Any]) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("topups")
    env = {f"PPQ_{name.upper()}": value for name, value in wallet.items()} | {"PPQ_BTC_USD": "100000"}
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=None, rows=(), **env)
    one.start_now()
    try:
        yield one
    finally:
        one.stop_now()


@pytest.fixture
async def payer(network: Network) -> AsyncIterator[LndWallet]:
    node = network.payer
    wallet = LndWallet(node.url, node.macaroon, str(node.certificate), "regtest")
    yield wallet
    await wallet.close()


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
async def test_PPQ_160_paid_over_a_channel_and_credited_by_the_push(world: World, payer: LndWallet) -> None:
    credit_id, key = await world.account("0")
    answer = await world.http("POST", "/topup/create/btc-lightning", {"amount": 1000, "currency": "SATS"}, key)
    assert answer.status == 201, answer.body
    await asyncio.sleep(9)  # by now the rounds come a few seconds apart: what is quicker is the push
    await payer.pay(answer.json["lightning_invoice"], 10_000)
    began = time.monotonic()

    async def credited() -> bool:
        return bool((await world.show(credit_id))["credited_usd"])

    assert await eventually(credited, 20, 0.02)
    print(f"credited {time.monotonic() - began:.2f} s after the payment")
    assert f"{(await world.show(credit_id))['credited_usd']:f}" == "1.05"
    found = await world.http("GET", f"/topup/status/{answer.json['invoice_id']}", key=key)
    assert (found.json["status"], found.json["amount_paid"]) == ("Settled", 1000)
    assert (await world.chat(key)).status == 200


def said(findings: list[dict[str, object]], check: str) -> tuple[object, str]:
    found = [(one["ok"], str(one["says"])) for one in findings if one["check"] == check]
    assert len(found) == 1, findings
    return found[0]


async def test_the_doctor_makes_an_invoice_on_the_wallet(tmp_path: Path) -> None:
    base: dict[str, Any] = {"database": f"sqlite:///{tmp_path}/a.db"}
    assert not [one for one in await examine(Settings(**base)) if one["check"] in ("wallet", "btcpay")]
    ok, says = said(await examine(Settings(**base, wallet="dev")), "wallet")
    assert ok and "dev on regtest makes invoices" in says
    ok, says = said(
        await examine(Settings(**base, wallet="lnd", lnd_url="http://127.0.0.1:1", lnd_macaroon="00")), "wallet"
    )
    assert not ok and "cannot be reached" in says
    ok, says = said(await examine(Settings(**base, wallet="lnd")), "wallet")
    assert not ok and "PPQ_LND_URL" in says


async def test_the_doctor_compares_btcpays_methods(tmp_path: Path) -> None:
    with running("tests.peers.fake_btcpay") as peer:
        base: dict[str, Any] = {
            "database": f"sqlite:///{tmp_path}/a.db",
            "btcpay_url": peer.url,
            "btcpay_store": "a-store",
        }
        ok, says = said(await examine(Settings(**base, btcpay_key="a-key", btcpay_methods="btc,ltc")), "btcpay")
        assert ok and "BTC-CHAIN, LTC-CHAIN" in says and "PPQ_BTCPAY_WEBHOOK_SECRET" in says
        ok, says = said(await examine(Settings(**base, btcpay_key="a-key", btcpay_methods="btc,xmr")), "btcpay")
        assert not ok and "XMR-CHAIN" in says
        ok, says = said(await examine(Settings(**base, btcpay_key="a-key", btcpay_methods="btc,doge")), "btcpay")
        assert not ok and "doge" in says
        ok, says = said(await examine(Settings(**base, btcpay_key="wrong")), "btcpay")
        assert not ok and "401" in says and "wrong" not in says


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
async def test_the_doctor_makes_an_invoice_on_a_real_node(tmp_path: Path, wallet: dict[str, Any]) -> None:
    ok, says = said(await examine(Settings(database=f"sqlite:///{tmp_path}/a.db", **wallet)), "wallet")
    assert ok and "lnd on regtest makes invoices, and knows it" in says
