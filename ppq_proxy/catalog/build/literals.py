"""Reads data that a package keeps as Python constructor calls, as data: the source is parsed, never run."""

import ast
from datetime import date, time
from decimal import Decimal
from typing import Any


class Record(dict[str, Any]):
    """The keyword arguments of one constructor call; `kind` is the constructor's name."""

    def __init__(self, kind: str, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.kind = kind


def assigned(source: str, name: str) -> Any:
    """What a module assigns to `name` at its top level. Raises ValueError for anything but literals and records."""
    for node in ast.parse(source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            return _value(node.value)
    raise ValueError(f"nothing is assigned to {name!r}")


def _value(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.Call(func=function, args=args, keywords=keywords):
            return _call(
                _name(function), [_value(arg) for arg in args], {word.arg: _value(word.value) for word in keywords}
            )
        case ast.Attribute() | ast.Name():
            return _name(node)
        case _:
            raise ValueError(f"line {getattr(node, 'lineno', '?')}: not a literal")


def _call(name: str, args: list[Any], fields: dict[Any, Any]) -> Any:
    if name == "Decimal" and len(args) == 1:
        return Decimal(str(args[0]))
    if name == "datetime.date":
        return date(*args, **fields)
    if name == "datetime.time":
        return time(*args, **{key: value for key, value in fields.items() if key != "tzinfo"})
    if args:
        raise ValueError(f"{name} has arguments without names")
    return Record(name, fields)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise ValueError(f"line {node.lineno}: not a name")
