"""The command line: what it prints for scripts and for people, its exit codes, how fast it starts, beside a serving gateway."""

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.world import ROOT, Customer, Upstream, World, cost, environment, free_port, row

DONE, FAILED, WRONG_USE, NOT_FOUND, UNREACHABLE = range(5)
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that serves while the commands run."""
    folder = tmp_path_factory.mktemp("cli")
    peer = Upstream().start()
    mid = row("mid", "story", prices={"input": "100", "output": "500"})
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=peer, rows=[mid])
    one.start_now()
    try:
        yield one
    finally:
        one.stop_now()
        peer.stop()


@pytest.fixture
async def customer(world: World) -> Customer:
    return await world.customer("1")


async def fails(world: World, code: int, *arguments: str, saying: str) -> None:
    """A command ends with this code, says why on stderr, and prints nothing."""
    ended, out, err = await world.command(*arguments)
    assert (ended, out) == (code, ""), f"{arguments}: {ended} {out} {err}"
    assert saying.lower() in err.lower(), f"{arguments}: {err}"
    assert "Traceback" not in err


# as JSON


async def test_accounts_create(world: World) -> None:
    made = await world.cli("accounts", "create", "--credit", "2.5")
    assert set(made) == {"credit_id", "api_key", "balance_usd"}
    assert made["balance_usd"] == "2.5" and made["api_key"].startswith("sk-")
    assert (await world.chat(made["api_key"])).status == 200, "the serving gateway knows it at once"
    assert (await world.cli("accounts", "create"))["balance_usd"] == "0"


async def test_accounts_credit_once_for_each_id(world: World, customer: Customer) -> None:
    cid = customer.credit_id
    gift = f"gift-{cid}"
    assert await world.cli("accounts", "credit", cid, "0.5", "--id", gift) == {"credit_id": cid, "balance_usd": "1.5"}
    assert (await world.cli("accounts", "credit", cid, "0.5", "--id", gift))["balance_usd"] == "1.5"
    assert (await world.cli("accounts", "credit", cid, "0.000000001"))["balance_usd"] == "1.500000001"
    assert (await world.cli("accounts", "credit", cid, "0.5"))["balance_usd"] == "2.000000001"
    assert (await world.cli("accounts", "credit", cid, "0.5"))["balance_usd"] == "2.500000001", (
        "without --id each one counts"
    )


async def test_twenty_credits_at_once_under_one_id_are_one(world: World, customer: Customer) -> None:
    command = ("accounts", "credit", customer.credit_id, "0.1", "--id", f"race-{customer.credit_id}", "--json")
    done = await asyncio.gather(*(asyncio.to_thread(world.run, *command) for _ in range(4)))
    assert [one.returncode for one in done] == [DONE] * 4
    assert (await world.show(customer.credit_id))["balance_usd"] == Decimal("1.1")


async def test_accounts_show_is_exact(world: World, customer: Customer) -> None:
    await customer.chat("mid")
    await customer.books()
    assert await world.cli("accounts", "show", customer.credit_id) == {
        "credit_id": customer.credit_id, "balance_usd": "0.9945", "held_usd": "0", "available_usd": "0.9945", "credited_usd": "1",
        "charged_usd": "0.0055", "lost_usd": "0",
    }  # fmt: skip


async def test_keys_create_list_revoke(world: World, customer: Customer) -> None:
    cid = customer.credit_id
    soon = (datetime.now(UTC) + timedelta(days=2)).replace(microsecond=0)
    options = (
        "--limit",
        "0.25",
        "--period",
        "weekly",
        "--expires",
        soon.isoformat(),
        "--requests",
        "60",
        "--tokens",
        "9000",
    )
    made = await world.cli("keys", "create", cid, "by hand", *options)
    assert re.fullmatch(r"[0-9a-f]{24}", made["_id"]) and made["api_key"].startswith("sk-")
    assert made["usage_limit_usd"] == "0.25", "dollars are decimal strings"
    assert (made["reset_period"], made["requests_per_minute"], made["tokens_per_minute"]) == ("weekly", 60, 9000)
    assert datetime.fromisoformat(made["expire_at"]) == soon
    assert (await world.chat(made["api_key"])).status == 200
    await customer.books()

    listed = {one["name"]: one for one in await world.cli("keys", "list", cid)}
    assert set(listed) == {"Default", "by hand"} and "api_key" not in listed["by hand"]
    assert Decimal(listed["by hand"]["current_period_usage_usd"]) == cost(15, 8)
    assert isinstance(listed["by hand"]["current_period_usage_usd"], str)

    assert await world.cli("keys", "revoke", cid, made["_id"]) == {"status": "success", "_id": made["_id"]}
    assert (await world.chat(made["api_key"])).status == 401, "the serving gateway knows it at once"
    assert [one["name"] for one in await world.cli("keys", "list", cid)] == ["Default"]
    assert {one["name"] for one in await world.cli("keys", "list", cid, "--revoked")} == {"Default", "by hand"}


async def test_history_and_explain(world: World, customer: Customer) -> None:
    answers = [await customer.chat(model) for model in ("story", "mid", "story")]
    rows = await world.cli("history", customer.credit_id)
    assert [one["request_id"] for one in rows] == [one.request_id for one in reversed(answers)]
    assert rows[1]["cost_usd"] == "0.0055" and (rows[1]["input_count"], rows[1]["output_count"]) == (15, 8)
    assert len(await world.cli("history", customer.credit_id, "--limit", "2")) == 2
    receipt = await world.cli("explain", answers[1].request_id)
    assert receipt["cost_usd"] == "0.0055" and receipt["model"] == "test/mid" and receipt["usage_source"] == "upstream"
    assert receipt["units"] == {"input": 15, "output": 8} and receipt["attempts"] and receipt["catalogue"]
    assert {(one["of"], one["usd"]) for one in receipt["prices"]} == {("input", "100"), ("output", "500")}


async def test_explain_of_an_id_that_two_calls_had_shows_both(world: World, customer: Customer) -> None:
    same = {"x-request-id": f"same-{customer.credit_id}"}
    for model in ("story", "mid"):
        assert (await customer.chat(model, headers=same)).status == 200
    receipts = await world.cli("explain", same["x-request-id"])
    assert [one["model"] for one in receipts] == ["test/mid", "test/story"]


async def test_models(world: World) -> None:
    listed = {one["id"]: one for one in await world.cli("models", "--models", str(world.models))}
    assert listed["test/mid"]["pricing"]["rates"][0]["usd"] == "100"
    assert await world.cli("models", "--models", str(world.models), "--type", "image") == []
    shipped = await world.cli("models")
    assert len(shipped) >= 400, "the shipped file sells chat models"


async def test_doctor(world: World) -> None:
    found = await world.cli("doctor", "--models", str(world.models), "--upstream", world.upstream.url)
    assert {one["check"] for one in found} >= {
        "settings",
        "clock",
        "catalogue",
        "store",
        "invariants",
        "processes",
        "upstream default",
    }
    assert all(one["ok"] is True and one["says"] for one in found)
    serving = next(one["says"] for one in found if one["check"] == "processes")
    assert "1 serving" in serving


async def test_the_dev_wallet(world: World) -> None:
    info = await world.cli("wallet", "info")
    assert "dev" in json.dumps(info)
    made = await world.cli("wallet", "invoice", "21")
    assert made["invoice"].startswith("lnbcrt") and re.fullmatch(r"[0-9a-f]{64}", made["payment_hash"])
    paid = await world.cli("wallet", "pay", made["invoice"])
    assert paid["payment_hash"] == made["payment_hash"] and paid["amount_msat"] == 21_000
    await fails(world, FAILED, "wallet", "pay", made["invoice"], saying="paid")


# exit codes


async def test_2_is_wrong_use(world: World, customer: Customer) -> None:
    cid = customer.credit_id
    for arguments, saying in (
        (("accounts", "create", "--credit", "much"), "not an amount"),
        (("accounts", "create", "--credit", "-1"), "negative"),
        (("accounts", "create", "--credit", "0.0000000001"), "finer"),
        (("accounts", "create", "--credit", "1e30"), "out of range"),
        (("accounts", "create", "--kredit", "1"), "--kredit"),
        (("accounts", "credit", cid), "missing"),
        (("accounts", "credit", cid, "0"), "above zero"),
        (("accounts", "credit", cid, "NaN"), "not an amount"),
        (("accounts", "shw", cid), "shw"),
        (("keys", "create", cid, "x", "--period", "hourly"), "reset_period"),
        (("keys", "create", cid, "x", "--period", "daily"), "usage_limit_usd"),
        (("keys", "create", cid, "x" * 26), "name"),
        (("keys", "create", cid, "x", "--limit", "0.001"), "0.01"),
        (("keys", "create", cid, "x", "--expires", "2001-01-01"), "future"),
        (("keys", "create", cid, "x", "--requests", "many"), "requests"),
        (("history", cid, "--limit", "0"), "limit"),
        (("history",), "missing"),
        (("frobnicate",), "frobnicate"),
        (("accounts", "show", cid, "--database", "oracle://x"), "PPQ_DATABASE"),
        (("wallet", "invoice", "0"), "sats"),
        (("serve", "--port", "http"), "port"),
        (("serve", "--port", "99999"), "PPQ_PORT"),
        (("serve", "--workers", "0"), "PPQ_WORKERS"),
    ):
        await fails(world, WRONG_USE, *arguments, saying=saying)
    assert (await customer.books()).credited == 1


async def test_3_is_not_found(world: World, customer: Customer) -> None:
    for arguments in (
        ("accounts", "show", NOBODY), ("accounts", "credit", NOBODY, "1"), ("keys", "list", NOBODY), ("keys", "create", NOBODY, "x"),
        ("keys", "revoke", customer.credit_id, "a" * 24), ("keys", "revoke", NOBODY, "a" * 24), ("history", NOBODY),
        ("explain", "req-none"),
    ):  # fmt: skip
        await fails(world, NOT_FOUND, *arguments, saying="no ")


async def test_1_is_failed(world: World, customer: Customer, tmp_path: Path) -> None:
    await fails(world, FAILED, "keys", "create", customer.credit_id, "Default", saying="unique")
    await fails(world, FAILED, "models", "--models", str(tmp_path / "none.json"), saying="none.json")
    bad = tmp_path / "bad.json"
    bad.write_text('{"models": [{"id": "x", "type": "chat", "prices": [{"of": "input", "unit": "mtok", "usd": 1}]}]}')
    await fails(world, FAILED, "models", "--models", str(bad), saying="bad.json")
    await fails(world, FAILED, "wallet", "pay", "lnbcrt1nonsense", saying="invoice")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////dev/null/x.db",
        "sqlite:////proc/nowhere/x.db",
        "mongodb://127.0.0.1:{port}/x?serverSelectionTimeoutMS=300",
    ],
)
async def test_4_is_out_of_reach(world: World, url: str) -> None:
    database = ("--database", url.format(port=free_port()))
    await fails(world, UNREACHABLE, "accounts", "show", NOBODY, *database, saying="database")
    await fails(world, UNREACHABLE, "accounts", "create", *database, saying="database")


async def test_4_is_a_file_that_is_no_database(world: World, tmp_path: Path) -> None:
    other = tmp_path / "letter.txt"
    other.write_text("Dear operator, " * 100)
    await fails(world, UNREACHABLE, "accounts", "create", "--database", f"sqlite:///{other}", saying="not a database")
    assert other.read_text().startswith("Dear operator")


def test_serving_what_cannot_be_served_fails_with_a_sentence(world: World, tmp_path: Path) -> None:
    base = ["serve", "--port", str(free_port()), "--database", f"sqlite:///{tmp_path}/x.db"]
    for arguments, code, saying in (
        ([*base, "--models", str(tmp_path / "none.json")], FAILED, "none.json"),
        (["serve", "--port", str(world.gateway.port), "--database", f"sqlite:///{tmp_path}/x.db"], FAILED, "in use"),
        (["serve", "--database", "sqlite:////dev/null/x.db", "--port", str(free_port())], UNREACHABLE, "database"),
        (
            ["serve", "--workers", "2", "--database", "sqlite:////dev/null/x.db", "--port", str(free_port())],
            FAILED,
            "database",
        ),
    ):
        done = world.run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert saying in done.stderr.lower() and "Traceback" not in done.stderr, done.stderr


# what is where


def test_stdout_is_one_json_document_when_piped_even_without_json(world: World) -> None:
    made = json.loads(world.run("accounts", "create", "--credit", "1").stdout)
    done = world.run("accounts", "show", made["credit_id"])
    assert json.loads(done.stdout)["balance_usd"] == "1" and done.stderr == ""
    done = world.run("accounts", "show", NOBODY)
    assert done.stdout == "" and done.stderr == "ppq-proxy: No account has this credit id.\n"


def in_a_terminal(world: World, *arguments: str) -> str:
    """What a command prints to a terminal of 120 columns."""
    leader, follower = pty.openpty()
    env = environment(PPQ_DATABASE=world.database, COLUMNS="120", TERM="dumb", NO_COLOR="1")
    process = subprocess.Popen(
        [sys.executable, "-m", "ppq_proxy", *arguments],
        cwd=ROOT,
        env=env,
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    text = b""
    try:
        while part := os.read(leader, 65536):
            text += part
    except OSError:  # Linux says so at the end
        pass
    os.close(leader)
    assert process.wait() == DONE, text.decode()
    return text.decode()


async def test_a_terminal_gets_tables(world: World, customer: Customer) -> None:
    cid = customer.credit_id
    answer = await customer.chat("mid")
    key_id = (await world.cli("keys", "create", cid, "[/b] :smile:", "--limit", "10"))["_id"]
    await customer.books()
    wanted: dict[tuple[str, ...], tuple[str, ...]] = {
        ("accounts", "create", "--credit", "3"): ("credit_id", "sk-", "balance_usd", "3"),
        ("accounts", "credit", cid, "1", "--id", "t"): ("balance_usd", "1.9945"),
        ("accounts", "show", cid): ("held_usd", "charged_usd", "0.0055"),
        ("keys", "list", cid): ("_id", key_id, "name", "Default", "[/b]", ":smile:", "10"),
        ("keys", "create", cid, "of tables"): ("api_key", "sk-", "of tables"),
        ("history", cid): ("request_id", answer.request_id, "test/mid", "0.0055"),
        ("explain", answer.request_id): ("units", '{"input":15,"output":8}', "0.0055"),
        ("models", "--models", str(world.models)): ("provider", "test/mid"),
        ("doctor", "--models", str(world.models)): ("invariants", "all hold"),
        ("wallet", "invoice", "5"): ("lnbcrt", "payment_hash"),
    }
    shown = await asyncio.gather(*(asyncio.to_thread(in_a_terminal, world, *arguments) for arguments in wanted))
    for (arguments, words), text in zip(wanted.items(), shown, strict=True):
        flat = re.sub(r"\s+", " ", text)
        assert all(word in flat for word in words), f"{arguments}: {text}"
        assert not text.lstrip().startswith(("{", "[")), f"{arguments} printed JSON to a terminal"


async def test_json_in_a_terminal_too(world: World, customer: Customer) -> None:
    text = await asyncio.to_thread(in_a_terminal, world, "accounts", "show", customer.credit_id, "--json")
    assert json.loads(text)["balance_usd"] == "1"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--help",), ("accounts", "--help"), ("keys", "create", "--help"), ("serve", "--help"), ("wallet",)],
)
async def test_help_is_there_for_everything(world: World, arguments: tuple[str, ...]) -> None:
    code, out, err = await world.command(*arguments)
    assert "Usage:" in out + err and "ppq-proxy" in out + err
    assert code == (DONE if "--help" in arguments else WRONG_USE)


def cpu_seconds(*arguments: str, database: str) -> float:
    """The least CPU time of three runs, user and system."""
    took = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "ppq_proxy", *arguments], cwd=ROOT, env=environment(PPQ_DATABASE=database), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == DONE
        took.append(used.ru_utime + used.ru_stime)
    return min(took)


async def test_commands_start_in_under_0_3_seconds_of_cpu(world: World, customer: Customer) -> None:
    slack = 1.5
    for arguments in (("--help",), ("accounts", "show", customer.credit_id)):
        assert cpu_seconds(*arguments, database=world.database) < 0.3 * slack, f"ppq-proxy {' '.join(arguments[:2])}"


def test_the_database_may_come_from_option_environment_or_file(tmp_path: Path) -> None:
    def show(*arguments: str, **env: str) -> Any:
        command = [sys.executable, "-m", "ppq_proxy", "accounts", *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == DONE, done.stderr
        return json.loads(done.stdout)

    url, file = f"sqlite:///{tmp_path}/a.db", tmp_path / "ppq.toml"
    file.write_text(f'database = "{url}"\n')
    credit_id = show("create", "--credit", "4", "--database", url)["credit_id"]
    assert show("show", credit_id, PPQ_DATABASE=url)["balance_usd"] == "4"
    assert show("show", credit_id, PPQ_SETTINGS=str(file))["balance_usd"] == "4"
    assert show("show", credit_id, "--database", url, PPQ_DATABASE="sqlite:////dev/null/x.db")["balance_usd"] == "4", (
        "the option wins"
    )
