"""Usage: what an upstream says it counted, normalised once into classes that do not overlap, and whether it can be believed."""

from collections.abc import Mapping
from typing import Any

Units = dict[str, int]
"""Counted units by class (design §3): disjoint, and only those above zero."""

ABSURD_FACTOR = 50
"""A prompt so many times the counted one is not believed (money-cases, 3)."""


def whole(value: Any) -> int | None:
    """A count as JSON may carry it: an integer, or a float that is one (money-cases, 4); anything else is None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _part(details: Any, name: str, most: int) -> int:
    value = whole(details.get(name)) if isinstance(details, Mapping) else None
    return min(max(value or 0, 0), most)


def _says(details: Any) -> bool:
    """True if details hold anything but zeros: most answers' do not, and need no splitting."""
    return bool(details) and (not isinstance(details, dict) or any(details.values()))


def split(total_in: int, total_out: int, in_details: Any, out_details: Any, *, cached_inside: bool) -> Units:
    """Totals and their details as disjoint classes.

    `cached_inside` has no default on purpose: OpenAI's prompt_tokens contain the cached ones, Anthropic's input_tokens do
    not. Details are clamped to what contains them, so that no rest is negative (money-cases, 5).
    """
    rest = total_in
    cached = _part(in_details, "cached_tokens", rest if cached_inside else 1 << 62)
    rest -= cached if cached_inside else 0
    written = _part(in_details, "cache_write_tokens", rest if cached_inside else 1 << 62)
    rest -= written if cached_inside else 0
    audio_in = _part(in_details, "audio_tokens", rest)
    reasoning = _part(out_details, "reasoning_tokens", total_out)
    audio_out = _part(out_details, "audio_tokens", total_out - reasoning)
    units = {
        "input": rest - audio_in,
        "cache_read": cached,
        "cache_write_5m": written,
        "audio_in": audio_in,
        "output": total_out - reasoning - audio_out,
        "reasoning": reasoning,
        "audio_out": audio_out,
    }
    return {name: count for name, count in units.items() if count}


def openai_usage(usage: Any) -> tuple[int, int, Units] | None:
    """An OpenAI usage block as (prompt, completion, units); None where it has no sane totals."""
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = whole(usage.get("prompt_tokens")), whole(usage.get("completion_tokens", 0))
    if prompt is None or completion is None or prompt <= 0 or completion < 0:
        return None
    in_details, out_details = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    if not _says(in_details) and not _says(out_details):
        return prompt, completion, {"input": prompt, "output": completion} if completion else {"input": prompt}
    return prompt, completion, split(prompt, completion, in_details, out_details, cached_inside=True)


def totals(units: Mapping[str, int]) -> tuple[int, int]:
    """Tokens in and out, as the history shows them."""
    out = units.get("output", 0) + units.get("reasoning", 0) + units.get("audio_out", 0)
    return sum(units.values()) - out, out
