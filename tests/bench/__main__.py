"""`make bench`: this gateway beside nginx, a bare pass-through and the peers that are installed. See README.md here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import nginx, report
from tests.bench.load import tool
from tests.bench.measure import Options, Part, Row, say
from tests.bench.ours import Ours, OursMongo, OursTwoWorkers
from tests.bench.peers import LiteLLM, Portkey, TensorZero
from tests.bench.processes import Cores, machine_cpu_seconds, plan_cores, use_of
from tests.bench.target import Direct, NginxProxy, PassThroughTarget, Target

PARTS = ("requests", "streams")
_QUICK_LEAVES_OUT = ("ppq-proxy-2", "ppq-proxy-mongodb", "portkey", "litellm")
_QUIET_SHARE = 0.1


def all_targets(*, force_workers: bool) -> list[Target]:
    """Every target, in the order of the tables."""
    ours: list[Target] = [Ours(), OursTwoWorkers(forced=force_workers), OursMongo()]
    return [Direct(), NginxProxy(), PassThroughTarget(), *ours, TensorZero(), Portkey(), LiteLLM()]


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    defaults = Options()
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of one round of one target")
    parser.add_argument("--rounds", type=int, default=defaults.rounds, help="the median counts")
    parser.add_argument("--connections", type=int, default=defaults.connections, help="for requests")
    parser.add_argument("--streams", type=int, default=defaults.streams, help="open at once")
    parser.add_argument("--events", type=int, default=defaults.events, help="in each stream, 20 ms apart")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these targets alone (--list shows them)")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s, 100 streams, the main targets")
    parser.add_argument("--workers", action="store_true", help="run two workers even where the load shares their cores")
    parser.add_argument("--own-tools", action="store_true", help="do not use nginx and wrk for upstream and load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round of every target there")
    disk = Path("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())  # /tmp is often memory
    parser.add_argument("--folder", type=Path, default=disk, help="databases go here: use a real disk")
    parser.add_argument("--list", action="store_true", help="show the targets, and why some cannot run here")
    chosen = parser.parse_args(arguments)
    known = [target.name for target in all_targets(force_workers=True)]
    if unknown := set(chosen.only or ()) - set(known):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if chosen.quick:
        chosen.rounds, chosen.seconds, chosen.streams, chosen.events = 1, 2.0, 100, 50
    return chosen


def choose_targets(chosen: argparse.Namespace, cores: Cores) -> tuple[list[Target], dict[str, str]]:
    """The targets to run, and why each of the others is left out."""
    targets, left_out = [], {}
    for target in all_targets(force_workers=chosen.workers):
        if chosen.only and target.name not in chosen.only:
            continue
        if chosen.quick and not chosen.only and target.name in _QUICK_LEAVES_OUT:
            continue
        if problem := target.missing(cores):
            left_out[target.name] = problem
        else:
            targets.append(target)
    return targets, left_out


def foreign_cpu_seconds() -> float:
    """CPU that the machine has spent on anything but this process and what it started."""
    return machine_cpu_seconds() - use_of(os.getpid()).cpu_seconds


def fsync_ms(folder: Path) -> float:
    """What the disk under the databases takes for one small durable write: the median of 50."""
    took = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


def _notes(cores: Cores, chosen: argparse.Namespace, left_out: dict[str, str], foreign_share: float) -> list[str]:
    notes = [f"{name} left out: {problem}" for name, problem in left_out.items()]
    if not cores.gateway_is_apart:
        notes.append("one core only: gateway, load and upstream share it, so only CPU times tell anything")
    if chosen.workers and not cores.pair_is_apart:
        notes.append("two workers share a core with the load: their requests/s is no measure")
    if foreign_share > _QUIET_SHARE:
        notes.append(f"other processes used {foreign_share:.0%} of a core meanwhile: figures are noisy")
    return notes


def measure(chosen: argparse.Namespace, targets: list[Target], cores: Cores, folder: Path) -> dict[str, list[Row]]:
    """Run the parts that were asked for."""
    options = Options(
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        connections=chosen.connections,
        streams=chosen.streams,
        events=chosen.events,
        own_tools=chosen.own_tools,
    )
    rows: dict[str, list[Row]] = {name: [] for name in PARTS}
    for name in chosen.parts:
        by_nginx = name == "requests" and not chosen.own_tools and nginx.missing() is None
        wanted = [target for target in targets if name == "streams" or not isinstance(target, Direct)]
        rows[name] = Part(name, folder, cores, options, by_nginx=by_nginx).run(wanted)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where a target of this project failed, made errors or charged wrongly. Missed goals do not fail it."""
    if platform.system() != "Linux":
        say("the benchmark needs Linux: it pins processes to cores and reads /proc")
        return 2
    chosen = read_arguments(arguments)
    cores = plan_cores()
    targets, left_out = choose_targets(chosen, cores)
    if chosen.list:
        for target in all_targets(force_workers=chosen.workers):
            print(f"{target.name:18} {target.about}{' -- ' + p if (p := target.missing(cores)) else ''}")
        return 0
    os.sched_setaffinity(0, cores.load)
    with tempfile.TemporaryDirectory(prefix="ppq-bench-", dir=chosen.folder) as name:
        disk = fsync_ms(Path(name))
        began, foreign = time.monotonic(), foreign_cpu_seconds()
        rows = measure(chosen, targets, cores, Path(name))
        took = time.monotonic() - began
        foreign_share = (foreign_cpu_seconds() - foreign) / took
    requests, streams = rows["requests"], rows["streams"]
    met = report.goals(requests, streams, apart=cores.pair_is_apart)
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": report.machine(disk)
        | {"foreign_core_share": foreign_share, "cores": len(cores.gateway | cores.pair | cores.load)},
        "upstream": "own" if chosen.own_tools or nginx.missing() else "nginx",
        "load": "own client" if chosen.own_tools else tool(),
        "settings": {name: getattr(chosen, name) for name in ("seconds", "rounds", "connections", "streams", "events")},
        "notes": _notes(cores, chosen, left_out, foreign_share),
        "requests": report.rows_document(requests),
        "streams": report.rows_document(streams),
        "goals": [asdict(goal) for goal in met],
    }
    report.print_report(document, requests, streams, met)
    say(f"took {took:.0f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    ours = [row for row in (*requests, *streams) if row.ours]
    return 1 if any(row.failure or row.errors or row.charge not in (None, "exact") for row in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
