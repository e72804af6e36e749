"""When a spending limit starts anew: calendar days, weeks and months in UTC."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.store.periods import PERIODS, next_reset


def ms(text: str) -> int:
    """A time of the calendar in milliseconds since the epoch."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("period", "at", "reset"),
    [
        ("daily", "2026-11-21T00:00:00", "2026-11-22"), ("daily", "2026-11-21T23:59:59", "2026-11-22"),
        ("daily", "2026-12-31T12:00:00", "2027-01-01"), ("daily", "2028-02-28T01:00:00", "2028-02-29"),
        ("weekly", "2026-11-21T10:00:00", "2026-11-23"), ("weekly", "2026-11-22T23:59:59", "2026-11-23"),
        ("weekly", "2026-11-23T00:00:00", "2026-11-30"), ("weekly", "2026-12-29T00:00:00", "2027-01-04"),
        ("monthly", "2026-11-01T00:00:00", "2026-12-01"), ("monthly", "2026-11-30T23:59:59", "2026-12-01"),
        ("monthly", "2026-12-15T00:00:00", "2027-01-01"), ("monthly", "2027-01-31T00:00:00", "2027-02-01"),
        ("monthly", "2028-02-29T12:00:00", "2028-03-01"),
    ],
)  # fmt: skip
def test_PPQ_194_the_next_start(period: str, at: str, reset: str) -> None:
    assert next_reset(period, ms(at)) == ms(reset)


def test_PPQ_189_without_a_period_never() -> None:
    assert next_reset(None, ms("2026-11-21")) is None


def test_an_unknown_period_is_no_period() -> None:
    with pytest.raises(ValueError, match="hourly"):
        next_reset("hourly", 0)


@given(st.sampled_from(PERIODS), st.integers(0, 4_000_000_000_000))
def test_PPQ_194_starts_are_midnights_ahead_and_one_period_apart(period: str, at: int) -> None:
    reset = next_reset(period, at)
    assert reset is not None and reset > at
    start = datetime.fromtimestamp(reset / 1000, UTC)
    assert (start.hour, start.minute, start.second) == (0, 0, 0)
    assert next_reset(period, reset - 1) == reset, "until the last millisecond before it"
    following = next_reset(period, reset)
    assert following is not None and following > reset
    longest = {"daily": 1, "weekly": 7, "monthly": 31}[period]
    assert following - reset <= timedelta(days=longest) // timedelta(milliseconds=1)


def test_the_zone_of_this_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert datetime.now(timezone(timedelta(hours=14))).hour == datetime.now().astimezone().hour
        assert next_reset("daily", ms("2026-11-21T12:00:00")) == ms("2026-11-22")
    finally:
        monkeypatch.undo()
        time.tzset()
