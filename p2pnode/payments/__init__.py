"""Money between a client and a host: what is spent, escrowed, owed, delivered and settled."""
