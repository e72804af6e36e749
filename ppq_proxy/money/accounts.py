"""Accounts and who may spend from them. Secrets are kept as digests for look-up, and keys sealed for `show_key`."""

import hashlib
import secrets
import time
import uuid
from typing import TYPE_CHECKING, Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ppq_proxy.errors import BadRequest, Conflict, NotFound, Unauthorized
from ppq_proxy.money.keys import KeyChanges
from ppq_proxy.money.ledger import Allotment, Ledger, now_ms
from ppq_proxy.money.limits import Window
from ppq_proxy.store.base import Account, Entry, Key, Store
from ppq_proxy.store.periods import next_reset

if TYPE_CHECKING:
    from ppq_proxy.money.owner import Heart

REMEMBERED = 100_000
"""How many keys a process keeps in mind before it starts anew."""


def digest(kind: str, secret: str) -> bytes:
    """What is stored of a secret. The secrets are random, so a plain hash cannot be reversed."""
    return hashlib.sha256(f"{kind}:{secret}".encode()).digest()


def object_id() -> str:
    """24 hexadecimal digits that grow with time, as the keys' ids look."""
    return f"{int(time.time()):08x}{secrets.token_hex(8)}"


class Payer:
    """Who pays for a call: an account, by one of its keys, by its credit id, or as a guest behind a payment."""

    __slots__ = ("account_id", "allotment", "expire_at", "guest", "key_id", "requests", "tokens")

    def __init__(self, account_id: str, allotment: Allotment, key: Key | None = None, *, guest: bool = False) -> None:
        self.account_id, self.allotment, self.guest = account_id, allotment, guest
        self.key_id = key.id if key else None
        self.expire_at = key.expire_at if key else None
        self.requests: Window | None = None
        self.tokens: Window | None = None


class Seal:
    """AES-GCM over key values, so that a copy of the database alone spends nothing."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(hashlib.sha256(b"ppq seal:" + secret).digest())

    def close(self, value: str, name: str) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + self._cipher.encrypt(nonce, value.encode(), name.encode())

    def open(self, sealed: bytes, name: str) -> str:
        return self._cipher.decrypt(sealed[:12], sealed[12:], name.encode()).decode()


class Accounts:
    """Accounts, their keys, and the memory of which key is whose."""

    def __init__(self, store: Store, ledger: Ledger, secret: bytes, rate_limit: int | None = None) -> None:
        self.store, self.ledger, self.rate_limit = store, ledger, rate_limit
        self.seal = Seal(secret)
        self.remembered: dict[str, Payer] = {}
        self._windows: dict[tuple[str, str], Window] = {}
        self.heart: Heart | None = None

    def unlock(self, secret: bytes) -> None:
        """Use the installation's secret, once it is known."""
        self.seal = Seal(secret)

    # who is it?

    def known(self, secret: str) -> Payer | None:
        """The payer behind a key that this process knows to be good now; None: ask `authenticate`."""
        payer = self.remembered.get(secret)
        if payer is None or self.heart is None or not self.heart.current:
            return None
        if payer.expire_at is not None and payer.expire_at <= now_ms():
            return None
        return payer

    def forget(self) -> None:
        """Drop what is remembered: some key has changed. What was drawn ahead under its old limit goes back too."""
        self.remembered = {}
        self.ledger.return_idle(-1)

    async def authenticate(self, secret: str) -> Payer:
        """The payer behind an API key. Raises `Unauthorized`."""
        if payer := self.known(secret):
            return payer
        key = await self.key_of(secret)
        payer = Payer(key.account_id, self.ledger.allotment(key.account_id, key.id), key)
        payer.requests = self._window(key.id, "requests", key.rpm or self.rate_limit)
        payer.tokens = self._window(key.id, "tokens", key.tpm)
        if len(self.remembered) >= REMEMBERED:
            self.remembered.clear()
        self.remembered[secret] = payer
        return payer

    async def key_of(self, secret: str) -> Key:
        """The key record behind an API key, from the store. Raises `Unauthorized`."""
        key = await self.store.key_by_digest(digest("key", secret)) if secret else None
        if key is None:
            raise Unauthorized("No such API key. Create one with POST /accounts/create or POST /keys.")
        if key.deleted_at is not None:
            raise Unauthorized("This API key was revoked.")
        if key.expire_at is not None and key.expire_at <= now_ms():
            raise Unauthorized("This API key has expired.")
        return key

    async def holder(self, credit_id: str) -> str:
        """The account behind a credit id. Raises `Unauthorized`."""
        found = await self.store.account_id(digest("credit", credit_id)) if credit_id else None
        if found is None:
            raise Unauthorized("No account has this credit id.")
        return found

    async def payer_of_account(self, credit_id: str) -> Payer:
        """The account itself as payer, by its credit id."""
        account_id = await self.holder(credit_id)
        payer = Payer(account_id, self.ledger.allotment(account_id, None))
        payer.requests = self._window(account_id, "requests", self.rate_limit)
        return payer

    def _window(self, name: str, what: Literal["requests", "tokens"], limit: int | None) -> Window | None:
        """The one window of a limit in this process: a second one would draw a block of its own."""
        if not limit:
            return None
        found = self._windows.get((name, what))
        if found is None or found.limit != limit:
            if len(self._windows) >= REMEMBERED:
                self._windows.clear()
            found = self._windows[name, what] = Window(name, what, limit)
        return found

    def guest(self, account_id: str) -> Payer:
        """The payer of a guest account."""
        return Payer(account_id, self.ledger.allotment(account_id, None), guest=True)

    # accounts

    async def create(self, kind: str = "prepaid") -> tuple[str, str, str]:
        """A new account with one key named Default: its credit id, the key, and its id."""
        credit_id, account_id = str(uuid.uuid4()), object_id()
        await self.store.create_account(account_id, digest("credit", credit_id), kind, now_ms())
        _, secret = await self.create_key(account_id, KeyChanges(name="Default"))
        return credit_id, secret, account_id

    async def account(self, account_id: str) -> Account:
        """The account as the store has it. Raises `NotFound`."""
        found = await self.store.account(account_id)
        if found is None:
            raise NotFound("No such account.")
        return found

    async def credit(self, account_id: str, amount: int, ref: str, detail: bytes = b"{}") -> bool:
        """Add money once for each `ref`; False if it was added before."""
        return await self.store.credit(ref, Entry(account_id, None, now_ms(), "credit", amount, detail=detail))

    # keys

    async def create_key(self, account_id: str, wanted: KeyChanges, prefix: str = "sk-") -> tuple[Key, str]:
        """A new key, and its value, which is shown only now (and on `show_key`)."""
        at, key_id, secret = now_ms(), object_id(), prefix + secrets.token_urlsafe(32)
        key = Key(
            key_id,
            account_id,
            wanted.name or "",
            self.seal.close(secret, key_id),
            at,
            at,
            limit=wanted.limit,
            period=wanted.period,
            reset_at=next_reset(wanted.period, at),
            expire_at=wanted.expire_at,
            rpm=wanted.rpm,
            tpm=wanted.tpm,
        )
        if not await self.store.create_key(key, digest("key", secret)):
            raise BadRequest(f"The account has another key named {wanted.name!r}; names are unique.", param="name")
        return key, secret

    async def key(self, account_id: str, key_id: str) -> Key:
        """A key of the account, revoked ones too. Raises `NotFound`."""
        found = await self.store.key(key_id)
        if found is None or found.account_id != account_id:
            raise NotFound("The account has no such key.")
        return found

    async def change_key(self, account_id: str, key_id: str, changes: KeyChanges) -> Key:
        """Change the given fields; done once every process knows. Raises `NotFound`, `BadRequest`."""
        key = await self.key(account_id, key_id)
        at = now_ms()
        updates = changes.updates(key) | {"updated_at": at}
        if "period" in updates and updates["period"] != key.period:
            updates |= {"used": 0, "reset_at": next_reset(updates["period"], at)}
        try:
            changed = await self.store.update_key(key_id, updates)
        except Conflict:
            raise BadRequest(
                f"The account has another key named {changes.name!r}; names are unique.", param="name"
            ) from None
        if changed is None:
            raise NotFound("This key was revoked.")
        await self._agreed()
        return changed

    async def revoke_key(self, account_id: str, key_id: str) -> None:
        """Revoke for good; done once no process takes the key any more. Raises `NotFound`."""
        await self.key(account_id, key_id)
        at = now_ms()
        if await self.store.update_key(key_id, {"deleted_at": at, "updated_at": at}) is None:
            raise NotFound("This key was revoked before.")
        await self._agreed()

    async def _agreed(self) -> None:
        if self.heart:
            await self.heart.agreed()
        else:
            from ppq_proxy.money.owner import everybody_knows, host_name

            await everybody_knows(self.store, await self.store.version(), host_name())
