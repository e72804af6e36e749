"""The hierarchy of errors: as it is drawn, so it is."""

import re

import ppq_proxy.app
from ppq_proxy import errors
from ppq_proxy.dialects.openai import envelope, failure_event
from ppq_proxy.errors import GatewayError


def every(kind: type[GatewayError]) -> list[type[GatewayError]]:
    """A class and all below it."""
    return [kind, *(found for child in kind.__subclasses__() for found in every(child))]


def test_the_drawing_shows_every_class_with_its_status() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d\d\d|4xx)", errors.__doc__ or ""))
    here = {kind.__name__: kind for kind in every(GatewayError) if kind.__module__ == "ppq_proxy.errors"}
    assert set(drawn) == set(here) - {"GatewayError"}
    for name, status in drawn.items():
        if status != "4xx":  # the upstream's own
            assert int(status) == here[name].status, name


def test_the_drawing_shows_who_inherits_from_whom() -> None:
    lines = [
        (len(match[1]), match[2])
        for match in re.finditer(r"^( *(?:│ +)?)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    ]
    shallow = min(depth for depth, _ in lines)
    parent = ""
    for depth, name in lines:
        if depth == shallow:
            parent = name
        above = getattr(errors, name).__mro__[1].__name__
        assert above == ("GatewayError" if depth == shallow else parent), name


def test_every_error_of_the_package_has_a_status_a_kind_and_a_code() -> None:
    assert ppq_proxy.app, "everything is imported"
    for kind in every(GatewayError):
        assert 400 <= kind.status < 600, kind
        assert re.fullmatch(r"[a-z][a-z_]+", kind.kind) and re.fullmatch(r"[a-z][a-z0-9_]+", kind.code), kind
        assert kind.__doc__, kind


def test_the_envelope_has_the_fields_and_what_else_an_error_knows() -> None:
    problem = errors.RateLimited(
        "Too much.", param="x", fields={"limit": 5}, body={"accepts": []}, headers={"retry-after": "7"}
    )
    assert envelope(problem, "req-1") == {
        "error": {
            "message": "Too much.", "type": "rate_limit_error", "param": "x", "code": "rate_limit_exceeded",
            "limit": 5, "request_id": "req-1",
        },
        "accepts": [],
    }  # fmt: skip


def test_an_upstreams_refusal_keeps_its_status() -> None:
    assert errors.UpstreamRefused("No.", 422).http_status == 422
    assert errors.BadRequest("No.").http_status == 400


def test_an_error_inside_a_stream_is_one_event() -> None:
    event = failure_event(errors.UpstreamNonsense("It\nbroke."))
    assert event.startswith(b'data: {"error":') and event.endswith(b"}\n\n") and event.count(b"\n") == 2
