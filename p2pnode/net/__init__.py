"""The network of one node. The only importer of libp2p."""

from p2pnode.net.lean import postpone

postpone()  # before anything of libp2p is imported
