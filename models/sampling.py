"""Which sampling values make sense, and the words for those that don't.

Pure. Hosts check what a peer asked, engines check again: a value that reaches an engine's native code
unchecked can stop it.
"""

from __future__ import annotations

import math
from typing import Final

from p2pnode.errors import EngineError
from p2pnode.models.engine import Sampling

STOP_STRINGS_MAX: Final = 16
STOP_BYTES_MAX: Final = 256

_INTEGERS: Final = {
    "tokens_max": (1, 1 << 20),
    "top_k": (0, 100_000),
    "seed": (0, (1 << 64) - 1),
}
_NUMBERS: Final = {
    "temperature": (0.0, 2.0),
    "top_p": (0.01, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.5, 2.0),
}


def validate_sampling(sampling: Sampling) -> None:
    """Raise ``EngineError(code="bad_request")`` that names the first wrong field and its range."""
    for field, (least, most) in _INTEGERS.items():
        value = getattr(sampling, field)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _bad(field, value, f"an integer from {least} to {most}")
    for field, (low, high) in _NUMBERS.items():
        value = getattr(sampling, field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise _bad(field, value, f"a number from {low:g} to {high:g}")
    if len(sampling.stop) > STOP_STRINGS_MAX:
        raise _bad("stop", f"{len(sampling.stop)} strings", f"at most {STOP_STRINGS_MAX} strings")
    for text in sampling.stop:
        if not isinstance(text, str) or not 1 <= _utf8_bytes(text) <= STOP_BYTES_MAX:
            raise _bad("stop", "one of its strings", f"1 to {STOP_BYTES_MAX} bytes of valid text each")


def _utf8_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return 0


def _bad(field: str, value: object, wanted: str) -> EngineError:
    # Cut short: the value is a stranger's and ends in a log line.
    return EngineError(f"{field} is {str(value)[:40]}; it must be {wanted}", code="bad_request")
