"""How models.json is made: prices from sources, disagreements, changes, decisions."""

import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ppq_proxy.catalog import Catalog, check, default_path
from ppq_proxy.catalog.build import __main__ as build
from ppq_proxy.catalog.build import literals, quotes, sources
from ppq_proxy.catalog.build.decisions import PATH, Decisions
from ppq_proxy.catalog.build.report import Report

DAY = date(2026, 11, 20)


def provider(name: str, *models: str) -> literals.Record:
    """A genai-prices provider as its package writes one."""
    listed = ", ".join(models)
    source = f"import x\nproviders: list[Provider] = [Provider(id={name!r}, models=[{listed}])]\n"
    return literals.Record("Provider", dict(literals.assigned(source, "providers")[0]))


def model(name: str, prices: str, *others: str, context: int = 100_000) -> str:
    clauses = ", ".join(f"ClauseEquals(equals={one!r})" for one in (name, *others))
    price = prices if prices.startswith("[") else f"ModelPrice({prices})"
    return f"ModelInfo(id={name!r}, match=ClauseOr(or_=[{clauses}]), context_window={context}, prices={price})"


def usd(**classes: str) -> str:
    return ", ".join(f"{of}_mtok=Decimal({price!r})" for of, price in classes.items())


EMPTY: dict[str, Any] = {"models": {}}
NAMES = (
    "openrouter", "openai", "anthropic", "google", "x-ai", "mistral", "deepseek", "moonshotai", "perplexity", "cohere",
    "minimax", "zai", "groq", "cerebras",
)  # fmt: skip


def found(
    *providers: literals.Record, litellm: dict[str, Any] | None = None, before: dict[str, Any] | None = None
) -> sources.Sources:
    known = {name: provider(name) for name in NAMES} | {one["id"]: one for one in providers}
    developers = {name: EMPTY for name in ("openrouter", "openai", "anthropic", "google", "xai", "mistral", "deepseek")}
    developers |= {name: EMPTY for name in ("moonshotai", "perplexity", "cohere", "minimax", "zai", "groq", "cerebras")}
    developers["openrouter"] = {"models": before or {}}
    return sources.Sources(known, litellm or {}, developers)


def make(
    given: sources.Sources, decisions: dict[str, Any] | None = None, before: list[dict[str, Any]] | None = None
) -> tuple[dict[str, dict[str, Any]], Report]:
    report = Report()
    rows = build.make(given, Decisions(decisions or {}), before or [], DAY, report)
    return {row["id"]: row for row in rows}, report


def test_a_row_has_the_listed_price_its_limits_and_its_aliases() -> None:
    listed = provider("openrouter", model("openai/gpt-x", usd(input="1.25", output="10"), "openai/gpt-x-2026-01-02"))
    rows, report = make(found(listed))
    row = rows["openai/gpt-x"]
    assert row["prices"] == [
        {"of": "input", "unit": "mtok", "usd": "1.25"},
        {"of": "output", "unit": "mtok", "usd": "10"},
    ]
    assert (row["context"], row["created"], row["aliases"]) == (100_000, "2026-01-02", ["openai/gpt-x-2026-01-02"])
    assert row["upstreams"] == [{"upstream": "default", "model": "openai/gpt-x"}]
    assert report.refused == []


def direct(**more: Any) -> dict[str, Any]:
    return {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": Decimal("0.00000125"), **more}


def test_a_vendor_with_the_same_price_is_an_upstream_too_and_completes_the_row() -> None:
    listed = provider("openrouter", model("openai/gpt-x", usd(input="1.25", output="10")))
    own = provider("openai", model("gpt-x", usd(input="1.25", output="10", input_audio="40")))
    litellm = {"gpt-x": direct(output_cost_per_token=Decimal("0.00001"))}
    rows, report = make(found(listed, own, litellm=litellm))
    row = rows["openai/gpt-x"]
    assert [target["upstream"] for target in row["upstreams"]] == ["openai", "default"]
    assert {price["of"]: price["usd"] for price in row["prices"]} == {"input": "1.25", "audio_in": "40", "output": "10"}
    assert report.refused == []


@pytest.mark.parametrize("source", ["genai", "litellm"])
def test_sources_that_disagree_are_refused_until_somebody_decides(source: str) -> None:
    listed = provider("openrouter", model("openai/gpt-x", usd(input="1.25", output="10")))
    own = provider("openai", model("gpt-x", usd(input="1.25", output="12")))
    litellm = {"gpt-x": direct(output_cost_per_token=Decimal("0.000012"))}
    given = found(listed, own) if source == "genai" else found(listed, litellm=litellm)
    rows, report = make(given)
    assert "openai/gpt-x" not in rows
    assert len(report.refused) == 1
    assert "openai/gpt-x: openrouter input 1.25 / output 10, but" in report.refused[0]
    decided = {"prefer": {"openai/gpt-*": {"source": "openrouter", "why": "a test"}}}
    rows, report = make(given, decided)
    assert report.refused == []
    assert rows["openai/gpt-x"]["prices"][1]["usd"] == "10"


def test_a_decision_for_a_source_without_a_price_is_refused() -> None:
    listed = provider("openrouter", model("openai/gpt-x", usd(input="1", output="2")))
    _, report = make(found(listed), {"prefer": {"openai/gpt-x": {"source": "vendor", "why": "a test"}}})
    assert report.refused == ["openai/gpt-x: the decision prefers vendor, which has no price"]


@pytest.mark.parametrize(("then", "refused"), [("0.3", True), ("0.34", False), ("3", False), ("3.1", True)])
def test_a_price_that_moved_by_more_than_thrice_since_the_older_list_is_refused(then: str, *, refused: bool) -> None:
    listed = provider("openrouter", model("qwen/q", usd(input="1", output="2")))
    cost = {"input": Decimal(then), "output": Decimal(2)}
    entry = {"name": "Q", "cost": cost, "limit": {"context": 5}, "modalities": {"input": ["text"], "output": ["text"]}}
    given = found(listed, before={"qwen/q": entry})
    rows, report = make(given)
    assert bool(report.refused) is refused
    rows, report = make(given, {"moved": {"qwen/*": "a test"}})
    assert report.refused == []
    assert "qwen/q" in rows


def test_a_price_that_moved_by_more_than_thrice_since_the_last_file_is_refused() -> None:
    listed = provider("openrouter", model("qwen/q", usd(input="1", output="2")))
    last = {"id": "qwen/q", "created": "2024-05-06", "prices": [{"of": "input", "unit": "mtok", "usd": "0.3"}]}
    rows, report = make(found(listed), before=[last])
    assert report.refused == ["qwen/q: input went from 0.3 to 1"]
    assert rows["qwen/q"]["created"] == "2024-05-06"
    _, report = make(found(listed), {"moved": {"qwen/q": "a test"}}, [last])
    assert report.refused == []


def test_a_price_beyond_belief_is_refused() -> None:
    _, report = make(found(provider("openrouter", model("a/b", usd(input="2500000", output="2")))))
    assert report.refused == ["a/b: prices[0]: 2500000 for a mtok of input is not between 0.0005 and 200"]


@pytest.mark.parametrize(
    ("name", "prices", "why"),
    [
        ("a/b", usd(input="1"), "has no price for the prompt or the answer"),
        ("a/b", usd(input="0", output="1"), "is free somewhere, or has a price of zero"),
        ("a/b:free", usd(input="1", output="1"), "a variant or a pointer to another row"),
        ("~a/b", usd(input="1", output="1"), "a variant or a pointer to another row"),
        ("a/b-image", usd(input="1", output="1"), "makes pictures, which have no price as text"),
        ("a/b", usd(input="1", output="1") + ", audio_hours=Decimal('1')", "is also charged by audio_hours"),
        ("x/left", usd(input="1", output="1"), "a test"),
    ],
)
def test_what_cannot_be_sold_exactly_is_left_out_with_its_reason(name: str, prices: str, why: str) -> None:
    rows, report = make(found(provider("openrouter", model(name, prices))), {"leave_out": {"x/*": "a test"}})
    assert rows == {}
    assert report.left_out == [(name, why)]


def test_retired_models_are_left_out() -> None:
    listed = provider("openrouter", model("openai/gpt-x", usd(input="1.25", output="10")))
    row = direct(output_cost_per_token=Decimal("0.00001"), deprecation_date="2026-11-20")
    rows, report = make(found(listed, litellm={"gpt-x": row}))
    assert rows == {}
    assert report.left_out == [("openai/gpt-x", "is retired by its vendor")]


def test_tiers_and_prices_that_start_later_are_read() -> None:
    tiers = "input_mtok=TieredPrices(base=Decimal('3'), tiers=[Tier(start=200000, price=Decimal('6'))])"
    later = (
        f"[ConditionalPrice(constraint=None, prices=ModelPrice({tiers}, output_mtok=Decimal('15'))), "
        "ConditionalPrice(constraint=StartDateConstraint(start_date=datetime.date(2026, 11, 20)), "
        f"prices=ModelPrice({tiers}, output_mtok=Decimal('16'))), "
        "ConditionalPrice(constraint=StartDateConstraint(start_date=datetime.date(2026, 11, 21)), "
        "prices=ModelPrice(input_mtok=Decimal('99'), output_mtok=Decimal('99')))]"
    )
    rows, _ = make(found(provider("openrouter", model("a/b", later))))
    assert rows["a/b"]["prices"] == [
        {"of": "input", "unit": "mtok", "usd": "3"},
        {"of": "input", "unit": "mtok", "usd": "6", "when": {"context_above": 200_000}},
        {"of": "output", "unit": "mtok", "usd": "16"},
    ]


def test_a_cache_write_below_the_input_is_what_keeping_costs_on_top_of_it() -> None:
    listed = provider("openrouter", model("a/b", usd(input="0.3", cache_write="0.0833", output="2.5")))
    rows, _ = make(found(listed))
    assert {price["of"]: price["usd"] for price in rows["a/b"]["prices"]}["cache_write_5m"] == "0.3833"


def media(**entries: dict[str, Any]) -> dict[str, Any]:
    return {name: {"litellm_provider": "openai", **entry} for name, entry in entries.items()}


def test_a_transcription_is_charged_by_the_second_once() -> None:
    price = {"input_cost_per_second": Decimal("0.0001"), "output_cost_per_second": Decimal("0.0001")}
    rows, _ = make(found(litellm=media(**{"whisper-1": {"mode": "audio_transcription", **price}})))
    assert rows["openai/whisper-1"]["prices"] == [{"of": "second", "unit": "second", "usd": "0.0001"}]


def test_variants_of_a_picture_become_conditions_and_the_dearest_holds_for_the_rest() -> None:
    entries = {
        "fal_ai/gpt": {"mode": "image_generation", "output_cost_per_image": Decimal("0.05")},
        "fal_ai/low/1024-x-1024/gpt": {"mode": "image_generation", "output_cost_per_image": Decimal("0.01")},
        "fal_ai/high/1024-x-1536/gpt": {"mode": "image_generation", "output_cost_per_image": Decimal("0.4")},
    }
    rows, report = make(found(litellm={key: {"litellm_provider": "fal_ai", **row} for key, row in entries.items()}))
    row = rows["fal/gpt"]
    assert row["margin"] == "0.15"
    assert [price["usd"] for price in row["prices"]] == ["0.4", "0.01", "0.4"]
    assert row["prices"][1]["when"] == {"quality": "low", "size": "1024x1024"}
    assert row["parameters"]["size"]["values"] == ["1024x1024", "1024x1536"]
    assert report.refused == []


def test_a_video_is_charged_by_the_second_of_its_resolution() -> None:
    price = {"output_cost_per_second": Decimal("0.1"), "output_cost_per_second_1080p": Decimal("0.12")}
    entry = {"litellm_provider": "gemini", "mode": "video_generation", **price}
    rows, _ = make(found(litellm={"gemini/veo-9": entry}))
    prices = rows["google/veo-9"]["prices"]
    assert [(price.get("when"), price["usd"]) for price in prices] == [
        (None, "0.12"),
        ({"resolution": "1080p"}, "0.12"),
        ({"resolution": "720p"}, "0.1"),
    ]
    assert rows["google/veo-9"]["parameters"]["resolution"]["default"] == "720p"


def test_dated_names_at_the_same_price_are_aliases() -> None:
    entry = {"mode": "embedding", "input_cost_per_token": Decimal("0.00000002")}
    dear = {"mode": "embedding", "input_cost_per_token": Decimal("0.00000003")}
    rows, _ = make(found(litellm=media(**{"e": entry, "e-2026-01-01": entry, "e-2026-02-02": dear})))
    assert rows["openai/e"]["aliases"] == ["openai/e-2026-01-01"]
    assert "openai/e-2026-02-02" in rows


def test_rows_of_our_own_go_before_the_sources_and_patches_onto_them() -> None:
    listed = provider("openrouter", model("a/b", usd(input="1", output="2")), model("a/c", usd(input="1", output="2")))
    own = {"id": "a/b", "type": "chat", "prices": [{"of": "input", "unit": "mtok", "usd": "7"}]}
    decisions = {"rows": [own], "patch": {"a/*": {"description": "patched"}}, "popular": ["a/c"]}
    rows, _ = make(found(listed), decisions)
    assert rows["a/b"]["prices"][0]["usd"] == "7"
    assert rows["a/b"]["description"] == rows["a/c"]["description"] == "patched"
    assert rows["a/c"]["popular"]


def test_a_made_file_is_read_back_as_it_was_made() -> None:
    listed = provider("openrouter", model("a/b", usd(input="1", output="2")))
    rows, _ = make(found(listed))
    text = build.text_of(list(rows.values()), DAY)
    assert list(check.problems(text.encode())) == []
    assert Catalog.load(text.encode()).resolve("b").prices.charge({"input": 1_000_000}) == 1_055_000_000
    assert text.count("\n") == 3


def test_decisions_that_nothing_needs_are_named() -> None:
    listed = provider("openrouter", model("a/b", usd(input="1", output="2")))
    decisions = Decisions({"prefer": {"a/b": {"source": "openrouter", "why": "t"}, "a/z": {"source": "x", "why": "t"}}})
    build.make(found(listed), decisions, [], DAY, Report())
    assert decisions.stale == ["a/z"]
    with pytest.raises(ValueError, match="preffer"):
        Decisions({"preffer": {}})


def test_every_decision_that_is_kept_says_why() -> None:
    kept = json.loads(PATH.read_text(encoding="utf-8"))
    assert all(one["why"] and one["source"] in ("openrouter", "vendor", "litellm") for one in kept["prefer"].values())
    assert all([*kept["leave_out"].values(), *kept["moved"].values()])
    published = {row["id"] for row in json.loads(default_path().read_bytes())["models"]}
    assert {row["id"] for row in kept["rows"]} | set(kept["popular"]) <= published


def test_data_is_parsed_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = f"providers = [__import__('pathlib').Path({str(marker)!r}).touch()]"
    with pytest.raises(ValueError, match=r".*"):
        literals.assigned(hostile, "providers")
    assert not marker.exists()
    with pytest.raises(ValueError, match="nothing is assigned"):
        literals.assigned("x = 1", "providers")
    with pytest.raises(ValueError, match="not a literal"):
        literals.assigned("providers = [a for a in b]", "providers")


def test_a_source_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sources.SourceError, match="is not in"):
        sources.read(tmp_path)
    package = sources.PACKAGES[0]
    (tmp_path / f"genai_prices-{package.version}-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(sources.SourceError, match="is not the pinned one"):
        sources.read(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [("1E-7", "0.0000001"), ("2.50", "2.5"), ("100", "100"), ("0.08333333333333334", "0.083333333334")],
)
def test_amounts_are_written_plainly(value: str, text: str) -> None:
    assert quotes.plain(Decimal(value)) == text


def test_a_refused_build_writes_nothing_and_says_why(tmp_path: Path) -> None:
    out = tmp_path / "models.json"
    listed = provider(
        "openrouter", model("openai/gpt-x", usd(input="1.25", output="10")), model("a/b", usd(input="1", output="1"))
    )
    own = provider("openai", model("gpt-x", usd(input="1.25", output="12")))
    report = build.publish(found(listed, own), Decisions({"leave_out": {"z": "t"}}), out, DAY)
    assert not out.exists()
    written = io.StringIO()
    report.write(written)
    assert (
        "REFUSED openai/gpt-x: openrouter input 1.25 / output 10, but vendor input 1.25 / output 12"
        in written.getvalue()
    )
    assert "stale decisions: z" in written.getvalue()


def test_a_build_that_is_not_refused_writes_a_good_file_and_names_what_is_ambiguous(tmp_path: Path) -> None:
    out = tmp_path / "models.json"
    listed = provider("openrouter", *(model(name, usd(input="1", output="1")) for name in ("a/m", "b/m", "c/d:free")))
    report = build.publish(found(listed), Decisions({}), out, DAY)
    assert report.refused == []
    assert list(check.problems(out.read_bytes())) == []
    assert "m could also be b/m; it means a/m" in report.notes
    written = io.StringIO()
    report.write(written, verbose=True)
    assert "left out: c/d:free: a variant or a pointer to another row" in written.getvalue()


def test_an_open_model_that_its_maker_retired_is_sold_by_others() -> None:
    listed = provider("openrouter", model("openai/gpt-oss", usd(input="1.25", output="10")))
    entry = {"name": "O", "open_weights": True, "limit": {}, "modalities": {"input": ["text"], "output": ["text"]}}
    litellm = {"gpt-oss": direct(output_cost_per_token=Decimal("0.00001"), deprecation_date="2026-01-01")}
    rows, _ = make(found(listed, litellm=litellm, before={"openai/gpt-oss": entry}))
    assert rows["openai/gpt-oss"]["upstreams"] == [{"upstream": "default", "model": "openai/gpt-oss"}]
