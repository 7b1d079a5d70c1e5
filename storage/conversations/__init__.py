"""Conversations that belong to their user: sealed logs, their index, and the archive over all of them."""
