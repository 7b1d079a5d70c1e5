"""The gateway: the APIs that programs already speak, answered by hosts of the network."""
