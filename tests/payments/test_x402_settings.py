"""What an operator may set for x402, and what is said of the rest. And payments of whose outcome nobody ever hears."""

import dataclasses
import importlib.util
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppq_proxy.errors import Conflict, SettingsError
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.payments.credentials import BadCredential
from ppq_proxy.payments.x402 import open_x402
from ppq_proxy.payments.x402_facilitator import RemoteFacilitator
from ppq_proxy.payments.x402_in_process import InProcessFacilitator
from ppq_proxy.payments.x402_payments import KIND, PaymentPending, Payments, Shown, State
from ppq_proxy.payments.x402_quotes import Quotes
from ppq_proxy.payments.x402_wire import NETWORKS, Payment, Terms, read
from ppq_proxy.settings import Settings, load
from ppq_proxy.store.base import Rows
from tests.gateway.wire import Answer
from tests.gateway.world import ROOT
from tests.peers.fake_server import Peer, running
from tests.peers.x402_buyer import Buyer, encoded

PAY_TO = "0xB0FdC6030B9f30652e8B221B8090d443Dd3C6381"
KEY = "1" * 64
REMOTE = {"x402_pay_to": PAY_TO, "x402_network": "base-sepolia", "x402_facilitator": "http://127.0.0.1:1"}
OWN = {"x402_pay_to": PAY_TO, "x402_network": "base", "x402_key": KEY, "x402_rpc_url": "http://127.0.0.1:1"}
SEPOLIA = NETWORKS[1]


def settings(**values: Any) -> Settings:
    return dataclasses.replace(Settings(), **values)


async def test_without_an_address_to_pay_to_there_is_no_x402(rows: Rows) -> None:
    assert open_x402(settings(x402_network="base"), rows) is None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (REMOTE | {"x402_pay_to": "me"}, "PPQ_X402_PAY_TO"),
        (REMOTE | {"x402_network": ""}, "PPQ_X402_NETWORK"),
        (REMOTE | {"x402_network": "bitcoin"}, "PPQ_X402_NETWORK"),
        (REMOTE | {"x402_network": "eip155:31337"}, "PPQ_X402_ASSET"),
        (REMOTE | {"x402_asset": "USDC"}, "PPQ_X402_ASSET"),
        (REMOTE | {"x402_facilitator": "facilitator.example"}, "PPQ_X402_FACILITATOR"),
        (REMOTE | {"x402_facilitator": ""}, "PPQ_X402_FACILITATOR"),
        (REMOTE | {"x402_sanctions_oracle": PAY_TO}, "PPQ_X402_RPC_URL"),
        (OWN | {"x402_sanctions_oracle": "chainalysis"}, "PPQ_X402_SANCTIONS_ORACLE"),
        (OWN | {"x402_rpc_url": ""}, "PPQ_X402_RPC_URL"),
        (OWN | {"x402_rpc_url": "wss://x"}, "PPQ_X402_RPC_URL"),
        (OWN | {"x402_key": ""}, "PPQ_X402_KEY"),
        (OWN | {"x402_key": "my key"}, "PPQ_X402_KEY"),
    ],
)
async def test_what_is_missing_or_wrong_is_named(rows: Rows, values: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as problem:
        open_x402(settings(**values), rows)
    assert "my key" not in str(problem.value)


async def test_GB_008_the_asset_and_its_domain_have_defaults_and_can_be_set(rows: Rows) -> None:
    made = [
        open_x402(settings(**REMOTE | more), rows)
        for more in (
            {"x402_network": "eip155:8453"},
            {"x402_network": "base", "x402_asset": NETWORKS[0].asset.lower()},
            {"x402_network": "eip155:31337", "x402_asset": PAY_TO},
            {
                "x402_network": "eip155:31337",
                "x402_asset": PAY_TO,
                "x402_asset_name": "Dollar",
                "x402_asset_version": "1",
            },
        )
    ]
    found = [(rail.network.name, rail.network.asset_name, rail.network.asset_version) for rail in made if rail]
    assert found == [("base", "USD Coin", "2"), ("base", "USD Coin", "2"), ("", "USDC", "2"), ("", "Dollar", "1")]
    for rail in made:
        if rail:
            await rail.stop()


async def test_secrets_are_not_shown(rows: Rows) -> None:
    given = settings(**OWN | {"x402_facilitator_key": "f-secret", "x402_rpc_url": "https://node.example/v2/r-secret"})
    assert KEY not in repr(given) and "f-secret" not in repr(given) and "r-secret" not in repr(given)
    own = InProcessFacilitator(KEY, "https://node.example/v2/r-secret?a=b", "eip155:8453", 1, upto=False)
    message = "HTTPSConnectionPool(host='node.example', port=443): Max retries exceeded with url: /v2/r-secret?a=b"
    assert "r-secret" not in own._shown(message)


def test_switches_come_from_the_environment() -> None:
    given = {"PPQ_X402_UPTO": "on", "PPQ_X402_UNSIGNED_TRANSFERS": "yes", "PPQ_X402_SETTLE_SECONDS": "7"}
    found = load(environ=given)
    assert (found.x402_upto, found.x402_unsigned_transfers, found.x402_settle_seconds) == (True, True, 7)


@pytest.mark.parametrize(
    ("values", "needed"), [(OWN, True), (REMOTE, False), (REMOTE | {"x402_rpc_url": "http://127.0.0.1:1"}, True)]
)
def test_the_extra_is_asked_for_where_it_is_needed(tmp_path: Path, values: dict[str, str], needed: bool) -> None:
    """`serve` in an interpreter that finds neither web3 nor x402."""
    hiding = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("x402", "web3", "eth_account"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return real(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
from ppq_proxy.payments.x402 import open_x402
from ppq_proxy.settings import load
print(type(open_x402(load(), None)).__name__)
"""
    environment = {f"PPQ_{name.upper()}": value for name, value in values.items()} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", hiding], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    if needed:
        assert "pip install 'ppq-proxy[x402]'" in ended.stderr
        assert "SettingsError" in ended.stderr
    else:
        assert ended.stdout.strip() == "X402Rail", ended.stderr


def test_the_library_is_not_imported_for_a_remote_facilitator() -> None:
    script = "import sys, ppq_proxy.app; print(sorted({'web3', 'x402', 'eth_account'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout.strip() == "[]", ended.stderr
    assert importlib.util.find_spec("x402")


# payments whose outcome is open, on a real store, with a facilitator as a process of its own


@pytest.fixture(scope="module")
def facilitator() -> Iterator[Peer]:
    with running("tests.peers.facilitator") as peer:
        yield peer


@pytest.fixture
async def payments(rows: Rows, facilitator: Peer) -> AsyncIterator[Payments]:
    facilitator.set(settle="ok", verify="ok", slow=0, again="same")
    remote = RemoteFacilitator(facilitator.url, "", SEPOLIA.caip2, 1)
    made = Payments(rows, remote, None, 1)
    yield made
    await made.stop()
    await remote.close()


def shown_by(buyer: Buyer, terms: Terms) -> Shown:
    required = {"x402Version": 2, "accepts": [terms.requirement(2, "exact", "q")]}
    document = buyer.document(Answer(402, [("payment-required", encoded(required))]))
    payment = read(encoded(document))
    assert isinstance(payment, Payment)
    return Shown(payment, f"key-of-{buyer.address}", "request", "peer")


async def settled(payments: Payments, shown: Shown) -> str:
    async def terms() -> Terms:
        return TERMS

    return (await payments.settled(shown, terms)).state


TERMS = Terms(SEPOLIA, PAY_TO, 1000, "https://api.example/x", "x")


async def test_a_payment_that_nobody_can_tell_of_is_told_to_the_operator(
    payments: Payments, rows: Rows, facilitator: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    shown = shown_by(Buyer(), TERMS)
    facilitator.set(settle="500")
    with pytest.raises(PaymentPending):
        await settled(payments, shown)
    row = await rows.get(KIND, shown.key)
    assert row and (row.state, "document" in row.doc) == (State.UNKNOWN, True)
    past = row.doc | {"valid_before": str(int(time.time()) - 3600)}
    assert await rows.replace(row, past, due=now_ms() - 1)
    with caplog.at_level(logging.ERROR, "ppq.x402"):
        assert await payments.reconcile() == []
    assert shown.key in caplog.text
    row = await rows.get(KIND, shown.key)
    assert row and (row.state, "document" in row.doc) == (State.UNRESOLVED, False)
    with pytest.raises(Conflict):
        await settled(payments, shown)


async def test_what_a_dead_process_reserved_is_looked_at_after_its_lease(
    payments: Payments, rows: Rows, facilitator: Peer
) -> None:
    shown = shown_by(Buyer(), TERMS)
    facilitator.set(settle="500")
    with pytest.raises(PaymentPending):
        await settled(payments, shown)
    facilitator.set(settle="ok")
    row = await rows.get(KIND, shown.key)
    assert row
    assert await rows.replace(row, row.doc, state=State.RESERVED, due=now_ms() + 60_000)
    assert await payments.reconcile() == [], "somebody is at it"
    row = await rows.get(KIND, shown.key)
    assert row
    assert await rows.replace(row, row.doc, state=State.RESERVED, due=now_ms() - 1)
    with pytest.raises(PaymentPending):
        await settled(payments, shown)
    (found,) = await payments.reconcile()
    assert found.id == shown.key
    assert await settled(payments, shown) == State.SETTLED
    await payments.credited(found)
    assert await settled(payments, shown) == State.CREDITED
    assert await payments.reconcile() == []


async def test_another_authorization_under_the_same_nonce_is_refused(payments: Payments) -> None:
    buyer = Buyer()
    shown = shown_by(buyer, TERMS)
    assert await settled(payments, shown) == State.SETTLED
    other = dataclasses.replace(shown_by(buyer, TERMS), key=shown.key)
    with pytest.raises(BadCredential):
        await settled(payments, other)


async def test_rows_are_forgotten_after_their_time(payments: Payments, rows: Rows) -> None:
    shown = shown_by(Buyer(), TERMS)
    await settled(payments, shown)
    (row,) = await rows.find(KIND)
    await payments.credited(row)
    await payments.sweep()
    (row,) = await rows.find(KIND)
    assert row.due and row.due > now_ms() + 80 * 24 * 3600 * 1000
    await rows.replace(row, row.doc, due=now_ms() - 1)
    await payments.sweep()
    assert await rows.find(KIND) == []


async def test_quotes_hold_for_their_life_and_are_prolonged_when_asked_for_again(rows: Rows) -> None:
    quotes = Quotes(rows, SEPOLIA, PAY_TO, 600)
    first = await quotes.make(TERMS, "a request")
    found = await quotes.named(first)
    assert found and (found.terms, found.request) == (TERMS, "a request")
    assert abs(found.expires_at - time.time() - 600) < 5
    assert await quotes.made_for("a request", 1000) == found
    assert await quotes.made_for("a request", 1001) is None
    assert await quotes.made_for("another request", 1000) is None
    assert await quotes.named(first.partition(".")[0]) is None
    (row,) = await rows.find("x402_quote")
    await rows.replace(row, row.doc | {"expires_at": int(time.time()) + 10}, due=row.due)
    again = await quotes.make(TERMS, "a request")
    assert again != first
    renewed = await quotes.named(first)
    assert renewed and renewed.expires_at > time.time() + 500
    await quotes.sweep()
    (row,) = await rows.find("x402_quote")
    await rows.replace(row, row.doc, due=now_ms() - 1)
    await quotes.sweep()
    assert await quotes.named(first) is None
