"""The tables of the embedded database."""

VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounts (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, digest BLOB NOT NULL UNIQUE, created_at INTEGER NOT NULL, expires_at INTEGER,
    credited INTEGER NOT NULL DEFAULT 0, charged INTEGER NOT NULL DEFAULT 0,
    reserved INTEGER NOT NULL DEFAULT 0, lost INTEGER NOT NULL DEFAULT 0,
    CHECK (reserved >= 0 AND charged >= 0 AND charged + reserved <= credited)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, account_id TEXT NOT NULL REFERENCES accounts, digest BLOB NOT NULL UNIQUE, sealed BLOB NOT NULL,
    name TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, deleted_at INTEGER, expire_at INTEGER,
    "limit" INTEGER, period TEXT, reset_at INTEGER, used INTEGER NOT NULL DEFAULT 0, used_total INTEGER NOT NULL DEFAULT 0,
    reserved INTEGER NOT NULL DEFAULT 0, rpm INTEGER, tpm INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS keys_by_name ON keys (account_id, name) WHERE deleted_at IS NULL;
CREATE INDEX IF NOT EXISTS keys_by_account ON keys (account_id);
CREATE TABLE IF NOT EXISTS draws (
    owner TEXT NOT NULL, account_id TEXT NOT NULL, key_id TEXT NOT NULL, amount INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (owner, account_id, key_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, account_id TEXT NOT NULL, key_id TEXT, at INTEGER NOT NULL, kind TEXT NOT NULL,
    amount INTEGER NOT NULL, request_id TEXT NOT NULL, model TEXT NOT NULL, query_type TEXT NOT NULL, query_source TEXT NOT NULL,
    inputs INTEGER NOT NULL, outputs INTEGER NOT NULL, lost INTEGER NOT NULL, detail BLOB NOT NULL, ref TEXT
);
CREATE INDEX IF NOT EXISTS entries_by_account ON entries (account_id);
CREATE INDEX IF NOT EXISTS entries_by_request ON entries (request_id) WHERE request_id <> '';
CREATE UNIQUE INDEX IF NOT EXISTS entries_by_ref ON entries (ref) WHERE ref IS NOT NULL;
CREATE TABLE IF NOT EXISTS owners (
    id TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, seen INTEGER NOT NULL, expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rates (
    key_id TEXT NOT NULL, what TEXT NOT NULL, "window" INTEGER NOT NULL, used INTEGER NOT NULL, PRIMARY KEY (key_id, what, "window")
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, due INTEGER, doc BLOB NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rows_by_due ON rows (kind, state, due);
"""

PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "busy_timeout=10000",
    "foreign_keys=ON",
    "cache_size=-4000",
    "temp_store=MEMORY",
)
