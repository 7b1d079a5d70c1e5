"""The vectors of ``models/SPEC.md``: manifests, ids, and what follows from a file and from a template."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from p2pnode.models.catalogue import Catalogue
from p2pnode.models.gguf import describe, read_header, template_overhead
from p2pnode.models.manifest import (
    Manifest,
    TemplateOverhead,
    model_id,
    model_id_text,
    scripted_model_id,
)
from p2pnode.models.renderer import Renderer
from p2pnode.protocols.wire import encode
from tests.models import chat_templates
from tests.models.gguf_files import PAIRS, gguf

SMALL: Final = Manifest(
    weights="11" * 32,
    size_bytes=1000,
    architecture="llama",
    quantisation="Q4_1",
    n_ctx=2048,
    tokenizer="22" * 32,
    chat_template="33" * 32,
    template_overhead=TemplateOverhead(fixed=10, per_message=5),
)
CONTROL: Final = ("<s>", "<s>more")
TEMPLATES: Final = (
    "",
    "abc",
    "{# no words #}{{ messages[0]['content'] }}",
    "{% for m in messages %}ab{{ m.content + 'c' }}{% endfor %}d",
    "{% for m in messages %}{% if loop.first and m.role != 'x' %}once{% endif %}m{% endfor %}",
    "{% for m in messages %}{% if not loop.first %}again{% endif %}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}a{% else %}bb{% endif %}{% endfor %}",
    "{% set s = 'it\\'s' %}{{- s -}}",
    "{% for m in messages %}<s>{{ '<s>more' + m['role'] }}\n{% endfor %}é",
)


def models_vectors() -> dict[str, Any]:
    """Everything of the SPEC that is bytes."""
    text = model_id_text(model_id(SMALL))
    known = [SMALL, *(entry.manifest for entry in Catalogue.load() if entry.manifest is not None)]
    return {
        "manifests": [_told(manifest) for manifest in known],
        "refused_ids": [
            {"name": "another prefix", "text": "m2" + text[2:]},
            {"name": "a character too few", "text": text[:-1]},
            {"name": "a capital", "text": text[:2] + text[2].upper() + text[3:]},
            {"name": "the spare bit", "text": text[:-1] + "b"},
        ],
        "scripted": {"id": scripted_model_id().hex(), "text": model_id_text(scripted_model_id())},
        "files": [_file(gguf(PAIRS))],
        "templates": [
            {
                "template": each,
                "control": list(CONTROL),
                **asdict(template_overhead(each, frozenset(CONTROL))),
            }
            for each in TEMPLATES
        ],
        "prompts": [
            _prompt(template, prompt)
            for template in chat_templates.TEMPLATES
            for prompt in chat_templates.PROMPTS
        ],
    }


def _prompt(template: str, prompt: str) -> dict[str, Any]:
    chat, body = chat_templates.TEMPLATES[template], chat_templates.PROMPTS[prompt]
    renderer = Renderer(chat)
    made = renderer.render(body, "n0nce", letters_max=1 << 20)
    return {
        "name": f"{template}, {prompt}",
        **asdict(chat),
        "body": encode(body).hex(),
        "segments": [[each.text, each.of_user] for each in made.segments],
        "format": renderer.form,
        "reasons": renderer.reasons,
        "thinking": made.thinking,
    }


def _told(manifest: Manifest) -> dict[str, Any]:
    return {
        "manifest": asdict(manifest),
        "canonical": manifest.canonical().decode(),
        "id": model_id(manifest).hex(),
        "text": model_id_text(model_id(manifest)),
    }


def _file(data: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        path.write_bytes(data)
        manifest = describe(read_header(path), hashlib.sha256(data).hexdigest())
    return {"hex": data.hex(), **_told(manifest)}


def _template(text: str) -> dict[str, Any]:
    overhead = template_overhead(text, frozenset(CONTROL))
    return {"template": text, "control": list(CONTROL), **asdict(overhead)}
