"""A gateway as an operator runs it, seen from outside: its processes, its command line, its customers, its upstream.

    world = World(f"sqlite:///{folder}/gateway.db", folder)
    await world.start()                                   # or start("--workers", "2", PPQ_UPSTREAM_IDLE_SECONDS="1")
    customer = await world.customer("1")
    answer = await customer.chat("story", stream=True)
    assert (await customer.books()).charged == ...
    await world.stop()

Nothing in it belongs to an event loop, so a world may serve many tests.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from tests.gateway.wire import SECONDS, Answer, Talk, ask, request_bytes
from tests.peers.upstream import MODELS, OPERATORS_KEY

K = TypeVar("K")
T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Tell me a story about a proxy that counts."
COUNTED_PROMPT = 17
"""The tokens of PROMPT in o200k (10), its role (1), and the framing of a chat with one message (3 + 3)."""
START_SECONDS = 30.0


def usd(nano: int) -> Decimal:
    """Nano-dollars as dollars."""
    return Decimal(nano).scaleb(-9)


def cost(prompt: int, output: int) -> Decimal:
    """What tokens cost at the prices of the plain rows: 1 and 2 USD per million."""
    return usd(1000 * prompt + 2000 * output)


def price(of: str, amount: str) -> dict[str, str]:
    """A row's price in USD per million tokens."""
    return {"of": of, "unit": "mtok", "usd": amount}


def row(name: str, *targets: str, prices: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A row of a models file: `test/NAME`, bought from each of `targets` ("upstream:model" or "model") in order."""
    bought = [target.rpartition(":") for target in targets or (name,)]
    listed = {"input": "1", "output": "2"} if prices is None else prices
    return {
        "id": f"test/{name}",
        "type": "chat",
        "context": 1_000_000,
        "max_output": 4096,
        "margin": "0",
        "upstreams": [{"upstream": upstream or "default", "model": model} for upstream, _, model in bought],
        "prices": [price(of, amount) for of, amount in listed.items()],
        **more,
    }


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of the gateway, and with these."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PPQ_")}
    return plain | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | more


def kill_group(process: "subprocess.Popen[Any]", how: int = signal.SIGKILL) -> None:
    """A process that leads its session, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)


class Outcomes(dict[K, T]):
    """Results by name. One that failed raises when it is looked up, so that it fails its own test and no other."""

    def __getitem__(self, name: K) -> T:
        found = super().__getitem__(name)
        if isinstance(found, BaseException):
            raise found
        return found


def all_at_once(work: Mapping[K, Coroutine[Any, Any, T]]) -> Outcomes[K, T]:
    """Run all of it concurrently, for a fixture that has no loop, in a thread so that it disturbs nobody else's."""

    async def run() -> list[Any]:
        found: list[Any] = await asyncio.gather(*work.values(), return_exceptions=True)
        return found

    with ThreadPoolExecutor(1) as thread:
        return Outcomes(zip(work, thread.submit(asyncio.run, run()).result(), strict=True))


async def eventually(what: Any, seconds: float = 5, every: float = 0.03) -> Any:
    """The first true result of an async function, awaited again and again; the last one if time runs out."""
    end = time.monotonic() + seconds
    while not (found := await what()) and time.monotonic() < end:
        await asyncio.sleep(every)
    return found


class Upstream:
    """The badly behaved API as a process. It keeps its port when it is stopped and started again."""

    def __init__(self) -> None:
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "Upstream":
        command = [sys.executable, "-m", "tests.peers.upstream", "--port", str(self.port)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        said = self.process.stdout.readline().split()
        assert said[:1] == ["ready"], "the upstream did not start"
        self.port = int(said[1].split(":")[2].split("/")[0])
        return self

    def stop(self) -> None:
        if self.process:
            kill_group(self.process)
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()
            self.process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def journal(self, tag: str | None = None) -> list[dict[str, Any]]:
        """The calls it got, oldest first; those of one call of ours by its tag. See `tests.peers.upstream`."""
        path = "/_journal" if tag is None else f"/_journal?user={tag}"
        found: list[dict[str, Any]] = (await ask(self.port, request_bytes("GET", path, self.port))).json
        return found

    async def reached(self, tag: str, stage: str = "request", seconds: float = 10) -> dict[str, Any]:
        """The last call of a tag, once it has come as far as a stage. Fails if it does not."""

        async def look() -> dict[str, Any] | None:
            calls = await self.journal(tag)
            return calls[-1] if calls and stage in (calls[-1]["stage"], "request") else None

        found: dict[str, Any] | None = await eventually(look, seconds, 0.01)
        assert found, f"the upstream did not come as far as {stage!r} in {seconds} s: {await self.journal(tag)}"
        return found

    async def settled(self, tag: str, seconds: float = 10) -> list[dict[str, Any]]:
        """The calls of a tag, once each has ended or was left."""

        async def look() -> list[dict[str, Any]] | None:
            calls = await self.journal(tag)
            return calls if calls and all(call["whole"] or call["left"] for call in calls) else None

        found: list[dict[str, Any]] | None = await eventually(look, seconds, 0.02)
        assert found, f"the upstream still serves after {seconds} s: {await self.journal(tag)}"
        return found

    async def go(self, tag: str) -> None:
        """Let a paused call go on."""
        await ask(self.port, request_bytes("POST", f"/_go?user={tag}", self.port))


class Gateway:
    """One `ppq-proxy serve`."""

    def __init__(self, world: "World", arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.world, self.port = world, free_port()
        self.log = world.folder / f"gateway-{self.port}.log"
        command = [
            sys.executable, "-m", "ppq_proxy", "serve", "--port", str(self.port), "--database", world.database,
            "--upstream", world.upstream.url, "--upstream-key", OPERATORS_KEY, "--models", str(world.models), *arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(**world.env, **env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Until it says that it may be used."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                client.request("GET", "/readyz")
                if client.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                client.close()
            time.sleep(0.02)
        raise AssertionError(
            f"the gateway is not ready ({self.process.poll()}): {self.log.read_text(errors='replace')[-2000:]}"
        )

    def end(self, seconds: float = 20) -> int:
        """SIGTERM; the exit code. Fails if it takes longer."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            kill_group(self.process)
            self.process.wait()

    def kill(self) -> None:
        """kill -9, workers too."""
        kill_group(self.process)
        self.process.wait()

    def request(
        self, method: str, path: str, body: Any = None, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        return request_bytes(method, path, self.port, body, key, headers)

    async def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> Answer:
        """Any request; `body` is bytes, or becomes JSON."""
        return await ask(self.port, self.request(method, path, body, key, headers), seconds)

    def chat_request(
        self,
        key: str | None,
        model: str,
        *,
        tag: str,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> bytes:
        """A chat request as bytes; `play` among the fields tunes the upstream, None leaves a field out."""
        body: dict[str, Any] = {
            "model": model if "/" in model else f"test/{model}",
            "messages": [{"role": "user", "content": PROMPT}],
            "user": tag,
        }
        body |= {"stream": True} if stream else {}
        body |= fields
        given = {name: value for name, value in body.items() if value is not None}
        return self.request("POST", "/v1/chat/completions", given, key, headers)

    async def chat(
        self, key: str | None, model: str = "story", *, stream: bool = False, tag: str | None = None,
        headers: Mapping[str, str] | None = None, seconds: float = SECONDS, **fields: Any,
    ) -> Answer:  # fmt: skip
        """A chat call; `answer.tag` finds it in the upstream's journal."""
        tag = tag or new_tag()
        answer = await ask(
            self.port, self.chat_request(key, model, tag=tag, stream=stream, headers=headers, **fields), seconds
        )
        answer.tag = tag
        return answer

    def talk(
        self, key: str | None, model: str = "story", *, stream: bool = True, tag: str, headers: Mapping[str, str] | None = None,
        receive_buffer: int = 0, **fields: Any,
    ) -> Talk:  # fmt: skip
        """The same, to be read as far as one likes."""
        request = self.chat_request(key, model, tag=tag, stream=stream, headers=headers, **fields)
        return Talk(self.port, request, receive_buffer=receive_buffer)


def new_tag() -> str:
    """A name for one call, for the upstream's journal."""
    return f"t{secrets.token_hex(8)}"


class Desk:
    """Runs commands of the command line in one process that stays (`tests.gateway.desk`)."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def run(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        """A command's exit code, stdout, stderr."""
        with self.lock:
            if self.process is None:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.gateway.desk"],
                    cwd=ROOT,
                    env=self.env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            assert self.process.stdin and self.process.stdout
            self.process.stdin.write(json.dumps(list(arguments)) + "\n")
            self.process.stdin.flush()
            said = json.loads(self.process.stdout.readline())
            return said["code"], said["out"], said["err"]

    def close(self) -> None:
        if self.process:
            assert self.process.stdin and self.process.stdout
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


@dataclass(frozen=True)
class Books:
    """An account as all sources agree on it. `rows` is its history, newest first; dollars are exact."""

    credited: Decimal
    charged: Decimal
    balance: Decimal
    held: Decimal
    lost: Decimal
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """One call and everything that can be found out about it. `receipt` is empty for one that cost nothing."""

    answer: Answer
    books: Books
    receipt: dict[str, Any]
    upstream_calls: list[dict[str, Any]]

    @property
    def charged(self) -> Decimal:
        return self.books.charged


class Customer:
    """An account of the world and its key."""

    def __init__(self, world: "World", credit_id: str, key: str) -> None:
        self.world, self.credit_id, self.key = world, credit_id, key

    async def chat(self, model: str = "story", **options: Any) -> Answer:
        return await self.world.chat(self.key, model, **options)

    def talk(self, model: str = "story", **options: Any) -> Talk:
        return self.world.gateway.talk(self.key, model, **options)

    async def receipt(self, request_id: str) -> dict[str, Any]:
        """`GET /v1/requests/{id}`."""
        answer = await self.world.http("GET", f"/v1/requests/{request_id}", key=self.key)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = json.loads(answer.body, parse_float=Decimal)
        return found

    async def balance(self) -> dict[str, Decimal]:
        """`POST /credits/balance`: one snapshot."""
        answer = await self.world.http("POST", "/credits/balance", {"credit_id": self.credit_id})
        assert answer.status == 200, answer.body
        found: dict[str, Any] = json.loads(answer.body, parse_float=Decimal)
        return {name: Decimal(value) for name, value in found.items()}

    async def history(self) -> list[dict[str, Any]]:
        """`GET /queries/history`, every page, newest first; prices as exact decimals."""
        rows: list[dict[str, Any]] = []
        for page in itertools.count(1):
            answer = await self.world.http(
                "GET", f"/queries/history?page={page}&page_count=100&credit_id={self.credit_id}"
            )
            assert answer.status == 200, answer.body
            found = json.loads(answer.body, parse_float=Decimal)
            rows += found["data"]
            if page >= found["pagination"]["total_pages"]:
                assert len(rows) == found["pagination"]["total"]
                return rows
        raise AssertionError

    async def books(self, *, settled: bool = True, seconds: float = 10) -> Books:
        """The account by command, balance and history, which have to agree (money-cases 17). `settled`: once nothing is held."""
        shown = await (self.world.settled(self.credit_id, seconds) if settled else self.world.show(self.credit_id))
        rows = await self.history()
        charged = sum((Decimal(one["price_in_usd"]) for one in rows), Decimal(0))
        assert charged == shown["charged_usd"], f"Σ history is {charged}, charged {shown['charged_usd']}"
        assert shown["balance_usd"] == shown["credited_usd"] - shown["charged_usd"]
        assert 0 <= shown["held_usd"] <= shown["balance_usd"]
        assert shown["available_usd"] == shown["balance_usd"] - shown["held_usd"]
        made = [
            one["request_id"] for one in rows if one["request_id"].startswith("req-")
        ]  # a client may repeat its own
        assert len(set(made)) == len(made), "a call has two charges"
        return Books(shown["credited_usd"], charged, shown["balance_usd"], shown["held_usd"], shown["lost_usd"], rows)


class World:
    """Gateways on one database, an upstream, and whoever uses them."""

    def __init__(
        self,
        database: str,
        folder: Path | str,
        *,
        upstream: Upstream | None = None,
        rows: Sequence[Mapping[str, Any]] = (),
        **env: str,
    ) -> None:
        self.database, self.folder = database, Path(folder)
        self.own_upstream = upstream is None
        self.upstream = upstream or Upstream()
        self.env = {"PPQ_ALLOTMENT_IDLE_SECONDS": "0.1", **env}
        self.models = self.folder / f"models-{secrets.token_hex(4)}.json"
        self.models.write_text(json.dumps({"margin": "0.055", "models": [*map(row, MODELS), *rows]}))
        self.gateways: list[Gateway] = []
        self.desk = Desk(environment(PPQ_DATABASE=database))

    @property
    def gateway(self) -> Gateway:
        """The first one that is in service."""
        return self.gateways[0]

    async def start(self, *arguments: str, **env: str) -> Gateway:
        """Start a gateway (and the upstream, before the first one); ready when this returns."""
        return await asyncio.to_thread(self.start_now, *arguments, **env)

    def start_now(self, *arguments: str, **env: str) -> Gateway:
        """`start` for those who have no loop."""
        if self.upstream.process is None:
            self.upstream.start()
        gateway = Gateway(self, arguments, env)
        self.gateways.append(gateway)
        gateway.wait_ready()
        return gateway

    async def kill(self, gateway: Gateway | None = None) -> None:
        """kill -9 a gateway, the first one if none is named."""
        gateway = gateway or self.gateway
        self.gateways.remove(gateway)
        await asyncio.to_thread(gateway.kill)

    async def end(self, gateway: Gateway | None = None, seconds: float = 20) -> int:
        """SIGTERM a gateway; its exit code."""
        gateway = gateway or self.gateway
        self.gateways.remove(gateway)
        return await asyncio.to_thread(gateway.end, seconds)

    async def stop(self) -> None:
        """End everything."""
        await asyncio.to_thread(self.stop_now)

    def stop_now(self) -> None:
        """`stop` for those who have no loop."""
        for gateway in self.gateways:
            gateway.process.send_signal(signal.SIGTERM)
        try:
            for gateway in self.gateways:
                gateway.end()
        finally:
            self.gateways.clear()
            self.desk.close()
            if self.own_upstream:
                self.upstream.stop()

    # the command line

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command as a process of its own, as an operator types it."""
        return subprocess.run(
            [sys.executable, "-m", "ppq_proxy", *arguments],
            cwd=ROOT,
            env=self.desk.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """A command's exit code, stdout, stderr."""
        return await asyncio.to_thread(self.desk.run, arguments)

    async def cli(self, *arguments: str) -> Any:
        """A command's JSON. Fails if it fails."""
        code, out, err = await self.command(*arguments, "--json")
        assert code == 0, f"ppq-proxy {' '.join(arguments)} ended with {code}: {err or out}"
        return json.loads(out)

    async def account(self, credit: str = "1") -> tuple[str, str]:
        """A new account: its credit id and its key."""
        made = await self.cli("accounts", "create", "--credit", credit)
        return made["credit_id"], made["api_key"]

    async def customer(self, credit: str | Decimal = "1") -> Customer:
        """A new account as somebody who calls."""
        return Customer(self, *await self.account(format(Decimal(credit), "f")))

    async def show(self, credit_id: str) -> dict[str, Decimal]:
        """`accounts show`, its dollar amounts exact."""
        shown = await self.cli("accounts", "show", credit_id)
        return {name: Decimal(value) for name, value in shown.items() if name.endswith("_usd")}

    async def settled(self, credit_id: str, seconds: float = 10) -> dict[str, Decimal]:
        """`show`, once nothing is held."""
        end = time.monotonic() + seconds
        while (shown := await self.show(credit_id))["held_usd"]:
            assert time.monotonic() < end, f"{shown['held_usd']} USD still held after {seconds} s"
            await asyncio.sleep(0.1)
        return shown

    async def examined(self, model: str = "story", *, credit: str = "1", **options: Any) -> Result:
        """The only call of a new customer: its charge as receipt, header, history and account agree on it."""
        customer = await self.customer(credit)
        answer = await customer.chat(model, **options)
        books = await customer.books()
        receipt: dict[str, Any] = {}
        if books.rows:
            receipt = await customer.receipt(answer.request_id)
            assert len(books.rows) == 1 and Decimal(receipt["cost_usd"]) == books.charged
            assert answer.headers.get("x-cost-usd", receipt["cost_usd"]) == receipt["cost_usd"]
        return Result(answer, books, receipt, await self.upstream.journal(answer.tag))

    async def doctor(self) -> None:
        """Fails unless `ppq-proxy doctor` finds everything right."""
        code, out, err = await self.command("doctor", "--models", str(self.models), "--json")
        assert code == 0, out + err

    # the first gateway

    async def http(self, method: str, path: str, body: Any = None, key: str | None = None, **options: Any) -> Answer:
        return await self.gateway.http(method, path, body, key, **options)

    async def chat(self, key: str | None, model: str = "story", **options: Any) -> Answer:
        return await self.gateway.chat(key, model, **options)
