"""The ledger without a chain: the contracts' rules in Python."""
