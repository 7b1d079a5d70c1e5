"""The ledger of a real chain: web3 on trio, several endpoints, a sender that owns the nonces."""
