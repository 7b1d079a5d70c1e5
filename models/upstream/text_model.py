"""``TextModel``: what is known of a model without its weights: its chat template, its tokenizer, its words.

Prompts are ours to render and to count, so a server gets ids, or the text that these ids spell, and adds
nothing to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from p2pnode.errors import EngineError
from p2pnode.models.folder import folder_tokenizer_blob, read_folder
from p2pnode.models.gguf import read_header, tokenizer_blob
from p2pnode.models.local_models import LocalModel, describe_at
from p2pnode.models.manifest import FileHashes, Manifest
from p2pnode.models.prompt_maker import PromptMaker, encodes
from p2pnode.models.renderer import CHATML, ChatTemplate, load_template
from p2pnode.models.tokenizer import load_tokenizer
from p2pnode.models.upstream.text_ids import Speller
from p2pnode.models.vocabulary import Vocabulary

_NAME_MAX: Final = 128
_HOSTED_MAX: Final = 64
_UNREAD: Final = "0" * 64
"""In the place of the hash of weights that nobody here has read."""


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """``encode``: text to ids, without special tokens; ``begins``: the ids that stand before every prompt."""

    template: ChatTemplate
    vocabulary: Vocabulary
    encode: Callable[[str], Sequence[int]]
    begins: tuple[int, ...] = ()

    @cached_property
    def speller(self) -> Speller:
        """The exact ids of any text of an answer."""
        return Speller(self.encode, self.vocabulary)

    @cached_property
    def names(self) -> dict[int, str]:
        """The special tokens by their ids."""
        special = {**self.vocabulary.found_in_text, **self.vocabulary.special}
        return {token: name for name, token in special.items()}

    def prompts(self, n_ctx: int) -> PromptMaker:
        """What makes its prompts, of at most so many tokens."""
        encode = encodes(self.encode, self.begins)
        return PromptMaker(self.template, self.vocabulary, encode, n_ctx)

    def text_of(self, ids: Sequence[int], *, adds_begin: bool) -> str:
        """The text that makes these ids at a server that reads special tokens in it.

        Raises ``EngineError`` where there is none: where a message holds the name of a special token, which
        such a server would take for the token itself.
        """
        if adds_begin and self.begins and tuple(ids[: len(self.begins)]) == self.begins:
            ids = ids[len(self.begins) :]
        parts: list[bytes] = []
        specials = 0
        for token in ids:
            name = self.names.get(token)
            specials += name is not None
            parts.append(self.vocabulary.piece(token) if name is None else name.encode())
        try:
            text = b"".join(parts).decode()
        except UnicodeDecodeError as error:
            msg = "the partial answer ends inside of a character, which this host's server can't go on from"
            raise EngineError(msg, code="bad_request") from error
        found = sum(text.count(name) for name in self.names.values())
        if found > specials:
            held = next(name for name in self.names.values() if name in text)
            msg = (
                f"a text of the conversation holds the name of a special token (such as {held!r}), which the "
                "server behind this host would take for the token: leave it out, or use another host"
            )
            raise EngineError(msg, code="bad_request")
        return text


def tokenizer_at(path: Path) -> LocalModel:
    """The model whose tokenizer is that of the GGUF file or folder at ``path``; its weights are not read.

    Blocks on the disk. Raises ``ConfigError``.
    """
    return describe_at("tokenizer", path, lambda _path: FileHashes(sha256=_UNREAD, chunks=_UNREAD))


def text_model_of(local: LocalModel) -> TextModel:
    """That of a model whose files lie here. Blocks on the disk and for tenths of a second.

    Raises ``ConfigError`` where its tokens can't be counted exactly.
    """
    if local.manifest.format == "gguf":
        blob, template = tokenizer_blob(read_header(local.weights_path)), load_template(local.weights_path)
    else:
        folder = read_folder(local.root)
        blob = folder_tokenizer_blob(folder)
        template = ChatTemplate(folder.chat_template or CHATML, folder.bos, folder.eos)
    tokenizer = load_tokenizer(blob)
    return TextModel(
        template=template,
        vocabulary=tokenizer.vocabulary,
        encode=tokenizer.encode,
        begins=tokenizer.begins,
    )


def manifest_of(local: LocalModel, served: str) -> Manifest:
    """What a server's model is known by that calls it ``served`` and has the tokenizer of ``local``.

    Its weights are nobody's to check: it has no files, and another id than ``local`` has.
    """
    of = local.manifest
    return Manifest(
        architecture=of.architecture,
        quantisation="unknown",
        n_ctx=of.n_ctx,
        format="upstream",
        files=(),
        tokenizer=of.tokenizer,
        chat_template=of.chat_template,
        template_overhead=of.template_overhead,
        name=shown_name(served),
    )


def hosted_name(served: str) -> str:
    """A short name for people: of a path its last part."""
    return shown_name(served.rstrip("/").rpartition("/")[2] or served)[-_HOSTED_MAX:]


def shown_name(served: str) -> str:
    """A server's name for a model, as a manifest may hold it: where it can't, with a hash of it."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in served)
    if plain == served and len(served) <= _NAME_MAX:
        return served
    return plain[: _NAME_MAX - 9] + "-" + hashlib.sha256(served.encode()).hexdigest()[:8]
