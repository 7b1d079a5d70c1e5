"""``LogitsChain``: what is done to the logits of one answer before a library's sampler sees them, in torch.

The order is llama.cpp's: the biases, then penalties for the last 64 tokens, then what may not follow is taken
out. Log-probabilities are those of the logits as the model gave them.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from typing import Any, Final

import numpy as np
import torch

from p2pnode.models.exllama.jobs import Job, Made
from p2pnode.models.token_mask import TokenTable

_PENALTY_LAST: Final = 64
"""llama.cpp's ``repeat_last_n``."""
_WORDS: Final = 1 << 32


class Draws(random.Random):
    """The draws of llama.cpp's sampler: ``std::mt19937``, of which each number from 0 to 1 takes two words,
    the lower one first. An answer that was cut is drawn on alike, whichever engine goes on."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._words = np.random.RandomState(seed)

    def random(self) -> float:
        """The next number."""
        low, high = self._words.randint(0, _WORDS, size=2, dtype=np.uint64).tolist()
        return float((low + high * _WORDS) / _WORDS**2)


class LogitsChain:
    """The chain of one job. :meth:`apply` for each token, then :meth:`feed` with what was drawn."""

    def __init__(self, job: Job, table: TokenTable, vocabulary: int) -> None:
        self._job = job
        self._table = table
        self._vocabulary = vocabulary
        self._last = deque(job.prompt[-_PENALTY_LAST:], maxlen=_PENALTY_LAST)
        self._bias = torch.tensor([bias for _, bias in job.bias], dtype=torch.float)
        self._biased = torch.tensor([token for token, _ in job.bias], dtype=torch.long)
        self._raw: Any = None
        self._mask: Any = None

    def prepare(self) -> None:
        """Find out what may follow. It takes the longest, and may be done while the model computes."""
        mask = self._job.mask
        if mask is None or self._mask is not None:
            return
        allowed = torch.zeros(self._vocabulary, dtype=torch.bool)
        ranked = torch.frombuffer(bytearray(mask.allowed()), dtype=torch.bool)
        allowed[torch.tensor(self._table.order)[ranked]] = True
        # Where the vocabulary can't spell what must follow, the answer ends.
        if mask.may_end or not bool(ranked.any()):
            allowed[list(self._table.ends)] = True
        self._mask = allowed

    def apply(self, logits: Any) -> Any:
        """New logits from those of the model, both of shape (vocabulary and padding)."""
        job = self._job
        if job.logprobs >= 0:
            self._raw = logits.clone()
        shaped = logits.clone()
        if job.bias:
            shaped[self._biased] += self._bias
        self._penalise(shaped)
        self.prepare()
        if self._mask is not None:
            shaped[: self._vocabulary][~self._mask] = -torch.inf
        return shaped

    def _penalise(self, logits: Any) -> None:
        job = self._job
        if job.repeat_penalty == 1 and not job.presence_penalty and not job.frequency_penalty:
            return
        counts = Counter(self._last)
        ids = torch.tensor(list(counts), dtype=torch.long)
        said = logits[ids]
        said = torch.where(said <= 0, said * job.repeat_penalty, said / job.repeat_penalty)
        times = torch.tensor(list(counts.values()), dtype=torch.float)
        logits[ids] = said - times * job.frequency_penalty - job.presence_penalty

    def feed(self, token: int) -> None:
        """Go on with ``token``."""
        self._last.append(token)
        self._mask = None
        if self._job.mask is not None and token not in self._table.ends:
            self._job.mask.feed([token])

    def told(self, token: int) -> Made:
        """``token`` as it is told, by the logits of the last :meth:`apply`."""
        if self._raw is None:
            return Made(token)
        raw = self._raw[: self._vocabulary].float()
        logprobs = raw - torch.logsumexp(raw, dim=0)
        top = torch.topk(logprobs, self._job.logprobs) if self._job.logprobs else None
        likeliest = () if top is None else tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return Made(token, float(logprobs[token]), likeliest)


def sample(logits: Any, job: Job, drawn: float) -> int:
    """The token that llama.cpp's chain takes of ``logits``, of shape (vocabulary): top_k, top_p, min_p, the
    temperature, and the place of ``drawn``, from 0 to 1, in what is left, the likeliest first."""
    if job.temperature <= 0:
        return int(torch.argmax(logits))
    order = torch.sort(logits, descending=True, stable=True)
    left, ids = order.values, order.indices
    if 0 < job.top_k < len(left):
        left, ids = left[: job.top_k], ids[: job.top_k]
    if job.top_p < 1:
        reached = torch.softmax(left, -1).cumsum(0) >= job.top_p
        kept = int(reached.int().argmax()) + 1 if bool(reached.any()) else len(left)
        left, ids = left[:kept], ids[:kept]
    if job.min_p > 0:
        kept = int((left >= left[0] + math.log(job.min_p)).sum())
        left, ids = left[:kept], ids[:kept]
    sums = torch.softmax(left.double() / job.temperature, -1).cumsum(0)
    return int(ids[min(int(torch.searchsorted(sums, drawn * float(sums[-1]))), len(ids) - 1)])
