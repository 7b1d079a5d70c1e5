"""Lists of models made by hand: entries, pointers, and documents that no tool of ours would write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.manifest import Manifest, ModelFile, TemplateOverhead, model_id, model_id_text
from p2pnode.models.model_list import FORM, ListHead, list_blob
from p2pnode.models.pull.sources import parse_source
from p2pnode.protocols.s5.entries import Entry, EntryKey, make_entry, pointer_to
from p2pnode.protocols.s5.ids import hash_of

SIGNER = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
CREATED = 1_790_000_000


def key_of(signer: Ed25519PrivateKey) -> EntryKey:
    return EntryKey(signer.public_key().public_bytes_raw())


KEY = key_of(SIGNER)


def manifest_of(name: str, **more: Any) -> Manifest:
    """Another model for each name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    file = ModelFile(path="model.gguf", size_bytes=1000, sha256=digest, chunks="44" * 32)
    values: dict[str, Any] = {
        "architecture": "llama",
        "quantisation": "Q4_1",
        "n_ctx": 2048,
        "format": "gguf",
        "files": (file,),
        "tokenizer": "22" * 32,
        "chat_template": "33" * 32,
        "template_overhead": TemplateOverhead(fixed=10, per_message=5),
    }
    return Manifest(**{**values, **more})


def entry(name: str, **more: Any) -> CatalogueEntry:
    values: dict[str, Any] = {
        "licence": "Apache-2.0",
        "sources": (parse_source(f"hf:maker/{name}@main#{name}.gguf"),),
        "manifest": manifest_of(name),
    }
    return CatalogueEntry(name=name, **{**values, **more})


def head(revision: int = 1, key: EntryKey = KEY, **more: Any) -> ListHead:
    values: dict[str, Any] = {"name": "small", "created": CREATED, "description": "Small ones"}
    return ListHead(**{**values, "key": key, "revision": revision, **more})


def blob_of(*names: str, revision: int = 1, key: EntryKey = KEY) -> bytes:
    return list_blob(head(revision, key), [entry(name) for name in names])


def pointer(blob: bytes, revision: int = 1, signer: Ed25519PrivateKey = SIGNER) -> Entry:
    return make_entry(key_of(signer), revision, pointer_to(hash_of(blob)), signer.sign)


# ---- documents by hand


def line(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def table(name: str, **more: Any) -> dict[str, Any]:
    """An entry as it stands in a list; its id is made anew unless it is given."""
    manifest = manifest_of(name).to_mapping()
    manifest |= more.pop("manifest", {})
    try:
        known = model_id_text(model_id(Manifest.from_mapping(manifest)))
    except Exception:  # noqa: BLE001 - a manifest that is none has no id
        known = "m1" + "a" * 52
    return {"name": name, "id": known, "manifest": manifest, **more}


def document(tables: Sequence[Any], **more: Any) -> bytes:
    about = {
        "created": CREATED,
        "description": "",
        "entries": len(tables),
        "key": KEY.hex(),
        "name": "small",
        "revision": 1,
        **more,
    }
    return FORM + b"".join(map(line, (about, *tables)))


def many(count: int) -> bytes:
    """A list of so many models, quickly: they differ in one hash."""
    manifest = manifest_of("x")
    (file,) = manifest.files
    tables = []
    for number in range(count):
        made = replace(manifest, files=(replace(file, sha256=f"{number:064x}"),))
        tables.append(
            {
                "name": f"model-{number:05}",
                "id": model_id_text(model_id(made)),
                "manifest": made.to_mapping(),
                "description": "A model for talk and for code, as the others",
                "licence": "Apache-2.0",
                "source": [f"hf:maker/model-{number:05}@main#model.gguf"],
            }
        )
    return document(tables)
