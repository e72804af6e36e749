"""The JSON schema of a models file, from the same closed sets that the reader uses."""

from typing import Any, Final

from ppq_proxy.catalog.offerings import CAPABILITIES, FIELDS, METHODS, MODALITIES, TOKENIZERS, TYPES
from ppq_proxy.catalog.prices import UNITS_OF, VARIANTS

_AMOUNT: Final = {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,15})?$"}
_MARGIN: Final = {"type": "string", "pattern": r"^-?[0-9]{1,3}(\.[0-9]{1,9})?$"}
_JSON_TYPES: Final[dict[Any, dict[str, Any]]] = {
    str: {"type": "string"}, int: {"type": "integer", "minimum": 1}, bool: {"type": "boolean"},
    list: {"type": "array"}, dict: {"type": "object"},
}  # fmt: skip


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    fields: dict[str, Any] = {name: _JSON_TYPES[kind] for name, kind in FIELDS.items()}
    fields |= {
        "type": {"enum": list(TYPES)},
        "margin": _MARGIN,
        "prices": {"type": "array", "items": {"oneOf": [_price(of, units) for of, units in UNITS_OF.items()]}},
        "upstreams": {"type": "array", "minItems": 1, "items": _object({"upstream": {}, "model": {}}, ["upstream"])},
        "modalities": _object({side: _list_of(MODALITIES) for side in ("in", "out")}, []),
        "capabilities": _list_of(CAPABILITIES),
        "aliases": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "parameters": {"type": "object", "additionalProperties": {"type": "object"}},
        "tokenizer": {"enum": list(TOKENIZERS)},
        "method": {"enum": list(METHODS)},
        "created": {"type": "string", "format": "date"},
        "checked": {"type": "string", "format": "date"},
    }
    rows = {"type": "array", "items": _object(fields, ["id", "type", "prices"])}
    top = {"margin": _MARGIN, "note": {"type": "string"}, "built": {"type": "string", "format": "date"}}
    shown = _object({**top, "sources": {"type": "array"}, "models": rows}, ["models"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "models.json", **shown}


def _price(of: str, units: tuple[str, ...]) -> dict[str, Any]:
    when: dict[str, Any] = {name: {"type": "string", "minLength": 1} for name in VARIANTS}
    when["context_above"] = {"type": "integer", "minimum": 0}
    fields = {"of": {"const": of}, "unit": {"enum": list(units)}, "usd": _AMOUNT}
    return _object({**fields, "when": {**_object(when, []), "minProperties": 1}}, ["of", "unit", "usd"])


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    typed = {name: rules or {"type": "string", "minLength": 1} for name, rules in properties.items()}
    return {"type": "object", "properties": typed, "required": required, "additionalProperties": False}


def _list_of(values: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "array", "items": {"enum": list(values)}}
