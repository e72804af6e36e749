"""The catalogue: every offering, by name and by type, with the version that charges are recorded under."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import orjson

from ppq_proxy.catalog import listed, public
from ppq_proxy.catalog.aliases import Aliases, NameTaken, Nearest, normal
from ppq_proxy.catalog.offerings import DEFAULT_UPSTREAM, TYPES, Offering, RowError, parse_row
from ppq_proxy.catalog.prices import PriceError, margin_factor

#: Other words for a type.
SYNONYMS: Final[Mapping[str, str]] = {"text": "chat", "embeddings": "embedding", "images": "image", "videos": "video"}
_FILE_FIELDS: Final = frozenset(("margin", "models", "sources", "built", "note"))


class CatalogError(ValueError):
    """A models file that cannot be used; the message names the file, the row and the field."""


class UnknownModel(LookupError):
    """No offering has this name; `nearest` are the most similar ids that are sold."""

    def __init__(self, model: str, nearest: Sequence[str]) -> None:
        hint = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        super().__init__(f"the model {model[:100]!r} does not exist here{hint}")
        self.model = model
        self.nearest = list(nearest)


class UnpricedModel(LookupError):
    """The model is known, but it has no price, so it is not sold."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the model {model!r} has no price and is not sold here")
        self.model = model


class UnknownType(LookupError):
    """A kind of model that there is not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name[:40]!r} is not a type of model: use all, or some of {', '.join(TYPES)}")
        self.name = name


def default_path() -> Path:
    """`models.json` where it is installed: in the package from a wheel, in the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "models.json"
    return inside if inside.exists() else package.parent / "models.json"


def parse_types(text: str | None) -> frozenset[str]:
    """The types that a `type=` filter asks for: a comma list, "all", or chat where nothing is said."""
    names = [part.strip().lower() for part in (text or "").split(",") if part.strip()]
    types: set[str] = set()
    for name in names or ["chat"]:
        kind = SYNONYMS.get(name, name)
        if kind != "all" and kind not in TYPES:
            raise UnknownType(name)
        types.update(TYPES if kind == "all" else (kind,))
    return frozenset(types)


class Catalog:
    """A finished, immutable set of offerings.

    `version` names the content that prices came from. `unpriced` are ids that are known and not sold; `left_out`
    counts the rows of an upstream's list that could not be.
    """

    __slots__ = ("_aliases", "_nearest", "_public", "left_out", "offerings", "unpriced", "version")

    def __init__(
        self, offerings: Sequence[Offering], version: str, *, unpriced: Collection[str] = (), left_out: int = 0
    ) -> None:
        """Raises NameTaken where two offerings have the same name."""
        self.offerings: Final = tuple(offerings)
        self.version: Final = version
        self.unpriced: Final = frozenset(unpriced)
        self.left_out: Final = left_out
        self._aliases = Aliases(self.offerings)
        self._nearest: Nearest | None = None
        self._public: dict[str, dict[str, Any]] = {}

    @classmethod
    def load(cls, source: str | Path | bytes | Mapping[str, Any], default_margin: str = "0") -> Self:
        """From a models file: its path, its bytes, or what they parse to.

        `default_margin` holds for rows without a margin in a file without one. Raises CatalogError, and OSError where
        the file cannot be read.
        """
        name = str(source) if isinstance(source, str | Path) else "the models file"
        content = Path(source).read_bytes() if isinstance(source, str | Path) else source
        raw = content if isinstance(content, bytes) else orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        try:
            parsed = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise CatalogError(f"{name} is not JSON: {error}") from None
        rows = _rows_of(parsed, name)
        margin = parsed.get("margin", default_margin)
        try:
            common = margin_factor(margin)
        except PriceError as error:
            raise CatalogError(f"{name}: margin: {error}") from None
        offerings, unpriced = [], []
        for at, row in enumerate(rows):
            try:
                offering = parse_row(row, common)
            except (RowError, PriceError) as error:
                raise CatalogError(f"{name}: {_place(at, row)}: {error.field}: {error}") from None
            if offering.prices.rows:
                offerings.append(offering)
            else:
                unpriced.append(offering.id)
        try:
            return cls(offerings, _version(raw, str(margin)), unpriced=unpriced)
        except NameTaken as error:
            raise CatalogError(f"{name}: {error}") from None

    @classmethod
    def from_upstream(cls, rows: object, margin: str, upstream: str = DEFAULT_UPSTREAM) -> Self:
        """From the `data` of an upstream's model list with prices: what has a price is sold at it times (1 + margin).

        Rows that cannot be sold, or whose name another row before has, are left out, counted, and known as unpriced.
        """
        factor = margin_factor(margin)
        offerings: dict[str, Offering] = {}
        unpriced = []
        every = rows if isinstance(rows, list) else []
        for row in every:
            offering = listed.read(row, factor, upstream)
            if offering is not None and normal(offering.id) not in offerings:
                offerings[normal(offering.id)] = offering
            elif isinstance(row, dict) and isinstance(row.get("id"), str):
                unpriced.append(row["id"])
        priced = [[offering.id, [list(row) for row in offering.prices.rows]] for offering in offerings.values()]
        version = _version(repr(priced).encode(), margin)
        sold = list(offerings.values())
        return cls(sold, version, unpriced=unpriced, left_out=len(every) - len(sold))

    def joined(self, other: "Catalog") -> "Catalog":
        """This catalogue, and after it what another one adds under names that are not taken here."""
        added = [offering for offering in other.offerings if self._aliases.find(offering.id) is None]
        names = {normal(alias) for offering in self.offerings for alias in (offering.id, *offering.aliases)}
        added = [offering for offering in added if not names & {normal(alias) for alias in offering.aliases}]
        version = _version(self.version.encode(), other.version)
        return Catalog(
            (*self.offerings, *added),
            version,
            unpriced=self.unpriced | other.unpriced,
            left_out=self.left_out + other.left_out,
        )

    def restrict(self, upstreams: Iterable[str]) -> "Catalog":
        """What can be bought from these upstreams; offerings that none of them serves are neither listed nor sold."""
        names = frozenset(upstreams)
        left = [kept for offering in self.offerings if (kept := offering.restricted(names)) is not None]
        return Catalog(left, self.version, unpriced=self.unpriced, left_out=self.left_out)

    def resolve(self, model: str) -> Offering:
        """The offering that a request means. Raises UnknownModel or UnpricedModel."""
        found = self._aliases.find(model)
        if found is not None:
            return found
        if model in self.unpriced:
            raise UnpricedModel(model)
        raise UnknownModel(model, self.nearest(model))

    def nearest(self, model: str, n: int = 3) -> list[str]:
        """The ids most like a name that does not exist, the best first."""
        if self._nearest is None:
            self._nearest = Nearest(offering.id for offering in self.offerings)
        return self._nearest.find(model, n)

    @property
    def ambiguous(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Names without a vendor that several rows could mean: (name, the id that has it, the others)."""
        return self._aliases.ambiguous

    def listed(self, types: str | Collection[str] | None = None) -> list[Offering]:
        """The offerings of these types: a comma list or a collection, "all", or chat where nothing is said.

        Private models are listed with all types only. Raises UnknownType.
        """
        wanted = parse_types(types if isinstance(types, str) or types is None else ",".join(types))
        everything = len(wanted) == len(TYPES)
        return [one for one in self.offerings if one.type in wanted and (everything or not one.private)]

    def public(self, offering: Offering) -> dict[str, Any]:
        """An offering as `GET /v1/models` shows it; made once and kept, so not to be changed by the caller."""
        shown = self._public.get(offering.id)
        if shown is None:
            shown = self._public[offering.id] = public.show(offering)
        return shown

    def listing(self, types: str | Collection[str] | None = None) -> dict[str, Any]:
        """The answer to `GET /v1/models`."""
        return {"object": "list", "data": [self.public(offering) for offering in self.listed(types)]}


def _rows_of(parsed: object, name: str) -> list[Any]:
    if not isinstance(parsed, dict) or not isinstance(parsed.get("models"), list):
        raise CatalogError(f'{name} is not an object with a list "models"')
    for field in parsed:
        if field not in _FILE_FIELDS:
            raise CatalogError(f"{name}: {field}: is not a known field")
    models: list[Any] = parsed["models"]
    return models


def _place(at: int, row: object) -> str:
    called = f" ({row['id']})" if isinstance(row, dict) and isinstance(row.get("id"), str) else ""
    return f"models[{at}]{called}"


def _version(content: bytes, margin: str) -> str:
    return hashlib.sha256(content + b"\0" + margin.encode()).hexdigest()[:12]
