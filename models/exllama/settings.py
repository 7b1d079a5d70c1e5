"""``ChildConfig``: the settings of a child, as the node's own process reads them, too. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from p2pnode.models.exllama.memory import CacheType

Library: TypeAlias = Literal["exllamav2", "exllamav3"]
Device: TypeAlias = Literal["cuda", "cpu"]
LIBRARIES: Final[tuple[Library, ...]] = get_args(Library)
PAGE: Final = 256
"""Tokens of a page of the cache."""
_PAGES_SPARE: Final = 1
"""Pages for each slot beyond its context: what an earlier turn left is copied into a new one."""


class LoadError(Exception):
    """The model can't be loaded. ``advice``: what to do, a sentence that follows the message."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildConfig:
    """The settings of a child. ``model`` is a folder, or with the device ``cpu`` a GGUF file.

    ``n_ctx`` is the context of one request, in tokens; ``chunk`` how many of a prompt are read at once.
    """

    library: Library
    device: Device
    model: str
    n_ctx: int
    slots: int
    chunk: int
    cache: CacheType
    threads: int
    tensor_parallel: bool = False
    paged: bool = True
    """False: one slot, as without flash-attn."""
    cache_dir: str = ""
    """Where dequantised weights are kept; "" for nowhere."""

    def plain(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> ChildConfig:
        """The settings of :meth:`plain`."""
        return cls(**values)

    @property
    def pages(self) -> int:
        """Pages of the whole cache."""
        return pages_for(self.n_ctx, self.slots)


def pages_for(n_ctx: int, slots: int) -> int:
    """The pages of a cache for ``slots`` contexts of ``n_ctx`` tokens."""
    return slots * (-(-n_ctx // PAGE) + _PAGES_SPARE)
