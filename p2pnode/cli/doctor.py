"""``p2pnode doctor``."""


def doctor() -> None:
    """Doctor."""
