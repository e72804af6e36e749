"""What the fuzzer of `test_fuzz` knows beyond the document: which models there are, and what every answer has.

Loaded by schemathesis in its own process.
"""

from typing import Any

import schemathesis

WAYS = ("btc", "ltc", "lbtc", "xmr")
MODELS = ("test/story", "claude-sonnet-4-5", "test/tools", "test/reasoning", "test/mid")


@schemathesis.hook
def before_call(context: Any, case: Any, **kwargs: Any) -> None:
    """What is made up where a name should stand becomes one that exists, so that the rest of the request is tried."""
    body: Any = case.body
    given: Any = case.path_parameters
    if case.path.endswith("/chat/completions") and isinstance(body, dict):
        name = body.get("model")
        if isinstance(name, str) and name:
            body["model"] = MODELS[len(name) % len(MODELS)]
        body.pop("play", None)
    elif case.path.endswith("/models/{id}") and (length := len(str(given.get("id")))) % 2:
        given["id"] = MODELS[length % len(MODELS)]
    elif case.path == "/topup/create/{method}" and given.get("method") in WAYS:
        given["method"] = "btc-lightning"


@schemathesis.check
def names_itself(context: Any, response: Any, case: Any) -> None:
    """Every answer has a request id, and an error has the same one in its envelope and a sentence."""
    (request_id,) = response.headers["x-request-id"]
    assert request_id, "an answer without a request id"
    if response.status_code >= 400 and case.method != "HEAD":
        assert response.headers["content-type"] == ["application/json"]
        if not case.path.startswith("/readyz"):
            error = response.json()["error"]
            assert error["request_id"] == request_id and len(error["message"]) > 10


@schemathesis.check
def a_refusal_is_free(context: Any, response: Any, case: Any) -> None:
    """Only what was served says what it cost."""
    assert response.status_code < 400 or "x-cost-usd" not in response.headers
