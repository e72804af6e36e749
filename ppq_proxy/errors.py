"""Everything that can go wrong, each with the HTTP status and code that a client sees.

    GatewayError
    ├── BadRequest              400  invalid_request_error
    │   └── BodyTooLarge        413  request_too_large
    ├── Unauthorized            401  invalid_api_key
    ├── PaymentRequired         402  payment_required      no credential: a challenge goes with it
    │   └── InsufficientBalance 402  insufficient_balance  a key without the money: no challenge
    ├── Forbidden               403  forbidden
    │   └── KeyLimitReached     403  key_limit_reached
    ├── NotFound                404  not_found
    │   └── ModelNotFound       404  model_not_found
    ├── MethodNotAllowed        405  method_not_allowed
    ├── Conflict                409  conflict
    │   └── StillRunning        409  idempotency_key_in_use
    ├── IdempotencyMismatch     422  idempotency_key_reused
    ├── RateLimited             429  rate_limit_exceeded
    ├── UpstreamRefused         4xx  (the upstream's own)  the customer's request, refused there
    ├── UpstreamNonsense        502  bad_gateway
    ├── Unavailable             503  service_unavailable
    │   ├── UpstreamUnavailable 503  upstream_unavailable
    │   └── StoreUnavailable    503  store_unavailable
    └── UpstreamTimeout         504  upstream_timeout

A dialect renders these in its own envelope; nothing here knows one. Messages are for customers: they never carry a
key, a prompt or an upstream's text about the operator's account.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class GatewayError(Exception):
    """An error with everything an envelope needs.

    `headers` go on the answer, `header_lines` too where a name comes more than once; `fields` into the error object,
    `body` beside it.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        header_lines: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})
        self.body = dict(body or {})
        self.header_lines = tuple(header_lines)

    @property
    def http_status(self) -> int:
        """The status to answer with: the class's, unless an instance knows better."""
        return self.status


class BadRequest(GatewayError):
    """The request cannot be understood."""

    status, kind, code = 400, "invalid_request_error", "invalid_request"


class BodyTooLarge(BadRequest):
    """The body is over the limit."""

    status, code = 413, "request_too_large"


class Unauthorized(GatewayError):
    """No key, or one that is wrong, revoked or expired."""

    status, kind, code = 401, "authentication_error", "invalid_api_key"


class PaymentRequired(GatewayError):
    """A call that has to be paid for first."""

    status, kind, code = 402, "payment_required", "payment_required"


class InsufficientBalance(PaymentRequired):
    """The account has less than the call may cost."""

    kind, code = "insufficient_quota", "insufficient_balance"


class Forbidden(GatewayError):
    """A valid credential that may not do this."""

    status, kind, code = 403, "permission_error", "forbidden"


class KeyLimitReached(Forbidden):
    """The key's own spending limit has no room for the call."""

    code = "key_limit_reached"


class NotFound(GatewayError):
    """No such path, row or model."""

    status, kind, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    """No model of that name is sold here."""

    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, the method does not."""

    status, kind, code = 405, "invalid_request_error", "method_not_allowed"


class Conflict(GatewayError):
    """The state of something forbids this."""

    status, kind, code = 409, "invalid_request_error", "conflict"


class StillRunning(Conflict):
    """A call with the same Idempotency-Key is still running."""

    code = "idempotency_key_in_use"


class IdempotencyMismatch(GatewayError):
    """The same Idempotency-Key came with another request."""

    status, kind, code = 422, "invalid_request_error", "idempotency_key_reused"


class RateLimited(GatewayError):
    """Too much in too short a time; `headers` carry Retry-After."""

    status, kind, code = 429, "rate_limit_error", "rate_limit_exceeded"


class UpstreamRefused(GatewayError):
    """The upstream finds fault with the customer's request (400, 413, 422 …): its status is passed on."""

    kind, code = "invalid_request_error", "upstream_refused"

    def __init__(self, message: str, upstream_status: int, **more: Any) -> None:
        super().__init__(message, **more)
        self.upstream_status = upstream_status

    @property
    def http_status(self) -> int:
        return self.upstream_status


class UpstreamNonsense(GatewayError):
    """The upstream's answer cannot be used."""

    status, kind, code = 502, "upstream_error", "bad_gateway"


class Unavailable(GatewayError):
    """Not now: the fault is on this side."""

    status, kind, code = 503, "service_unavailable", "service_unavailable"


class UpstreamUnavailable(Unavailable):
    """No upstream that serves the model can be used."""

    code = "upstream_unavailable"


class StoreUnavailable(Unavailable):
    """The database cannot be reached: nothing is sold while nothing can be charged."""

    code = "store_unavailable"


class UpstreamTimeout(GatewayError):
    """The upstream took too long."""

    status, kind, code = 504, "upstream_error", "upstream_timeout"


class SettingsError(Exception):
    """A setting or option is wrong; the message names it and what is allowed."""
