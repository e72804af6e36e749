"""The stores: one contract for all of them, the ledger above them, and what is left after a crash."""
