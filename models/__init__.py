"""Inference engines, manifests and the catalogue: what a host runs."""
