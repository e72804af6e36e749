"""`ppq-proxy doctor` finds what is wrong: books that do not add up, upstreams that do not answer, files that do not parse."""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.world import Upstream, World, free_port

ACCOUNT = "(SELECT id FROM accounts WHERE charged > 0)"
KEY = "(SELECT id FROM keys WHERE used_total > 0)"
NEWEST = "(SELECT max(rowid) FROM entries WHERE kind = 'charge')"
COLUMNS = (
    "account_id, key_id, at, kind, amount, request_id, model, query_type, query_source, inputs, outputs, lost, detail"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that has served, and was stopped: what it left is looked at."""
    folder = tmp_path_factory.mktemp("doctor")
    peer = Upstream().start()
    one = World(f"sqlite:///{folder}/gateway.db", folder, upstream=peer)
    one.start_now()
    try:
        yield one
    finally:
        one.stop_now()
        peer.stop()


@pytest.fixture(scope="module")
def books(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the database of a gateway that has served two customers."""
    for _ in range(2):
        made = json.loads(world.run("accounts", "create", "--credit", "1").stdout)
        request = {"model": "test/story", "messages": [{"role": "user", "content": "hi"}]}
        done = subprocess.run(
            ["curl", "-sf", "-H", f"authorization: Bearer {made['api_key']}", "-d", json.dumps(request),
             f"http://127.0.0.1:{world.gateway.port}/v1/chat/completions"],
            capture_output=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0
    copy = tmp_path_factory.mktemp("books") / "copy.db"
    source, target = sqlite3.connect(world.database.removeprefix("sqlite:///")), sqlite3.connect(copy)
    source.backup(target)
    for one in (source, target):
        one.close()
    return copy


def examined(world: World, database: Path | str, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """The doctor's exit code, findings, and what it says on stderr."""
    url = database if isinstance(database, str) else f"sqlite:///{database}"
    done = world.run("doctor", "--models", str(world.models), "--database", url, *arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_right_books_are_right(world: World, books: Path) -> None:
    code, found, _ = examined(world, books)
    assert code == 0 and all(one["ok"] for one in found)


TAMPERED = {
    "a charge that nobody wrote down": f"UPDATE accounts SET charged = charged + 1 WHERE id = {ACCOUNT}",
    "a charge that was taken back": f"UPDATE accounts SET charged = charged - 1 WHERE id = {ACCOUNT}",
    "money from nowhere": f"UPDATE accounts SET credited = credited + 1 WHERE id = {ACCOUNT}",
    "a charge that was lost": f"DELETE FROM entries WHERE rowid = {NEWEST}",
    "a credit that was lost": "DELETE FROM entries WHERE rowid = (SELECT min(rowid) FROM entries WHERE kind = 'credit')",
    "a charge that was changed": f"UPDATE entries SET amount = amount + 1 WHERE rowid = {NEWEST}",
    "a charge on somebody else": (
        f"UPDATE entries SET account_id = (SELECT id FROM accounts WHERE id <> account_id) WHERE rowid = {NEWEST}"
    ),
    "a charge twice": f"INSERT INTO entries ({COLUMNS}) SELECT {COLUMNS} FROM entries WHERE rowid = {NEWEST}",
    "a hold that nobody has": f"UPDATE accounts SET reserved = reserved + 5 WHERE id = {ACCOUNT}",
    "a hold of a key that nobody has": f"UPDATE keys SET reserved = reserved + 5 WHERE id = {KEY}",
    "a key that used less than it did": f"UPDATE keys SET used_total = used_total - 1 WHERE id = {KEY}",
    "a draw of nobody": f"INSERT INTO draws VALUES ('nobody', {ACCOUNT}, '', 7)",
    "a loss that nobody wrote down": f"UPDATE accounts SET lost = lost + 3 WHERE id = {ACCOUNT}",
    "more held than there is": f"UPDATE accounts SET reserved = credited + 1 WHERE id = {ACCOUNT}",
}


@pytest.mark.parametrize("what", TAMPERED)
def test_broken_books_are_found(world: World, books: Path, tmp_path: Path, what: str) -> None:
    copy = tmp_path / "tampered.db"
    shutil.copy(books, copy)
    db = sqlite3.connect(copy, isolation_level=None)
    db.execute("PRAGMA ignore_check_constraints=ON")
    statement = TAMPERED[what].replace(ACCOUNT, f"({ACCOUNT[1:-1]} LIMIT 1)").replace(KEY, f"({KEY[1:-1]} LIMIT 1)")
    assert db.execute(statement).rowcount == 1
    db.close()
    code, found, err = examined(world, copy)
    assert code == 1 and "wrong" in err
    wrong = [one for one in found if not one["ok"]]
    assert wrong and {one["check"] for one in wrong} == {"invariants"}
    assert all(any(character.isdigit() for character in one["says"]) for one in wrong), wrong


def test_an_upstream_that_does_not_answer_is_found(world: World, books: Path) -> None:
    code, found, _ = examined(world, books, "--upstream", f"http://127.0.0.1:{free_port()}/v1")
    assert code == 1
    assert [one for one in found if not one["ok"]] == [
        {"check": "upstream default", "ok": False, "says": "does not answer"}
    ]
    code, found, _ = examined(world, books, "--upstream", world.upstream.url)
    assert code == 0 and {"check": "upstream default", "ok": True, "says": "answers"} in found


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "No such file"), ("{", "JSON"), ("[]", "models"), ('{"models": [{"id": "x"}]}', "models[0] (x)"),
        ('{"models": [], "margins": 1}', "margins"),
        ('{"models": [{"id": "x", "type": "chat", "prices": [{"of": "input", "unit": "mtok", "usd": "-1"}]}]}', "models[0] (x)"),
    ],
)  # fmt: skip
def test_a_bad_models_file_is_found(world: World, books: Path, tmp_path: Path, content: str | None, word: str) -> None:
    file = tmp_path / "models.json"
    if content is not None:
        file.write_text(content)
    code, found, _ = examined(world, books, "--models", str(file))
    (wrong,) = [one for one in found if not one["ok"]]
    assert code == 1 and wrong["check"] == "catalogue" and word in wrong["says"]


@pytest.mark.parametrize(
    "url", ["sqlite:////dev/null/x.db", "mongodb://127.0.0.1:{port}/x?serverSelectionTimeoutMS=300"]
)
def test_a_store_out_of_reach_is_found(world: World, url: str) -> None:
    code, found, _ = examined(world, url.format(port=free_port()))
    (wrong,) = [one for one in found if not one["ok"]]
    assert code == 1 and wrong["check"] == "store" and wrong["says"]


def test_what_a_killed_process_left_is_told_and_is_no_fault(tmp_path: Path, world: World) -> None:
    """Its draws go back when the next process serves; until then they belong to somebody who is registered."""
    other = World(f"sqlite:///{tmp_path}/gateway.db", tmp_path, upstream=world.upstream)
    other.start_now()
    other.gateways.pop().kill()
    code, found, _ = examined(other, other.database)
    says = next(one["says"] for one in found if one["check"] == "processes")
    assert code == 0 and "1 died" in says
