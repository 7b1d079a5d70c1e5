"""``p2pnode demo``."""


def demo() -> None:
    """Demo."""
