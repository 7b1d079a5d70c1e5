"""Copies of a user's data on other nodes: who may hold them, and how they are written and read."""
