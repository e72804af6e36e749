"""Rows for embeddings, pictures, sound and video, from LiteLLM's file: the only broad source for them.

Its prices are for one token, picture, second or character. Traps that are stepped around: a transcription's
`output_cost_per_second` repeats the input's (adding both would charge twice); variants of one model are rows of their
own named "quality/1024-x-1536/model"; a row's plain price is that of one variant, so that what no variant covers is
charged as the dearest one here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final

from ppq_proxy.catalog.build.decisions import Decisions
from ppq_proxy.catalog.build.quotes import plain
from ppq_proxy.catalog.build.report import Report
from ppq_proxy.catalog.build.sources import Sources

TYPE_OF: Final = {
    "embedding": "embedding",
    "image_generation": "image",
    "image_edit": "image",
    "video_generation": "video",
    "audio_speech": "audio",
    "audio_transcription": "audio",
}
#: Margins differ by product; a row without one has the file's.
MARGIN_OF: Final = {"embedding": "0.1", "image": "0.15", "video": "0.15"}
#: Who LiteLLM's providers are here: the vendor's prefix ("" where names carry one) and the upstream's name.
SELLERS: Final = {
    "openai": ("openai", "openai"),
    "gemini": ("google", "google"),
    "voyage": ("voyage", "voyage"),
    "cohere": ("cohere", "cohere"),
    "mistral": ("mistralai", "mistral"),
    "nebius": ("", "nebius"),
    "deepgram": ("deepgram", "deepgram"),
    "elevenlabs": ("elevenlabs", "elevenlabs"),
    "groq": ("groq", "groq"),
    "xai": ("x-ai", "xai"),
    "fal_ai": ("fal", "fal"),
    "runwayml": ("runway", "runway"),
    "black_forest_labs": ("black-forest-labs", "bfl"),
    "stability": ("stability", "stability"),
    "recraft": ("recraft", "recraft"),
    "minimax": ("minimax", "minimax"),
}
#: Embeddings that an upstream like OpenRouter sells under these ids as well.
ON_DEFAULT: Final = (
    "openai/text-embedding-3-small",
    "openai/text-embedding-3-large",
    "openai/text-embedding-ada-002",
    "google/gemini-embedding-001",
)
_VARIANT: Final = re.compile(r"(?:([a-z]+)/)?(\d+)-x-(\d+)/(.+)\Z")
_DATED: Final = re.compile(r"-(?:20\d\d-?\d\d-?\d\d|\d{4})\Z")
_NOT_A_MODEL: Final = ("streaming/", "trellis", "realtime", "live", "-latest", "flux-lora-depth", "preview-tts")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the rows; those that are retired, not for sale here or without a price go into the report."""

    sources: Sources
    decisions: Decisions
    day: date
    report: Report

    def rows(self) -> list[Row]:
        """All rows, by type and id; dated names of one model at one price are aliases of the plain one."""
        made: dict[str, Row] = {}
        for key, entry in self._entries():
            row = self._row(key, entry)
            if row is not None:
                made.setdefault(row["id"], row)
        for model in sorted(made, key=len, reverse=True):
            plain_name = _DATED.sub("", model)
            older = made.get(plain_name)
            if older is not None and older is not made[model] and older["prices"] == made[model]["prices"]:
                older["aliases"] = sorted({*older.get("aliases", ()), model, *made[model].get("aliases", ())})
                del made[model]
        return sorted(made.values(), key=lambda row: (row["type"], row["id"]))

    def _entries(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for key, entry in self.sources.litellm.items():
            if entry["mode"] not in TYPE_OF or entry.get("litellm_provider") not in SELLERS or "-x-" in key:
                continue
            retired = str(entry.get("deprecation_date") or "9999")
            if any(mark in key for mark in _NOT_A_MODEL):
                self.report.leave_out(key, "is another product, or a name that moves")
            elif retired <= self.day.isoformat():
                self.report.leave_out(key, "is retired by its vendor")
            else:
                yield key, entry

    def _row(self, key: str, entry: Mapping[str, Any]) -> Row | None:
        slug, upstream = SELLERS[entry["litellm_provider"]]
        target = key.removeprefix(f"{entry['litellm_provider']}/")
        name = target.removeprefix("fal-ai/")
        model = f"{slug}/{name}" if slug else name.lower()
        why = self.decisions.left_out(model)
        if why is not None:
            self.report.leave_out(model, why)
            return None
        kind = TYPE_OF[entry["mode"]]
        prices = PRICERS[entry["mode"]](entry, self._variants(key))
        if not prices:
            self.report.leave_out(model, f"has no price that a {kind} can be sold by")
            return None
        targets = [{"upstream": upstream, "model": target}]
        if model in ON_DEFAULT:
            targets.append({"upstream": "default", "model": model})
        row: Row = {
            "id": model,
            "type": kind,
            "name": _title(name),
            "provider": slug or model.partition("/")[0],
            "context": entry.get("max_input_tokens"),
            "capabilities": _capabilities(entry["mode"], model),
            "modalities": _modalities(entry, model),
            "parameters": parameters(entry, model, prices),
            "upstreams": targets,
            "prices": prices,
            "margin": MARGIN_OF.get(kind),
            "source": str(entry.get("source") or "").split(",")[0].strip() or "https://models.litellm.ai",
        }
        return {field: value for field, value in row.items() if value}

    def _variants(self, key: str) -> list[tuple[str, str, Decimal]]:
        """(quality, size, USD) of the rows that price one model by them."""
        provider = self.sources.litellm[key]["litellm_provider"]
        found = []
        for other, entry in self.sources.litellm.items():
            match = _VARIANT.match(other.removeprefix(f"{provider}/"))
            if match and entry.get("litellm_provider") == provider and match[4] == key.removeprefix(f"{provider}/"):
                usd = entry.get("output_cost_per_image") or entry.get("input_cost_per_image")
                if usd:
                    found.append((match[1] or "", f"{match[2]}x{match[3]}", Decimal(usd)))
        return found


def _price(of: str, unit: str, usd: Decimal, **when: str) -> Row:
    row: Row = {"of": of, "unit": unit, "usd": plain(Decimal(usd))}
    return {**row, "when": when} if when else row


def _tokens(entry: Mapping[str, Any], keys: Mapping[str, str]) -> list[Row]:
    return [_price(of, "mtok", Decimal(entry[key]) * 1_000_000) for key, of in keys.items() if entry.get(key)]


def _embedding(entry: Mapping[str, Any], variants: list[tuple[str, str, Decimal]]) -> list[Row]:
    keys = {"input_cost_per_token": "input", "input_cost_per_image_token": "image_in"}
    keys |= {"input_cost_per_audio_token": "audio_in", "input_cost_per_video_token": "video_in"}
    return _tokens(entry, keys)


def _image(entry: Mapping[str, Any], variants: list[tuple[str, str, Decimal]]) -> list[Row]:
    if entry.get("output_cost_per_image_token") and entry["litellm_provider"] == "openai":
        keys = {"input_cost_per_token": "input", "cache_read_input_token_cost": "cache_read"}
        keys |= {"input_cost_per_image_token": "image_in", "output_cost_per_token": "output"}
        rows = _tokens(entry, {**keys, "output_cost_per_image_token": "image_out"})
        # Output that is not told apart is pictures.
        return rows if entry.get("output_cost_per_token") else [*rows, {**rows[-1], "of": "output"}]
    usual = entry.get("output_cost_per_image") or entry.get("input_cost_per_image")
    if not usual:
        return []
    sizes = {
        key.rsplit("_", 1)[1].lower(): Decimal(usd) for key, usd in entry.items() if "cost_per_image_" in key and usd
    }
    sizes = {size: usd for size, usd in sizes.items() if re.fullmatch(r"[\d.]+k", size)}
    rows = [_price("image", "image", max([Decimal(usual), *sizes.values(), *(usd for _, _, usd in variants)]))]
    rows += [_price("image", "image", usd, resolution=size) for size, usd in sizes.items()]
    for quality, size, usd in variants:
        rows.append(_price("image", "image", usd, **({"quality": quality} if quality else {}), size=size))
    return rows


def _video(entry: Mapping[str, Any], variants: list[tuple[str, str, Decimal]]) -> list[Row]:
    usual = entry.get("output_cost_per_second") or entry.get("output_cost_per_video_per_second")
    if not usual:
        return []
    start = "output_cost_per_second_"
    steps = {key.removeprefix(start): Decimal(usd) for key, usd in entry.items() if key.startswith(start) and usd}
    if steps and Decimal(usual) not in steps.values():
        steps = {"720p": Decimal(usual), **steps}
    rows = [_price("second", "second", max([Decimal(usual), *steps.values()]))]
    return rows + [_price("second", "second", usd, resolution=step) for step, usd in sorted(steps.items())]


def _speech(entry: Mapping[str, Any], variants: list[tuple[str, str, Decimal]]) -> list[Row]:
    if entry.get("input_cost_per_character"):
        return [_price("character", "character", entry["input_cost_per_character"])]
    rows = _tokens(entry, {"input_cost_per_token": "input"})
    if rows and entry.get("output_cost_per_second"):
        # The answer is bare sound without usage; its length can be measured, its tokens cannot.
        return [*rows, _price("second", "second", entry["output_cost_per_second"])]
    return [*rows, *_tokens(entry, {"output_cost_per_audio_token": "audio_out"})] if rows else []


def _transcription(entry: Mapping[str, Any], variants: list[tuple[str, str, Decimal]]) -> list[Row]:
    keys = {
        "input_cost_per_token": "input",
        "input_cost_per_audio_token": "audio_in",
        "output_cost_per_token": "output",
    }
    tokens = _tokens(entry, keys)
    if tokens:
        return tokens
    return [_price("second", "second", entry["input_cost_per_second"])] if entry.get("input_cost_per_second") else []


PRICERS: Final = {
    "embedding": _embedding,
    "image_generation": _image,
    "image_edit": _image,
    "video_generation": _video,
    "audio_speech": _speech,
    "audio_transcription": _transcription,
}


def parameters(entry: Mapping[str, Any], model: str, prices: list[Row]) -> Row:
    """What a request may carry: by the kind of model, with the values that its prices tell apart."""
    mode = entry["mode"]
    if mode == "embedding":
        shown: Row = {
            "input": {"required": True},
            "encoding_format": {"values": ["float", "base64"], "default": "float"},
        }
        if entry.get("output_vector_size") and "ada-002" not in model:
            shown["dimensions"] = {"min": 1, "max": entry["output_vector_size"]}
        return shown
    if mode == "audio_transcription":
        formats = ["json", "text", "srt", "vtt", "verbose_json"]
        shown = {"file": {"required": True, "note": "at most 25 MB"}, "language": {}, "prompt": {}}
        return {**shown, "response_format": {"values": formats, "default": "json"}}
    if mode == "audio_speech":
        formats = ["mp3", "opus", "aac", "flac", "wav", "pcm"]
        return {"input": {"required": True}, "voice": {}, "response_format": {"values": formats, "default": "mp3"}}
    shown = {"prompt": {"required": True}}
    if mode == "video_generation":
        shown["aspect_ratio"] = {"values": ["16:9", "9:16", "1:1"], "default": "16:9"}
        shown["duration"] = {"default": "5"}
    else:
        shown["n"] = {"min": 1, "max": 4, "default": 1}
        shown["output_format"] = {"values": ["png", "jpeg", "webp"]}
    if mode == "image_edit" or "/edit" in model or _needs_picture(model):
        shown["image_url"] = {"required": True}
    return {**shown, **_variants_of(prices)}


def _variants_of(prices: list[Row]) -> Row:
    """The values of the price's conditions; the default is what the row's plain price was for, or the first."""
    found: dict[str, list[str]] = {}
    for price in prices:
        for name, value in price.get("when", {}).items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    usual = {"quality": "medium", "size": "1024x1024", "resolution": "720p"}
    shown: Row = {}
    for name, values in found.items():
        default = usual.get(name) if usual.get(name) in values else ("1k" if "1k" in values else values[0])
        shown[name] = {"values": values, "default": default}
    return shown


def _needs_picture(model: str) -> bool:
    return "image-to-video" in model or "-i2v" in model or model.endswith("gen4_turbo")


def _capabilities(mode: str, model: str) -> list[str]:
    if mode == "video_generation":
        if "aleph" in model:
            return ["video_to_video"]
        return ["image_to_video"] if _needs_picture(model) else ["text_to_video"]
    if mode == "image_edit" or "/edit" in model:
        return ["background_removal"] if "background" in model and "relight" not in model else ["edit"]
    return {"audio_speech": ["speech"], "audio_transcription": ["transcription"]}.get(mode, [])


def _modalities(entry: Mapping[str, Any], model: str) -> dict[str, list[str]]:
    mode = entry["mode"]
    if mode == "audio_transcription":
        return {"in": ["audio"], "out": ["text"]}
    if mode == "embedding":
        image = entry.get("supports_embedding_image_input") or entry.get("supports_multimodal")
        return {"in": ["text", "image"] if image else ["text"], "out": []}
    made = {"audio_speech": "audio", "video_generation": "video"}.get(mode, "image")
    taken = ["text", "image"] if "/edit" in model or mode == "image_edit" or _needs_picture(model) else ["text"]
    return {"in": taken, "out": [made]}


def _title(name: str) -> str:
    words = re.split(r"[-_/\s]+", name)
    return " ".join(word if any(letter.isdigit() for letter in word) else word.capitalize() for word in words)
