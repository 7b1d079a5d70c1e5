"""Engines that run in a child process: what they have in common."""
