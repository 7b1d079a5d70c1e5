"""``PromptFiles``: what a prompt is made of, without the model: its tokenizer's blob and its chat template.

A client gets them from the model's own files, or keeps what it fetched by the hashes in the manifest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pnode.errors import ConfigError
from p2pnode.files import write_atomic
from p2pnode.ids import ModelId
from p2pnode.models.folder import folder_tokenizer_blob, read_folder
from p2pnode.models.gguf import read_header, tokenizer_blob
from p2pnode.models.local_models import LocalModel
from p2pnode.models.manifest import Manifest

NOTHING: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class PromptFiles:
    """The blob of the tokenizer, and the chat template, "" where there is none."""

    tokenizer: bytes
    chat_template: str


def read_prompt_files(model: LocalModel) -> PromptFiles:
    """Those of a model on this machine. Blocks on the disk. Raises ``ConfigError``."""
    if model.manifest.format == "gguf":
        header = read_header(model.weights_path)
        return PromptFiles(tokenizer_blob(header), header.text("tokenizer.chat_template", ""))
    folder = read_folder(model.root)
    return PromptFiles(folder_tokenizer_blob(folder), folder.chat_template)


class KeptPromptFiles:
    """What was fetched, in files that are named by their hash. A file that has changed is as good as none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, manifest: Manifest) -> PromptFiles | None:
        """Those of a model; None where one of them is not here. Blocks on the disk."""
        tokenizer, template = self.blob(manifest.tokenizer), self.blob(manifest.chat_template)
        if tokenizer is None or template is None:
            return None
        return PromptFiles(tokenizer, template.decode("utf-8", "replace"))

    def missing(self, manifest: Manifest) -> list[str]:
        """The hashes of what is to be fetched. Blocks on the disk."""
        wanted = (manifest.tokenizer, manifest.chat_template)
        return [sha256 for sha256 in wanted if self.blob(sha256) is None]

    def manifest(self, model: ModelId) -> Manifest | None:
        """That of a model, which is named by its id. Blocks on the disk."""
        blob = self.blob(model.hex())
        try:
            return None if blob is None else Manifest.of_blob(blob)
        except ConfigError:
            return None

    def blob(self, sha256: str) -> bytes | None:
        """What has this hash. Blocks on the disk."""
        if sha256 == NOTHING:
            return b""
        try:
            data = (self._folder / sha256).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def put(self, data: bytes) -> None:
        """Keep ``data``. Blocks on the disk. Raises ``ConfigError``."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._folder / hashlib.sha256(data).hexdigest(), data)
        except OSError as error:
            raise ConfigError(f"{self._folder}: cannot be written ({error.strerror})") from error
