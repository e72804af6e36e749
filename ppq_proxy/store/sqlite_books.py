"""The ledger in SQLite: what draws, batches and sweeps do inside a transaction."""

import sqlite3
from typing import Any

import orjson

from ppq_proxy.store.base import Batch, Draw, Drawn, Entry, Refused, Row, Settlement, grant
from ppq_proxy.store.periods import next_reset

ENTRY = (
    "account_id, key_id, at, kind, amount, request_id, model, query_type, query_source, inputs, outputs, lost, detail"
)
INSERT_ENTRY = f"INSERT INTO entries ({ENTRY}, ref) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"


def replace(db: sqlite3.Connection, row: Row, doc: dict[str, Any], state: str, due: int | None) -> int:
    """Compare-and-set of a record; 1 if it was done."""
    sql = "UPDATE rows SET version=version+1, state=?, due=?, doc=? WHERE kind=? AND id=? AND version=?"
    return db.execute(sql, (state, due, orjson.dumps(doc), row.kind, row.id, row.version)).rowcount


def values(entry: Entry) -> tuple[Any, ...]:
    """An entry as the columns of its row."""
    return (
        entry.account_id, entry.key_id, entry.at, entry.kind, entry.amount, entry.request_id, entry.model,
        entry.query_type, entry.query_source, entry.inputs, entry.outputs, entry.lost, entry.detail,
    )  # fmt: skip


def version(db: sqlite3.Connection) -> int:
    """What every change of a key raises."""
    found = db.execute("SELECT value FROM meta WHERE name='version'").fetchone()
    return int(found[0]) if found else 0


def draw(db: sqlite3.Connection, owner: str, draw: Draw, at: int) -> Drawn | Refused:
    """See `base.Store.draw`."""
    found = db.execute(
        "SELECT credited-charged-reserved, reserved, expires_at FROM accounts WHERE id=?", (draw.account_id,)
    ).fetchone()
    if found is None or (found[2] is not None and found[2] <= at):
        return Refused("gone", 0)
    available, room, refusal = found[0], None, Refused("balance", found[0], found[1])
    if draw.key_id:
        key = db.execute(
            'SELECT "limit", period, used, reserved, reset_at, deleted_at, expire_at FROM keys WHERE id=?',
            (draw.key_id,),
        ).fetchone()
        if key is None or key[5] is not None or (key[6] is not None and key[6] <= at):
            return Refused("gone", 0)
        limit, period, used, reserved, reset_at = key[:5]
        if reset_at is not None and reset_at <= at:
            used, reset_at = 0, next_reset(period, at)
            db.execute("UPDATE keys SET used=0, reset_at=? WHERE id=?", (reset_at, draw.key_id))
        if limit is not None:
            room = limit - used - reserved
            if room < available:
                refusal = Refused("key_limit", max(0, room), reserved, limit, reset_at, period)
    amount = grant(draw, available, room)
    if not amount:
        return refusal
    db.execute("UPDATE accounts SET reserved=reserved+? WHERE id=?", (amount, draw.account_id))
    if draw.key_id:
        db.execute("UPDATE keys SET reserved=reserved+? WHERE id=?", (amount, draw.key_id))
    sql = "INSERT INTO draws VALUES (?,?,?,?) ON CONFLICT (owner, account_id, key_id) DO UPDATE SET amount=amount+excluded.amount"
    db.execute(sql, (owner, draw.account_id, draw.key_id or "", amount))
    return Drawn(amount, available - amount, amount > draw.need)


def commit(db: sqlite3.Connection, owner: str, batch: Batch) -> None:
    """See `base.Store.commit`."""
    for one in batch.settlements.values():
        taken = one.charge + one.give_back
        sql = "UPDATE draws SET amount=amount-? WHERE owner=? AND account_id=? AND key_id=? AND amount>=?"
        if not db.execute(sql, (taken, owner, one.account_id, one.key_id or "", taken)).rowcount:
            _late(db, one, batch)
            continue
        sql = "UPDATE accounts SET charged=charged+?, reserved=reserved-?, lost=lost+? WHERE id=?"
        db.execute(sql, (one.charge, taken, one.lost, one.account_id))
        if one.key_id:
            _use(db, one.key_id, one.charge, taken, batch.at)
        if one.give_back:
            db.execute(
                "DELETE FROM draws WHERE owner=? AND account_id=? AND key_id=? AND amount=0",
                (owner, one.account_id, one.key_id or ""),
            )
    db.executemany(INSERT_ENTRY, [(*values(entry), None) for entry in batch.entries])
    for row in batch.rows:
        replace(db, row, row.doc, row.state, row.due)


def _use(db: sqlite3.Connection, key_id: str, charge: int, taken: int, at: int) -> None:
    sql = (
        "UPDATE keys SET used=CASE WHEN reset_at<=:at THEN 0 ELSE used END + :charge, used_total=used_total+:charge,"
        " reserved=reserved-:taken, reset_at=CASE WHEN reset_at<=:at THEN"
        " CASE period WHEN 'daily' THEN :daily WHEN 'weekly' THEN :weekly ELSE :monthly END ELSE reset_at END WHERE id=:id"
    )
    resets = {period: next_reset(period, at) for period in ("daily", "weekly", "monthly")}
    db.execute(sql, {"at": at, "charge": charge, "taken": taken, "id": key_id, **resets})


def _late(db: sqlite3.Connection, one: Settlement, batch: Batch) -> None:
    """The draw is gone, swept while its owner was taken for dead: charge what the account can pay, the rest is the house's."""
    available = db.execute("SELECT credited-charged-reserved FROM accounts WHERE id=?", (one.account_id,)).fetchone()[0]
    missing = one.charge - min(one.charge, available)
    for entry in batch.entries:
        if missing and (entry.account_id, entry.key_id) == (one.account_id, one.key_id):
            short = min(missing, entry.amount)
            entry.amount, entry.lost, missing = entry.amount - short, entry.lost + short, missing - short
            one.charge, one.lost = one.charge - short, one.lost + short
    db.execute("UPDATE accounts SET charged=charged+?, lost=lost+? WHERE id=?", (one.charge, one.lost, one.account_id))
    if one.key_id:
        _use(db, one.key_id, one.charge, 0, batch.at)


def sweep(db: sqlite3.Connection, owner: str) -> int:
    """See `base.Store.sweep`."""
    total = 0
    for account_id, key_id, amount in db.execute(
        "SELECT account_id, key_id, amount FROM draws WHERE owner=?", (owner,)
    ).fetchall():
        db.execute("UPDATE accounts SET reserved=reserved-? WHERE id=?", (amount, account_id))
        if key_id:
            db.execute("UPDATE keys SET reserved=reserved-? WHERE id=?", (amount, key_id))
        total += amount
    db.execute("DELETE FROM draws WHERE owner=?", (owner,))
    db.execute("DELETE FROM owners WHERE id=?", (owner,))
    return total
