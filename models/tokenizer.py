"""``Tokenizer``: from text to the ids that a model's engine makes of it, from the tokenizer's blob alone.

The blob of a GGUF is read as llama.cpp reads it: byte-level BPE with the ways to cut words that are known
here (``CUTS``), and SentencePiece's BPE. That of a folder is ``tokenizer.json``. Hugging Face's tokenizers
do the work. Where it is not certain that the ids are those of the engine, no :class:`Tokenizer` is made: a
client that counted otherwise than an honest host would leave it.

Rules: llama.cpp's ``src/llama-vocab.cpp``. Blocks for tenths of a second: make one in a worker thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from p2pnode.errors import ConfigError
from p2pnode.models.folder import FOLDER_TOKENIZER
from p2pnode.models.gguf import GGUF_TOKENIZER, GgufHeader, bad_blob, blob_entries, header_of_blob
from p2pnode.models.prompt import Piece, Segment, pieces_of
from p2pnode.models.renderer import ends_of
from p2pnode.models.vocabulary import Vocabulary, vocabulary_of, vocabulary_of_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder

_NORMAL, _USER_DEFINED = 1, 4
_SENTENCE_SPACE: Final = "\u2581"
_CONTRACTIONS: Final = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LETTERS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}"
_QWEN2: Final = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_SIGNS}"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_AND_SLASH: Final = _SIGNS.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_GPT4O: Final = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASH}"
)
_TEKKEN: Final = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS_AND_SLASH}"
_DEEPSEEK3: Final = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
CUTS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4", "trillion"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (r"\p{N}", _GPT2),
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), (_LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), (_QWEN2,)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK3),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "tekken": (_TEKKEN,),
}
"""By ``tokenizer.ggml.pre``: what cuts a text into words, one after the other."""
_IGNORES_MERGES: Final = frozenset(
    {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken"}
)
"""A word that is a token is taken as it is. A begin token comes first unless the file says otherwise."""
_STRIPS_AFTER: Final = "<|placeholder1|>"
"""A token of Phi-3, after whose tokens llama.cpp leaves out blanks. It knows the model by its name alone."""


class Tokenizer:
    """The tokenizer of one model. Make it with :func:`load_tokenizer`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        encode: Callable[[str], list[int]],
        *,
        around: tuple[Sequence[int], Sequence[int]] = ((), ()),
        ends: tuple[str, str] = ("", ""),
    ) -> None:
        self.vocabulary: Final = vocabulary
        self.bos: Final = ends[0]
        self.eos: Final = ends[1]
        self.around: Final = tuple(around[0]), tuple(around[1])
        """Ids before and after a text that stands alone."""
        self.begins: Final = self.around[0] + self.around[1]
        """Ids that come before every prompt: those around an empty text."""
        self._encode = encode

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """The ids of ``text``. ``special``: names of special tokens in it are these, and not just text."""
        if special:
            return self.encode_pieces(pieces_of([Segment(text, of_user=False)], self.vocabulary))
        return tuple(self._encode(text)) if text else ()

    def encode_pieces(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        """The ids of pieces in a row, each text for itself."""
        ids: list[int] = []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else self.encode(piece)
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, without special tokens. What is no UTF-8 is U+FFFD."""
        return b"".join(map(self.vocabulary.piece, ids)).decode("utf-8", "replace")


def load_tokenizer(blob: bytes) -> Tokenizer:
    """The tokenizer of a blob, whose hash was checked.

    Raises ``ConfigError`` where its ids would not be certain to be those of an engine, and
    ``MissingExtraError`` where Hugging Face's tokenizers are not installed.
    """
    from p2pnode.extras import need

    need("counting tokens exactly", "pay")
    try:
        if blob.startswith(GGUF_TOKENIZER):
            return _of_gguf(header_of_blob(blob))
        if blob.startswith(FOLDER_TOKENIZER):
            return _of_folder(blob_entries(blob, FOLDER_TOKENIZER))
    except ConfigError:
        raise
    except Exception as error:  # the library raises plain exceptions for what it can't read
        raise bad_blob(str(error)[:200] or type(error).__name__) from error
    raise bad_blob("it is of an unknown kind")


def vocabulary_in(blob: bytes) -> Vocabulary:
    """The vocabulary of a blob, also where its ids can't be counted. Raises ``ConfigError``."""
    if blob.startswith(GGUF_TOKENIZER):
        return vocabulary_of(header_of_blob(blob))
    entries = blob_entries(blob, FOLDER_TOKENIZER)
    try:
        return vocabulary_of_json(json.loads(entries["tokenizer.json"]), [entries["eos"].decode()])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise bad_blob(f"it is no tokenizer.json ({str(error)[:100]})") from error


# ---- of a GGUF


def _of_gguf(header: GgufHeader) -> Tokenizer:
    kind, pre = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre", "")
    words = [each.decode() for each in header.array("tokenizer.ggml.tokens").strings()]
    kinds = header.array("tokenizer.ggml.token_type").integers()
    if kind == "gpt2":
        encode = _byte_level(header, words, pre)
        begins = pre in _IGNORES_MERGES
    elif kind == "llama":
        encode = _sentence_piece(header, words, kinds)
        begins = True
    else:
        raise bad_blob(f"its kind {kind!r} is not known")
    found = {
        word: index for index, (word, of) in enumerate(zip(words, kinds, strict=True)) if of == _USER_DEFINED
    }

    def edge(name: str, *, default: bool) -> list[int]:
        adds = header.values.get(f"tokenizer.ggml.add_{name}_token", default)
        return [header.count(f"tokenizer.ggml.{name}_token_id")] if adds else []

    around = edge("bos", default=begins), edge("eos", default=False)
    return Tokenizer(vocabulary_of(header), _finding(found, encode), around=around, ends=ends_of(header))


def _byte_level(header: GgufHeader, words: Sequence[str], pre: str) -> Callable[[str], list[int]]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    cuts = CUTS.get(pre)
    if cuts is None:
        raise bad_blob(f"its way to cut words, {pre!r}, is not known")
    merges = [_pair(each.decode()) for each in header.array("tokenizer.ggml.merges").strings()]
    vocabulary = {word: index for index, word in enumerate(words)}
    model = models.BPE(vocabulary, merges, ignore_merges=pre in _IGNORES_MERGES)
    encoder = Tokenizer(model)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in cuts),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _plain(encoder)


def _pair(merge: str) -> tuple[str, str]:
    space = merge.find(" ", 1)
    return merge[:space], merge[space + 1 :]


def _sentence_piece(
    header: GgufHeader, words: Sequence[str], kinds: Sequence[int]
) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer, models

    scores = header.array("tokenizer.ggml.scores").numbers()
    normal = [index for index, kind in enumerate(kinds) if kind == _NORMAL]
    vocabulary = {word: index for index, word in enumerate(words)}
    if len({scores[index] for index in normal}) < len(normal) or _STRIPS_AFTER in vocabulary:
        raise bad_blob("the order of its merges is not certain")
    # llama.cpp joins any two neighbours that together are a token, the best score first.
    order = sorted((index for index in normal if len(words[index]) > 1), key=lambda index: -scores[index])
    merges = []
    for word in (words[index] for index in order):
        if any(letter not in vocabulary for letter in word):
            raise bad_blob("it has letters that are no tokens")
        halves = [(word[:at], word[at:]) for at in range(1, len(word))]
        merges += [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
    encoder = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    plain = _plain(encoder)
    prefix = _SENTENCE_SPACE if header.values.get("tokenizer.ggml.add_space_prefix", True) else ""
    return lambda text: plain(prefix + text.replace(" ", _SENTENCE_SPACE))


def _plain(encoder: Encoder) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _finding(found: Mapping[str, int], encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """``encode``, but for tokens that are found in any text, the longest first."""
    names = sorted((name for name in found if name), key=len, reverse=True)

    def cut(text: str, at: int) -> list[int]:
        for index in range(at, len(names)):
            if names[index] in text:
                parts = text.split(names[index])
                ids = cut(parts[0], index + 1)
                for part in parts[1:]:
                    ids += [found[names[index]], *cut(part, index + 1)]
                return ids
        return encode(text) if text else []

    return lambda text: cut(text, 0)


# ---- of a folder


def _of_folder(entries: Mapping[str, bytes]) -> Tokenizer:
    from tokenizers import Tokenizer as Encoder

    told: dict[str, Any] = json.loads(entries["tokenizer.json"])
    ends = entries["bos"].decode(), entries["eos"].decode()
    encoder = Encoder.from_str(json.dumps(told | {"padding": None, "truncation": None}))
    encoder.encode_special_tokens = True  # what looks like a special token in a text stays text
    return Tokenizer(vocabulary_of_json(told, ends[1:]), _plain(encoder), ends=ends)
