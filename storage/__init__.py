"""Content-addressed storage (arrives with sessions that survive their host)."""
