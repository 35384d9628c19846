"""The ledger: what an append, a root and a verification cost."""
