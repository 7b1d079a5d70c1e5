"""Network simulations on the same protocol code (the shell arrives later)."""
