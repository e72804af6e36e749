"""Every route of the served OpenAPI document under a fuzzer, and the server under bytes that are no HTTP."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.catalog import ROWS
from tests.gateway.world import ROOT, Customer, Upstream, World, environment

# A key that was revoked is still shown; a name that is taken, a period without a limit and a day in the past fit the schema
# and are refused; and where calls may be paid for, no credential is a challenge, a 402.
CONFIG = """
[checks]
use_after_free.enabled = false
positive_data_acceptance.enabled = false
negative_data_rejection.expected-statuses = [400, 401, 402, 403, 404, 409, 413, 422, 429]

[[operations]]
include-path-regex = "chat/completions$"
checks.ignored_auth.enabled = false
"""


def fuzz(world: World, customer: Customer, folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the fuzzer against the gateway with a customer's credentials."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{world.gateway.port}/openapi.json", "--no-color",
        "--header", f"Authorization: Bearer {customer.key}", "--header", f"x-credit-id: {customer.credit_id}",
        "--suppress-health-check", "all", "--generation-database", "none", "--continue-on-failure", "--warnings", "off", *options,
    ]  # fmt: skip
    (folder / "schemathesis.toml").write_text(CONFIG)
    env = environment(SCHEMATHESIS_HOOKS="tests.api.fuzz_hooks", PYTHONPATH=str(ROOT), NO_COLOR="1", COLUMNS="160")
    return subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=800
    )


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[World]:
    """A gateway that takes payments too, so that no route is idle."""
    folder = tmp_path_factory.mktemp("fuzz")
    paid = {"PPQ_WALLET": "dev", "PPQ_BTC_USD": "100000", "PPQ_CHALLENGES_PER_MINUTE": "off"}
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=upstream, rows=ROWS, **paid)
    one.start_now()
    try:
        yield one
        done = one.run("doctor", "--models", str(one.models), "--json")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        one.stop_now()


async def fuzzed(world: World, folder: Path, *options: str) -> None:
    """Every route answers as the document says, and what was served is what was charged."""
    customer, before = await world.customer("100000"), len(await world.upstream.journal())
    done = await asyncio.to_thread(fuzz, world, customer, folder, *options)
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout or "passed" in done.stdout
    books = await customer.books()
    calls = await world.upstream.journal()
    assert len(books.rows) == len(calls) - before > 0, "not every call that reached the upstream is one charge"


async def test_every_route_fuzzed_from_the_document(open_world: World, tmp_path: Path) -> None:
    await fuzzed(open_world, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "12", "--seed", "7")


@pytest.mark.slow
async def test_every_route_fuzzed_for_long(open_world: World, tmp_path: Path) -> None:
    await fuzzed(
        open_world,
        tmp_path,
        "--phases",
        "examples,coverage,fuzzing,stateful",
        "--max-examples",
        "150",
        "--max-time",
        "60",
    )
