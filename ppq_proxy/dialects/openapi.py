"""The OpenAPI document, made from the table of paths and from what each handler says of itself.

A dialect describes a handler where it is written, `@described("What it does", body=…, ok=…)`, with schemas that stand
in the same file or in `dialects.schemas`. Shapes: OpenAPI Specification 3.1.1; schemas are JSON Schema 2020-12.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from ppq_proxy import __version__
from ppq_proxy.front import Path

Document = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "openapi_operation"
JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
#: Credentials by the name of their security scheme: those of an API key, and of whoever pays by the call.
KEY: Final = ("bearer", "api_key", "x_api_key")
HOLDER: Final = ("credit_id",)
GUEST: Final = ("l402", "payment")
PAYER: Final = (*KEY, *HOLDER, *GUEST)
SCHEMES: Final[Mapping[str, Mapping[str, str]]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer sk-…`."},
    "api_key": {"type": "apiKey", "in": "header", "name": "api-key", "description": "An API key."},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key."},
    "credit_id": {"type": "apiKey", "in": "header", "name": "x-credit-id", "description": "The account's credit id."},
    "credit_id_query": {
        "type": "apiKey",
        "in": "query",
        "name": "credit_id",
        "description": "The account's credit id.",
    },
    "l402": {"type": "http", "scheme": "L402", "description": "A paid call: `L402 <token>:<preimage>`."},
    "payment": {"type": "http", "scheme": "Payment", "description": "A paid call: `Payment <credential>`."},
}
ERRORS: Final[Mapping[int, str]] = {
    400: "The request is malformed; `error.param` names the field.",
    401: "No key, or one that is wrong, revoked or expired.",
    402: "The balance does not pay for the call (`required` and `available` say how far), or nothing was shown that "
    "pays: then with challenges, where the gateway has a wallet.",
    403: "The key may not do this, or its own spending limit is reached.",
    404: "There is no such thing.",
    409: "The state of something forbids this, or a call with the same Idempotency-Key is still running.",
    413: "The body is over the limit.",
    422: "The Idempotency-Key was used with another request.",
    429: "Too many requests or tokens in this minute.",
    502: "The upstream's answer cannot be used.",
    503: "The upstream or the database cannot be used at the moment.",
    504: "The upstream took too long.",
}
PAID: Final = (400, 401, 402, 403, 404, 409, 413, 422, 429, 502, 503, 504)
"""What a call that is charged for may end with."""


class Named(NamedTuple):
    """A schema that stands in the components under its name and is referred to."""

    name: str
    schema: Mapping[str, Any]


Schema = Named | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """What the document says of one method of a path; `described` has the meaning of the fields."""

    summary: str
    tag: str
    auth: Sequence[str] = ()
    optional_auth: bool = False
    parameters: Sequence[Mapping[str, Any]] = ()
    body: Schema | None = None
    body_required: bool = True
    ok: Mapping[str, Schema] = field(default_factory=dict)
    status: int = 200
    more: Mapping[int, Schema] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[int] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def described(summary: str, **fields: Any) -> Callable[[F], F]:
    """Note on a handler what the document says of it.

    `tag` groups it; `auth` names `SCHEMES` of which one is needed (`optional_auth`: none at all is fine, too); `ok` are
    the schemas of a success by media type and `status` its status, `more` the schemas of other answers that are no errors
    by theirs; `headers` describe what a success carries besides the request id; `errors` are the statuses that come in
    the path's envelope; `extra` goes into the operation as it is.
    """
    return _mark(Operation(summary, **fields))


def shaped(schema: Schema) -> Callable[[F], F]:
    """Note on a dialect's envelope which schema its errors have."""
    return _mark(schema)


def _mark(value: object) -> Callable[[F], F]:
    def mark(function: F) -> F:
        setattr(function, MARK, value)
        return function

    return mark


def document(paths: Sequence[Path]) -> Document:
    """The OpenAPI 3.1 document of all paths and methods. A handler that is not described stands there by its name."""
    components: dict[str, Any] = {}
    described_paths: Document = {}
    for path in paths:
        name = re.sub(r"\{(\w+):\w+\}", r"{\1}", path.path)
        described_paths[name] = {
            method.lower(): _rendered(name, method, operation_of(handler), getattr(path.envelope, MARK, {}), components)
            for method, handler in path.handlers.items()
        }
    tags = sorted({operation["tags"][0] for methods in described_paths.values() for operation in methods.values()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ppq_proxy",
            "version": __version__,
            "description": "AI APIs paid by prepaid credit or by the call, charged to the nano-dollar.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": described_paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {name: dict(scheme) for name, scheme in SCHEMES.items()},
        },
    }


def operation_of(handler: Callable[..., Any]) -> Operation:
    """What was noted on a handler."""
    found = getattr(handler, MARK, None)
    return found if isinstance(found, Operation) else Operation(handler.__name__.replace("_", " "), "other")


def _rendered(name: str, method: str, operation: Operation, error: Schema, components: Document) -> Document:
    shown: Document = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{name}").strip("_"),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_path_parameters(name, operation), *operation.parameters, REQUEST_ID],
        "responses": _responses(operation, error, components),
        **operation.extra,
    }
    if operation.body is not None:
        schema = _schema(operation.body, components)
        shown["requestBody"] = {"required": operation.body_required, "content": {JSON: {"schema": schema}}}
    security: list[dict[str, list[str]]] = [{scheme: []} for scheme in operation.auth]
    shown["security"] = [*security, {}] if operation.optional_auth else security
    return shown


def _path_parameters(name: str, operation: Operation) -> list[Mapping[str, Any]]:
    """Those of the path that the operation does not describe itself."""
    known = {parameter["name"] for parameter in operation.parameters if parameter["in"] == "path"}
    found = [part for part in re.findall(r"\{(\w+)\}", name) if part not in known]
    return [{"name": part, "in": "path", "required": True, "schema": {"type": "string"}} for part in found]


def _responses(operation: Operation, error: Schema, components: Document) -> Document:
    content = {kind: {"schema": _schema(schema, components)} for kind, schema in operation.ok.items()}
    headers: Document = {
        name: {"description": says, "schema": {"type": "string"}} for name, says in operation.headers.items()
    }
    headers |= HEADERS_OF_ALL
    success = {"description": "Done.", "headers": headers, "content": content}
    responses: Document = {str(operation.status): success}
    for status, schema in operation.more.items():
        more = {JSON: {"schema": _schema(schema, components)}}
        responses[str(status)] = {"description": ERRORS[status], "headers": HEADERS_OF_ALL, "content": more}
    for status in operation.errors:
        of_error = dict(HEADERS_OF_ALL) | {name: HEADERS[name] for name in HEADERS_BY_STATUS.get(status, ())}
        envelope = {JSON: {"schema": _schema(error, components)}}
        responses[str(status)] = {"description": ERRORS[status], "headers": of_error, "content": envelope}
    return responses


def _schema(schema: Any, components: dict[str, Any]) -> Any:
    """A schema with references in the place of the named ones, which are added to the components."""
    if isinstance(schema, Named):
        if schema.name not in components:
            components[schema.name] = None  # a name that refers to itself ends here
            components[schema.name] = _schema(schema.schema, components)
        return {"$ref": f"#/components/schemas/{schema.name}"}
    if isinstance(schema, Mapping):
        return {name: _schema(part, components) for name, part in schema.items()}
    if isinstance(schema, list | tuple):
        return [_schema(part, components) for part in schema]
    return schema


def query(name: str, schema: Mapping[str, Any], says: str, **more: Any) -> Mapping[str, Any]:
    """A parameter in the query."""
    return {"name": name, "in": "query", "required": False, "description": says, "schema": schema, **more}


def header(name: str, schema: Mapping[str, Any], says: str) -> Mapping[str, Any]:
    """A parameter in a header."""
    return {"name": name, "in": "header", "required": False, "description": says, "schema": schema}


def in_path(name: str, schema: Mapping[str, Any], says: str) -> Mapping[str, Any]:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "description": says, "schema": schema}


REQUEST_ID: Final = header(
    "x-request-id", {"type": "string"}, "An id of the caller's for this answer; one is made where it is no plain token."
)
IDEMPOTENCY_KEY: Final = header(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "The same key with the same body is one upstream call, one charge and one answer, for a day.",
)
HEADERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "x-request-id": {"description": "The id of this answer.", "required": True, "schema": {"type": "string"}},
    "retry-after": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "x-ratelimit-limit-requests": {"description": "Requests a minute.", "schema": {"type": "string"}},
    "x-ratelimit-remaining-requests": {"description": "Requests left in this minute.", "schema": {"type": "string"}},
    "x-ratelimit-limit-tokens": {"description": "Tokens a minute.", "schema": {"type": "string"}},
    "x-ratelimit-remaining-tokens": {"description": "Tokens left in this minute.", "schema": {"type": "string"}},
    "www-authenticate": {"description": "One challenge for each way to pay.", "schema": {"type": "string"}},
}
HEADERS_OF_ALL: Final = {"x-request-id": HEADERS["x-request-id"]}
HEADERS_BY_STATUS: Final[Mapping[int, Sequence[str]]] = {
    402: ("www-authenticate",),
    409: ("retry-after",),
    429: ("retry-after", *(name for name in HEADERS if name.startswith("x-ratelimit"))),
    503: ("retry-after",),
}
