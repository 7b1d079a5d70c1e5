"""Which model is meant by what a user wrote, and how large an honest quote for a turn of it may be."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.manifest import Manifest, parse_model_id
from p2pnode.models.scripted_model import SCRIPTED, scripted_model_id
from p2pnode.protocols.inference.messages import PromptBody


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model as the client knows it: the id, and the manifest where the catalogue has it."""

    model: ModelId
    manifest: Manifest | None = None

    def input_max(self, body: PromptBody) -> int:
        """The largest honest quote for this turn, in tokens."""
        size = sum(len(message.content.encode()) for message in body.messages)
        count = len(body.messages)
        if self.manifest is not None:
            return len(body.prefix) + self.manifest.template_overhead.tokens_max(count, size)
        return len(body.prefix) + size + 512 + 64 * count


def resolve_model(name: str) -> KnownModel:
    """A catalogue name, a model id (``m1…``) or a GGUF file that was pulled. Raises ``ConfigError``."""
    if name == SCRIPTED:
        return KnownModel(scripted_model_id())
    if name.startswith("m1"):
        try:
            model = parse_model_id(name)
        except ConfigError:
            pass
        else:
            manifests = (entry.manifest for entry in Catalogue.load() if entry.model_id == model)
            return KnownModel(model, next(manifests, None))
    entry = Catalogue.load().find(name)
    if entry.model_id is None:
        msg = f"{name} is a file: ask for it by its model id, which `p2pnode models list` and its host print"
        raise ConfigError(msg)
    return KnownModel(entry.model_id, entry.manifest)
