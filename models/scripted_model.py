"""The scripted engine as a model of its own: for tests, demonstrations and research, and never mistaken
for a real one, because its id is no hash of any weights."""

from __future__ import annotations

import hashlib
from typing import Final

from p2pnode.ids import ModelId

SCRIPTED: Final = "scripted"


def scripted_model_id() -> ModelId:
    """The id under which hosts advertise the scripted engine."""
    return ModelId(hashlib.sha256(b"p2pnode/model/1\0scripted").digest())
