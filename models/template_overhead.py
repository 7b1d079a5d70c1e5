"""What a chat template adds to a prompt, at most: read from the template, which isn't rendered.

Every literal that it can put out is counted, in tokens where it is a control token of the vocabulary and in
bytes elsewhere. Literals inside a ``for`` count for each message, unless they stand under a condition on
``loop.first`` or ``loop.last``; all others count once. Pure.
"""

from __future__ import annotations

import re
from typing import Final

from p2pnode.models.manifest import TemplateOverhead

_ROLE_BYTES: Final = len("assistant")
# for begin-of-sequence and end tokens, and what an engine may add around a prompt
_FIXED_SLACK: Final = 8
_TAG: Final = re.compile(r"\{%-?(.*?)-?%\}|\{\{-?(.*?)-?\}\}|\{#.*?#\}", re.DOTALL)
_LITERAL: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_SUBSCRIPT: Final = re.compile(r"\[\s*(?:'[^']*'|\"[^\"]*\")\s*\]")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


def template_overhead(template: str, control_tokens: frozenset[str] = frozenset()) -> TemplateOverhead:
    """Upper bounds of what ``template`` adds to the contents of the messages."""
    fixed, per_message = _FIXED_SLACK, _ROLE_BYTES
    blocks: list[str] = []  # "for", "once" (an if on loop.first or loop.last) or "if"
    position = 0
    for tag in [*_TAG.finditer(template), None]:
        literal = template[position : tag.start() if tag else None]
        statement, expression = (tag.group(1), tag.group(2)) if tag else (None, None)
        # Two parts: the text before the tag, then what the tag itself can put out.
        cost = _cost(literal, control_tokens)
        if expression is not None or (statement and statement.split()[:1] == ["set"]):
            outputs = _SUBSCRIPT.sub("", expression or statement or "")
            cost += sum(_cost(text, control_tokens) for text in _literals(outputs))
        if "for" in blocks and "once" not in blocks[blocks.index("for") :]:
            per_message += cost
        else:
            fixed += cost
        if statement is not None:
            _enter_or_leave(statement, blocks)
        position = tag.end() if tag else position
    return TemplateOverhead(fixed=fixed, per_message=per_message)


def _enter_or_leave(statement: str, blocks: list[str]) -> None:
    word = (statement.split() or [""])[0]
    match word:
        case "for":
            blocks.append("for")
        case "if":
            blocks.append("once" if _is_once(statement) else "if")
        case "elif" | "else" if blocks and blocks[-1] != "for":
            blocks[-1] = "once" if word == "elif" and _is_once(statement) else "if"
        case "endif" | "endfor" if blocks:
            blocks.pop()
        case _:
            pass


def _is_once(condition: str) -> bool:
    has_loop = "loop.first" in condition or "loop.last" in condition
    return has_loop and not re.search(r"\b(not|or)\b|!=\s*loop|loop\.\w+\s*[!=]=", condition)


def _literals(code: str) -> list[str]:
    # An escape is at most what it escapes, so leaving the backslash out keeps this an upper bound.
    return [_ESCAPE.sub(r"\1", single or double) for single, double in _LITERAL.findall(code)]


def _cost(text: str, control_tokens: frozenset[str]) -> int:
    """The most tokens of ``text``: one for each control token in it, and one for each other byte."""
    if control_tokens and any(token in text for token in control_tokens):
        pattern = "|".join(re.escape(token) for token in sorted(control_tokens, key=len, reverse=True))
        rest, found = re.subn(pattern, "", text)
        return found + len(rest.encode())
    return len(text.encode())
