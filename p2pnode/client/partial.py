"""What is held of an answer, and what is still to be asked for. Pure: it knows no host and no session.

Text may lag ids, and whoever sent the ids may be gone before their text came: ``told`` counts those whose
text is here. What a user has seen can't be taken back, so it stays whatever is learnt of its sender later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from p2pnode.protocols.inference.messages import PREFIX_MAX, PromptBody


@dataclass(frozen=True, slots=True)
class Held:
    """What is kept of an answer to go on from. ``text`` is that of the first ``told`` of its ``ids``."""

    ids: tuple[int, ...]
    text: str
    told: int


@dataclass(slots=True)
class Partial:
    """A part of the answer to ``body``, which has no prefix. ``text`` is that of the first ``told`` ids."""

    body: PromptBody
    ids: list[int] = field(default_factory=list)
    text: str = ""
    told: int = 0
    receipted: int = 0
    """Ids that a host's receipt covers; those of hosts that are gone count as they were left."""

    @classmethod
    def of(cls, body: PromptBody, held: Held | None) -> Partial:
        """With what came before."""
        if held is None:
            return cls(body)
        return cls(body, list(held.ids), held.text, min(held.told, len(held.ids)))

    @property
    def held(self) -> Held:
        """To go on from."""
        return Held(tuple(self.ids), self.text, self.told)

    def take(self, ids: Sequence[int], text: str) -> None:
        """More came. A text tells every id so far."""
        self.ids.extend(ids)
        self.text += text
        if text:
            self.told = len(self.ids)

    def receipt(self) -> None:
        """The host's receipt over everything so far was checked."""
        self.receipted = len(self.ids)

    def distrust(self) -> int:
        """The host broke the protocol: drop what nobody saw and no receipt covers; returns how many ids.

        A receipt proves who sent an id, not that a model made it, so text without one is worth no less:
        it stays, unpaid.
        """
        sure = max(self.told, self.receipted)
        dropped = len(self.ids) - sure
        del self.ids[sure:]
        return dropped

    @property
    def room(self) -> int:
        """Output tokens that may still come."""
        return max(0, self.body.sampling.tokens_max - len(self.ids))

    @property
    def continuable(self) -> bool:
        """Can a prompt hold what is here, and ask for more?"""
        return self.room > 0 and len(self.ids) <= PREFIX_MAX

    def rest(self) -> PromptBody:
        """What to ask the next host for."""
        if not self.ids:
            return self.body
        return replace(
            self.body,
            sampling=replace(self.body.sampling, tokens_max=self.room),
            prefix=tuple(self.ids),
            told=self.told if self.told < len(self.ids) else None,
        )
