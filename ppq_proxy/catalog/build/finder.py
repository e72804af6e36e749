"""Looks models up in the sources: the vendor's own prices, limits, abilities and dates."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from ppq_proxy.catalog.aliases import normal
from ppq_proxy.catalog.build.quotes import Prices, Unsellable, matches, prices_of
from ppq_proxy.catalog.build.sources import Sources


@dataclass(frozen=True, slots=True)
class Vendor:
    """A maker of models under the names that each source and the settings know it by."""

    slug: str
    genai: str
    litellm: str
    models_dev: str
    upstream: str


VENDORS: Final = {
    vendor.slug: vendor
    for vendor in (
        Vendor("openai", "openai", "openai", "openai", "openai"),
        Vendor("anthropic", "anthropic", "anthropic", "anthropic", "anthropic"),
        Vendor("google", "google", "gemini", "google", "google"),
        Vendor("x-ai", "x-ai", "xai", "xai", "xai"),
        Vendor("mistralai", "mistral", "mistral", "mistral", "mistral"),
        Vendor("deepseek", "deepseek", "deepseek", "deepseek", "deepseek"),
        Vendor("moonshotai", "moonshotai", "moonshot", "moonshotai", "moonshot"),
        Vendor("perplexity", "perplexity", "perplexity", "perplexity", "perplexity"),
        Vendor("cohere", "cohere", "cohere", "cohere", "cohere"),
        Vendor("minimax", "minimax", "minimax", "minimax", "minimax"),
        Vendor("z-ai", "zai", "zai", "zai", "zai"),
        Vendor("groq", "groq", "groq", "groq", "groq"),
        Vendor("cerebras", "cerebras", "cerebras", "cerebras", "cerebras"),
    )
}


@dataclass(slots=True)
class Facts:
    """What the sources know of a model besides its prices."""

    context: int | None = None
    max_output: int | None = None
    name: str = ""
    released: str = ""
    retired: str = ""
    modalities: dict[str, list[str]] = field(default_factory=dict)
    capabilities: set[str] = field(default_factory=set)


class Finder:
    """Looks models up in all sources by their names, dots and dashes being equal."""

    def __init__(self, sources: Sources, day: date) -> None:
        self._sources = sources
        self._day = day
        self._models_dev = {
            provider: {normal(model): entry for model, entry in listed["models"].items()}
            for provider, listed in sources.models_dev.items()
        }
        self._anywhere: dict[str, list[Mapping[str, Any]]] = {}
        for models in self._models_dev.values():
            for model, entry in models.items():
                self._anywhere.setdefault(model.rpartition("/")[2], []).append(entry)
        self._litellm: dict[str, dict[str, str]] = {}
        self._hosted: dict[str, list[Mapping[str, Any]]] = {}
        for model, row in sources.litellm.items():
            bare = normal(model.rpartition("/")[2])
            self._litellm.setdefault(str(row.get("litellm_provider")), {}).setdefault(bare, model)
            if row["mode"] in ("chat", "responses"):
                self._hosted.setdefault(bare, []).append(row)

    def vendor_prices(self, vendor: Vendor, bare: str) -> Prices | None:
        """The vendor's own prices in genai-prices, or None."""
        for name in dict.fromkeys((bare, bare.replace(".", "-"))):
            for model in self._sources.genai[vendor.genai]["models"]:
                if matches(model["match"], name):
                    try:
                        return prices_of(model, self._day)
                    except Unsellable:
                        return None
        return None

    def litellm(self, vendor: Vendor, bare: str) -> tuple[str, Mapping[str, Any]] | None:
        """The vendor's own row in LiteLLM with its model's name there, or None."""
        key = self._litellm.get(vendor.litellm, {}).get(normal(bare))
        return None if key is None else (key.removeprefix(f"{vendor.litellm}/"), self._sources.litellm[key])

    def openrouter_before(self, model: str) -> Mapping[str, Any] | None:
        """models.dev's older copy of OpenRouter's row."""
        return self._models_dev["openrouter"].get(normal(model))

    def facts(self, model: str) -> Facts:
        """Limits, modalities, abilities and dates, from the most specific source that has each."""
        slug, _, bare = model.partition("/")
        vendor = VENDORS.get(slug)
        entries = [self.openrouter_before(model)]
        entries.append(self._models_dev[vendor.models_dev].get(normal(bare)) if vendor else None)
        known = [entry for entry in entries if entry is not None]
        elsewhere = self._anywhere.get(normal(bare), [])
        row = (self.litellm(vendor, bare) or ("", {}))[1] if vendor else {}
        facts = Facts(retired=str(row.get("deprecation_date") or ""))
        for entry in known or elsewhere[:1]:
            facts.name = facts.name or entry["name"]
            facts.released = facts.released or _day(entry.get("release_date"))
            facts.modalities = facts.modalities or _modalities(entry)
            facts.capabilities = facts.capabilities or _abilities(entry)
        hosts = [row] if row else self._hosted.get(normal(bare), [])
        if not facts.capabilities:
            facts.capabilities = {ability for host in hosts for ability in _litellm_abilities(host)}
        outputs = Counter(int(host["max_output_tokens"]) for host in hosts if host.get("max_output_tokens"))
        facts.context = _first_limit(known, "context") or row.get("max_input_tokens") or _usual(elsewhere, "context")
        facts.max_output = _first_limit(known, "output") or _commonest(outputs) or _usual(elsewhere, "output")
        if not facts.modalities and hosts:
            sees = any(host.get("supports_vision") for host in hosts)
            facts.modalities = {"in": ["text", "image"] if sees else ["text"], "out": ["text"]}
        return facts


def _first_limit(entries: list[Mapping[str, Any]], which: str) -> int | None:
    return next((int(entry["limit"][which]) for entry in entries if entry["limit"].get(which)), None)


def _usual(entries: list[Mapping[str, Any]], which: str) -> int | None:
    """The limit that most hosts of a model give."""
    return _commonest(Counter(int(entry["limit"][which]) for entry in entries if entry["limit"].get(which)))


def _commonest(counted: Counter[int]) -> int | None:
    """The most common number; the smaller one where two are as common."""
    return min(counted, key=lambda limit: (-counted[limit], limit)) if counted else None


def _day(text: Any) -> str:
    """An ISO day; sources also write months."""
    return {7: f"{text}-01", 10: str(text)}.get(len(str(text or "")), "")


def _modalities(entry: Mapping[str, Any]) -> dict[str, list[str]]:
    names = {"pdf": "file"}
    sides = {"in": entry["modalities"]["input"], "out": entry["modalities"]["output"]}
    return {side: list(dict.fromkeys(names.get(kind, kind) for kind in kinds)) for side, kinds in sides.items()}


def _abilities(entry: Mapping[str, Any]) -> set[str]:
    flags = {
        "tool_call": ("tools", "parallel_tools"),
        "reasoning": ("reasoning",),
        "structured_output": ("json_schema",),
        "temperature": ("sampling",),
        "open_weights": ("open_weights",),
    }
    found = {name for flag, names in flags.items() if entry.get(flag) for name in names}
    return found | ({"cache"} if "cache_read" in (entry.get("cost") or {}) else set())


def _litellm_abilities(row: Mapping[str, Any]) -> set[str]:
    flags = {
        "supports_function_calling": "tools",
        "supports_parallel_function_calling": "parallel_tools",
        "supports_reasoning": "reasoning",
        "supports_response_schema": "json_schema",
        "supports_prompt_caching": "cache",
        "supports_web_search": "search",
    }
    return {name for flag, name in flags.items() if row.get(flag)}
