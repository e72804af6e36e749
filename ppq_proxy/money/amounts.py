"""Money as integers: nano-USD (1e-9 USD) inside, `Decimal` and decimal strings at the edges."""

from decimal import Decimal, InvalidOperation

NANO = 10**9
LARGEST = 9 * 10**18
"""What a 64-bit signed column holds: nine thousand million dollars."""


class AmountError(ValueError):
    """Not an amount of dollars; the message says why."""


def nano_from_usd(usd: Decimal | str | int) -> int:
    """Dollars to nano-USD, exactly: more than nine decimals, or no number at all, is an `AmountError`."""
    try:
        value = usd if isinstance(usd, Decimal) else Decimal(usd)
        nano = value.scaleb(9)
        whole = int(nano)
    except (InvalidOperation, ValueError, OverflowError, TypeError):
        raise AmountError(f"{str(usd)[:40]!r} is not an amount of dollars") from None
    if nano != whole:
        raise AmountError(f"{usd} USD is finer than a thousand-millionth of a dollar")
    if abs(whole) > LARGEST:
        raise AmountError(f"{str(usd)[:40]} USD is out of range")
    return whole


def usd_from_nano(nano: int) -> str:
    """Nano-USD to a plain decimal string without superfluous zeros: 1_500_000_000 → "1.5", 0 → "0"."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{rest:09d}".rstrip("0") if rest else f"{sign}{whole}"


def usd_number(nano: int) -> Decimal:
    """Nano-USD as a `Decimal` of dollars."""
    return Decimal(nano).scaleb(-9)


def ceil_div(amount: int, divisor: int) -> int:
    """Division of integers, rounded up."""
    return -(-amount // divisor)
