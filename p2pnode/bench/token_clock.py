"""How fast output tokens came, measured in the same way at a client and at an engine."""

from __future__ import annotations

from dataclasses import dataclass

import trio

QUESTIONS = (
    "Tell a long story about a lighthouse keeper and the sea.",
    "Explain in great detail how bread is made, step by step.",
    "Write a long essay about the history of railways.",
    "Describe a journey through the mountains, day by day.",
)


@dataclass(slots=True)
class TokenClock:
    """One stream of tokens: when it was asked for, when the first and the last tokens came."""

    asked_at: float
    first_at: float = 0.0
    first_tokens: int = 0
    last_at: float = 0.0
    tokens: int = 0

    def came(self, tokens: int) -> None:
        """Note that ``tokens`` in all have come by now."""
        if tokens <= self.tokens:
            return
        self.last_at = trio.current_time()
        if not self.tokens:
            self.first_at, self.first_tokens = self.last_at, tokens
        self.tokens = tokens

    @property
    def first_token_s(self) -> float:
        """Seconds from asking to the first token."""
        return self.first_at - self.asked_at

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second, without those that came first."""
        seconds = self.last_at - self.first_at
        return (self.tokens - self.first_tokens) / seconds if seconds > 0 else 0.0


def question(number: int, stream: int) -> str:
    """A question that was not asked before in this run, so that no cache helps either side."""
    return f"Number {number * len(QUESTIONS) + stream}. {QUESTIONS[stream % len(QUESTIONS)]}"
