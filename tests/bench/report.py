"""The tables, the goals and the JSON document."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Row

PASS_THROUGH = "pass-through"
TENSORZERO = "tensorzero"
DIRECT = "direct"
OURS = "ppq-proxy"


@dataclass(frozen=True)
class Goal:
    """One thing the project promises of its speed. `met` is None where this run could not tell."""

    text: str
    measured: str
    met: bool | None


def ratio(row: Row | None, other: Row | None, figure: str) -> float | None:
    """The median over the rounds of row / other, each round by itself: a machine's speed changes between rounds."""
    if row is None or other is None:
        return None
    pairs = [(getattr(a, figure), getattr(b, figure)) for a, b in zip(row.rounds, other.rounds, strict=False)]
    ratios = [a / b for a, b in pairs if b]
    return statistics.median(ratios) if ratios else None


def find(rows: Sequence[Row], name: str) -> Row | None:
    """The row of a target that was measured."""
    return next((row for row in rows if row.name == name and row.rounds), None)


def _above_direct(rows: Sequence[Row], row: Row | None, figure: str) -> float | None:
    direct = find(rows, DIRECT)
    if row is None or not row.rounds or direct is None or row is direct:
        return None
    pairs = zip(row.rounds, direct.rounds, strict=False)
    return statistics.median([float(getattr(a, figure) - getattr(b, figure)) for a, b in pairs])


def goals(requests: Sequence[Row], streams: Sequence[Row], *, apart: bool) -> list[Goal]:
    """The project's goals against what was measured. `apart`: two workers had cores of their own."""
    ours, mongo, pair = find(requests, OURS), find(requests, f"{OURS}-mongodb"), find(requests, f"{OURS}-2")
    streaming = find(streams, OURS)
    to_pass = ratio(ours, find(requests, PASS_THROUGH), "per_second")
    to_tensorzero = ratio(ours, find(requests, TENSORZERO), "per_second")
    to_sqlite = ratio(mongo, ours, "per_second")
    per_event = ratio(streaming, find(streams, PASS_THROUGH), "cpu_us")
    first = _above_direct(streams, streaming, "p50_ms")
    two = ratio(pair, ours, "per_second") if apart else None
    start = ours.first_answer_seconds if ours else None
    all_ours = [row for row in (*requests, *streams) if row.ours and row.rounds]
    memory = max((max(row.resident_mb) for row in all_ours), default=None)
    growth = max((row.growth_mb for row in all_ours if row.growth_mb is not None), default=None)
    return [
        _goal("requests/s ≥ 0.6 of the pass-through (0.5 at the least)", to_pass, "{:.2f}", at_least=0.6),
        _goal("requests/s ≥ TensorZero", to_tensorzero, "{:.2f}", at_least=1.0),
        _goal("MongoDB within 20 % of SQLite", to_sqlite, "{:.2f}", at_least=0.8),
        _goal("CPU a streamed event within 10 % of the pass-through", per_event, "{:.2f}", at_most=1.10),
        _goal("first token ≤ 10 ms after the upstream's (p50)", first, "{:.1f} ms", at_most=10.0),
        _goal("requests/s of two workers ≥ 1.8 of one", two, "{:.2f}", at_least=1.8),
        _goal("start to first answer < 1 s", start, "{:.2f} s", at_most=1.0),
        _goal("resident memory of a worker < 120 MB", memory, "{:.0f} MB", at_most=120.0),
        _goal("and flat (≤ 5 MB from the first round to the last)", growth, "{:+.1f} MB", at_most=5.0),
    ]


def _goal(
    text: str, value: float | None, form: str, *, at_least: float | None = None, at_most: float | None = None
) -> Goal:
    if value is None:
        return Goal(text, "not measured", None)
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return Goal(text, form.format(value), met)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _remarks(row: Row) -> str:
    remarks = []
    if row.failure:
        # The first line says what failed and the last one of a traceback why.
        lines = [line.strip() for line in row.failure.splitlines() if line.strip()]
        remarks.append(lines[0][:120] if len(lines) == 1 else f"{lines[0].split(':')[0]}: {lines[-1][:120]}")
    if row.errors:
        problem = next((one.problem for one in row.rounds if one.problem), "")
        remarks.append(f"{row.errors} errors {problem[:160]}".strip())
    if row.ready_seconds is not None:
        remarks.append(f"/readyz after {row.ready_seconds:.2f} s")
    if row.charge:
        remarks.append(f"charges {row.charge}")
    return "; ".join(remarks)


def requests_table(rows: Sequence[Row]) -> Table:
    """Medians of the rounds; `core` is how much of its core the gateway used: below 100 % it was not the limit."""
    table = Table(title="Requests", title_justify="left")
    table.add_column("target")
    heads = (
        "requests/s",
        "p50 ms",
        "p99 ms",
        "CPU µs",
        "core %",
        "RSS MB",
        "+MB",
        "start s",
        "÷ pass",
        "÷ TZ",
        "CPU ÷ pass",
    )
    for head in heads:
        table.add_column(head, justify="right")
    table.add_column("remarks")
    for row in rows:
        share = row.median("core_share")
        table.add_row(
            row.name,
            _cell(row.median("per_second"), "{:,.0f}"),
            _cell(row.median("p50_ms"), "{:.2f}"),
            _cell(row.median("p99_ms"), "{:.2f}"),
            _cell(row.median("cpu_us"), "{:.1f}"),
            _cell(share * 100 if share is not None else None, "{:.0f}"),
            _cell(max(row.resident_mb, default=None), "{:.0f}"),
            _cell(row.growth_mb, "{:+.1f}"),
            _cell(row.first_answer_seconds, "{:.2f}"),
            _cell(ratio(row, find(rows, PASS_THROUGH), "per_second"), "{:.2f}"),
            _cell(ratio(row, find(rows, TENSORZERO), "per_second"), "{:.2f}"),
            _cell(ratio(row, find(rows, PASS_THROUGH), "cpu_us"), "{:.2f}"),
            _remarks(row),
        )
    return table


def streams_table(rows: Sequence[Row]) -> Table:
    """Medians of the rounds; first-token times are those above a client's that streams from the upstream directly."""
    table = Table(title="Streams", title_justify="left")
    table.add_column("target")
    heads = ("streams", "events/s", "CPU µs/event", "TTFT p50 +ms", "p99 +ms", "core %", "RSS MB", "+MB")
    for head in (*heads, "CPU ÷ pass", "CPU ÷ TZ"):
        table.add_column(head, justify="right")
    table.add_column("remarks")
    for row in rows:
        share = row.median("core_share")
        gateway = row.name != DIRECT
        table.add_row(
            row.name,
            _cell(row.median("streams"), "{:.0f}"),
            _cell(row.median("per_second"), "{:,.0f}"),
            _cell(row.median("cpu_us") if gateway else None, "{:.1f}"),
            _cell(_above_direct(rows, row, "p50_ms") if gateway else row.median("p50_ms"), "{:.1f}"),
            _cell(_above_direct(rows, row, "p99_ms") if gateway else row.median("p99_ms"), "{:.1f}"),
            _cell(share * 100 if share is not None and gateway else None, "{:.0f}"),
            _cell(max(row.resident_mb, default=None), "{:.0f}"),
            _cell(row.growth_mb, "{:+.1f}"),
            _cell(ratio(row, find(rows, PASS_THROUGH), "cpu_us") if gateway else None, "{:.2f}"),
            _cell(ratio(row, find(rows, TENSORZERO), "cpu_us") if gateway else None, "{:.2f}"),
            _remarks(row) or ("the upstream itself; its times are absolute" if not gateway else ""),
        )
    return table


def print_report(
    document: dict[str, Any], requests: Sequence[Row], streams: Sequence[Row], met: Sequence[Goal]
) -> None:
    """Everything that a person reads, on stdout."""
    console = Console(width=None if Console().is_terminal else 170)
    machine = document["machine"]
    console.print(
        f"{document['date']} · {machine['cpu']} · {machine['cores']} cores · Python {machine['python']} · "
        f"an fsync takes {machine['fsync_ms']:.2f} ms · upstream {document['upstream']}, load {document['load']}",
        highlight=False,
    )
    for note in document["notes"]:
        console.print(f"Note: {note}", highlight=False)
    if requests:
        console.print(requests_table(requests))
    if streams:
        console.print(streams_table(streams))
    for goal in met:
        mark = {True: "met   ", False: "MISSED", None: "-     "}[goal.met]
        console.print(f"{mark} {goal.text}: {goal.measured}", highlight=False)


def rows_document(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows for the JSON document: every round, and the medians and ratios that the tables show."""
    figures = ("per_second", "p50_ms", "p99_ms", "cpu_us", "core_share")
    documents = []
    for row in rows:
        medians = {figure: row.median(figure) for figure in figures}
        ratios = {
            f"{figure}_to_{name}": ratio(row, find(rows, name), figure)
            for figure in ("per_second", "cpu_us")
            for name in (PASS_THROUGH, TENSORZERO)
        }
        documents.append(asdict(row) | {"median": medians, "ratio": ratios, "growth_mb": row.growth_mb})
    return documents


def machine(fsync_ms: float) -> dict[str, Any]:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return {"cpu": name, "kernel": platform.release(), "python": platform.python_version(), "fsync_ms": fsync_ms}
