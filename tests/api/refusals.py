"""What every refusal has to have, whatever was wrong."""

from decimal import Decimal
from typing import Any

from tests.gateway.wire import Answer
from tests.gateway.world import Customer


def refused(
    answer: Answer, status: int, *words: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The error object of an answer with this status, whose envelope is right and whose sentence has these words."""
    assert answer.status == status, f"{answer.status}: {answer.body[:500]!r}"
    assert answer.headers["content-type"] == "application/json"
    error = answer.error
    assert set(error) >= {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    message = error["message"]
    assert len(message) > 10 and message.endswith((".", "?")), f"no sentence: {message!r}"
    assert "Traceback" not in message and "Error(" not in message and "0x" not in message
    for word in words:
        assert word.lower() in message.lower(), f"{word!r} is not in {message!r}"
    assert code is None or error["code"] == code
    assert param is None or error["param"] == param
    return error


async def costs_nothing(customer: Customer, *, settled: bool = False) -> None:
    """Nothing is charged, held or in the history. `settled`: a hold may have been, and goes back."""
    books = await customer.books(settled=settled)
    assert (books.charged, books.held, books.rows) == (Decimal(0), Decimal(0), [])
