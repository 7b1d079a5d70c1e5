"""Kademlia: who provides a key, in libp2p's messages, as pure machines. See ``SPEC.md``."""
