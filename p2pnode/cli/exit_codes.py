"""Exit codes of the program that no error of ours carries; the others are the errors' own."""

from __future__ import annotations

from typing import Final

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
