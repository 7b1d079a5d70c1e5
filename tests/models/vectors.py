"""The vectors of ``models/SPEC.md``: manifests, ids, and what follows from a file and from a template."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from p2pnode.models.answer import VERSION, AnswerPieces, reader_of
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
TOOLS: Final = ("weather", "add")
_CALL: Final = '{"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}}'
ANSWERS: Final = (
    ("words", "", "", "Hello, <tool_call> is a word."),
    ("thoughts and words", "", "reasons", "<think>hm\n</think>\nHello."),
    (
        "thoughts that the prompt has begun",
        "hermes/1",
        "thinking",
        f"so</think>Hi.<tool_call>{_CALL}</tool_call>",
    ),
    ("a call", "hermes/1", "", f"Let me see.\n<tool_call>\n{_CALL}\n</tool_call>"),
    ("two calls", "hermes/1", "", f"<tool_call>{_CALL}</tool_call>\n<tool_call>{_CALL}</tool_call> done"),
    ("a call of no tool", "hermes/1", "", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    ("a call that is cut", "hermes/1", "", '<tool_call>{"name": "add", "arguments": {"a": 1'),
    ("a whole answer that is a call", "llama3/1", "", '{"name": "add", "parameters": {"a": 1}}'),
    ("JSON that is none", "llama3/1", "", '{"a": 1}'),
    ("an array of calls", "mistral/1", "", f"[TOOL_CALLS][{_CALL}, {_CALL}]"),
    ("a name and arguments", "mistral/1", "", 'Sure. [TOOL_CALLS]add{"a": 1}'),
    ("calls in the generic form", "generic/1", "", f'{{"tool_calls": [{_CALL}, {_CALL}]}}'),
    ("words in the generic form", "generic/1", "", '{"response": "Gr\\u00fc\\u00dfe \\ud83d\\ude42\\n"}'),
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
        "answers": [_answer(*each) for each in ANSWERS],
    }


def _answer(name: str, form: str, how: str, text: str) -> dict[str, Any]:
    reader = reader_of(form, TOOLS, reasons=bool(how), thinking=how == "thinking")
    pieces = AnswerPieces(reader)
    said = [*pieces.feed(text), *pieces.finish(whole=True)]
    return {
        "name": name,
        "format": form,
        "tools": list(TOOLS),
        "reasons": bool(how),
        "thinking": how == "thinking",
        "text": text,
        "said": [[each.channel, each.text, each.call, each.name] for each in said],
        "calls": pieces.calls,
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
        "format": f"{renderer.form}/{VERSION}",
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
