"""The check of a models file finds what the reader lets through."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from ppq_proxy.catalog import check, default_path
from ppq_proxy.catalog.schema import schema

GOOD: dict[str, Any] = {
    "id": "a/b",
    "type": "chat",
    "name": "B",
    "provider": "a",
    "context": 1000,
    "max_output": 500,
    "created": "2026-01-01",
    "upstreams": [{"upstream": "default", "model": "a/b"}],
    "prices": [{"of": of, "unit": "mtok", "usd": "1"} for of in ("input", "output")],
    "source": "https://example.com",
    "checked": "2026-11-20",
}


def problems(*rows: Any, **fields: Any) -> list[str]:
    return list(check.problems(json.dumps({"margin": "0", "models": rows, **fields}).encode()))


def priced(of: str, unit: str, usd: str, **when: str) -> dict[str, Any]:
    return {"of": of, "unit": unit, "usd": usd, **({"when": when} if when else {})}


def test_a_good_row_has_no_problems() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"prices": [*GOOD["prices"], priced("cache_read", "mtok", "5000")]},
            "prices[2]: 5000 for a mtok of cache_read",
        ),
        ({"prices": [priced("input", "mtok", "0.00000025"), GOOD["prices"][1]]}, "prices[0]: 0.00000025 for a mtok"),
        ({"prices": []}, "prices: is empty"),
        ({"max_output": 2000}, "max_output: is more than the context"),
        ({"context": None}, "context: is not a whole number"),
        ({"source": "example.com"}, "source: is not an https URL"),
        ({"source": ""}, "source: is missing"),
        ({"prices": [priced("input", "mtok", "0"), GOOD["prices"][1]]}, 'prices[0].usd: is zero, which needs "free"'),
        ({"parameters": {"size": {"values": ["1K"], "default": "2K"}}}, "parameters.size: the default '2K'"),
        ({"typo": 1}, "typo: is not a known field"),
    ],
)
def test_a_bad_row_is_found(change: dict[str, Any], problem: str) -> None:
    found = problems({**GOOD, **change})
    assert any(problem in one for one in found), found


@pytest.mark.parametrize(
    "field", ["name", "provider", "source", "checked", "upstreams", "context", "max_output", "created"]
)
def test_a_published_row_needs_more_than_the_reader_does(field: str) -> None:
    assert problems({key: value for key, value in GOOD.items() if key != field}) == [f"a/b: {field}: is missing"]


def test_a_price_for_what_cannot_be_asked_for_is_found() -> None:
    row = {**GOOD, "type": "image", "prices": [priced("image", "image", "0.1", resolution="1k")]}
    assert "a/b: prices: resolution '1k' is not among the parameter's values" in problems(row)
    assert problems({**row, "parameters": {"resolution": {"values": ["1K"], "default": "1K"}}}) == []


def test_an_hours_price_is_judged_by_its_seconds() -> None:
    row = {**GOOD, "type": "audio", "prices": [priced("second", "hour", "3.6")]}
    assert problems(row) == []
    assert problems({**row, "prices": [priced("second", "hour", "0.00001")]}) != []


def test_all_bad_rows_are_found_at_once() -> None:
    assert len(problems({**GOOD, "id": "a/c", "type": "x"}, "row", {**GOOD, "checked": "soon"})) == 3


def test_names_that_two_rows_claim_are_found() -> None:
    assert problems(GOOD, {**GOOD, "id": "A/B"}) == ["A/B: the name 'A/B' already means a/b"]
    assert problems(GOOD, {**GOOD, "id": "a/c", "aliases": ["a/b"]}) == ["a/c: the name 'a/b' already means a/b"]
    assert problems(GOOD, GOOD) == ["a/b: stands twice"]


def test_a_name_that_stands_twice_in_an_object_is_found() -> None:
    raw = json.dumps({"models": [GOOD]}).replace('"id": "a/b"', '"id": "a/x", "id": "a/b"')
    assert list(check.problems(raw.encode())) == ["the name 'id' stands twice in one object"]


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"models": 1}', b'{"models": [], "margin": 5}'])
def test_a_file_that_is_none_is_a_problem(raw: bytes) -> None:
    assert len(list(check.problems(raw))) == 1


def test_the_command_ends_with_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"margin": "0", "models": [GOOD]}))
    assert check.main([str(path)]) == 0
    path.write_text(json.dumps({"margin": "0", "models": [GOOD, GOOD]}))
    assert check.main([str(path)]) == 1
    assert "a/b: stands twice" in capsys.readouterr().err
    assert check.main(["a", "b"]) == 2
    assert check.main([]) == 0


def test_the_schema_is_made_from_the_same_sets_and_not_stale() -> None:
    assert json.loads(check.SCHEMA_PATH.read_text(encoding="utf-8")) == schema()


def test_the_published_file_and_what_is_refused_agree_with_the_schema() -> None:
    validator = jsonschema_rs.Draft202012Validator(schema())
    assert not list(validator.iter_errors(json.loads(default_path().read_bytes())))
    for change in ({"type": "x"}, {"typo": 1}, {"context": 0}, {"prices": [priced("input", "second", "1")]}):
        assert list(validator.iter_errors({"models": [{**GOOD, **change}]})), change
