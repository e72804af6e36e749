"""OpenAI's dialect: chat completions, models, and the error envelope (OpenAI API reference)."""

import re
from typing import Any

import orjson

from ppq_proxy.catalog.catalog import UnknownModel, UnknownType, UnpricedModel
from ppq_proxy.catalog.offerings import TYPES, Offering
from ppq_proxy.checkout import Checkout
from ppq_proxy.dialects import schemas
from ppq_proxy.dialects.openapi import EVENTS, IDEMPOTENCY_KEY, JSON, PAID, PAYER, described, query, shaped
from ppq_proxy.errors import BadRequest, GatewayError, ModelNotFound
from ppq_proxy.exchange import Exchange, dump
from ppq_proxy.providers.openai import ChatCompletions, Embeddings
from ppq_proxy.sale import Order
from ppq_proxy.shelf import Shelf

MOST_CHOICES = 128
MOST_TOKENS = 10**9
CAPS = ("max_tokens", "max_completion_tokens")
ESCAPED_LETTER = re.compile(rb"\\u00[46]", re.IGNORECASE)
NEW_CAP_VENDORS = ("openai",)


@shaped(schemas.ERROR)
def envelope(problem: GatewayError, request_id: str) -> dict[str, Any]:
    """{"error": {"message", "type", "param", "code", "request_id", …}}, as the OpenAI SDKs read it."""
    error = {
        "message": problem.message,
        "type": problem.kind,
        "param": problem.param,
        "code": problem.code,
        **problem.fields,
        "request_id": request_id,
    }
    return {"error": error, **problem.body}


def failure_event(problem: GatewayError) -> bytes:
    """An error inside a stream: SDKs raise on a data object with an `error`; no [DONE] follows."""
    error = {"message": problem.message, "type": problem.kind, "param": None, "code": problem.code}
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def parse(raw: bytes) -> dict[str, Any]:
    """A JSON object with no more than one "model": two parsers that disagree on which holds would price another one.

    Raises `BadRequest`.
    """
    if not raw.strip():
        raise BadRequest("The body is empty; a JSON object with model and messages is expected.")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as problem:
        raise BadRequest(f"The body is not valid JSON: {problem}.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    if raw.count(b'"model"') > 1 or (b"\\u" in raw and ESCAPED_LETTER.search(raw)):
        _refuse_second_model(raw)
    return body


def _refuse_second_model(raw: bytes) -> None:
    import json

    seen: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        seen[:] = [name for name, _ in found]
        return {}

    json.loads(raw, object_pairs_hook=pairs)  # the outermost object comes last
    if seen.count("model") > 1:
        raise BadRequest('The body has "model" more than once.', param="model")


def whole_number(body: dict[str, Any], name: str, most: int) -> int | None:
    """A field that is a whole number of at least 1, or absent or null. Raises `BadRequest`."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise BadRequest(f"{name} must be a whole number from 1 to {most}.", param=name)
    return value


class OpenAI:
    """Handlers of the OpenAI-compatible paths."""

    def __init__(self, checkout: Checkout, shelf: Shelf, max_body: int) -> None:
        self.checkout, self.shelf, self.max_body = checkout, shelf, max_body
        self._wire, self._embeddings = ChatCompletions(), Embeddings()
        self._listings: dict[tuple[str, str | None], bytes] = {}

    @described(
        "Chat completion, whole or streamed",
        tag="chat",
        auth=PAYER,
        parameters=(IDEMPOTENCY_KEY,),
        body=schemas.CHAT_REQUEST,
        ok={JSON: schemas.CHAT_ANSWER, EVENTS: schemas.EVENT_STREAM},
        headers={
            "x-cost-usd": "What a whole answer was charged, as a decimal.",
            "x-max-tokens-clamped": "The output limit sent upstream, where the hold did not pay for the one asked for.",
            "x-credit-remaining-usd": "What is left of a payment by the call.",
        },
        errors=PAID,
    )
    async def chat(self, exchange: Exchange) -> None:
        """POST /chat/completions."""
        await self.checkout.serve(exchange, self.order(await exchange.body(self.max_body)), failure_event)

    def order(self, raw: bytes) -> Order:
        """A chat request, validated. Raises `BadRequest`, `ModelNotFound`."""
        body = parse(raw)
        offering = self.offering(body.get("model"), "chat")
        _check_messages(body.get("messages"))
        stream = body.get("stream")
        if stream is not None and type(stream) is not bool:
            raise BadRequest("stream must be true or false.", param="stream")
        options = body.get("stream_options")
        if options is not None and (
            not isinstance(options, dict) or type(options.get("include_usage", False)) not in (bool, type(None))
        ):
            raise BadRequest('stream_options must be an object like {"include_usage": true}.', param="stream_options")
        caps = {name: cap for name in CAPS if (cap := whole_number(body, name, MOST_TOKENS)) is not None}
        n = whole_number(body, "n", MOST_CHOICES) or 1
        cap_field = CAPS[1] if offering.provider in NEW_CAP_VENDORS else CAPS[0]
        return Order(offering, self._wire, body, raw, bool(stream), caps, n, cap_field)

    @described(
        "Embeddings of a text, texts, or token ids",
        tag="embeddings",
        auth=PAYER,
        parameters=(IDEMPOTENCY_KEY,),
        body=schemas.EMBEDDING_REQUEST,
        ok={JSON: schemas.EMBEDDING_ANSWER},
        headers={"x-cost-usd": "What the answer was charged, as a decimal."},
        errors=PAID,
    )
    async def embeddings(self, exchange: Exchange) -> None:
        """POST /embeddings."""
        raw = await exchange.body(self.max_body)
        body = parse(raw)
        offering = self.offering(body.get("model"), "embedding")
        _check_input(body.get("input"))
        order = Order(offering, self._embeddings, body, raw, False, {})
        await self.checkout.serve(exchange, order, failure_event)

    def offering(self, model: Any, kind: str) -> Offering:
        """What a request's `model` means. Raises `BadRequest`, `ModelNotFound`."""
        if not isinstance(model, str) or not model:
            raise BadRequest("model must be the id of a model; GET /v1/models lists them.", param="model")
        try:
            offering = self.shelf.catalog.resolve(model)
        except UnknownModel as problem:
            hint = f" Did you mean {', '.join(problem.nearest)}?" if problem.nearest else ""
            raise ModelNotFound(
                f"The model {model[:100]!r} does not exist.{hint} GET /v1/models lists all.", param="model"
            ) from None
        except UnpricedModel:
            raise ModelNotFound(f"The model {model[:100]!r} has no price, so it is not sold.", param="model") from None
        if offering.type != kind:
            raise BadRequest(f"{offering.id} is a model for {offering.type}, not for {kind}.", param="model")
        if offering.private:
            raise BadRequest(
                f"{offering.id} runs in an enclave and takes only sealed requests: use the private mode proxy.",
                param="model",
            )
        return offering

    @described(
        "The models that are sold, with their prices",
        tag="models",
        parameters=(
            query(
                "type",
                {"type": "array", "items": {"enum": ["all", *TYPES, ""]}, "default": ["chat"]},
                "Which kinds, as a comma list; private models are listed with `all` only.",
                style="form",
                explode=False,
            ),
        ),
        ok={JSON: schemas.MODELS},
        errors=(400,),
    )
    async def models(self, exchange: Exchange) -> None:
        """GET /models, with `?type=`."""
        query = exchange.query()
        kinds = query.get("type")
        wanted = (self.shelf.catalog.version, kinds)
        listing = self._listings.get(wanted)
        if listing is None:
            try:
                listing = dump(self.shelf.catalog.listing(kinds))
            except UnknownType as problem:
                raise BadRequest(
                    f"{str(problem.args[0])[:1].upper()}{str(problem.args[0])[1:]}.", param="type"
                ) from None
            if len(self._listings) >= 64:
                self._listings.clear()
            self._listings[wanted] = listing
        await exchange.answer(200, listing, [(b"content-type", b"application/json")])

    @described("One model, by its id or an alias", tag="models", ok={JSON: schemas.MODEL}, errors=(404,))
    async def model(self, exchange: Exchange) -> None:
        """GET /models/{id}."""
        name = exchange.scope["path_params"]["id"]
        try:
            offering = self.shelf.catalog.resolve(name)
        except LookupError:
            raise ModelNotFound(
                f"The model {name[:100]!r} does not exist. GET /v1/models lists all.", param="model"
            ) from None
        await exchange.answer_json(self.shelf.catalog.public(offering))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message.", param="messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(
                f'messages[{at}] must be an object with a role, like {{"role": "user", "content": "…"}}.',
                param=f"messages[{at}]",
            )
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise BadRequest(
                f"messages[{at}].content must be a string or a list of parts.", param=f"messages[{at}].content"
            )


def _check_input(given: Any) -> None:
    """The `input` of an embedding request: a text, texts, token ids, or lists of token ids."""
    many = given if isinstance(given, list) else [given]
    flat = many[0] if many and isinstance(many[0], list) else many
    kind = str if flat and isinstance(flat[0], str) else int
    parts = many if flat is not many else [many]
    if given and all(
        isinstance(part, list) and part and all(type(one) is kind and one != "" for one in part) for part in parts
    ):
        return
    raise BadRequest(
        "input must be a text, a list of texts, a list of token ids, or a list of such lists, none empty.",
        param="input",
    )
