"""The invariants of design §3, looked up in SQLite."""

import sqlite3
from collections.abc import Iterator

CHECKS = {
    "Σ charges of {0} is {1}, its account says {2}": """
        SELECT a.id, coalesce(sum(e.amount), 0), a.charged FROM accounts a LEFT JOIN entries e ON e.account_id=a.id AND e.kind='charge'
        GROUP BY a.id HAVING coalesce(sum(e.amount), 0) <> a.charged""",
    "Σ credits of {0} is {1}, its account says {2}": """
        SELECT a.id, coalesce(sum(e.amount), 0), a.credited FROM accounts a LEFT JOIN entries e ON e.account_id=a.id AND e.kind='credit'
        GROUP BY a.id HAVING coalesce(sum(e.amount), 0) <> a.credited""",
    "Σ losses of {0} is {1}, its account says {2}": """
        SELECT a.id, coalesce(sum(e.lost), 0), a.lost FROM accounts a LEFT JOIN entries e ON e.account_id=a.id
        GROUP BY a.id HAVING coalesce(sum(e.lost), 0) <> a.lost""",
    "Σ draws on {0} is {1}, its account says {2}": """
        SELECT a.id, coalesce(sum(d.amount), 0), a.reserved FROM accounts a LEFT JOIN draws d ON d.account_id=a.id
        GROUP BY a.id HAVING coalesce(sum(d.amount), 0) <> a.reserved""",
    "Σ draws on key {0} is {1}, the key says {2}": """
        SELECT k.id, coalesce(sum(d.amount), 0), k.reserved FROM keys k LEFT JOIN draws d ON d.key_id=k.id
        GROUP BY k.id HAVING coalesce(sum(d.amount), 0) <> k.reserved""",
    "Σ charges of key {0} is {1}, the key says {2}": """
        SELECT k.id, coalesce(sum(e.amount), 0), k.used_total FROM keys k LEFT JOIN entries e ON e.key_id=k.id AND e.kind='charge'
        GROUP BY k.id HAVING coalesce(sum(e.amount), 0) <> k.used_total""",
    "account {0} holds {1} on a balance of {2}": """
        SELECT id, reserved, credited-charged FROM accounts WHERE reserved<0 OR reserved>credited-charged""",
    "{1} is drawn from {0} by an owner that is not registered: {2}": """
        SELECT account_id, amount, owner FROM draws WHERE amount>0 AND owner NOT IN (SELECT id FROM owners) AND owner NOT LIKE 'job:%'""",
}


def audit(db: sqlite3.Connection) -> Iterator[str]:
    """Every invariant that does not hold, seen in one snapshot."""
    db.execute("BEGIN")
    try:
        for words, query in CHECKS.items():
            for row in db.execute(query):
                yield words.format(*row)
    finally:
        db.execute("ROLLBACK")
