"""The MongoDB counterpart: it has to be real, leave nothing behind, and lose its primary when told to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.write_concern import WriteConcern

from tests.peers.mongod import MongodError, find_mongod, free_port, start_mongod, start_replica_set

Client = MongoClient[dict[str, Any]]
pytestmark = [pytest.mark.mongo, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def mongod_is_to_be_had() -> None:
    """Without one, these tests show nothing; the reason says what to install."""
    if sys.platform != "linux":
        pytest.skip("looks at processes through /proc")
    try:
        find_mongod()
    except MongodError as error:
        pytest.skip(str(error))


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run(data: Path, *extra: str) -> tuple[subprocess.Popen[str], str]:
    """The command as an operator types it, and the URL that it says is ready."""
    command = [sys.executable, "-m", "tests.peers.mongod", "--port", str(free_port()), "--data", str(data), *extra]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("ready mongodb://127.0.0.1:")
    return process, line.split()[1]


def child_of(process: subprocess.Popen[str]) -> int:
    """The mongod below the command."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "mongod")


def test_command_runs_a_standalone_and_sigterm_stops_it(tmp_path: Path) -> None:
    process, url = run(tmp_path / "db")
    mongod = child_of(process)
    with process:
        with Client(url) as client:
            client["ours"]["rows"].insert_one({"_id": 1})
            assert "setName" not in client.admin.command("hello")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout
        assert process.stdout.read() == ""
    assert not alive(mongod)


def test_command_runs_a_replica_set_of_one_with_transactions(tmp_path: Path) -> None:
    process, url = run(tmp_path / "db", "--replica-set", "rs0")
    with process:
        with Client(url) as client:
            rows = client["ours"].get_collection("rows", write_concern=WriteConcern("majority", j=True))
            with client.start_session() as session, session.start_transaction():
                rows.insert_one({"_id": 1}, session=session)
                rows.insert_one({"_id": 2}, session=session)
            assert rows.count_documents({}) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_mongod_dies_with_a_command_that_was_killed(tmp_path: Path) -> None:
    process, _ = run(tmp_path / "db")
    mongod = child_of(process)
    with process:
        process.kill()
    end = time.monotonic() + 10
    while alive(mongod) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(mongod)


def test_data_outlives_a_kill_and_a_move_to_another_port(tmp_path: Path) -> None:
    first = start_mongod(tmp_path, replica_set="rs0")
    with Client(first.url) as client:
        client["ours"].get_collection("rows", write_concern=WriteConcern("majority", j=True)).insert_one({"_id": 1})
    first.kill()
    first.start()
    with Client(first.url) as client:
        assert client["ours"]["rows"].count_documents({}) == 1
    first.stop()
    second = start_mongod(tmp_path, replica_set="rs0")
    try:
        assert second.port != first.port
        with Client(second.url) as client:
            assert client["ours"]["rows"].count_documents({}) == 1
    finally:
        second.stop()


def test_a_port_in_use_is_an_error_that_says_so(tmp_path: Path) -> None:
    first = start_mongod(tmp_path / "first")
    try:
        with pytest.raises(MongodError, match="already in use"):
            start_mongod(tmp_path / "second", port=first.port)
    finally:
        first.stop()
    assert not alive(first.process.pid)
    first.stop()


def test_a_set_of_three_survives_its_primary(tmp_path: Path) -> None:
    servers = start_replica_set(tmp_path)
    pids = [member.process.pid for member in servers.members]
    try:
        with Client(servers.url, serverSelectionTimeoutMS=20_000) as client:
            rows = client["ours"].get_collection("rows", write_concern=WriteConcern("majority", j=True))
            rows.insert_one({"_id": 1})
            lost = servers.kill_primary()
            assert lost.process.returncode == -signal.SIGKILL
            rows.insert_one({"_id": 2})
            assert servers.primary() is not lost
            lost.start()
            assert servers.primary() in servers.members
            assert {row["_id"] for row in rows.find()} == {1, 2}
            pids.append(lost.process.pid)
    finally:
        servers.stop()
    assert not any(alive(pid) for pid in pids)


def test_two_that_start_at_once_share_one_download(tmp_path: Path) -> None:
    find = "from tests.peers.mongod import find_mongod; print(find_mongod().path)"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PATH": "/nowhere"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", find], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert sum("downloading" in err for _, err in answers) == 1
    assert not list((tmp_path / "ppq-proxy-tests").glob("unfinished-*"))
