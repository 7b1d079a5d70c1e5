"""Inference engines, manifests and the catalogue: what a host runs. Importing this imports no engine."""
