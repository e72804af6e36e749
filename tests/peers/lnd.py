"""Two real lnd nodes on a regtest chain of btcd, with a channel from payer to merchant.

Both programs are built once from their Go modules into a cache outside the checkout (about five minutes), where Go is
installed. `python -m tests.peers.lnd` starts the network in the foreground and prints how to reach it.
"""

import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tests.peers.mongod import cache_folder

BTCD, LND = "v0.24.2", "v0.20.0-beta"
OLDEST_GO = (1, 24)
TAGS = "autopilotrpc chainrpc invoicesrpc neutrinorpc peersrpc routerrpc signrpc walletrpc watchtowerrpc wtclientrpc"
# Of no one's key in particular: the address of the generator point, good for the first block only.
ANY_ADDRESS = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
BLOCKS = 440  # lnd does not answer before the chain has a recent block, and coins mature after a hundred
CHANNEL_SATS = 15_000_000

MODULES = {
    "btcd": f"module local/btcd\n\ngo 1.23\n\nrequire github.com/btcsuite/btcd {BTCD}\n",
    # lnd's own replacements, which `go install` would not honour.
    "lnd": f"""module local/lnd

go 1.24.9

require github.com/lightningnetwork/lnd {LND}

replace github.com/ulikunitz/xz => github.com/ulikunitz/xz v0.5.11

replace github.com/gogo/protobuf => github.com/gogo/protobuf v1.3.2

replace google.golang.org/protobuf => github.com/lightninglabs/protobuf-go-hex-display v1.33.0-hex-display
""",
}
PROGRAMS = {"btcd": "github.com/btcsuite/btcd", "lnd": "github.com/lightningnetwork/lnd/cmd/lnd"}

T = TypeVar("T")


class Unavailable(Exception):
    """The network cannot be had on this machine; the message says why."""


def cache() -> Path:
    """Where built programs are kept."""
    return cache_folder() / "lnd"


def why_not() -> str | None:
    """Why the programs are neither built nor can be, or None."""
    if all((cache() / "bin" / name).exists() for name in PROGRAMS):
        return None
    go = shutil.which("go")
    if go is None:
        return "Go is not installed, and lnd has not been built"
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"go(\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < OLDEST_GO:
        return f"lnd needs Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer, here is {said.strip() or 'none'}"
    return None


def build() -> Path:
    """The folder with btcd and lnd, built if they are not there. Two that build at once wait for each other.

    Raises:
        Unavailable: there is no Go.
    """
    if reason := why_not():
        raise Unavailable(reason)
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, package in PROGRAMS.items():
            if not (folder / "bin" / name).exists():
                _build(folder, name, package)
    return folder / "bin"


def _build(folder: Path, name: str, package: str) -> None:
    source = folder / name
    source.mkdir(exist_ok=True)
    (source / "go.mod").write_text(MODULES[name])
    (source / "tools.go").write_text(f'//go:build tools\n\npackage tools\n\nimport _ "{package}"\n')
    environment = os.environ | {"GOFLAGS": "-mod=mod -buildvcs=false", "CGO_ENABLED": "0"}
    print(f"building {name}, once", file=sys.stderr, flush=True)
    for command in (
        ["go", "mod", "tidy"] if name == "btcd" else ["go", "mod", "download", package.removesuffix("/cmd/lnd")],
        ["go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", TAGS, "-o", f"{name}.new", package],
    ):
        subprocess.run(command, cwd=source, env=environment, check=True)
    (folder / "bin").mkdir(exist_ok=True)
    (source / f"{name}.new").rename(folder / "bin" / name)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], T], seconds: int, why: str) -> T:
    """What `what` returns once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx2.HTTPError, OSError, KeyError, ValueError):
            if found := what():
                return found
        time.sleep(0.1)
    raise TimeoutError(f"{why}: not within {seconds} s")


class Program:
    """A process with its own folder and log. It runs in the folder, or `at` another place."""

    def __init__(
        self, folder: Path, *command: str, environment: Mapping[str, str] | None = None, at: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=at or folder,
                env=environment,
                start_new_session=True,
            )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to it and to whatever it has started: some leave their children behind."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Btcd:
    """The chain. A stopped btcd forgets its regtest chain."""

    def __init__(self, programs: Path, folder: Path, mining_address: str) -> None:
        self.rpc, self.certificate = free_port(), folder / "rpc.cert"
        key = folder / "rpc.key"
        options = {
            "datadir": str(folder / "data"),
            "logdir": str(folder / "logs"),
            "rpccert": str(self.certificate),
            "rpckey": str(key),
            "configfile": os.devnull,
            "rpcuser": "u",
            "rpcpass": "p",
            "rpclisten": f"127.0.0.1:{self.rpc}",
            "listen": f"127.0.0.1:{free_port()}",
            "miningaddr": mining_address,
        }
        listed = [f"--{name}={value}" for name, value in options.items()]
        self.program = Program(folder, str(programs / "btcd"), "--regtest", "--txindex", *listed)
        until(lambda: self.call("getblockcount") is not None, 60, "btcd does not start")

    def call(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        request = {"jsonrpc": "1.0", "id": 1, "method": method, "params": params}
        url = f"https://127.0.0.1:{self.rpc}/"
        said = httpx2.post(url, json=request, auth=("u", "p"), verify=context, timeout=60).json()
        if said["error"]:
            raise ValueError(said["error"])
        return said["result"]

    def mine(self, blocks: int) -> None:
        self.call("generate", blocks)


class Lnd:
    """A node. `url` is its REST interface, `certificate` the path of its tls.cert, `macaroon` the admin's in hex."""

    def __init__(self, programs: Path, folder: Path, btcd: Btcd, rest_port: int | None = None) -> None:
        self.programs, self.folder, self.btcd = programs, folder, btcd
        self.rest, self.listen = rest_port or free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.rest}"
        self.certificate = folder / "tls.cert"
        self._admin = folder / "data" / "chain" / "bitcoin" / "regtest" / "admin.macaroon"
        self.start()

    def start(self) -> None:
        """Start, also again, and wait until it is ready."""
        options = {
            "lnddir": str(self.folder),
            "bitcoin.node": "btcd",
            "btcd.rpchost": f"127.0.0.1:{self.btcd.rpc}",
            "btcd.rpcuser": "u",
            "btcd.rpcpass": "p",
            "btcd.rpccert": str(self.btcd.certificate),
            "listen": f"127.0.0.1:{self.listen}",
            "rpclisten": f"127.0.0.1:{free_port()}",
            "restlisten": f"127.0.0.1:{self.rest}",
            "bitcoin.defaultchanconfs": "1",
        }
        listed = [f"--{name}={value}" for name, value in options.items()]
        flags = ["--bitcoin.regtest", "--noseedbackup", "--nobootstrap"]
        self.program = Program(self.folder, str(self.programs / "lnd"), *flags, *listed)

    def wait(self) -> "Lnd":
        """Until it has caught up with the chain."""
        until(lambda: self.call("GET", "/v1/getinfo")["synced_to_chain"], 90, "lnd does not start")
        return self

    @property
    def macaroon(self) -> str:
        return self._admin.read_bytes().hex()

    def call(self, method: str, path: str, **request: Any) -> Any:
        """A REST call as admin; ValueError on an error of lnd's."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        headers = {"Grpc-Metadata-macaroon": self.macaroon}
        answer = httpx2.request(method, f"{self.url}{path}", headers=headers, verify=context, timeout=90, **request)
        if answer.status_code != 200:
            raise ValueError(answer.text)
        return json.loads(answer.text.strip().splitlines()[-1])

    def bake(self, *uris: str) -> str:
        """The hex of a macaroon that is good for these calls only."""
        permissions = [{"entity": "uri", "action": uri} for uri in uris]
        return str(self.call("POST", "/v1/macaroon", json={"permissions": permissions})["macaroon"])

    def pay(self, invoice: str) -> str:
        """Pay an invoice; the preimage."""
        wanted = {"payment_request": invoice, "timeout_seconds": 20, "fee_limit_sat": "10", "no_inflight_updates": True}
        result = self.call("POST", "/v2/router/send", json=wanted)["result"]
        if result["status"] != "SUCCEEDED":
            raise ValueError(result["failure_reason"])
        return str(result["payment_preimage"])

    def address(self) -> str:
        return str(self.call("GET", "/v1/newaddress")["address"])

    def spendable(self) -> int:
        """What can be paid through active channels, in sats."""
        channels = self.call("GET", "/v1/channels?active_only=true").get("channels", [])
        return sum(int(channel["local_balance"]) for channel in channels)


@dataclass(frozen=True)
class Network:
    """A chain and two nodes, of which the payer can pay the merchant."""

    btcd: Btcd
    merchant: Lnd
    payer: Lnd


@contextlib.contextmanager
def lnd_network(folder: Path) -> Iterator[Network]:
    """The network, stopped at the end. Raises `Unavailable` where there is no Go."""
    programs = build()
    with contextlib.ExitStack() as stack:

        def keep(program: Program) -> None:
            stack.callback(program.stop)

        # The payer's wallet is known only after it has run on a chain, and btcd mines for an address that it is
        # started with: so one short chain to ask for the address, and a fresh one to mine on.
        first = Btcd(programs, folder / "btcd-first", ANY_ADDRESS)
        payer = Lnd(programs, folder / "payer", first)
        try:
            first.mine(1)
            address = until(payer.address, 60, "the payer has no wallet")
        finally:
            payer.program.stop()
            first.program.stop()
        btcd = Btcd(programs, folder / "btcd", address)
        keep(btcd.program)
        btcd.mine(BLOCKS)
        payer.btcd = btcd
        payer.start()
        keep(payer.program)
        merchant = Lnd(programs, folder / "merchant", btcd)
        stack.callback(lambda: merchant.program.stop())
        payer.wait()
        merchant.wait()
        _open_channel(btcd, payer, merchant)
        yield Network(btcd, merchant, payer)


def _open_channel(btcd: Btcd, payer: Lnd, merchant: Lnd) -> None:
    key = merchant.call("GET", "/v1/getinfo")["identity_pubkey"]
    until(lambda: int(payer.call("GET", "/v1/balance/blockchain")["confirmed_balance"]), 60, "the payer has no coins")
    peer = {"addr": {"pubkey": key, "host": f"127.0.0.1:{merchant.listen}"}}
    until(lambda: payer.call("POST", "/v1/peers", json=peer) is not None, 30, "the nodes do not meet")
    wanted = {
        "node_pubkey": base64.b64encode(bytes.fromhex(key)).decode(),
        "local_funding_amount": str(CHANNEL_SATS),
        "sat_per_vbyte": "2",
    }
    until(lambda: payer.call("POST", "/v1/channels", json=wanted), 30, "no channel is opened")
    btcd.mine(6)
    until(payer.spendable, 60, "the channel does not become active")
    # An active channel is not yet one that payments find.
    until(
        lambda: payer.pay(merchant.call("POST", "/v1/invoices", json={"value": "1"})["payment_request"]), 60, "no route"
    )


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lnd-") as folder, lnd_network(Path(folder)) as network:
        for name, node in (("merchant", network.merchant), ("payer", network.payer)):
            reach = {"node": name, "url": node.url, "certificate": str(node.certificate), "macaroon": node.macaroon}
            print(json.dumps(reach), flush=True)
        print("ready", flush=True)
        network.btcd.program.process.wait()


if __name__ == "__main__":
    main()
