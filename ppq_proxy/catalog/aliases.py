"""Names: which offering a requested model id means.

Exact ids and declared aliases go first. Otherwise upper and lower case, and dots and dashes, are equal, and the
vendor's prefix may be left out ("claude-sonnet-4-5" is "anthropic/claude-sonnet-4.5") or put before an id without one.
A date behind a name is another name unless the row declares it. Where a name without its vendor could be several rows,
the first in the file has it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from ppq_proxy.catalog.offerings import Offering

#: Prefixes that are part of a name and no vendor: leaving them out would mean another product.
NO_VENDOR: Final = ("private/", "api/", "x/")
LONGEST: Final = 256
#: Names less alike than this are not worth suggesting.
ALIKE: Final = 0.4
#: Names that share so many of their letters, in whatever order, are alike too.
SAME_LETTERS: Final = 0.85


class NameTaken(ValueError):
    """Two rows claim one name."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(f"{name!r} names both {first!r} and {second!r}")
        self.name = name
        self.first = first
        self.second = second


def normal(name: str) -> str:
    """The form in which names are compared."""
    return name.lower().replace(".", "-")


def bare(name: str, provider: str) -> str | None:
    """The normal form of a name without its vendor, or with it where the name has none."""
    name = normal(name)
    if name.startswith(NO_VENDOR):
        return None
    vendor, slash, rest = name.partition("/")
    if slash:
        return rest
    return f"{normal(provider)}/{vendor}" if provider else None


class Aliases:
    """A finished index of names; looking one up is at most two dictionary reads.

    `ambiguous` lists (name, winner, others) for names without a vendor that several rows could have meant.
    """

    __slots__ = ("_exact", "_loose", "ambiguous")

    def __init__(self, offerings: Sequence[Offering]) -> None:
        """Raises NameTaken where ids or declared aliases of two rows are the same name."""
        self._exact: dict[str, Offering] = {}
        self._loose: dict[str, Offering] = {}
        for offering in offerings:
            self._claim(offering.id, offering)
        for offering in offerings:
            for alias in offering.aliases:
                self._claim(alias, offering)
        contested: dict[str, list[str]] = {}
        shortened: dict[str, Offering] = {}
        for offering in offerings:
            for full in (offering.id, *offering.aliases):
                name = bare(full, offering.provider)
                if name is not None and name not in self._loose:
                    winner = shortened.setdefault(name, offering)
                    if winner is not offering:
                        contested.setdefault(name, [winner.id]).append(offering.id)
        self._loose.update(shortened)
        self.ambiguous = tuple((name, ids[0], tuple(ids[1:])) for name, ids in contested.items())

    def find(self, name: str) -> Offering | None:
        """The offering that a request means by this name."""
        found = self._exact.get(name)
        if found is None and len(name) <= LONGEST:
            found = self._loose.get(normal(name))
        return found

    def _claim(self, name: str, offering: Offering) -> None:
        for names, form in ((self._exact, name), (self._loose, normal(name))):
            holder = names.setdefault(form, offering)
            if holder is not offering:
                raise NameTaken(name, holder.id, offering.id)


class Nearest:
    """Finds the known names most like a misspelt one; the vendor's prefix counts for neither side."""

    __slots__ = ("_pairs",)

    def __init__(self, names: Iterable[str]) -> None:
        self._pairs = {name: _pairs(name) for name in names}

    def find(self, name: str, n: int = 3) -> list[str]:
        """The `n` names most like it, the best first: by shared pairs of letters (Dice's coefficient), and by shared letters.

        Pairs alone miss two letters swapped in a short name; letters alone find too much, so they need to be nearly all.
        """
        wanted, letters = _pairs(name[:LONGEST]), Counter(_tail(name[:LONGEST]))
        scored = []
        for candidate, pairs in self._pairs.items():
            likeness = 2 * len(wanted & pairs) / max(1, len(wanted) + len(pairs))
            if likeness <= ALIKE and abs(len(pairs) - len(wanted)) <= 2:
                other = Counter(_tail(candidate))
                shared = 2 * (letters & other).total() / max(1, letters.total() + other.total())
                likeness = max(likeness, shared - (1 - SAME_LETTERS)) if shared >= SAME_LETTERS else likeness
            if likeness > ALIKE:
                scored.append((-likeness, candidate))
        return [candidate for _, candidate in sorted(scored)[:n]]


def _tail(name: str) -> str:
    return normal(name).rpartition("/")[2]


def _pairs(name: str) -> frozenset[str]:
    text = _tail(name)
    return frozenset(text[at : at + 2] for at in range(len(text) - 1))
