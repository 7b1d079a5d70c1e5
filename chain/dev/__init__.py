"""The development chain: a chain in memory, the same behind loopback JSON-RPC, and what gas a session
takes."""
