"""What a database has to do for us: one small protocol, and the records that pass through it.

Money stands in **purses**: an account (what was credited, less what was charged) and a key with a limit (the limit, less
what was used). A process takes money out of both in one step, a **draw**; what it has drawn is reserved in the purse and
belongs to the drawing **owner** until a batch of captures charges it or gives it back. An owner that dies is swept: what
it had drawn and not charged returns. So at every moment, in every purse: 0 ≤ reserved ≤ balance, and Σ draws = reserved.

All amounts are integer nano-USD, all times integer milliseconds since the epoch.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

SHARE = 64
"""An owner may hold ahead at most 1/SHARE of what is available: an account near its edge is drawn from call by call."""


@dataclass(slots=True)
class Account:
    """A balance. `kind` is prepaid, guest (behind a payment) or house."""

    id: str
    kind: str
    credited: int
    charged: int
    reserved: int
    lost: int
    created_at: int
    expires_at: int | None = None

    @property
    def balance(self) -> int:
        return self.credited - self.charged

    @property
    def available(self) -> int:
        return self.balance - self.reserved


@dataclass(slots=True)
class Key:
    """An API key: who may spend an account's money, how much of it, until when."""

    id: str
    account_id: str
    name: str
    sealed: bytes
    created_at: int
    updated_at: int
    limit: int | None = None
    period: str | None = None
    used: int = 0
    used_total: int = 0
    reserved: int = 0
    reset_at: int | None = None
    expire_at: int | None = None
    deleted_at: int | None = None
    rpm: int | None = None
    tpm: int | None = None


@dataclass(slots=True, frozen=True)
class Draw:
    """Take at least `least` and rather `need` out of account and key; up to `want` while that is a small share of what is there.

    Without `edge` a draw that is more than that small share is refused instead of taking exactly what is needed.
    """

    account_id: str
    key_id: str | None
    need: int
    least: int
    want: int
    edge: bool = True


@dataclass(slots=True, frozen=True)
class Drawn:
    """What a draw took, and what was left in the account for others; `ample`: more than was needed was taken."""

    amount: int
    available: int
    ample: bool


@dataclass(slots=True, frozen=True)
class Refused:
    """Nothing was taken. `available` is the purse's own, `reserved` the account's; for a key its `limit` and when it resets."""

    reason: Literal["balance", "key_limit", "gone"]
    available: int
    reserved: int = 0
    limit: int | None = None
    reset_at: int | None = None
    period: str | None = None


@dataclass(slots=True)
class Entry:
    """One line of the ledger. A charge is positive in `amount`; `lost` is what the account could not pay."""

    account_id: str
    key_id: str | None
    at: int
    kind: Literal["charge", "credit"]
    amount: int
    request_id: str = ""
    model: str = ""
    query_type: str = ""
    query_source: str = ""
    inputs: int = 0
    outputs: int = 0
    lost: int = 0
    detail: bytes = b"{}"


@dataclass(slots=True)
class Settlement:
    """What a batch does to one draw: `charge` it, `give_back` the rest or a part; `lost` is booked beside."""

    account_id: str
    key_id: str | None
    charge: int = 0
    give_back: int = 0
    lost: int = 0


@dataclass(slots=True)
class Batch:
    """A group of captures and returns of one owner, applied as a whole and once, whatever is retried."""

    seq: int
    at: int
    entries: list[Entry] = field(default_factory=list)
    settlements: dict[tuple[str, str | None], Settlement] = field(default_factory=dict)
    rows: list["Row"] = field(default_factory=list)


@dataclass(slots=True)
class Row:
    """A durable record of a feature: quotes, payments, top-ups, kept answers, jobs. `version` is for compare-and-set."""

    kind: str
    id: str
    doc: dict[str, Any]
    version: int = 0
    state: str = ""
    due: int | None = None


@dataclass(slots=True, frozen=True)
class HistoryFilter:
    """What `history` is asked for; None means any. `since` and `until` are inclusive."""

    account_id: str
    key_id: str | None = None
    since: int | None = None
    until: int | None = None
    model: str | None = None
    query_source: str | None = None
    query_type: str | None = None
    nonzero: bool = True


class Rows(Protocol):
    """Durable records with unique ids, compare-and-set and a due date."""

    async def insert(self, kind: str, id: str, doc: dict[str, Any], *, state: str = "", due: int | None = None) -> bool:
        """A new record; False if there is one of that kind and id."""
        ...

    async def get(self, kind: str, id: str) -> Row | None:
        """The record, or None."""
        ...

    async def replace(self, row: Row, doc: dict[str, Any], *, state: str | None = None, due: int | None = None) -> bool:
        """Put `doc` in the place of `row` if nobody has since; state stays where it is None, due is always set."""
        ...

    async def find(
        self, kind: str, *, state: str | None = None, due_before: int | None = None, limit: int = 100
    ) -> list[Row]:
        """Records of a kind, in a state, due before a time; soonest due first."""
        ...

    async def delete(self, row: Row) -> bool:
        """Remove the record if nobody has changed it since."""
        ...


class Store(Protocol):
    """A database. Every method that writes returns once the write is durable. Raises `StoreUnavailable`."""

    rows: Rows

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None: ...

    # accounts and keys

    async def create_account(
        self, account_id: str, digest: bytes, kind: str, at: int, expires_at: int | None = None
    ) -> bool:
        """A new account without credit; False if there is one with that id or digest."""
        ...

    async def account(self, account_id: str) -> Account | None: ...

    async def account_id(self, digest: bytes) -> str | None: ...

    async def create_key(self, key: Key, digest: bytes) -> bool:
        """A new key; False if the account has an active one of that name."""
        ...

    async def key(self, key_id: str) -> Key | None: ...

    async def key_by_digest(self, digest: bytes) -> Key | None: ...

    async def keys(self, account_id: str) -> list[Key]: ...

    async def update_key(self, key_id: str, changes: dict[str, Any]) -> Key | None:
        """Set fields of a key that is not revoked and raise the version; None if there is none, `Conflict` on a name that is taken."""
        ...

    # the ledger

    async def credit(self, ref: str, entry: Entry) -> bool:
        """Add `entry.amount` to its account; False and nothing done if `ref` was credited before."""
        ...

    async def draw(self, owner: str, draw: Draw, at: int) -> Drawn | Refused: ...

    async def commit(self, owner: str, batch: Batch) -> None:
        """Apply a batch, once.

        A draw that is gone (its owner was taken for dead) is charged as far as the account pays, the rest is lost.
        """
        ...

    async def take(self, key_id: str, what: str, window: int, amount: int, limit: int) -> int:
        """Of a limit by the minute, up to `amount` more in this window: what was granted, 0 if nothing is left."""
        ...

    async def history(self, wanted: HistoryFilter, offset: int, limit: int) -> tuple[list[Entry], int]:
        """Charges, newest first, and how many there are in all."""
        ...

    async def receipts(self, request_id: str, account_id: str | None = None) -> list[Entry]:
        """The charges made under a request id, newest first."""
        ...

    # owners

    async def join(self, owner: str, host: str, pid: int, at: int, expires_at: int) -> int:
        """Register a process that draws; the version that it starts from."""
        ...

    async def beat(self, owner: str, seen: int, expires_at: int) -> bool:
        """Prolong an owner's lease and tell which version it knows; False if it was swept."""
        ...

    async def version(self) -> int:
        """Raised by every change of a key, so that caches of other processes can be dropped."""
        ...

    async def laggards(self, version: int) -> list["Owner"]:
        """Owners that have not seen `version`."""
        ...

    async def owners(self) -> list["Owner"]: ...

    async def sweep(self, owner: str) -> int:
        """Return what a dead owner had drawn and not charged; the sum. It can never commit against its draws again."""
        ...

    async def secret(self, fresh: bytes) -> bytes:
        """The installation's secret: `fresh` if there was none."""
        ...

    async def audit(self) -> list[str]:
        """Every invariant that does not hold, in words; empty when the books are right."""
        ...


@dataclass(slots=True, frozen=True)
class Owner:
    """A process that draws, and until when it counts as alive."""

    id: str
    host: str
    pid: int
    seen: int
    expires_at: int


def grant(draw: Draw, available: int, room: int | None) -> int:
    """How much a draw takes out of `available` in the account and `room` in the key's limit (None: unlimited); 0 is a refusal.

    The rule of design §3: a share of at most 1/SHARE is taken ahead; beyond it exactly what is needed, and of a thin
    purse what there is, if that is at least `least`.
    """
    free = available if room is None else min(available, room)
    share = free // SHARE
    if draw.need <= share:
        return max(draw.need, min(draw.want, share))
    if not draw.edge:
        return 0
    if draw.need <= free:
        return draw.need
    return free if 0 < draw.least <= free else 0
