"""Child processes on chosen cores, and what they use: CPU seconds and resident memory, read from /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cores:
    """Which cores the gateway, a gateway of two workers, and everything else may use."""

    gateway: frozenset[int]
    pair: frozenset[int]
    load: frozenset[int]

    @property
    def pair_is_apart(self) -> bool:
        """Whether two workers have a core each that the load does not use."""
        return len(self.pair) > 1 and not self.pair & self.load

    @property
    def gateway_is_apart(self) -> bool:
        """Whether the gateway has its core to itself."""
        return not self.gateway & self.load


def plan_cores(available: frozenset[int] | None = None) -> Cores:
    """The first core for the gateway, the second for its second worker where there are three, the rest for the load."""
    have = sorted(available if available is not None else os.sched_getaffinity(0))
    if len(have) == 1:
        only = frozenset(have)
        return Cores(only, only, only)
    load = have[2:] or have[1:]
    return Cores(frozenset(have[:1]), frozenset(have[:2]), frozenset(load))


@contextmanager
def _affinity(cores: frozenset[int]) -> Iterator[None]:
    """Children inherit the affinity of the thread that forks them, so no `taskset` is needed."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """A process started here. It leads its own session, and is ended with everything it started."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cores: frozenset[int],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output, _affinity(cores):
            self.started = time.perf_counter()
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=cwd, start_new_session=True
            )
        self.pid = self._process.pid

    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def tail(self, size: int = 2000) -> str:
        """The end of what it printed, for error messages."""
        return self.log.read_bytes()[-size:].decode(errors="replace").strip()

    def stop(self, patience: float = 20.0) -> None:
        """SIGTERM and, after `patience` seconds, SIGKILL to the whole session."""
        if self.ended() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        if tree_of_session(self.pid):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True)
class _Stat:
    parent: int
    session: int
    cpu_ticks: int
    resident_pages: int


def _stats() -> dict[int, _Stat]:
    """/proc/PID/stat of every process (proc(5)); those that end meanwhile are left out."""
    found: dict[int, _Stat] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The command, in brackets, may itself contain spaces and brackets: fields are counted from the last bracket.
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] == "Z":
            continue
        ticks = sum(int(field) for field in fields[11:15])
        found[int(folder.name)] = _Stat(int(fields[1]), int(fields[3]), ticks, int(fields[21]))
    return found


def tree_of_session(session: int) -> list[int]:
    """The processes of a session."""
    return [pid for pid, stat in _stats().items() if stat.session == session]


@dataclass(frozen=True)
class Use:
    """What a process and its descendants have used: CPU in seconds since they began, memory in bytes now."""

    cpu_seconds: float
    resident: int
    largest: int


def machine_cpu_seconds() -> float:
    """What all processes of the machine have used and what a hypervisor took, without interrupts (proc(5))."""
    user, nice, system, _, _, _, _, steal = (
        int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + steal) / _TICKS


def use_of(pid: int) -> Use:
    """User and system time (that of children already gone too) and resident memory of a process and all below it."""
    stats = _stats()
    members = {pid} & stats.keys()
    grown = True
    while grown:
        more = {child for child, stat in stats.items() if stat.parent in members} - members
        grown = bool(more)
        members |= more
    resident = [stats[member].resident_pages * _PAGE for member in members]
    ticks = sum(stats[member].cpu_ticks for member in members)
    return Use(ticks / _TICKS, sum(resident), max(resident, default=0))
