"""An answer's markdown on a terminal, as it streams: what is shown stays, so that nothing flickers.

Lines are shown once nothing that follows can change them: a paragraph's as they are full, code as it comes,
tables and headings when they are over. Copied text is the answer's, without padding. HTML is shown as text
and links with their targets, for a host must not be able to hide either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

_FENCE: Final = re.compile(r"\s{0,3}(```+|~~~+)(.*)")
_FLOWS: Final = re.compile(r"\s*(?:[*+-]\s|\d{1,9}[.)]\s|[^\s#>|=`~<-])")
"""How a block begins whose lines can be shown before it is over: a paragraph or a list."""
_BULLET: Final = re.compile(r"^\s*[*+-]\s", re.MULTILINE)
_CLOSED: Final = re.compile(
    r"`[^`\n]+`|\*\*[^*\n]+\*\*|\*[^*\s][^*\n]*\*|(?<!\w)_[^_\n]+_(?!\w)|\[[^\]\n]*\](?:\([^)\n]*\))?"
)
_OPEN: Final = re.compile(r"[`*\[]|(?<!\w)_|~~")
_TRAILING: Final = re.compile(r"(?: |\x1b\[[0-9;]*m)+$")


class MarkdownStream:
    """``feed`` pieces, then ``end``; ``write`` gets whole lines with their line ends."""

    def __init__(self, console: Console, write: Callable[[str], None]) -> None:
        self._console, self._write = console, write
        self._line = ""
        """What came of the line under way."""
        self._block: list[str] = []
        self._shown: list[str] = []
        """Lines of the block that stand on the screen."""
        self._fence = ""
        self._gap = False
        """A blank line is due before the next block."""

    def feed(self, piece: str) -> None:
        """A piece of the answer, in any cut."""
        *lines, self._line = (self._line + piece).split("\n")
        for line in lines:
            self._take(line)
        if not self._fence and self._line and self._block_flows():
            self._show("\n".join([*self._block, self._line]), over=False)

    def end(self) -> None:
        """The answer is over, whole or not."""
        if self._line:
            self._take(self._line)
            self._line = ""
        self._close()
        self._fence, self._gap = "", False

    def _take(self, line: str) -> None:
        fence = _FENCE.match(line)
        if self._fence:
            if fence is not None and fence[1].startswith(self._fence) and not fence[2].strip():
                self._fence, self._gap = "", True
            else:
                self._write(self._styled(line) + "\n")
        elif fence is not None:
            self._close()
            self._fence = fence[1]
            self._space()
        elif not line.strip():
            self._close()
        else:
            self._block.append(line)

    def _block_flows(self) -> bool:
        first = self._block[0] if self._block else self._line
        return _FLOWS.match(first) is not None

    def _close(self) -> None:
        if self._block:
            self._show("\n".join(self._block), over=True)
            self._gap = True
        self._block, self._shown = [], []

    def _show(self, text: str, *, over: bool) -> None:
        lines = self._rendered(text if over else _settled(text))
        last = len(lines) if over else len(lines) - 1
        if lines[: len(self._shown)] != self._shown and not over:
            return  # what stands there would change: wait for the block's end
        for line in lines[len(self._shown) : last]:
            if not self._shown:
                self._space()
            self._write(line + "\n")
            self._shown.append(line)

    def _space(self) -> None:
        if self._gap:
            self._write("\n")
            self._gap = False

    def _rendered(self, text: str) -> list[str]:
        from markdown_it import MarkdownIt
        from rich.markdown import Markdown

        drawn = Markdown("", hyperlinks=False)
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("code")
        drawn.parsed = parser.parse(text)
        for token in drawn.parsed:
            if token.type in ("heading_open", "heading_close"):
                token.tag = "h3"  # those above are drawn in the middle of the screen
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
        with self._console.capture() as captured:
            self._console.print(drawn)
        lines = [
            _TRAILING.sub(lambda found: found[0].replace(" ", ""), line)
            for line in captured.get().split("\n")
        ]
        while lines and not lines[0].strip():
            del lines[0]
        while lines and not lines[-1].strip():
            del lines[-1]
        return lines

    def _styled(self, code: str) -> str:
        from rich.text import Text

        with self._console.capture() as captured:
            self._console.print(Text(code, style="cyan"), soft_wrap=True, end="")
        return captured.get()


def _settled(text: str) -> str:
    """Whole words, up to the first mark that something else may still follow."""
    text = text[: max(text.rfind(" "), text.rfind("\n")) + 1]
    hidden = _BULLET.sub(lambda found: " " * len(found[0]), text)
    hidden = _CLOSED.sub(lambda found: " " * len(found[0]), hidden)
    mark = _OPEN.search(hidden)
    return text if mark is None else text[: mark.start()]
