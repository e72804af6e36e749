"""Reading a models file, resolving names, listing and showing what is sold."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.catalog import (
    Catalog,
    CatalogError,
    UnknownModel,
    UnknownType,
    UnpricedModel,
    parse_types,
)
from ppq_proxy.catalog.aliases import normal


def row(model: str, **fields: Any) -> dict[str, Any]:
    """A chat row at 1 and 2 dollars."""
    prices = [{"of": of, "unit": "mtok", "usd": usd} for of, usd in (("input", "1"), ("output", "2"))]
    return {"id": model, "type": "chat", "prices": prices, **fields}


def image(model: str, **fields: Any) -> dict[str, Any]:
    """An image row at four cents."""
    return {"id": model, "type": "image", "prices": [{"of": "image", "unit": "image", "usd": "0.04"}], **fields}


def load(*rows: Any, **fields: Any) -> Catalog:
    return Catalog.load(json.dumps({"margin": "0", "models": rows, **fields}).encode())


def test_a_row_needs_only_id_type_and_prices() -> None:
    offering = load(row("test/story")).resolve("test/story")
    assert offering.upstreams == (("default", "test/story"),)
    assert (offering.name, offering.provider, offering.context, offering.free) == ("test/story", "test", None, False)


def test_the_margin_of_a_row_goes_before_the_files_and_that_before_the_default() -> None:
    rows = [row("a/own", margin="0.5"), row("a/files")]
    catalog = load(*rows, margin="0.1")
    assert catalog.resolve("a/own").prices.charge({"input": 1_000_000}) == 1_500_000_000
    assert catalog.resolve("a/files").prices.charge({"input": 1_000_000}) == 1_100_000_000
    bare = Catalog.load({"models": rows}, default_margin="0.2")
    assert bare.resolve("a/files").prices.charge({"input": 1_000_000}) == 1_200_000_000


def test_a_file_can_be_read_from_a_path_bytes_or_what_it_parses_to(tmp_path: Path) -> None:
    content = {"margin": "0", "models": [row("a/b")]}
    path = tmp_path / "models.json"
    path.write_text(json.dumps(content))
    assert Catalog.load(path).version == Catalog.load(str(path)).version == Catalog.load(path.read_bytes()).version
    assert [one.id for one in Catalog.load(content).offerings] == ["a/b"]


def test_the_version_changes_with_any_price_and_with_the_margin() -> None:
    versions = {
        load(row("a/b")).version,
        load(row("a/b"), margin="0.055").version,
        load(row("a/b"), row("a/c")).version,
        Catalog.load({"models": [row("a/b")]}, "0.1").version,
        Catalog.load({"models": [row("a/b")]}, "0.2").version,
    }
    assert len(versions) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "a/b", "type": "chat"}, r"models\[1\] \(a/b\): prices: is missing"),
        ({**row("a/b"), "type": "chats"}, r"models\[1\] \(a/b\): type: 'chats' is not one of chat"),
        ({**row("a/b"), "max_ouput": 5}, r"max_ouput: is not a known field"),
        ({**row("a/b"), "context": "8k"}, r"context: is not a whole number"),
        ({**row("a/b"), "context": True}, r"context: is not a whole number"),
        ({**row("a/b"), "context": 0}, r"context: is not above zero"),
        ({**row("a/b"), "prices": row("")["prices"][:1]}, r"prices: has no unconditional price for 'output'"),
        (
            {**row("a/b"), "prices": [{"of": "input", "unit": "mtok", "usd": 1}]},
            r"prices\[0\]\.usd: 1 is not a decimal",
        ),
        ({**row("a/b"), "margin": "5%"}, r"\(a/b\): margin: '5%' is not a decimal string"),
        ({**row("a/b"), "upstreams": []}, r"upstreams: is empty"),
        ({**row("a/b"), "upstreams": [{"model": "x"}]}, r"upstreams\[0\]: is not"),
        ({**row("a/b"), "capabilities": ["telepathy"]}, r"capabilities: 'telepathy' is not one of"),
        ({**row("a/b"), "modalities": {"in": ["smell"]}}, r"modalities: is not"),
        ({**row("a/b"), "tokenizer": "gpt2"}, r"tokenizer: is not one of"),
        ({**row("a/b"), "created": "last year"}, r"created: 'last year' is not a date"),
        ({**row("a/b"), "parameters": {"size": "big"}}, r"parameters\.size: is not an object"),
        ({**row("a/b"), "aliases": [5]}, r"aliases: 5 is not a name"),
        ({**row("a/b"), "id": " "}, r"id: is empty"),
        ("a/b", r"models\[1\]: row: is not an object"),
    ],
)
def test_an_error_names_the_row_and_the_field(bad: Any, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        load(row("a/good"), bad)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[]", 'a list "models"'),
        (b'{"models": {}}', 'a list "models"'),
        (b'{"models": [], "margins": "1"}', "margins: is not a known field"),
        (b'{"models": [], "margin": "x"}', "margin: 'x' is not"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        Catalog.load(content)


def test_PPQ_025_ids_resolve_with_dots_or_dashes_and_with_or_without_vendor() -> None:
    catalog = load(
        row("anthropic/claude-sonnet-4.6"), row("anthropic/claude-sonnet-4-5"), row("local", provider="house")
    )
    for name in (
        "claude-sonnet-4.6",
        "claude-sonnet-4-6",
        "anthropic/claude-sonnet-4-6",
        "Anthropic/Claude-Sonnet-4.6",
    ):
        assert catalog.resolve(name).id == "anthropic/claude-sonnet-4.6", name
    for name in ("claude-sonnet-4.5", "claude-sonnet-4-5", "ANTHROPIC/claude-sonnet-4.5"):
        assert catalog.resolve(name).id == "anthropic/claude-sonnet-4-5", name
    assert catalog.resolve("house/local").id == "local"


def test_dates_and_suffixes_are_other_names_unless_declared() -> None:
    catalog = load(row("openai/gpt-5-mini", aliases=["openai/gpt-5-mini-2025-08-07"]), row("openai/gpt-4.1"))
    assert catalog.resolve("gpt-5-mini-2025-08-07").id == "openai/gpt-5-mini"
    for name in ("gpt-4.1-2025-04-14", "gpt-5-mini:online", "openai/gpt-5-mini:free", "gpt-5", "", "azure/gpt-5-mini"):
        with pytest.raises(UnknownModel):
            catalog.resolve(name)


def test_of_two_rows_that_a_short_name_could_mean_the_first_has_it_and_it_is_reported() -> None:
    catalog = load(row("a/model-1"), row("b/model-1"), image("c/model.1"))
    assert catalog.resolve("model-1").id == "a/model-1"
    assert catalog.resolve("b/model-1").id == "b/model-1"
    assert catalog.ambiguous == (("model-1", "a/model-1", ("b/model-1", "c/model.1")),)


@pytest.mark.parametrize(
    "rows",
    [
        (row("a/b"), row("a/b")),
        (row("a/b-1"), row("a/b.1")),
        (row("a/b"), row("a/c", aliases=["A/B"])),
        (row("a/b", aliases=["x"]), row("a/c", aliases=["x"])),
    ],
)
def test_two_rows_with_one_name_are_refused(rows: tuple[Any, ...]) -> None:
    with pytest.raises(CatalogError, match="names both"):
        load(*rows)


def test_a_private_models_prefix_is_part_of_its_name() -> None:
    catalog = load(row("private/kimi-k2-5", private=True))
    assert catalog.resolve("private/kimi-k2.5").private
    with pytest.raises(UnknownModel):
        catalog.resolve("kimi-k2-5")


@given(
    st.sampled_from(["openai/gpt-5-mini", "anthropic/claude-sonnet-4.6", "smollm2-135m", "z-ai/GLM-4.5-X"]), st.data()
)
def test_any_mix_of_case_dots_and_dashes_is_the_same_name(model: str, data: st.DataObject) -> None:
    catalog = load(
        *(row(one) for one in ("openai/gpt-5-mini", "anthropic/claude-sonnet-4.6", "smollm2-135m", "z-ai/GLM-4.5-X"))
    )
    letters = [data.draw(st.sampled_from([c.lower(), c.upper(), *({".", "-"} if c in ".-" else {c})])) for c in model]
    written = "".join(letters)
    if data.draw(st.booleans()):
        written = written.rpartition("/")[2]
    assert catalog.resolve(written).id == model


@given(st.text(max_size=40))
def test_no_other_text_names_a_model(text: str) -> None:
    catalog = load(row("openai/gpt-5-mini"))
    if normal(text) not in ("openai/gpt-5-mini", "gpt-5-mini"):
        with pytest.raises(UnknownModel):
            catalog.resolve(text)


def test_an_unknown_model_comes_with_the_nearest_ids() -> None:
    catalog = load(row("anthropic/claude-sonnet-4.6"), row("anthropic/claude-opus-5"), row("openai/gpt-5-mini"))
    with pytest.raises(UnknownModel) as caught:
        catalog.resolve("claude-sonet-4.6")
    assert caught.value.nearest[0] == "anthropic/claude-sonnet-4.6"
    assert "did you mean anthropic/claude-sonnet-4.6" in str(caught.value)
    assert catalog.nearest("zzzz") == []
    assert len(catalog.nearest("claude", n=1)) == 1
    assert len(str(UnknownModel("x" * 10_000, []))) < 200


def test_a_row_without_prices_is_known_and_neither_sold_nor_listed() -> None:
    catalog = load(row("a/b"), {"id": "a/unpriced", "type": "chat", "prices": []})
    with pytest.raises(UnpricedModel, match="a/unpriced"):
        catalog.resolve("a/unpriced")
    assert [one.id for one in catalog.listed("all")] == ["a/b"]


def test_offerings_of_upstreams_that_are_not_there_are_not_sold() -> None:
    two = [{"upstream": "direct", "model": "b"}, {"upstream": "default", "model": "a/b"}]
    catalog = load(row("a/b", upstreams=two), row("a/c", upstreams=two[:1]), row("a/d"))
    default = catalog.restrict({"default"})
    assert [one.id for one in default.offerings] == ["a/b", "a/d"]
    assert default.resolve("a/b").upstreams == (("default", "a/b"),)
    assert default.version == catalog.version
    assert catalog.restrict(["direct", "default"]).resolve("a/b").upstreams == (("direct", "b"), ("default", "a/b"))
    with pytest.raises(UnknownModel):
        default.resolve("a/c")
    assert default.nearest("a/cc") != ["a/c"]


def test_joining_adds_only_names_that_are_free() -> None:
    joined = load(row("a/b")).joined(load(row("A/B", margin="9"), row("b", margin="9"), row("a/c")))
    assert [one.id for one in joined.offerings] == ["a/b", "a/c"]
    assert joined.resolve("b").prices.charge({"input": 1}) == 1_000


def test_PPQ_021_without_a_type_the_list_is_chat() -> None:
    catalog = load(row("a/chat"), image("a/image"), row("private/x", private=True))
    assert [one.id for one in catalog.listed()] == ["a/chat"]
    assert [one.id for one in catalog.listed("")] == ["a/chat"]
    assert [one.id for one in catalog.listed("text")] == ["a/chat"]


def test_PPQ_017_all_types_include_private_models() -> None:
    catalog = load(row("a/chat"), image("a/image"), row("private/x", private=True))
    assert {one.id for one in catalog.listed("all")} == {"a/chat", "a/image", "private/x"}


def test_PPQ_018_a_comma_list_asks_for_several_types() -> None:
    catalog = load(row("a/chat"), image("a/image"))
    assert [one.id for one in catalog.listed("image,video")] == ["a/image"]
    assert parse_types(" image, VIDEO ,") == {"image", "video"}
    with pytest.raises(UnknownType, match="smell"):
        catalog.listed("image,smell")


def test_a_variant_is_read_from_a_request_with_the_rows_defaults() -> None:
    prices = [
        {"of": "call", "unit": "call", "usd": "1", "when": {"duration": d, "quality": "720p"}} for d in ("5", "10")
    ]
    parameters = {
        "duration": {"values": ["5", "10"], "default": "5"},
        "quality": {"default": "720p"},
        "seed": {"default": 1},
    }
    offering = load({"id": "v", "type": "video", "prices": prices, "parameters": parameters}).resolve("v")
    assert offering.variant({}) == {"duration": "5", "quality": "720p"}
    assert offering.variant({"duration": 10, "quality": "720P", "seed": 4}) == {"duration": "10", "quality": "720p"}
    assert offering.variant({"duration": "10s"})["duration"] == "10"
    assert offering.variant({"duration": ["5"]}) == {"quality": "720p"}
