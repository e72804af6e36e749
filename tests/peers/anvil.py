"""An EVM chain of our own with a dollar that takes EIP-3009 authorizations, and the x402 clients of npm.

Anvil, the compiler and the token's library come from npm, once, into a cache outside the checkout; so do the clients.
`python -m tests.peers.anvil` starts the chain in the foreground and prints how to reach it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.peers.lnd import Program, free_port, until
from tests.peers.mongod import cache_folder

CHAIN_ID = 84532
"""Base Sepolia's, so that its names and its USDC's address apply."""
USDC = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
ORACLE = "0x" + "ac1e".rjust(40, "0")
DEPLOYER = "0xf39Fd6e51aad88F6F4ce6aB8827279cfFFb92266"  # anvil's first account, which it signs for
DOLLAR = 10**6
MINT, TRANSFER, BALANCE, SANCTION = "0x40c10f19", "0xa9059cbb", "0x70a08231", "0x35e3b25a"

CHAIN_PACKAGES = {"@foundry-rs/anvil": "1.7.1", "@openzeppelin/contracts": "5.7.0", "solc": "0.8.30"}
CLIENT_PACKAGES = {
    "@x402/core": "2.27.0",
    "@x402/evm": "2.27.0",
    "@x402/fetch": "2.27.0",
    "viem": "2.57.1",
    "x402-fetch": "1.2.0",
}
# The old client's library draws in a web wallet of 600 MB, which paying does not use.
CLIENT_OVERRIDES = {"wagmi": "npm:empty-npm-package@1.0.0", "viem": "2.57.1"}

CONTRACTS = """// SPDX-License-Identifier: MIT
pragma solidity ^0.8.26;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

contract Dollar is ERC3009 {
    constructor() ERC20("USDC", "USDC") EIP712("USDC", "2") {}

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}

contract Sanctions {
    mapping(address => bool) public isSanctioned;

    function set(address who, bool sanctioned) external {
        isSanctioned[who] = sanctioned;
    }
}
"""
COMPILE = """
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
const solc = createRequire(import.meta.url)("solc");
const input = {
  language: "Solidity",
  sources: { "Own.sol": { content: readFileSync("Own.sol", "utf8") } },
  settings: {
    evmVersion: "cancun",
    optimizer: { enabled: true },
    outputSelection: { "*": { "*": ["evm.bytecode.object", "evm.methodIdentifiers"] } },
  },
};
const found = (path) => ({ contents: readFileSync("node_modules/" + path, "utf8") });
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: found }));
const failures = (output.errors ?? []).filter((one) => one.severity === "error");
if (failures.length) throw new Error(JSON.stringify(failures));
writeFileSync("contracts.json", JSON.stringify(output.contracts["Own.sol"]));
"""


def why_not() -> str | None:
    """Why neither the chain nor the clients can be had here, or None."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    return (
        f"{' and '.join(missing)} not found, which anvil and the x402 clients are installed with" if missing else None
    )


@contextlib.contextmanager
def _once(name: str, wanted: str) -> Iterator[tuple[Path, bool]]:
    """A folder in the cache, and whether it is still to be filled; others that want it wait meanwhile."""
    folder = cache_folder() / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        yield folder, not done.exists()
        done.touch()


def _npm(folder: Path, packages: Mapping[str, str], overrides: Mapping[str, str], *options: str) -> None:
    manifest = {"private": True, "type": "module", "dependencies": packages, "overrides": overrides}
    (folder / "package.json").write_text(json.dumps(manifest))
    print(f"installing {', '.join(packages)}, once", file=sys.stderr, flush=True)
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error", *options]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def chain_folder() -> Path:
    """The folder with anvil and contracts.json."""
    with _once("evm", json.dumps(CHAIN_PACKAGES) + CONTRACTS + COMPILE) as (folder, empty):
        if empty:
            _npm(folder, CHAIN_PACKAGES, {})
            (folder / "Own.sol").write_text(CONTRACTS)
            (folder / "compile.mjs").write_text(COMPILE)
            subprocess.run(["node", "compile.mjs"], cwd=folder, check=True)
    return folder


def client_folder() -> Path:
    """The folder whose node_modules has the clients."""
    with _once("x402-clients", json.dumps([CLIENT_PACKAGES, CLIENT_OVERRIDES])) as (folder, empty):
        if empty:
            _npm(folder, CLIENT_PACKAGES, CLIENT_OVERRIDES, "--legacy-peer-deps", "--omit=optional")
    return folder


class Anvil:
    """A running chain. Amounts are units of the token, 10**6 to the dollar."""

    def __init__(self, url: str, program: Program) -> None:
        self.url, self.program = url, program
        self._client = httpx2.Client(timeout=20, trust_env=False)

    def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call; its result. Raises `ValueError` with what the node says otherwise."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        said = self._client.post(self.url, json=request).json()
        if "error" in said:
            raise ValueError(said["error"])
        return said["result"]

    def send(self, to: str | None, data: str, sender: str = DEPLOYER) -> Any:
        """A transaction of an account that anvil signs for; its receipt."""
        transaction = {"from": sender, "data": data, "gas": hex(5_000_000)} | ({"to": to} if to else {})
        return self.receipt(self.rpc("eth_sendTransaction", transaction))

    def receipt(self, transaction: str, seconds: int = 10) -> Any:
        """A transaction's receipt, once its block is made, which takes a moment."""
        return until(
            lambda: self.rpc("eth_getTransactionReceipt", transaction), seconds, f"{transaction} is in no block"
        )

    def put(self, code: str, address: str) -> None:
        """Let an address have the code that deploying `code` gives."""
        made = self.send(None, code)["contractAddress"]
        self.rpc("anvil_setCode", address, self.rpc("eth_getCode", made, "latest"))

    def payer(self, units: int = 100 * DOLLAR) -> LocalAccount:
        """A new account with tokens, and ether for gas."""
        account: LocalAccount = Account.create()
        self.rpc("anvil_setBalance", account.address, hex(10**18))
        self.send(USDC, MINT + _word(account.address) + _number(units))
        return account

    def balance(self, address: str) -> int:
        """An address's tokens."""
        return int(self.rpc("eth_call", {"to": USDC, "data": BALANCE + _word(address)}, "latest"), 16)

    def transfer(
        self, payer: LocalAccount, to: str, units: int, token: str = USDC, data: str = "", wait: bool = True
    ) -> str:
        """Send tokens as a wallet does; the transaction's hash, `wait`: once it is in a block."""
        transaction: dict[str, Any] = {
            "to": token,
            "data": data or TRANSFER + _word(to) + _number(units),
            "nonce": int(self.rpc("eth_getTransactionCount", payer.address, "pending"), 16),
            "gas": 200_000,
            "gasPrice": 2 * int(self.rpc("eth_gasPrice"), 16),
            "chainId": CHAIN_ID,
            "value": 0,
        }
        signed = payer.sign_transaction(transaction)
        sent = str(self.rpc("eth_sendRawTransaction", "0x" + signed.raw_transaction.hex().removeprefix("0x")))
        if wait:
            self.receipt(sent)
        return sent

    def another_token(self, payer: LocalAccount, units: int) -> str:
        """The address of a token that is not USDC, of which the payer has some."""
        address = "0x" + "5555".rjust(40, "0")
        self.rpc("anvil_setCode", address, self.rpc("eth_getCode", USDC, "latest"))
        self.send(address, MINT + _word(payer.address) + _number(units))
        return address

    def sanction(self, address: str, sanctioned: bool = True) -> None:
        """Put an address on the oracle's list, or take it off."""
        self.send(ORACLE, SANCTION + _word(address) + _number(int(sanctioned)))

    def mine(self, blocks: int = 1, seconds: int = 0) -> None:
        """More blocks; the first so much later."""
        if seconds:
            self.rpc("evm_increaseTime", seconds)
        self.rpc("anvil_mine", hex(blocks))

    def automine(self, on: bool) -> None:
        """Whether each transaction makes its block at once."""
        self.rpc("evm_setAutomine", on)

    def close(self) -> None:
        """End it."""
        self.resume()
        self.program.stop()
        self._client.close()

    def pause(self) -> None:
        """Let the node stop answering."""
        self.program.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.program.process.send_signal(signal.SIGCONT)


def _word(address: str) -> str:
    return address[2:].lower().rjust(64, "0")


def _number(value: int) -> str:
    return f"{value:064x}"


@contextlib.contextmanager
def anvil(folder: Path, seconds_ago: int = 0) -> Iterator[Anvil]:
    """A fresh chain with the token at USDC's address and a sanctions oracle, stopped at the end.

    `seconds_ago`: its clock is so much behind ours.
    """
    home, port = chain_folder(), free_port()
    (binary,) = home.glob("node_modules/@foundry-rs/anvil-*/bin/anvil")
    options = ["--host", "127.0.0.1", "--port", str(port), "--chain-id", str(CHAIN_ID), "--silent"]
    if seconds_ago:
        options += ["--timestamp", str(int(time.time()) - seconds_ago)]
    chain = Anvil(f"http://127.0.0.1:{port}", Program(folder, str(binary), *options))
    try:
        until(lambda: chain.rpc("eth_chainId"), 30, f"anvil does not start: see {folder / 'log'}")
        contracts = json.loads((home / "contracts.json").read_text())
        for name, address in (("Dollar", USDC), ("Sanctions", ORACLE)):
            chain.put("0x" + contracts[name]["evm"]["bytecode"]["object"], address)
        yield chain
    finally:
        chain.close()


def main() -> None:
    """A chain until Ctrl-C."""
    with tempfile.TemporaryDirectory() as folder, anvil(Path(folder)) as chain:
        payer = chain.payer()
        print(f"ready {chain.url}\nUSDC {USDC}\noracle {ORACLE}\npayer {payer.address} 0x{payer.key.hex()}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(reason)
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    main()
