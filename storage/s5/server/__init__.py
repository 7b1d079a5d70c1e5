"""S5's HTTP API over a store: what S5 programs on this machine (s5.js, tus clients, curl) speak to a node."""
