"""Keystores, twelve words, and where passphrases come from."""
