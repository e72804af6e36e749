"""A real LNbits with its FakeWallet, on which two wallets pay each other's invoices, preimages included.

It needs an environment of its own, since it pins old versions of half of ours: that is made once, in a cache outside the
checkout. `python -m tests.peers.lnbits` starts a server in the foreground and prints how to reach it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.peers.lnd import Program, free_port
from tests.peers.mongod import cache_folder

REQUIREMENTS = ("lnbits==1.6.2", "bitstring<5")
START_SECONDS = 90
BALANCE_SATS = 1_000_000


@dataclass(frozen=True)
class Account:
    """A user with one wallet."""

    user: str
    wallet: str
    admin_key: str
    invoice_key: str


@dataclass(frozen=True)
class Server:
    """A running LNbits: a merchant, and a payer with a million sats."""

    url: str
    merchant: Account
    payer: Account
    admin_token: str

    def pay(self, invoice: str) -> dict[str, Any]:
        """Pay an invoice from the payer's wallet; LNbits' answer."""
        headers, wanted = {"X-Api-Key": self.payer.admin_key}, {"out": True, "bolt11": invoice}
        answer = httpx2.post(f"{self.url}/api/v1/payments", headers=headers, json=wanted, timeout=30)
        answer.raise_for_status()
        paid: dict[str, Any] = answer.json()
        return paid

    def lightning_address(self, name: str) -> str:
        """Give the merchant a Lightning address; its LNURL-pay URL."""
        path = f"/users/api/v1/user/{self.merchant.user}/wallet/{self.merchant.wallet}/lightning-address"
        answer = httpx2.put(
            f"{self.url}{path}",
            headers={"Authorization": f"Bearer {self.admin_token}"},
            json={"lightning_address": name},
        )
        answer.raise_for_status()
        return f"{self.url}/.well-known/lnurlp/{name}"


def cache() -> Path:
    """Where the environment is kept."""
    return cache_folder() / f"lnbits-{sys.version_info.major}.{sys.version_info.minor}"


def install() -> Path:
    """The environment's folder, made if it is not there. Two that want it at once wait for each other."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != " ".join(REQUIREMENTS):
            print("installing LNbits, once", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True)
            pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, *REQUIREMENTS], check=True)
            done.write_text(" ".join(REQUIREMENTS))
    return folder / "venv"


@contextlib.contextmanager
def lnbits(folder: Path) -> Iterator[Server]:
    """A server with fresh data in `folder`, stopped at the end."""
    environment, port = install(), free_port()
    (packages,) = environment.glob("lib/python*/site-packages")
    settings = {
        "LNBITS_BACKEND_WALLET_CLASS": "FakeWallet",
        "LNBITS_DATA_FOLDER": str(folder / "data"),
        "LNBITS_ADMIN_UI": "true",
        "AUTH_SECRET_KEY": secrets.token_hex(16),
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    command = [str(environment / "bin" / "lnbits"), "--host", "127.0.0.1", "--port", str(port)]
    # It serves files from a path relative to its own package.
    program = Program(folder, *command, environment=os.environ | settings, at=packages)
    try:
        yield _set_up(f"http://127.0.0.1:{port}", program)
    finally:
        program.stop()


def _set_up(url: str, program: Program) -> Server:
    client = httpx2.Client(base_url=url, timeout=30)
    end = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            if client.get("/api/v1/health").status_code < 500:  # it redirects everything until it has an admin
                break
        if time.monotonic() > end or program.process.poll() is not None:
            raise TimeoutError(f"LNbits does not start: see {program.folder / 'log'}")
        time.sleep(0.2)
    secret = secrets.token_hex(12)
    admin = {"username": "admin", "password": secret}

    def said(answer: httpx2.Response) -> Any:
        answer.raise_for_status()
        return answer.json()

    said(client.put("/api/v1/auth/first_install", json=admin | {"password_repeat": secret}))
    token = said(client.post("/api/v1/auth", json=admin))["access_token"]
    merchant, payer = (_account(said(client.post("/api/v1/account", json={"name": n}))) for n in ("merchant", "payer"))
    wanted = {"id": payer.wallet, "amount": BALANCE_SATS}
    said(client.put("/users/api/v1/balance", headers={"Authorization": f"Bearer {token}"}, json=wanted))
    client.close()
    return Server(url, merchant, payer, token)


def _account(made: dict[str, Any]) -> Account:
    return Account(made["user"], made["id"], made["adminkey"], made["inkey"])


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lnbits-") as folder, lnbits(Path(folder)) as server:
        shown = {name: getattr(server, name).__dict__ for name in ("merchant", "payer")}
        print(json.dumps({"url": server.url} | shown), flush=True)
        print("ready", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(10**8)


if __name__ == "__main__":
    main()
