"""When a second host is asked for the same answer, because the first token of the first one is late. Pure.

As in Dean and Barroso 2013, "The tail at scale": the second request waits until the first one has taken
longer than 95% of such requests took, so that few are sent, and their number is bounded besides. What counts
is what this client measured at this very host, with prompts of about that length: a host that is always slow,
or that reads a long prompt, is not late. Times are in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal, TypeAlias

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.client.ranking import Candidate, is_priced
from p2pnode.ids import PeerId

HedgeMode: TypeAlias = Literal["free", "always", "never"]
"""``free``: the second host must ask for no money. ``always``: it may ask for some, and then its input is
paid beside that of the first. ``never``: there is none."""
_QUANTILE: Final = 0.95
_MARGIN: Final = 1.25
"""A first token is late after so many times what 95% of them took."""
FLOOR_S: Final = 0.5
"""And never before this: what a second host can win is less than what it costs to ask it."""
SAMPLES_MIN: Final = 8
"""With fewer measurements it is not known what is late."""
_SAMPLES_MAX: Final = 64
_HOSTS_MAX: Final = 512
SHARE: Final = 0.05
"""Of all turns so many may be asked of a second host."""
BURST: Final = 10.0
"""So many at once, if none was for long."""
_SMALL: Final = 64
"""Tokens of a prompt below which its length does not matter."""


class FirstTokens:
    """How long hosts took to their first tokens, by about how much input they had to read.

    Lengths are told apart by the power of two: what is measured at 1,000 tokens counts up to 2,047.
    """

    def __init__(self) -> None:
        self._known: BoundedMap[PeerId, dict[int, deque[float]]] = BoundedMap(_HOSTS_MAX)

    def note(self, peer: PeerId, tokens: int, seconds: float) -> None:
        """A host took so long to its first token, or longer, after it read so many tokens of input."""
        sizes = self._known.use(peer, dict)
        sizes.setdefault(_size(tokens), deque(maxlen=_SAMPLES_MAX)).append(seconds)

    def late_after_s(self, peer: PeerId, tokens: int) -> float | None:
        """After how long the first token for so much input is late; None where too little is known.

        Longer prompts say it, too: what is late for them is late for a shorter one.
        """
        sizes, size = self._known.get(peer) or {}, _size(tokens)
        known = (sizes[each] for each in sorted(sizes) if each >= size and len(sizes[each]) >= SAMPLES_MIN)
        samples = next(known, None)
        if samples is None:
            return None
        return max(FLOOR_S, _MARGIN * sorted(samples)[math.ceil(_QUANTILE * len(samples)) - 1])


def _size(tokens: int) -> int:
    return (max(0, tokens) // _SMALL).bit_length()


class Hedging:
    """What one client knows of first tokens, and how many second hosts it may ask.

    Each turn brings a twentieth of a second host: so a network that is slow as a whole is not asked for twice
    as much.
    """

    def __init__(self) -> None:
        self.first_tokens = FirstTokens()
        self._turns = 0
        self._allowed = TokenBucket(SHARE, BURST)  # its clock counts turns
        self._allowed.spend(BURST - 1)

    def turn(self) -> None:
        """A turn is asked."""
        self._turns += 1

    def take(self) -> bool:
        """Take the right to ask one second host; whether there was one."""
        return self._allowed.take(self._turns)

    def give_back(self) -> None:
        """There was no second host to ask."""
        self._allowed.spend(-1)


def may_be_second(first: Candidate, second: Candidate, mode: HedgeMode) -> bool:
    """Whether this host may be asked for the same answer as the first one.

    It runs the same model, has a free slot, and is trusted as the first one is.
    """
    return (
        mode != "never"
        and second.offer.model == first.offer.model
        and second.trusted == first.trusted
        and second.has_room
        and (mode == "always" or not is_priced(second.offer))
    )
