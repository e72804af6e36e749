"""What a key may be set to, and how it is shown."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import Any

from ppq_proxy.errors import BadRequest
from ppq_proxy.money.amounts import LARGEST, NANO, AmountError, nano_from_usd, usd_number
from ppq_proxy.money.ledger import now_ms
from ppq_proxy.store.base import Key
from ppq_proxy.store.periods import PERIODS

LEAST_LIMIT = 10_000_000  # $0.01
FINEST = Decimal("1e-9")
LONGEST_NAME = 25
FIELDS = ("name", "usage_limit_usd", "reset_period", "expire_at", "requests_per_minute", "tokens_per_minute")


@dataclass(slots=True)
class KeyChanges:
    """Validated settings of a key; `given` names the ones that the caller set, None clears."""

    name: str | None = None
    limit: int | None = None
    period: str | None = None
    expire_at: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    given: frozenset[str] = frozenset()

    def updates(self, key: Key) -> dict[str, Any]:
        """The columns to set on `key`. Raises `BadRequest` where the result would not be a valid key."""
        values = {
            "name": self.name,
            "limit": self.limit,
            "period": self.period,
            "expire_at": self.expire_at,
            "rpm": self.rpm,
            "tpm": self.tpm,
        }
        updates = {name: value for name, value in values.items() if name in self.given}
        if updates.get("limit", key.limit) is None and updates.get("period", key.period) is not None:
            if updates.get("period"):
                raise BadRequest("reset_period requires usage_limit_usd.", param="reset_period")
            updates["period"] = None
        return updates


def parse_key(body: Any, *, new: bool) -> KeyChanges:
    """The JSON body of POST or PATCH /keys. Unknown fields are refused: a mistyped limit must not mean no limit."""
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    for name in body:
        if name not in FIELDS:
            raise BadRequest(f"Unknown field {name[:40]!r}; known are {', '.join(FIELDS)}.", param=name[:40])
    changes = KeyChanges(
        name=_name(body, new),
        limit=_limit(body.get("usage_limit_usd")),
        period=_period(body.get("reset_period")),
        expire_at=_expiry(body.get("expire_at")),
        rpm=_count(body, "requests_per_minute"),
        tpm=_count(body, "tokens_per_minute"),
    )
    columns = dict(zip(FIELDS, ("name", "limit", "period", "expire_at", "rpm", "tpm"), strict=True))
    changes.given = frozenset(columns[name] for name in body)
    if new and changes.period and changes.limit is None:
        raise BadRequest("reset_period requires usage_limit_usd.", param="reset_period")
    return changes


def _name(body: dict[str, Any], new: bool) -> str | None:
    if "name" not in body and not new:
        return None
    name = body.get("name")
    if (
        not isinstance(name, str)
        or not 1 <= len(name.strip()) <= LONGEST_NAME
        or len(name) > LONGEST_NAME
        or not name.isprintable()
    ):
        raise BadRequest(f"name must be a string of 1 to {LONGEST_NAME} printable characters.", param="name")
    return name


def _limit(value: Any) -> int | None:
    if value is None:
        return None
    problem = BadRequest(
        f"usage_limit_usd must be a number of dollars from 0.01 to {LARGEST // NANO}, or null for no limit.",
        param="usage_limit_usd",
    )
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):  # not money: a type from JSON
        raise problem
    try:  # rounded down: a client that computed 0.1 + 0.2 means 0.3
        limit = nano_from_usd(Decimal(str(value)).quantize(FINEST, ROUND_FLOOR))
    except (AmountError, InvalidOperation):
        raise problem from None
    if limit < LEAST_LIMIT:
        raise problem
    return limit


def _period(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or value not in PERIODS):
        raise BadRequest(f"reset_period must be one of {', '.join(PERIODS)}, or null.", param="reset_period")
    return value


def _expiry(value: Any) -> int | None:
    if value is None:
        return None
    at = parse_time(value, "expire_at")
    if at <= now_ms():
        raise BadRequest("expire_at must be in the future.", param="expire_at")
    return at


def _count(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**12):
        raise BadRequest(f"{name} must be a whole number of at least 1, or null for no limit.", param=name)
    return value


def parse_time(value: Any, param: str, *, end: bool = False) -> int:
    """An ISO 8601 date or time as milliseconds, UTC where it names no zone; `end`: the last moment of a bare date."""
    problem = BadRequest(f"{param} must be an ISO 8601 time like 2027-01-01T00:00:00Z.", param=param)
    if not isinstance(value, str) or not 8 <= len(value) <= 40:
        raise problem
    try:
        moment = datetime.fromisoformat(value.replace(" ", "+") if re.search(r" \d\d:?\d\d$", value) else value)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)  # out of range: OverflowError
        at = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // (moment.resolution * 1000)
    except (ValueError, OverflowError):
        raise problem from None
    return at + 86_400_000 - 1 if end and len(value) <= 10 else at


def iso(at: int | None) -> str | None:
    """Milliseconds as ISO 8601 in UTC, or None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{at % 1000:03d}Z"


def shown(key: Key, at: int) -> dict[str, Any]:
    """A key as the API lists it, without its value. A period that has passed counts as reset."""
    passed = key.reset_at is not None and key.reset_at <= at
    from ppq_proxy.store.periods import next_reset

    return {
        "_id": key.id,
        "name": key.name,
        "usage_limit_usd": None if key.limit is None else usd_number(key.limit),
        "current_period_usage_usd": usd_number(0 if passed else key.used),
        "total_usage_all_time_usd": usd_number(key.used_total),
        "reset_period": key.period,
        "reset_at": iso(next_reset(key.period, at) if passed else key.reset_at),
        "requests_per_minute": key.rpm,
        "tokens_per_minute": key.tpm,
        "expire_at": iso(key.expire_at),
        "created_at": iso(key.created_at),
        "updated_at": iso(key.updated_at),
        "deleted_at": iso(key.deleted_at),
    }
