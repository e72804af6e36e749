"""What people decided (`overrides.json`): rows of their own, which source to believe, what not to sell."""

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PATH: Final = Path(__file__).with_name("overrides.json")
SECTIONS: Final = ("note", "prefer", "leave_out", "moved", "patch", "popular", "rows")


class Decisions:
    """The parsed file. Each decision says why; those that nothing in a build asked for are reported as stale."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        unknown = set(content) - set(SECTIONS)
        if unknown:
            raise ValueError(f"overrides.json: unknown sections {', '.join(sorted(unknown))}")
        self._prefer: Mapping[str, Mapping[str, str]] = content.get("prefer", {})
        self._leave_out: Mapping[str, str] = content.get("leave_out", {})
        self._moved: Mapping[str, str] = content.get("moved", {})
        self.patch: Mapping[str, Mapping[str, Any]] = content.get("patch", {})
        self.popular: tuple[str, ...] = tuple(content.get("popular", ()))
        self.rows: list[dict[str, Any]] = content.get("rows", [])
        self._used: set[str] = set()

    @classmethod
    def read(cls, path: Path = PATH) -> "Decisions":
        """From a file."""
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def price(self, model: str) -> str | None:
        """The source whose price a model is sold by, where they differ."""
        pattern = _first(self._prefer, model)
        if pattern is None:
            return None
        self._used.add(pattern)
        return self._prefer[pattern]["source"]

    def left_out(self, model: str) -> str | None:
        """Why a model is not sold, or None."""
        pattern = _first(self._leave_out, model)
        if pattern is None:
            return None
        self._used.add(pattern)
        return self._leave_out[pattern]

    def moved(self, model: str) -> bool:
        """Whether a large change of this model's price was accepted."""
        return _first(self._moved, model) is not None

    @property
    def stale(self) -> list[str]:
        """Decisions that nothing asked for any more."""
        return sorted({*self._prefer, *self._leave_out} - self._used)


def _first(patterns: Mapping[str, Any], model: str) -> str | None:
    """The first pattern ("vendor/*") that a model fits."""
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(model, pattern)), None)
