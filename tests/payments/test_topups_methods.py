"""Amounts of top-ups: what is taken, what it is worth, and that no rounding makes money."""

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppq_proxy.errors import BadRequest, SettingsError
from ppq_proxy.money.amounts import NANO
from ppq_proxy.payments.rates import SATS
from ppq_proxy.payments.topup_methods import LIGHTNING, METHODS, Amount, parse_amount, parse_methods
from ppq_proxy.payments.topup_record import Phase, Progress, TopUp

RATE = 100_000 * NANO
rates = st.integers(NANO, 10**15)


def body(amount: str, currency: str) -> Any:
    """A body as it is read from the wire."""
    return json.loads(f'{{"amount": {amount}, "currency": "{currency}"}}', parse_float=Decimal, parse_int=Decimal)


def topup(**more: Any) -> TopUp:
    usual: dict[str, Any] = {
        "id": "an-id", "account": "an-account", "method": "btc-lightning", "amount": "1000", "currency": "SATS",
        "value": NANO, "bonus_percent": 5, "created_at": 0, "request": "", "asked": "1000000", "expires_at": 900,
    }  # fmt: skip
    return TopUp(**usual | more)


@pytest.mark.parametrize(
    ("amount", "currency", "sats", "usd"),
    [
        ("1000", "SATS", 1000, "1"),
        ("1000.0", "SATS", 1000, "1"),
        ("1e3", "SATS", 1000, "1"),
        ("0.001", "BTC", 100_000, "100"),
        ("0.00000100", "BTC", 100, "0.1"),
        ("50.00", "USD", 50_000, "50"),
        ("0.1", "USD", 100, "0.1"),
        ("0.100000001", "USD", 101, "0.100000001"),
    ],
)
def test_PPQ_152_amounts_are_read_digit_by_digit(amount: str, currency: str, sats: int, usd: str) -> None:
    found = parse_amount(body(amount, currency))
    assert found.sats(RATE) == sats
    assert found.value(RATE) == int(Decimal(usd) * NANO)


@pytest.mark.parametrize(
    ("amount", "currency"),
    [
        ("0", "USD"), ("-5", "USD"), ("-0.0", "USD"), ("true", "USD"), ("null", "USD"), ('"5"', "USD"), ('"many"', "USD"),
        ("[5]", "USD"), ("{}", "USD"), ("5", "EUR"), ("5", "sats"), ("5", ""), ("0.5", "SATS"), ("0.000000001", "BTC"),
        ("0.3000000000000000444", "USD"), ("1e400", "USD"), ("1e-400", "USD"), ("1e15", "SATS"), ("9" * 400, "SATS"),
        ("1." + "0" * 40 + "1", "USD"), ("1e999999999", "BTC"),
    ],
)  # fmt: skip
def test_PPQ_152_what_is_no_amount_is_refused(amount: str, currency: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_amount(body(amount, currency))
    assert refusal.value.param in ("amount", "currency")


@pytest.mark.parametrize("wrong", [None, [], "x", Decimal(5), True, {}, {"amount": Decimal(5)}, {"currency": "USD"}])
def test_PPQ_152_what_is_no_body_is_refused(wrong: Any) -> None:
    with pytest.raises(BadRequest):
        parse_amount(wrong)


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789.eE+-", max_size=40), st.sampled_from(["SATS", "BTC", "USD"]), rates)
def test_PPQ_152_whatever_number_comes_is_exact_or_refused(text: str, currency: str, rate: int) -> None:
    try:
        read = body(text, currency)
    except (ValueError, ArithmeticError):
        return
    try:
        found = parse_amount(read)
    except BadRequest:
        return
    assert found.number == Decimal(text) > 0
    worth = Fraction(found.value(rate), NANO)
    sats, paid = found.sats(rate), Fraction(found.sats(rate) * rate, SATS * NANO)
    if currency == "USD":
        assert worth == Fraction(found.number), "dollars are worth what they are"
        assert paid >= worth, "the sats pay for all of it"
        assert sats == 1 or Fraction((sats - 1) * rate, SATS * NANO) < worth, "and for no sat more"
    else:
        assert Fraction(sats, 1 if currency == "SATS" else SATS) == Fraction(found.number)
        assert 0 <= paid - worth < Fraction(1, NANO), "rounded down to a nano-dollar"


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**13), st.integers(1, 10**14), st.integers(0, 10**14), st.integers(0, 10**14))
def test_PPQ_160_no_division_of_payments_makes_money(value: int, asked: int, first: int, more: int) -> None:
    one = topup(value=value, asked=str(asked))
    whole = one.worth(Decimal(asked))
    assert whole == value * 105 // 100
    assert one.worth(Decimal(first)) <= one.worth(Decimal(first + more))
    assert one.worth(Decimal(first)) + one.worth(Decimal(more)) <= one.worth(Decimal(first + more))
    assert Fraction(one.worth(Decimal(first))) <= Fraction(value * first * 105, asked * 100)


def test_PPQ_151_the_limits_are_those_of_the_value() -> None:
    found = {
        method.name: (method.least, method.most, method.minutes, method.bonus_percent) for method in METHODS.values()
    }
    cents = NANO // 100
    assert found == {
        "btc-lightning": (10 * cents, 1000 * NANO, 15, 5),
        "btc": (10 * NANO, 10_000 * NANO, 60, 0),
        "ltc": (2 * NANO, 1000 * NANO, 60, 0),
        "lbtc": (2 * NANO, 10_000 * NANO, 60, 0),
        "xmr": (5 * NANO, 10_000 * NANO, 60, 0),
    }
    for method in METHODS.values():
        for value in (method.least, method.most):
            method.admit(Amount(Decimal(1), "USD"), value)
        for value in (method.least - 1, method.most + 1, 0):
            with pytest.raises(BadRequest, match=f"{method.name} top-up takes"):
                method.admit(Amount(Decimal(1), "USD"), value)


def test_PPQ_152_a_refusal_names_the_limits_and_the_worth() -> None:
    amount = parse_amount(body("99", "SATS"))
    with pytest.raises(BadRequest, match=r"takes 0\.1 to 1000 USD, not 99 SATS, which is worth 0\.099 USD"):
        LIGHTNING.admit(amount, amount.value(RATE))
    with pytest.raises(BadRequest, match="whole cents"):
        METHODS["xmr"].admit(parse_amount(body("50.001", "USD")), 50_001 * NANO // 1000)


def test_PPQ_158_methods_are_named_in_the_settings() -> None:
    assert parse_methods(" btc, XMR ,") == {"btc", "xmr"}
    assert parse_methods("") == frozenset()
    for wrong in ("doge", "btc-lightning", "btc;xmr"):
        with pytest.raises(SettingsError, match="PPQ_BTCPAY_METHODS"):
            parse_methods(wrong)


def test_PPQ_156_what_was_paid_is_shown_in_the_currency_and_without_the_bonus() -> None:
    for currency, amount, paid, shown in (
        ("SATS", "1000", 500_000, "500"),
        ("SATS", "1000", 1, "0.001"),
        ("BTC", "0.00001", 1_500_000, "0.000015"),
        ("USD", "1.5", 1_000_000, "1.5"),
        ("USD", "1", 333_333, "0.333333"),
    ):
        status = topup(currency=currency, amount=amount, paid=str(paid)).status()
        assert status["amount_paid"] == Decimal(shown)
        assert status["amount_due"] == max(Decimal(amount) - Decimal(shown), 0)


@pytest.mark.parametrize(
    ("phase", "progress", "shown"),
    [
        (Phase.OPEN, Progress.NEW, "New"),
        (Phase.OPEN, Progress.PROCESSING, "Processing"),
        (Phase.OPEN, Progress.SETTLED, "Processing"),
        (Phase.PAID, Progress.SETTLED, "Processing"),
        (Phase.SETTLED, Progress.SETTLED, "Settled"),
        (Phase.SETTLED, Progress.EXPIRED, "Settled"),
        (Phase.OPEN, Progress.EXPIRED, "Expired"),
        (Phase.EXPIRED, Progress.EXPIRED, "Expired"),
    ],
)
def test_PPQ_160_settled_is_the_word_for_credited(phase: Phase, progress: Progress, shown: str) -> None:
    assert topup(phase=phase, progress=progress).status()["status"] == shown


def test_PPQ_156_whoever_paid_otherwise_than_asked_is_told() -> None:
    told = {
        part: topup(phase=Phase.SETTLED, progress=Progress.SETTLED, paid=paid, late=late).status().get("note", "")
        for part, paid, late in (
            ("in part", "1", False),
            ("More", "2000000", False),
            ("after it had expired", "1000000", True),
        )
    }
    assert all(part in note for part, note in told.items()), told
    assert "note" not in topup(phase=Phase.SETTLED, paid="1000000").status()
    assert "pay the rest" in topup(phase=Phase.OPEN, paid="1").status()["note"]
    assert "not confirmed" in topup(phase=Phase.OPEN, progress=Progress.PROCESSING).status()["note"]


def test_PPQ_160_looks_are_frequent_while_it_lives_and_rare_later() -> None:
    live = topup(created_at=0, expires_at=900)
    pauses = [live.pause(at) for at in range(900)]
    assert pauses[0] == 1
    assert max(pauses) == 12, "credited within 20 s, whenever it is paid"
    assert pauses == sorted(pauses)
    assert [live.pause(900 + late) for late in (0, 48, 400, 86_400)] == [12, 12, 100, 900]
    live.progress, live.watch_until = Progress.PROCESSING, 90_000
    assert live.pause(89_999) == 12, "a payment that is on its way is waited for as eagerly"
    assert (live.pause(90_000), live.is_over(90_001 + 13 * 86_400), live.is_over(90_001 + 14 * 86_400)) == (
        900,
        False,
        True,
    )
    live.progress = Progress.EXPIRED
    assert (live.is_over(90_000), live.is_over(90_001)) == (False, True)


def test_a_document_survives_the_store() -> None:
    one = topup(phase=Phase.OPEN, progress=Progress.NEW, credits=[5])
    kept = json.loads(json.dumps(one.doc()))
    assert TopUp(**kept).doc() == one.doc()
    assert all(type(value) in (str, int, bool, list) for value in one.doc().values())
