"""Short ways to fill books and to look at them."""

from dataclasses import replace

from ppq_proxy.store.base import Batch, Draw, Drawn, Entry, Key, Settlement, Store

AT = 1_800_000_000_000
DAY = 86_400_000
Purse = tuple[str, str | None]


async def account(store: Store, account_id: str = "a1", amount: int = 1_000_000, expires_at: int | None = None) -> str:
    """A new account with so much credit."""
    assert await store.create_account(account_id, account_id.encode() * 8, "prepaid", AT, expires_at)
    if amount:
        assert await store.credit(f"first:{account_id}", credit(account_id, amount))
    return account_id


def credit(account_id: str, amount: int, at: int = AT) -> Entry:
    return Entry(account_id, None, at, "credit", amount)


def charge(account_id: str, key_id: str | None, amount: int, at: int = AT, **more: object) -> Entry:
    return replace(Entry(account_id, key_id, at, "charge", amount), **more)  # type: ignore[arg-type]


async def key(store: Store, key_id: str = "k1", account_id: str = "a1", **more: object) -> str:
    """A new key of an account."""
    plain = Key(key_id, account_id, key_id, b"sealed " + key_id.encode(), AT, AT)
    assert await store.create_key(replace(plain, **more), key_id.encode() * 8)  # type: ignore[arg-type]
    return key_id


def call(need: int, account_id: str = "a1", key_id: str | None = None) -> Draw:
    """A draw of exactly `need`."""
    return Draw(account_id, key_id, need, need, need)


async def drawn(store: Store, owner: str, need: int, account_id: str = "a1", key_id: str | None = None) -> int:
    """Draw exactly `need`, which has to be there."""
    found = await store.draw(owner, call(need, account_id, key_id), AT)
    assert isinstance(found, Drawn), found
    return found.amount


def batch(seq: int, *entries: Entry, give_back: dict[Purse, int] | None = None, at: int = AT) -> Batch:
    """A batch that charges entries to their purses and gives back."""
    made = Batch(seq, at, list(entries))
    for purse, amount in (give_back or {}).items():
        made.settlements[purse] = Settlement(*purse, give_back=amount)
    for entry in entries:
        purse = (entry.account_id, entry.key_id)
        one = made.settlements.setdefault(purse, Settlement(*purse))
        one.charge += entry.amount
        one.lost += entry.lost
    return made


async def standing(store: Store, account_id: str = "a1") -> tuple[int, int, int, int]:
    """(credited, charged, reserved, lost) of an account."""
    found = await store.account(account_id)
    assert found
    return found.credited, found.charged, found.reserved, found.lost


async def use(store: Store, key_id: str = "k1") -> tuple[int, int, int]:
    """(used, used in all, reserved) of a key."""
    found = await store.key(key_id)
    assert found
    return found.used, found.used_total, found.reserved
