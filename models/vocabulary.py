"""``Vocabulary``: the bytes that each token of a model spells, and the ids that may have spelled given bytes.

llama.cpp sends no frame inside a UTF-8 character, so the ids of those tokens are lost but for the last one.
:meth:`Vocabulary.recover` finds them where the vocabulary allows one answer only, and None where it doesn't.

Pure but for :func:`load_vocabulary`. The rules are those of llama.cpp's ``src/llama-vocab.cpp``,
token_to_piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from p2pnode.models.answer import MARKS
from p2pnode.models.gguf import GgufHeader, bad_blob, read_header, unusable
from p2pnode.models.text import incomplete_tail

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_BYTE_LEVEL: Final = frozenset({"gpt2"})
_SENTENCE_PIECE: Final = frozenset({"llama", "gemma4"})
_END_KEYS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
# llama.cpp's src/llama-vocab.cpp lets these end a turn by their names, whatever the file says of them
_END_NAMES: Final = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>",
        "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<eos>",
    }
)  # fmt: skip
_TAIL_TOKENS: Final = 4
_BLANKS: Final = " \t\n\r\u2581"
_HEX: Final = re.compile(r"<0x[0-9A-F]{2}>")
_MARKS: Final = frozenset(mark.encode() for mark in MARKS)


class Vocabulary:
    """The pieces of one model's tokens, by id."""

    def __init__(
        self,
        pieces: list[bytes],
        ends: Iterable[int] = (),
        *,
        special: Mapping[str, int] | None = None,
        found_in_text: Mapping[str, int] | None = None,
    ) -> None:
        self.pieces: Final = pieces
        self.special: Final = special or {}
        """Ids of control tokens by name. llama.cpp finds them in text only where it is asked to."""
        self.found_in_text: Final = found_in_text or {}
        """The same of tokens that its makers added, which llama.cpp finds in any text. Without blanks."""
        named = {token for name, token in self.special.items() if name in _END_NAMES}
        self.ends: Final = frozenset(ends) | named
        """Ids that end a turn."""
        self.silent: Final = self.ends | {i for i, piece in enumerate(pieces) if not piece}
        """Ids that put out no text, the end of a turn among them."""

    def __len__(self) -> int:
        return len(self.pieces)

    def piece(self, token: int) -> bytes:
        """The bytes of ``token``; none for one that isn't in the vocabulary."""
        return self.pieces[token] if 0 <= token < len(self.pieces) else b""

    def tail_of(self, ids: tuple[int, ...]) -> bytes:
        """The bytes of the incomplete UTF-8 character at the end of ``ids``."""
        return incomplete_tail(b"".join(self.piece(token) for token in ids[-_TAIL_TOKENS:]))

    def recover(self, text: str, last: int, missing: int) -> tuple[int, ...] | None:
        """The ``missing`` ids before ``last`` that together spell ``text``; None unless there is exactly one
        answer.

        Each id but the last must leave a character incomplete, for otherwise its frame would have been sent.
        """
        spelled, ending = text.encode(), self.piece(last)
        if "\ufffd" in text or not ending or not spelled.endswith(ending):
            return None
        goal = len(spelled) - len(ending)
        found: list[tuple[int, ...]] = []
        partial: list[tuple[int, tuple[int, ...]]] = [(0, ())]
        while partial and len(found) < 2:  # noqa: PLR2004 - two answers are as bad as many
            at, ids = partial.pop()
            if len(ids) == missing:
                found += [ids] * (at == goal)
                continue
            if at and self.silent:
                partial.append((at, (*ids, -1)))  # an id without text may stand here; which one is unknown
            for end in range(at + 1, goal + 1):
                if incomplete_tail(spelled[:end]):
                    tokens = self._ids_of_partial.get(spelled[at:end], ())
                    partial += [(end, (*ids, token)) for token in tokens]
        return found[0] if len(found) == 1 and -1 not in found[0] else None

    @cached_property
    def _ids_of_partial(self) -> dict[bytes, list[int]]:
        """The ids of each piece that can leave a character unfinished."""
        ids: dict[bytes, list[int]] = {}
        for token, piece in enumerate(self.pieces):
            if piece and not piece.isascii():
                ids.setdefault(piece, []).append(token)
        return ids


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of the GGUF file at ``path``. Blocks on the disk: call it in a worker thread."""
    return vocabulary_of(read_header(path))


def vocabulary_of(header: GgufHeader) -> Vocabulary:
    """The vocabulary of a GGUF file. Raises ``ConfigError`` for a kind that is not known here."""
    path = header.path
    kind = header.text("tokenizer.ggml.model")
    tokens = list(header.array("tokenizer.ggml.tokens").strings())
    kinds: tuple[int, ...] = (1,) * len(tokens)
    if "tokenizer.ggml.token_type" in header.values:
        kinds = header.array("tokenizer.ggml.token_type").integers()
    if len(kinds) != len(tokens):
        raise unusable(path, "it has not one type for each token")
    if kind in _BYTE_LEVEL:
        table = _byte_level_table()
        pieces = [_byte_level(token, kind, table) for token, kind in zip(tokens, kinds, strict=True)]
    elif kind in _SENTENCE_PIECE:
        pieces = [_sentence_piece(token, kind) for token, kind in zip(tokens, kinds, strict=True)]
    else:
        raise unusable(path, f"its tokenizer {kind!r} isn't supported (only {_supported()})")
    for index, token in enumerate(tokens):
        # What begins and ends calls and thoughts is told from the text, so it is in the text.
        if kinds[index] == _CONTROL and token in _MARKS:
            pieces[index] = token
    return Vocabulary(
        pieces,
        _ends(header),
        special=_named(tokens, kinds, _CONTROL, _UNKNOWN),
        found_in_text=_named(tokens, kinds, _USER_DEFINED),
    )


def vocabulary_of_json(told: Mapping[str, Any], ends: Iterable[str] = ()) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json`` of Hugging Face's tokenizers; ``ends`` end a turn.

    Raises ``ConfigError`` for a kind that is not known here.
    """
    words = told["model"]["vocab"]
    pairs = words.items() if isinstance(words, dict) else ((word[0], i) for i, word in enumerate(words))
    ids: dict[str, int] = dict(pairs)
    added = [each for each in told.get("added_tokens") or () if isinstance(each.get("content"), str)]
    marks = json.dumps([told.get("decoder"), told.get("pre_tokenizer")])
    if '"ByteLevel"' in marks:
        table = _byte_level_table()
        spelled = {word: _byte_level(word.encode(), 1, table) for word in ids}
    elif '"ByteFallback"' in marks or '"Metaspace"' in marks or "\\u2581" in marks:
        spelled = {word: _sentence_piece(word.encode(), _BYTE if _HEX.fullmatch(word) else 1) for word in ids}
    else:
        raise bad_blob("it is neither of bytes nor of SentencePiece's kind")
    for each in added:
        ids[each["content"]] = each["id"]
        loud = not each.get("special") or each["content"].encode() in _MARKS
        spelled[each["content"]] = each["content"].encode() if loud else b""
    pieces = [b""] * (max(ids.values(), default=-1) + 1)
    for word, index in ids.items():
        pieces[index] = spelled[word]
    named = {each["content"]: each["id"] for each in added if each["content"].strip(_BLANKS)}
    special = {each["content"] for each in added if each.get("special")}
    return Vocabulary(
        pieces,
        [ids[end] for end in ends if end in ids],
        special={name: index for name, index in named.items() if name in special},
        found_in_text={name: index for name, index in named.items() if name not in special},
    )


def _named(tokens: list[bytes], kinds: tuple[int, ...], *wanted: int) -> dict[str, int]:
    """Ids by name. Names of blanks only are left out: a run of blanks in a text is no special token."""
    names = ((token.decode("utf-8", "replace"), index) for index, token in enumerate(tokens))
    return {name: index for name, index in names if kinds[index] in wanted and name.strip(_BLANKS)}


def _supported() -> str:
    return ", ".join(sorted(_BYTE_LEVEL | _SENTENCE_PIECE))


def _ends(header: GgufHeader) -> list[int]:
    found = (header.values.get(f"tokenizer.ggml.{key}") for key in _END_KEYS)
    return [value for value in found if isinstance(value, int)]


def _byte_level(token: bytes, kind: int, table: dict[str, int]) -> bytes:
    if kind in (_CONTROL, _UNKNOWN, _UNUSED):
        return b""
    text = token.decode("utf-8", "replace")
    if kind == _USER_DEFINED or any(character not in table for character in text):
        return token
    return bytes(table[character] for character in text)


def _sentence_piece(token: bytes, kind: int) -> bytes:
    if kind in (_CONTROL, _UNKNOWN, _UNUSED):
        return b""
    if kind == _BYTE:
        try:
            return bytes([int(token.decode("ascii").removeprefix("<0x").removesuffix(">"), 16)])
        except ValueError:
            return b""
    return token.replace("\u2581".encode(), b" ")


def _byte_level_table() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}
