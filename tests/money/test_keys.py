"""What a key may be set to, and how it is shown."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppq_proxy.errors import BadRequest
from ppq_proxy.money.keys import FIELDS, KeyChanges, iso, parse_key, parse_time, shown
from ppq_proxy.store.base import Key

AT = 1_800_000_000_000  # 2027-01-15T08:00:00Z


def key(**fields: Any) -> Key:
    return Key("a" * 24, "account", "name", b"", AT, AT, **fields)


def test_PPQ_190_all_fields() -> None:
    body = {
        "name": "n", "usage_limit_usd": 1.5, "reset_period": "daily", "expire_at": "2099-01-01",
        "requests_per_minute": 7, "tokens_per_minute": 8,
    }  # fmt: skip
    made = parse_key(body, new=True)
    assert made == KeyChanges("n", 1_500_000_000, "daily", 4_070_908_800_000, 7, 8, made.given)
    assert made.given == {"name", "limit", "period", "expire_at", "rpm", "tpm"}


def test_PPQ_199_what_is_not_given_is_not_changed() -> None:
    changes = parse_key({"usage_limit_usd": None}, new=False)
    assert changes.given == {"limit"}
    assert changes.updates(key(limit=5, rpm=3)) == {"limit": None}
    assert parse_key({}, new=False).updates(key(limit=5)) == {}


def test_PPQ_194_a_period_needs_a_limit_in_the_end() -> None:
    with pytest.raises(BadRequest, match="requires usage_limit_usd"):
        parse_key({"name": "n", "reset_period": "daily"}, new=True)
    changes = parse_key({"reset_period": "daily"}, new=False)
    assert changes.updates(key(limit=10**9)) == {"period": "daily"}
    with pytest.raises(BadRequest, match="requires usage_limit_usd"):
        changes.updates(key())
    both = parse_key({"reset_period": "daily", "usage_limit_usd": None}, new=False)
    with pytest.raises(BadRequest, match="requires usage_limit_usd"):
        both.updates(key(limit=10**9))
    assert parse_key({"usage_limit_usd": None}, new=False).updates(key(limit=5, period="daily")) == {
        "limit": None,
        "period": None,
    }


@pytest.mark.parametrize("field", FIELDS)
def test_a_mistyped_field_is_no_field(field: str) -> None:
    with pytest.raises(BadRequest, match="Unknown field") as caught:
        parse_key({"name": "n", field + "s": 1}, new=True)
    assert caught.value.param == field + "s"


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.none()), st.just("daily"), st.just("2099-01-01"))))  # fmt: skip  # noqa: E501
def test_any_body_is_a_key_or_a_bad_request(body: dict[str, Any]) -> None:
    for new in (True, False):
        try:
            made = parse_key(body, new=new)
        except BadRequest as problem:
            assert problem.message
            continue
        assert made.limit is None or (isinstance(made.limit, int) and 10_000_000 <= made.limit < 1 << 63)
        assert made.expire_at is None or iso(made.expire_at)
        assert not new or (made.name and 1 <= len(made.name) <= 25)


@given(st.floats(0.01, 9e9))
def test_PPQ_193_a_limit_is_never_above_what_was_asked_for_and_a_nano_below_at_most(usd: float) -> None:
    limit = parse_key({"name": "n", "usage_limit_usd": usd}, new=True).limit
    assert limit is not None
    assert 0 <= Decimal(str(usd)).scaleb(9) - limit < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1e999999", "-0.5", "0x10", "1_0", "٣", "9999999999"])
def test_PPQ_193_what_is_no_limit(value: Any) -> None:
    if value in ("1_0", "٣"):  # Python reads these as numbers; they are numbers
        assert parse_key({"name": "n", "usage_limit_usd": value}, new=True).limit in (10 * 10**9, 3 * 10**9)
        return
    with pytest.raises(BadRequest, match="usage_limit_usd"):
        parse_key({"name": "n", "usage_limit_usd": value}, new=True)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2027-01-15T08:00:00Z", AT), ("2027-01-15T09:00:00+01:00", AT), ("2027-01-15T09:00:00 01:00", AT), ("2027-01-15T08:00:00", AT),
        ("2027-01-15T08:00:00.5", AT + 500), ("2027-01-15", AT - 8 * 3_600_000), ("20270115T080000Z", AT), ("2027-01-15 08:00:00", AT),
        ("1969-12-31T23:59:59.999Z", -1), ("0001-01-01T00:00:00Z", -62_135_596_800_000), ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)  # fmt: skip
def test_PPQ_195_PPQ_177_times(text: str, at: int) -> None:
    assert parse_time(text, "x") == at


def test_PPQ_177_the_end_of_a_bare_date_is_its_last_millisecond() -> None:
    assert parse_time("2027-01-15", "x", end=True) == parse_time("2027-01-16", "x") - 1
    assert parse_time("2027-01-15T08:00:00Z", "x", end=True) == AT


@pytest.mark.parametrize(
    "value",
    [
        *("", "now", "2027", "2027-1-1", "2027-01-15T08:00:00Z!", "2027-01-15T24:30:00", 5, None, [], True),
        *("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"),
    ],
)
def test_PPQ_195_what_is_no_time(value: Any) -> None:
    with pytest.raises(BadRequest, match="ISO 8601") as caught:
        parse_time(value, "some_date")
    assert caught.value.param == "some_date"


@given(
    st.one_of(
        st.text(max_size=45),
        st.from_regex(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?([Z+-]\d\d:?\d\d)?)?", fullmatch=True),
    )
)
def test_PPQ_195_any_text_is_a_time_that_can_be_shown_or_a_bad_request(text: str) -> None:
    try:
        at = parse_time(text, "x")
    except BadRequest:
        return
    assert parse_time(iso(at), "x") == at


def test_PPQ_189_a_key_is_shown_with_exact_numbers_and_times() -> None:
    one = shown(
        key(limit=10**9, period="monthly", used=123_456_789, used_total=5, reset_at=AT + 1, expire_at=AT + 7), AT
    )
    assert one["usage_limit_usd"] == 1 and one["current_period_usage_usd"] == Decimal("0.123456789")
    assert one["total_usage_all_time_usd"] == Decimal("0.000000005")
    assert (one["created_at"], one["expire_at"], one["deleted_at"]) == (
        "2027-01-15T08:00:00.000Z",
        "2027-01-15T08:00:00.007Z",
        None,
    )
    assert "api_key" not in one and "sealed" not in str(one)


def test_PPQ_194_a_period_that_has_passed_is_shown_as_begun_anew() -> None:
    one = key(limit=10**9, period="daily", used=10**9, used_total=10**9, reset_at=AT)
    before, after = shown(one, AT - 1), shown(one, AT)
    assert before["current_period_usage_usd"] == 1 and before["reset_at"] == iso(AT)
    assert after["current_period_usage_usd"] == 0 and after["reset_at"] == "2027-01-16T00:00:00.000Z"
    assert after["total_usage_all_time_usd"] == 1
