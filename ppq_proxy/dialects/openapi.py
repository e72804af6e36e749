"""The OpenAPI document, made from the table of paths and their handlers."""

import re
from typing import Any

from ppq_proxy import __version__
from ppq_proxy.front import Path


def document(paths: list[Path]) -> dict[str, Any]:
    """OpenAPI 3.1: every path and method, with what its handler's first line says."""
    described: dict[str, Any] = {}
    for path in paths:
        name = re.sub(r"\{(\w+):\w+\}", r"{\1}", path.path)
        described[name] = {method.lower(): _operation(handler.__doc__ or "", name) for method, handler in path.handlers.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ppq_proxy", "version": __version__},
        "paths": described,
    }


def _operation(doc: str, name: str) -> dict[str, Any]:
    parameters = [{"name": part, "in": "path", "required": True, "schema": {"type": "string"}} for part in re.findall(r"\{(\w+)\}", name)]
    operation: dict[str, Any] = {"summary": doc.strip().split("\n")[0], "responses": {"default": {"description": "see the documentation"}}}
    if parameters:
        operation["parameters"] = parameters
    return operation
