"""The dashboard: what a node knows, as pages on the gateway's port."""
