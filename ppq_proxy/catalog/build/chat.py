"""Chat rows: what OpenRouter lists, and what some vendors sell besides, each price with a second opinion."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final

from ppq_proxy.catalog.aliases import normal
from ppq_proxy.catalog.build.decisions import Decisions
from ppq_proxy.catalog.build.finder import VENDORS, Facts, Finder, Vendor
from ppq_proxy.catalog.build.literals import Record
from ppq_proxy.catalog.build.quotes import Prices, Unsellable, equal_names, litellm_prices, plain, prices_of, rows
from ppq_proxy.catalog.build.report import Report
from ppq_proxy.catalog.build.sources import Sources

#: The classes whose plain prices sources are compared by.
COMPARED: Final = ("input", "output", "cache_read")
#: What OpenRouter's prices lack and the vendor's have, where both agree on the rest.
COMPLETED: Final = (
    "cache_read", "cache_write_5m", "cache_write_1h", "audio_in", "audio_out", "call", "search", "image_in", "video_in",
)  # fmt: skip
#: A price that moved by more than this since an older source is a person's decision.
MOST_MOVED: Final = 3
#: Vendors whose own lists add rows that OpenRouter does not have.
DIRECT: Final = (
    "openai",
    "anthropic",
    "google",
    "x-ai",
    "mistralai",
    "groq",
    "cerebras",
    "cohere",
    "moonshotai",
    "z-ai",
)
#: Names of models that make pictures, where no source says what they make.
_PICTURES: Final = re.compile(r"-image\b|banana")
_STAMP: Final = re.compile(r"(?<!\d)(20\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes chat rows from the sources; what cannot be made or decided goes into the report."""

    sources: Sources
    finder: Finder
    decisions: Decisions
    day: date
    report: Report

    def rows(self) -> list[dict[str, Any]]:
        """All chat rows, by id."""
        made = list(self._listed())
        known = {normal(row["id"]).partition("/")[2] for row in made}
        known |= {normal(alias).partition("/")[2] for row in made for alias in row.get("aliases", ())}
        made.extend(self._direct(known))
        return sorted(made, key=lambda row: str(row["id"]))

    def _listed(self) -> Iterator[dict[str, Any]]:
        """OpenRouter's models under its ids, so that an upstream like it serves them by row id."""
        for model in self.sources.genai["openrouter"]["models"]:
            name = model["id"]
            if "/" not in name or ":" in name or name.startswith("~"):
                self.report.leave_out(name, "a variant or a pointer to another row")
                continue
            made = self._from_list(name, model)
            if made is not None:
                yield made

    def _from_list(self, name: str, model: Record) -> dict[str, Any] | None:
        facts = self.finder.facts(name)
        facts.context = model.get("context_window") or facts.context
        facts.name = model.get("name") or facts.name
        try:
            quote = prices_of(model, self.day)
        except Unsellable as error:
            self.report.leave_out(name, str(error))
            return None
        why = self.decisions.left_out(name)
        if why is not None:
            self.report.leave_out(name, why)
            return None
        vendor = VENDORS.get(name.partition("/")[0])
        own = self._own(name, vendor)
        decided = self._decide(name, quote, own)
        if decided is None or not self._sellable(name, decided, facts):
            return None
        targets = [{"upstream": "default", "model": name}]
        direct = [] if self._retired(facts) else self._direct_target(vendor, name.partition("/")[2], decided)
        aliases = sorted({other for other in equal_names(model["match"]) if other != name and ":" not in other})
        return self._row(name, decided, facts, [*direct, *targets], f"https://openrouter.ai/{name}", aliases=aliases)

    def _own(self, name: str, vendor: Vendor | None) -> dict[str, Prices]:
        """The vendor's own prices for a model, by source."""
        bare = name.partition("/")[2]
        found: dict[str, Prices] = {}
        if vendor is not None:
            quote = self.finder.vendor_prices(vendor, bare)
            if quote is not None:
                found["vendor"] = quote
            row = self.finder.litellm(vendor, bare)
            if row is not None:
                found["litellm"] = litellm_prices(row[1])
        return found

    def _decide(self, name: str, quote: Prices, own: Mapping[str, Prices]) -> Prices | None:
        """The price to sell by, completed from the vendor's list; None where sources differ and nobody decided."""
        if not {"input", "output"} <= quote.keys():
            self.report.leave_out(name, "has no price for the prompt or the answer")
            return None
        opinions = {"openrouter": quote, **own}
        decision = self.decisions.price(name)
        if decision is not None:
            if decision not in opinions:
                self.report.refuse(name, f"the decision prefers {decision}, which has no price")
                return None
            return (
                {**own.get("vendor", {}), **opinions[decision]} if decision == "litellm" else dict(opinions[decision])
            )
        against = [f"{source} {_short(prices)}" for source, prices in own.items() if not _agree(quote, prices)]
        before = self.finder.openrouter_before(name)
        moved = _moved(quote, before) if before is not None else ""
        if moved and not own and not self.decisions.moved(name):
            against.append(moved)
        if against:
            self.report.refuse(name, f"openrouter {_short(quote)}, but {'; '.join(against)}")
            return None
        if "cache_write_5m" in quote and quote["cache_write_5m"][0][1] < quote["input"][0][1]:
            # Gemini's is for keeping the tokens only, on top of reading them.
            keeping = max(usd for _, usd in quote["cache_write_5m"])
            quote["cache_write_5m"] = [(above, usd + keeping) for above, usd in quote["input"]]
        missing: Prices = {of: own["vendor"][of] for of in COMPLETED if of in own.get("vendor", {}) and of not in quote}
        return {**quote, **missing}

    def _sellable(self, name: str, quote: Prices, facts: Facts) -> bool:
        makes = facts.modalities.get("out", ["text"])
        why = self.decisions.left_out(name)
        if why is None and (not quote["input"][0][1] or not quote["output"][0][1]):
            why = "is free somewhere, or has a price of zero"
        if why is None and self._retired(facts) and "open_weights" not in facts.capabilities:
            why = "is retired by its vendor"
        if why is None and ("image" in makes or _PICTURES.search(name)):
            why = "makes pictures, which have no price as text"
        if why is None and "audio" in makes and "audio_out" not in quote:
            why = "makes sound that has no price"
        if why is None and not facts.context:
            why = "has no known context length"
        if why is not None:
            self.report.leave_out(name, why)
        return why is None

    def _retired(self, facts: Facts) -> bool:
        return bool(facts.retired) and facts.retired <= self.day.isoformat()

    def _direct_target(self, vendor: Vendor | None, bare: str, quote: Prices) -> list[dict[str, str]]:
        """The vendor itself as an upstream, where it charges the same and serves chat."""
        row = self.finder.litellm(vendor, bare) if vendor is not None else None
        if vendor is None or row is None or row[1]["mode"] != "chat" or not _agree(quote, litellm_prices(row[1])):
            return []
        return [{"upstream": vendor.upstream, "model": row[0]}]

    def _direct(self, known: set[str]) -> Iterator[dict[str, Any]]:
        """Models that only their vendor sells; only where two sources have the same price."""
        for slug in DIRECT:
            vendor = VENDORS[slug]
            for model in self.sources.genai[vendor.genai]["models"]:
                name = f"{slug}/{model['id']}"
                row = self.finder.litellm(vendor, model["id"])
                bare = normal(model["id"].rpartition("/")[2])
                if row is None or row[1]["mode"] != "chat" or bare in known or bare.endswith("-latest"):
                    continue
                try:
                    quote = prices_of(model, self.day)
                except Unsellable as error:
                    self.report.leave_out(name, str(error))
                    continue
                facts = self.finder.facts(name)
                facts.context = facts.context or row[1].get("max_input_tokens")
                facts.max_output = facts.max_output or row[1].get("max_output_tokens")
                facts.name = model.get("name") or facts.name
                if not {"input", "output"} <= quote.keys() or not _agree(quote, litellm_prices(row[1])):
                    self.report.leave_out(name, "is on its vendor's list only, and two sources differ")
                elif not self._retired(facts) and self._sellable(name, quote, facts):
                    targets = [{"upstream": vendor.upstream, "model": row[0]}]
                    source = str(row[1].get("source") or "").split(",")[0].strip()
                    urls = self.sources.genai[vendor.genai].get("pricing_urls") or [source]
                    yield self._row(name, quote, facts, targets, source or urls[0])

    def _row(
        self,
        name: str,
        quote: Prices,
        facts: Facts,
        targets: list[dict[str, str]],
        source: str,
        aliases: list[str] | None = None,
    ) -> dict[str, Any]:
        context = int(facts.context or 0)
        most = min(int(facts.max_output or context), context)
        row: dict[str, Any] = {
            "id": name,
            "type": "chat",
            "name": facts.name or name.partition("/")[2],
            "provider": name.partition("/")[0],
            "context": context,
            "max_output": most,
            "created": facts.released or _stamp([name, *(aliases or ())]),
            "modalities": facts.modalities or {"in": ["text"], "out": ["text"]},
            "capabilities": sorted(facts.capabilities),
            "aliases": aliases or [],
            "upstreams": targets,
            "prices": rows(quote),
            "source": source,
        }
        return {key: value for key, value in row.items() if value not in ([], "")}


def _agree(one: Prices, other: Prices) -> bool:
    """Whether two sources have the same plain prices for what both price."""
    return all(one[of][0][1] == other[of][0][1] for of in COMPARED if of in one and of in other)


def _short(prices: Prices) -> str:
    return " / ".join(f"{of} {plain(prices[of][0][1])}" for of in COMPARED if of in prices)


def _moved(quote: Prices, before: Mapping[str, Any]) -> str:
    """What became more than thrice as dear or cheap since the older list; "" where nothing did."""
    for of in ("input", "output"):
        old = Decimal((before.get("cost") or {}).get(of) or 0)
        new = quote[of][0][1]
        if old and new and not old / MOST_MOVED <= new <= old * MOST_MOVED:
            return f"models.dev had {of} {plain(old)} in {before.get('last_updated')}"
    return ""


def _stamp(names: list[str]) -> str:
    """A release date that a name ends in, as vendors write them; "" where none does."""
    found = [match for name in names if (match := _STAMP.search(name)) is not None]
    return min("-".join(match.groups()) for match in found) if found else ""
