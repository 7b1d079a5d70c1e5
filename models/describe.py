"""From a GGUF header to a :class:`Manifest`: what the file says of itself, and its template's cost.

The overhead of a chat template is bounded by reading, not by rendering: every literal that the template
can put out is counted, in tokens where it is a control token of the vocabulary and in bytes elsewhere.
Literals inside a ``for`` count for each message, unless they stand under a condition on ``loop.first`` or
``loop.last``; all the others count once. This module knows nothing of engines or of downloads.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from p2pnode.models.gguf import GgufHeader, unusable
from p2pnode.models.manifest import Manifest, TemplateOverhead

_CHAT_TEMPLATE: Final = "tokenizer.chat_template"
_CONTROL: Final = 3
_ROLE_BYTES: Final = len("assistant")
# begin-of-sequence and end tokens, and what an engine may add around a prompt
_FIXED_SLACK: Final = 8
_TAG: Final = re.compile(r"\{%-?(.*?)-?%\}|\{\{-?(.*?)-?\}\}|\{#.*?#\}", re.DOTALL)
_LITERAL: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_SUBSCRIPT: Final = re.compile(r"\[\s*(?:'[^']*'|\"[^\"]*\")\s*\]")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)

# llama.cpp include/llama.h, enum llama_ftype
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip


def describe(header: GgufHeader, weights_sha256: str) -> Manifest:
    """The manifest of the file that ``header`` was read from; ``ConfigError`` when it holds no model."""
    architecture = header.text("general.architecture")
    n_ctx = header.count(f"{architecture}.context_length")
    if n_ctx == 0:
        raise unusable(header.path, "its context length is 0")
    template = header.text(_CHAT_TEMPLATE, "")
    file_type = header.values.get("general.file_type")
    known = _FILE_TYPES.get(file_type, f"ftype{file_type}") if isinstance(file_type, int) else "unknown"
    return Manifest(
        weights=weights_sha256,
        size_bytes=header.size_bytes,
        architecture=architecture,
        quantisation=known,
        n_ctx=n_ctx,
        tokenizer=_tokenizer_sha256(header),
        chat_template=hashlib.sha256(template.encode()).hexdigest(),
        template_overhead=template_overhead(template, _control_tokens(header)),
    )


def _tokenizer_sha256(header: GgufHeader) -> str:
    """Over every ``tokenizer.*`` value but the chat template: key, type and bytes, keys sorted."""
    digest = hashlib.sha256(b"p2pnode/tokenizer/gguf/1\0")
    for key in sorted(header.raw):
        if key.startswith("tokenizer.") and key != _CHAT_TEMPLATE:
            name, value = key.encode(), header.raw[key]
            digest.update(len(name).to_bytes(4, "big") + name + len(value).to_bytes(8, "big") + value)
    return digest.hexdigest()


def _control_tokens(header: GgufHeader) -> frozenset[str]:
    if "tokenizer.ggml.tokens" not in header.values or "tokenizer.ggml.token_type" not in header.values:
        return frozenset()
    kinds = header.array("tokenizer.ggml.token_type").integers()
    tokens = header.array("tokenizer.ggml.tokens").strings()
    return frozenset(
        token.decode("utf-8", "replace")
        for token, kind in zip(tokens, kinds, strict=False)
        if kind == _CONTROL and token
    )


def template_overhead(template: str, control_tokens: frozenset[str] = frozenset()) -> TemplateOverhead:
    """Bounds of what ``template`` adds to the contents of the messages."""
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
    """Tokens of ``text`` at most: one for each control token in it, one for each other byte."""
    if control_tokens and any(token in text for token in control_tokens):
        pattern = "|".join(re.escape(token) for token in sorted(control_tokens, key=len, reverse=True))
        rest, found = re.subn(pattern, "", text)
        return found + len(rest.encode())
    return len(text.encode())
