"""What a build found: what it left out, what sources disagree about, what moved. Disagreements end it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TextIO


@dataclass(slots=True)
class Report:
    """Gathers findings while rows are made. `refused` must be settled by an override before a file is written."""

    refused: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, model: str, why: str) -> None:
        """A finding that a person has to decide."""
        self.refused.append(f"{model}: {why}")

    def leave_out(self, model: str, why: str) -> None:
        """A row that is not made."""
        self.left_out.append((model, why))

    def note(self, text: str) -> None:
        """Something worth reading."""
        self.notes.append(text)

    def write(self, out: TextIO, *, verbose: bool = False) -> None:
        """Everything, the refusals last; with `verbose` each row that was left out, else their numbers by reason."""
        for text in self.notes:
            print(f"note: {text}", file=out)
        if verbose:
            for model, why in sorted(self.left_out):
                print(f"left out: {model}: {why}", file=out)
        for why, count in Counter(why for _, why in self.left_out).most_common():
            print(f"left out {count}: {why}", file=out)
        for text in self.refused:
            print(f"REFUSED {text}", file=out)
