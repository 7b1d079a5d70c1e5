"""S5: a client of S5 nodes, and this node's own S5 HTTP API."""
