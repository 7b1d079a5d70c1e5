"""The host role: serves models to peers, advertises them, drains before it goes."""
