"""Requests as fast as 64 connections bring them: by wrk where it is installed, else by a client of our own on uvloop.

`python -m tests.bench.load REQUEST.json --connections 64 --seconds 5` prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.client import Caller, Request, Tally, drain, keep_calling, quantile, read_request, write_request
from tests.bench.processes import ROOT
from tests.bench.upstream import run

_LUA = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
{headers}
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {{"answers":%d,"errors":%d,"seconds":%.6f,"p50_ms":%.4f,"p99_ms":%.4f}}\\n',
    summary.requests - errors.status, errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class LoadResult:
    """One run: whole answers with 200, errors of every kind, the seconds it took, and latencies."""

    answers: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    problem: str = ""


def tool() -> str:
    """Which of the two will be used."""
    return "wrk" if shutil.which("wrk") else "own client"


def run_load(request: Request, *, connections: int, seconds: float, folder: Path, own: bool = False) -> LoadResult:
    """Load a gateway from this process's cores.

    wrk counts an answer as an error from 400 on, so callers probe first that the answer is the right one. It cuts off
    what is in flight when its time is up, and counts in whole seconds.
    """
    wrk = None if own else shutil.which("wrk")
    if wrk:
        return _by_wrk(wrk, request, connections, seconds, folder)
    path = write_request(request, folder)
    argv = [sys.executable, "-m", "tests.bench.load", str(path), f"--connections={connections}", f"--seconds={seconds}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the load client failed: {done.stderr[-500:]}")
    return LoadResult(**json.loads(done.stdout))


def _by_wrk(wrk: str, request: Request, connections: int, seconds: float, folder: Path) -> LoadResult:
    headers = "\n".join(
        f'wrk.headers["{name}"] = "{value}"'
        for name, value in ({"content-type": "application/json"} | request.headers).items()
    )
    script = folder / "post.lua"
    script.write_text(_LUA.format(body=request.body.decode(), headers=headers))
    duration = max(1, round(seconds))
    argv = [wrk, "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "30s", "-s", str(script), request.url]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    _, mark, result = done.stdout.partition("RESULT ")
    if not mark:
        raise RuntimeError(f"wrk failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    return LoadResult(**json.loads(result))


async def _load(request: Request, connections: int, seconds: float) -> None:
    tally = Tally()
    raw = request.raw()
    started = time.perf_counter()
    callers = [
        asyncio.create_task(keep_calling(request, tally, lambda done: Caller(raw, tally, done)))
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    # What came later than this does not count as speed, but is waited for: it was asked for, and will be charged.
    answers, took, in_time = tally.answers, time.perf_counter() - started, len(tally.seconds)
    late = await drain(tally, callers)
    latencies = sorted(tally.seconds[:in_time])
    result = LoadResult(
        answers,
        tally.errors + late,
        took,
        quantile(latencies, 0.5) * 1000,
        quantile(latencies, 0.99) * 1000,
        tally.problem,
    )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("request", type=Path)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    run(_load(read_request(arguments.request), arguments.connections, arguments.seconds))
