"""Calendar periods in UTC: when a spending limit starts anew."""

from datetime import UTC, datetime, timedelta

PERIODS = ("daily", "weekly", "monthly")


def next_reset(period: str | None, at: int) -> int | None:
    """The first midnight (UTC) of the period after `at`, in milliseconds: a day, a Monday, or a first of the month."""
    if period is None:
        return None
    now = datetime.fromtimestamp(at // 1000, UTC)
    today = now.replace(hour=0, minute=0, second=0)
    if period == "daily":
        start = today + timedelta(days=1)
    elif period == "weekly":
        start = today + timedelta(days=7 - today.weekday())
    elif period == "monthly":
        start = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    else:
        raise ValueError(f"no such period: {period}")
    return int(start.timestamp()) * 1000
