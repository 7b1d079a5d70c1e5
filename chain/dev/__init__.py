"""A whole chain in memory, the same behind loopback JSON-RPC, and what gas a session takes on it."""
