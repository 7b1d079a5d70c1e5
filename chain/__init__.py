"""Money on the chain: contracts and their digests, wallets, and, with a profile, the ledger. See
``README.md``."""
