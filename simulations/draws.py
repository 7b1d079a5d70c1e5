"""``Draws``: random numbers by what they are for, all from one seed.

Each concern has a generator of its own. So a change in one model (one more draw for a link) leaves what all
others draw as it was, and two runs that differ in one parameter are compared under the same chances.
"""

from __future__ import annotations

import random


class Draws:
    """``draws("links")``, ``draws("churn", 7)``: a new generator for each call, the same for the same names.

    Whoever asks keeps what it gets: a second call starts the same numbers again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, name: str, *of: object) -> random.Random:
        """The generator of a concern, or of one of many (a node, a session) within it."""
        return random.Random("/".join(map(str, (self.seed, name, *of))))  # noqa: S311  reproducible, no secret
