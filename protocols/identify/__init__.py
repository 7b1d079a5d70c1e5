"""Identify: what a peer says of itself, when it is asked and when it changed. See ``SPEC.md``."""
