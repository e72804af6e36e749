"""What the project set out to be, as far as it can be seen from outside."""

import subprocess
import tomllib
from collections.abc import Iterator

import pytest

from tests.gateway.world import COUNTED_PROMPT, ROOT, Customer, Upstream, World, cost


def test_USR_002_the_named_packages_or_their_successors_are_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {one.split(">")[0].split("<")[0].split("=")[0].split("[")[0].strip().lower() for one in every}
    named = {"starlette", "uvicorn", "httpx2", "openai", "tiktoken", "pyhpke", "pymongo", "lnurl", "bolt11", "orjson"}
    assert named <= names  # pymongo's own client in motor's place, httpx2 in httpx's: both took over from them


def test_USR_003_the_top_level_holds_what_it_should() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {"pyproject.toml", "ppq_proxy", "private_mode_proxy", "tests", "models.json", "README.md", "Makefile"}
    for_tools = {"LICENSE", "requirements.lock", "docs", "deploy"}
    assert {name for name in top if not name.startswith(".")} <= allowed | for_tools
    assert {"pyproject.toml", "ppq_proxy", "tests", "models.json", "Makefile"} <= top


async def test_USR_004_requests_are_forwarded_to_the_upstream(world: World, customer: Customer) -> None:
    answer = await customer.chat(temperature=0.25)
    (call,) = await world.upstream.journal(answer.tag)
    assert (call["method"], call["path"]) == ("POST", "/v1/chat/completions")
    assert call["body"]["temperature"] == 0.25 and call["whole"]


async def test_USR_005_tokens_are_counted_where_the_upstream_does_not_say(customer: Customer) -> None:
    answer = await customer.chat(play={"usage": "omit"})
    receipt = await customer.receipt(answer.request_id)
    assert receipt["usage_source"] == "counted"
    assert receipt["units"] == {"input": COUNTED_PROMPT, "output": 8}
    assert (await customer.books()).charged == cost(COUNTED_PROMPT, 8)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[World]:
    """A gateway with a wallet."""
    folder = tmp_path_factory.mktemp("shop")
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=upstream, PPQ_WALLET="dev", PPQ_BTC_USD="100000")
    one.start_now()
    try:
        yield one
    finally:
        one.stop_now()


async def test_USR_006_a_key_is_debited(shop: World) -> None:
    customer = await shop.customer()
    assert (await customer.chat()).status == 200
    assert (await customer.books()).charged == cost(15, 8)


async def test_USR_006_without_a_key_a_lightning_challenge(shop: World) -> None:
    answer = await shop.chat(None)
    assert answer.status == 402 and answer.json["error"]["code"] == "payment_required"
    challenges = [value for name, value in answer.lines if name == "www-authenticate"]
    assert challenges[0].startswith("L402 ") and "lnbcrt" in challenges[0]
    assert challenges[1].startswith("Payment ")
    assert answer.headers["x-request-id"]


async def test_USR_006_a_key_without_money_gets_no_challenge(shop: World) -> None:
    answer = await (await shop.customer("0")).chat()
    assert answer.status == 402 and "www-authenticate" not in answer.headers
    assert answer.json["error"]["code"] == "insufficient_balance"
