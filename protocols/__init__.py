"""Pure machines and messages: no I/O, no clock, no randomness."""
