"""Blobs and registry entries between peers: put, get, pin and point."""
