"""The only importer of libp2p."""
