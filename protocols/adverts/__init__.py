"""Signed, sequenced, expiring adverts: what a host serves, at what price, how to reach it."""
