"""Blobs and registry entries between peers: put, get, pin, point, prove."""
