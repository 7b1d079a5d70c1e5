"""A node's lifecycle: identity, network, adverts, lookup, ordered shutdown. The roles stand on it."""
