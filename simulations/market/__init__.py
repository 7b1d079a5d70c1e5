"""The simulated market: hosts and clients that drive the node's machines and policies, and what they meet."""
