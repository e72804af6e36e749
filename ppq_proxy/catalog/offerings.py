"""One thing that is sold: an offering, and how it is read from a row of `models.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final, NamedTuple

from ppq_proxy.catalog.prices import VARIANTS, Factor, PriceError, Prices, Row, margin_factor, parse_rows

TYPES: Final = ("chat", "embedding", "image", "audio", "video", "data")
#: What an offering can do beyond its type; a closed set, so that a misspelt one is found.
CAPABILITIES: Final = (
    "cache", "code", "edit", "image_to_video", "json_schema", "open_weights", "parallel_tools", "reasoning", "sampling",
    "search", "speech", "text_to_video", "tools", "transcription", "upscale", "video_to_video", "background_removal",
)  # fmt: skip
MODALITIES: Final = ("text", "image", "audio", "video", "file")
TOKENIZERS: Final = ("o200k", "cl100k")
METHODS: Final = ("GET", "POST")
DEFAULT_UPSTREAM: Final = "default"
#: A row and the JSON types of its fields; `id`, `type` and `prices` are required.
FIELDS: Final[Mapping[str, type]] = {
    "id": str,
    "type": str,
    "prices": list,
    "name": str,
    "provider": str,
    "description": str,
    "context": int,
    "max_output": int,
    "margin": str,
    "free": bool,
    "private": bool,
    "popular": bool,
    "upstreams": list,
    "parameters": dict,
    "modalities": dict,
    "capabilities": list,
    "aliases": list,
    "tokenizer": str,
    "method": str,
    "created": str,
    "source": str,
    "checked": str,
    "note": str,
}


class Target(NamedTuple):
    """Where an offering is bought: the upstream's name in the settings, and the model's name there."""

    upstream: str
    model: str


@dataclass(frozen=True, slots=True, eq=False)
class Offering:
    """A row of the catalogue. `created` and `checked` are ISO dates; `context` and `max_output` are tokens.

    `parameters` says what a request may carry, by name: {"required", "values", "default", "min", "max", "note"}, each
    optional. `upstreams` stand in order of preference. `method` is the HTTP method of a data request.
    """

    id: str
    type: str
    name: str
    provider: str
    prices: Prices
    upstreams: tuple[Target, ...]
    context: int | None = None
    max_output: int | None = None
    free: bool = False
    private: bool = False
    popular: bool = False
    parameters: Mapping[str, Mapping[str, Any]] | None = None
    modalities: Mapping[str, Sequence[str]] | None = None
    capabilities: Sequence[str] = ()
    aliases: Sequence[str] = ()
    tokenizer: str | None = None
    created: str = ""
    source: str = ""
    checked: str = ""
    description: str = ""
    method: str | None = None

    def variant(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What in a request chooses the price: the parameters that conditions name, with the row's defaults.

        Values become lower-case strings, as conditions are; a number of seconds may come as 5, "5" or "5s".
        """
        names = {key for row in self.prices.rows for key in row.when}
        chosen: dict[str, Any] = {}
        for name in VARIANTS:
            if name not in names:
                continue
            value = request.get(name)
            if value is None and self.parameters is not None:
                value = self.parameters.get(name, {}).get("default")
            if isinstance(value, str | int):
                text = str(value).strip().lower()
                chosen[name] = text.removesuffix("s") if name == "duration" else text
        return chosen

    def restricted(self, upstreams: frozenset[str]) -> "Offering | None":
        """The same offering with only these upstreams, or None where none of them serves it."""
        left = tuple(target for target in self.upstreams if target.upstream in upstreams)
        if left == self.upstreams:
            return self
        return replace(self, upstreams=left) if left else None


class RowError(ValueError):
    """A row that cannot be sold from; `field` says where, `str()` says what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


def parse_row(row: object, margin: Factor) -> Offering:
    """An offering from a row of `models.json`; `margin` (1 + margin) is the file's, a row's own goes before it.

    A row with an empty list of prices is an offering without classes: it is known, and it is not for sale. Raises
    RowError or PriceError.
    """
    if not isinstance(row, dict):
        raise RowError("row", "is not an object")
    for field in ("id", "type", "prices"):
        if field not in row:
            raise RowError(field, "is missing")
    for field, value in row.items():
        if type(value) is not FIELDS.get(field):
            raise RowError(field, f"is not {_KINDS[FIELDS[field]]}" if field in FIELDS else "is not a known field")
    model: str = row["id"]
    if not model or model != model.strip() or len(model) > 200:
        raise RowError("id", "is empty, too long or has spaces around it")
    if row["type"] not in TYPES:
        raise RowError("type", f"{row['type']!r} is not one of {', '.join(TYPES)}")
    free = row.get("free", False)
    own = row.get("margin")
    rows = parse_rows(row["prices"], margin if own is None else margin_factor(own), free=free)
    _check_classes(row["type"], rows)
    _check_fields(row)
    provider = row.get("provider") or (model.split("/", 1)[0] if "/" in model else "")
    return Offering(
        model,
        row["type"],
        row.get("name") or model,
        provider,
        Prices(rows),
        _parse_targets(row, model),
        row.get("context"),
        row.get("max_output"),
        free,
        row.get("private", False),
        row.get("popular", False),
        row.get("parameters"),
        row.get("modalities"),
        row.get("capabilities", ()),
        row.get("aliases", ()),
        row.get("tokenizer"),
        row.get("created", ""),
        row.get("source", ""),
        row.get("checked", ""),
        row.get("description", ""),
        row.get("method"),
    )


_KINDS: Final[Mapping[Any, str]] = {
    str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "an object",
}  # fmt: skip


def _check_classes(kind: str, rows: Sequence[Row]) -> None:
    """Whatever a chat makes must have a price: prompt and answer always come."""
    if kind == "chat" and rows:
        priced = {row.of for row in rows if not row.when}
        for of in ("input", "output"):
            if of not in priced:
                raise PriceError("prices", f"has no unconditional price for {of!r}")


def _check_fields(row: Mapping[str, Any]) -> None:
    for field in ("context", "max_output"):
        if row.get(field, 1) < 1:
            raise RowError(field, "is not above zero")
    for field, allowed in (("tokenizer", TOKENIZERS), ("method", METHODS)):
        if field in row and row[field] not in allowed:
            raise RowError(field, f"is not one of {', '.join(allowed)}")
    for capability in row.get("capabilities", ()):
        if capability not in CAPABILITIES:
            raise RowError("capabilities", f"{capability!r} is not one of {', '.join(CAPABILITIES)}")
    for alias in row.get("aliases", ()):
        if not isinstance(alias, str) or not alias:
            raise RowError("aliases", f"{alias!r} is not a name")
    for side, kinds in row.get("modalities", {}).items():
        if side not in ("in", "out") or not isinstance(kinds, list) or any(kind not in MODALITIES for kind in kinds):
            raise RowError("modalities", f'is not {{"in": […], "out": […]}} of {", ".join(MODALITIES)}')
    for name, rules in row.get("parameters", {}).items():
        if not isinstance(rules, dict):
            raise RowError(f"parameters.{name}", "is not an object")
    for field in ("created", "checked"):
        if field in row:
            try:
                date.fromisoformat(row[field])
            except ValueError:
                raise RowError(field, f"{row[field]!r} is not a date such as 2026-11-20") from None


def _parse_targets(row: Mapping[str, Any], model: str) -> tuple[Target, ...]:
    listed = row.get("upstreams")
    if listed is None:
        return (Target(DEFAULT_UPSTREAM, model),)
    targets = []
    for at, target in enumerate(listed):
        if not isinstance(target, dict) or not isinstance(target.get("upstream"), str) or not target["upstream"]:
            raise RowError(f"upstreams[{at}]", 'is not {"upstream": NAME, "model": MODEL}')
        name = target.get("model", model)
        if not isinstance(name, str) or not name or set(target) - {"upstream", "model"}:
            raise RowError(f"upstreams[{at}]", 'is not {"upstream": NAME, "model": MODEL}')
        targets.append(Target(target["upstream"], name))
    if not targets:
        raise RowError("upstreams", "is empty")
    return tuple(targets)
