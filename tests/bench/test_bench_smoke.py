"""The benchmark runs on what this project installs alone, and what it says of a run can be believed."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.bench import report, shapes
from tests.bench.load import run_load
from tests.bench.measure import Round, Row
from tests.bench.ours import Ours
from tests.bench.processes import ROOT, plan_cores
from tests.bench.streams import run_streams
from tests.bench.target import Direct, Place, UpstreamServer
from tests.bench.upstream import Counts

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="pins processes to cores and reads /proc")


def bench(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run it with its own upstream and clients; the JSON document."""
    document = folder / "bench.json"
    argv = [sys.executable, "-m", "tests.bench", "--own-tools", f"--folder={folder}", f"--json={document}", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(document.read_text()))


@pytest.mark.slow
def test_own_tools_measure_the_pass_through(tmp_path: Path) -> None:
    short = ("--seconds=1", "--rounds=1", "--streams=20", "--events=10")
    document = bench(tmp_path, "--only", "direct", "pass-through", *short)
    (requests,) = document["requests"]
    direct, streams = document["streams"]
    for row in (requests, direct, streams):
        assert row["failure"] is None
        (one,) = row["rounds"]
        assert one["errors"] == 0, one
    assert requests["median"]["per_second"] > 500
    assert requests["median"]["cpu_us"] > 1
    # 20 streams of an event each 20 ms make 1,000 a second, a little less for the pauses between streams.
    assert 700 < streams["median"]["per_second"] < 1100
    assert direct["median"]["p50_ms"] >= 20


@pytest.mark.slow
def test_a_stream_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    """The client counts: streams of 10 events are not whole to one that was told to expect 11."""
    cores = plan_cores()
    upstream = UpstreamServer(tmp_path, cores.load, events=10, by_nginx=False)
    try:
        request = Direct().start(Place(tmp_path, upstream.url, cores)).request(stream=True)
        results = [
            run_streams(request, streams=5, events=expected, seconds=0.5, watch=None, folder=tmp_path)
            for expected in (10, 11)
        ]
    finally:
        upstream.child.stop()
    assert results[0].errors == 0
    assert results[0].streams > 0
    assert results[1].streams == 0
    assert results[1].errors > 0


@pytest.mark.slow
def test_books_are_held_against_what_the_upstream_counted(tmp_path: Path) -> None:
    """Charges agree with the answers, and one answer more or one stream less would be noticed."""
    cores = plan_cores()
    ours, served = Ours(), Counts()
    ours.settle_seconds = 1.0
    upstream = UpstreamServer(tmp_path, cores.load, events=10, by_nginx=False)
    try:
        with upstream.counting(served):
            running = ours.start(Place(tmp_path, upstream.url, cores))
        try:
            with upstream.counting(served):
                load = run_load(running.request(stream=False), connections=8, seconds=0.3, folder=tmp_path, own=True)
                streams = run_streams(
                    running.request(stream=True), streams=5, events=10, seconds=0.3, watch=None, folder=tmp_path
                )
            assert (load.errors, streams.errors) == (0, 0)
            assert served.answers > 10
            assert served.streams == streams.streams > 5
            assert ours.wrong_charge(running, served, 10) is None
            for wrong in (replace(served, answers=served.answers + 1), replace(served, streams=served.streams - 1)):
                assert "which cost $" in str(ours.wrong_charge(running, wrong, 10))
        finally:
            running.stop()
    finally:
        upstream.child.stop()


def test_a_charge_is_rounded_up_once() -> None:
    # (40 x $1.00 + 24 x $2.00) / 1e6 x 1.055
    assert shapes.charge_usd(24) == Decimal("0.000092840")
    assert shapes.charge_usd(0) == Decimal("0.000042200")


def test_ratios_are_taken_round_by_round() -> None:
    def row(name: str, speeds: list[float]) -> Row:
        return Row(name, "", rounds=[Round(speed, 1.0, 2.0, 3.0, 1.0, 0) for speed in speeds])

    # The machine was twice as fast in the second round: each round says 0.5, the medians would say 0.67.
    assert report.ratio(row("a", [50, 100, 100]), row("b", [100, 200, 150]), "per_second") == pytest.approx(0.5)
    assert report.ratio(row("a", [50]), None, "per_second") is None


@pytest.mark.parametrize(
    ("available", "gateway", "pair", "load"),
    [({3}, {3}, {3}, {3}), ({0, 1}, {0}, {0, 1}, {1}), ({0, 1, 2, 5}, {0}, {0, 1}, {2, 5})],
)
def test_cores_are_shared_out(available: set[int], gateway: set[int], pair: set[int], load: set[int]) -> None:
    cores = plan_cores(frozenset(available))
    assert [set(cores.gateway), set(cores.pair), set(cores.load)] == [gateway, pair, load]
    assert cores.pair_is_apart == (len(available) > 2)
