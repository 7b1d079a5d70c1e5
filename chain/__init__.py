"""Wallets, and (with a profile) the ledger."""
