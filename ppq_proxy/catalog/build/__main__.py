"""Makes `models.json` from the sources and the decisions: `python -m ppq_proxy.catalog.build`.

The sources are fetched into a temporary folder (or `--wheels FOLDER`, which is kept). What was found is written to
stderr; where sources disagree, a price moved by more than three times, or is beyond belief, and `overrides.json` has no
decision on it, nothing is written and the exit code is 1.
"""

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from ppq_proxy.catalog import check
from ppq_proxy.catalog.build import chat, media, sources
from ppq_proxy.catalog.build.decisions import Decisions
from ppq_proxy.catalog.build.finder import Finder
from ppq_proxy.catalog.build.report import Report
from ppq_proxy.catalog.catalog import Catalog, default_path

MARGIN = "0.055"
Row = dict[str, Any]


def make(found: sources.Sources, decisions: Decisions, before: Iterable[Row], day: date, report: Report) -> list[Row]:
    """All rows. `before` are those of the file that is replaced: their dates stay, their prices are compared."""
    rows = chat.Maker(found, Finder(found, day), decisions, day, report).rows()
    rows += media.Maker(found, decisions, day, report).rows()
    own = {row["id"] for row in decisions.rows}
    rows = [*decisions.rows, *(row for row in rows if row["id"] not in own)]
    known = {row["id"]: row for row in before}
    for row in rows:
        for pattern, fields in decisions.patch.items():
            if fnmatch.fnmatchcase(row["id"], pattern):
                row.update(fields)
        if row["id"] in decisions.popular:
            row["popular"] = True
        row.setdefault("checked", day.isoformat())
        row.setdefault("created", known.get(row["id"], {}).get("created", day.isoformat()))
        compare(row, known.get(row["id"]), decisions, report)
        for problem in check.band_problems(row["prices"], free=row.get("free", False)):
            report.refuse(row["id"], problem)
    order = {kind: at for at, kind in enumerate(("chat", "embedding", "image", "video", "audio", "data"))}
    return sorted(rows, key=lambda row: (order[row["type"]], bool(row.get("private")), row["id"]))


def compare(row: Row, before: Row | None, decisions: Decisions, report: Report) -> None:
    """Refuses a price that became more than thrice as dear or as cheap since the last file, if nobody accepted it."""
    old = {(price["of"], str(price.get("when"))): price["usd"] for price in (before or {}).get("prices", ())}
    for price in row["prices"]:
        was = Decimal(old.get((price["of"], str(price.get("when"))), "0"))
        now = Decimal(price["usd"])
        if was and now and not was / chat.MOST_MOVED <= now <= was * chat.MOST_MOVED and not decisions.moved(row["id"]):
            report.refuse(row["id"], f"{price['of']} went from {was} to {now}")


def publish(found: sources.Sources, decisions: Decisions, out: Path, day: date) -> Report:
    """Makes and checks the file, and writes it unless something is refused."""
    report = Report()
    before = json.loads(out.read_text(encoding="utf-8"))["models"] if out.exists() else []
    rows = make(found, decisions, before, day, report)
    text = text_of(rows, day)
    for problem in check.problems(text.encode()):
        report.refuse(out.name, problem)
    report.note(f"{len(rows)} rows, {len(report.refused)} refusals")
    report.note(f"stale decisions: {', '.join(decisions.stale)}" if decisions.stale else "no decision is stale")
    if not report.refused:
        for name, winner, others in Catalog.load(text.encode()).ambiguous:
            report.note(f"{name} could also be {', '.join(others)}; it means {winner}")
        out.write_text(text, encoding="utf-8")
    return report


def text_of(rows: list[Row], day: date) -> str:
    """The file: one row a line, so that a difference shows which offerings changed."""
    fields = ("id", "type", "name", "provider")
    used = [
        {"package": package.name, "version": package.version, "sha256": package.sha256} for package in sources.PACKAGES
    ]
    head = {"margin": MARGIN, "built": day.isoformat(), "sources": used}
    lines = [_json({key: row[key] for key in (*fields, *sorted(set(row) - set(fields))) if key in row}) for row in rows]
    return _json(head)[:-1] + ', "models": [\n' + ",\n".join(lines) + "\n]}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main(arguments: list[str]) -> int:
    """The command. 0: written; 1: refused."""
    parser = argparse.ArgumentParser(prog="python -m ppq_proxy.catalog.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=default_path())
    parser.add_argument(
        "--wheels", type=Path, help="folder with the sources' wheels; what is missing is fetched into it"
    )
    parser.add_argument(
        "--day", type=date.fromisoformat, default=datetime.now(UTC).date(), help="prices as of this day"
    )
    parser.add_argument("--verbose", action="store_true", help="name each row that is left out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.wheels or Path(temporary)
        sources.fetch(folder)
        found = sources.read(folder)
    report = publish(found, Decisions.read(), options.out, options.day)
    report.write(sys.stderr, verbose=options.verbose)
    return 1 if report.refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
