"""``python -m p2pnode``."""

from p2pnode.cli import main

main()
