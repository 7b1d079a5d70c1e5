"""``p2pnode bench``."""


def bench() -> None:
    """Measure."""
