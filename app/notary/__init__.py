"""The notary: puts the heads of all ledgers and the acts of operators into one log, and signs it."""
