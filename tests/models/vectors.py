"""The vectors of ``models/SPEC.md``: manifests, ids, and what follows from a file and from a template."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.errors import ConfigError
from p2pnode.models.answer import VERSION, AnswerPieces, Said, reader_of
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.engine import GenerateRequest, Tokens
from p2pnode.models.evaluation.task_set import task_set
from p2pnode.models.local_models import describe_at
from p2pnode.models.manifest import (
    Manifest,
    ModelFile,
    TemplateOverhead,
    model_id,
    model_id_text,
    scripted_model_id,
)
from p2pnode.models.model_list import list_key_text, parse_list
from p2pnode.models.renderer import Renderer
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.models.subscriptions import NotTaken, Take, judge
from p2pnode.models.template_overhead import template_overhead
from p2pnode.protocols.inference.messages import PromptBody, SamplingParams
from p2pnode.protocols.s5.entries import Entry
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.protocols.wire import encode
from tests.models import chat_templates, lists, model_folders
from tests.models.gguf_files import PAIRS, SPLIT, gguf

SMALL: Final = Manifest(
    architecture="llama",
    quantisation="Q4_1",
    n_ctx=2048,
    format="gguf",
    files=(ModelFile(path="model.gguf", size_bytes=1000, sha256="11" * 32, chunks="44" * 32),),
    tokenizer="22" * 32,
    chat_template="33" * 32,
    template_overhead=TemplateOverhead(fixed=10, per_message=5),
)
TOOLS: Final = ("weather", "add")
SCRIPTED_LETTERS: Final = 40
REFUSED_PATHS: Final = (
    "", ".", "..", "../x", "../../x.safetensors", "/etc/passwd", "C:\\x", "C:x", "a/b.safetensors", "a\\b",
    "a\0.safetensors", ".hidden.safetensors", "a.", "a b", "é.safetensors", "con", "NUL.safetensors",
    "com1.json", "a" * 129,
)  # fmt: skip
_CALL: Final = '{"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2]}}'
_ADD: Final = '{"name": "add", "arguments": {"a": 1}}'
_OPEN: Final = "<tool_call>"
_SHUT: Final = "</tool_call>"
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
    ("marks within thoughts", "hermes/1", "reasons", f"<think>a<tool_call>{_ADD}</thin</think>b"),
    ("thoughts twice", "hermes/1", "reasons", "<think>a</think>b<think>c</think>d"),
    ("thoughts, then a whole answer that is a call", "llama3/1", "thinking", f"a</think> {_ADD}"),
    ("thoughts that do not end", "", "reasons", "<think>a</thi"),
    ("what may become a mark", "hermes/1", "reasons", "a<<tool_<thin"),
    ("blanks at the beginning", "hermes/1", "", " \n a"),
    (
        "arguments before the name",
        "hermes/1",
        "",
        f'{_OPEN}{{"arguments": {{"a": 1}}, "name": "add"}}{_SHUT}',
    ),
    ("arguments before a name that is not offered", "llama3/1", "", '{"arguments": {"a": 1}, "name": "rm"}'),
    ("two names", "llama3/1", "", '{"name": "add", "parameters": {"a": 1}, "name": "rm"}'),
    ("arguments twice", "llama3/1", "", '{"name": "add", "parameters": {"a": 1}, "arguments": {"b": 2}}'),
    ("another first member", "hermes/1", "", f'{_OPEN}{{"id": 1, "name": "add", "arguments": {{}}}}{_SHUT}'),
    ("a member beside", "hermes/1", "", f'{_OPEN}{{"name": "add", "id": 1, "arguments": {{}}}}{_SHUT}'),
    ("a key with an escape", "hermes/1", "", f'{_OPEN}{{"n\\u0061me": "add", "arguments": {{}}}}{_SHUT}'),
    ("no arguments", "hermes/1", "", f'{_OPEN}{{"name": "add"}}{_SHUT}'),
    ("arguments that are null", "hermes/1", "", f'{_OPEN}{{"name": "add", "arguments": null}}{_SHUT}'),
    ("arguments that are a number", "hermes/1", "", f'{_OPEN}{{"name": "add", "arguments": 7}}{_SHUT}'),
    ("arguments in a text", "llama3/1", "", '{"name": "add", "parameters": " {\\"a\\": \\"\\ud83d\\"} "}'),
    ("arguments in a text that is none", "llama3/1", "", '{"name": "add", "parameters": "{\\"a\\": }"}'),
    ("arguments in an array", "llama3/1", "", '{"name": "add", "parameters": [{"a": 1}]}'),
    ("a function within", "llama3/1", "", '{"type": "function", "function": {"name": "add"}}'),
    (
        "a number of many digits",
        "hermes/1",
        "",
        f'{_OPEN}{{"name": "add", "arguments": {{"a": {"1" * 60}}}}}',
    ),
    ("broken arguments", "hermes/1", "", f'{_OPEN}{{"name": "add", "arguments": {{"a": }}}}{_SHUT}b'),
    (
        "brackets that don't match",
        "hermes/1",
        "",
        f'{_OPEN}{{"name": "add", "arguments": {{"a": [1}}}}{_SHUT}b',
    ),
    (
        "a call that is broken after its arguments",
        "llama3/1",
        "",
        '{"name": "add", "parameters": {}, "a\n": 1}',
    ),
    ("arguments of 65 levels", "llama3/1", "", f'{{"name": "add", "parameters": {"[" * 64}'),
    ("open arguments of 65 levels", "llama3/1", "", f'{{"name": "add", "parameters": {{"a": {"[" * 63}1'),
    ("a call without its mark's end", "hermes/1", "", f"{_OPEN}{_ADD} b{_OPEN}{_ADD} </tool_c"),
    ("blanks around a call's end", "hermes/1", "", f"{_OPEN} {_ADD}\n{_SHUT}\n{_OPEN}{_ADD}{_SHUT}"),
    ("a mark in a call", "hermes/1", "", f'{_OPEN}{{"x{_OPEN}{_ADD}{_SHUT}'),
    ("too many blanks after a mark", "hermes/1", "", f"{_OPEN}{' ' * 256}{_ADD}"),
    ("as many blanks as may be", "hermes/1", "", f"{_OPEN}{' ' * 255}{_ADD}"),
    ("a call after its mark", "llama3/1", "", f"Well. <|python_tag|>{_ADD}; {_ADD} {_ADD}."),
    ("a call, then no call", "llama3/1", "", f'{_ADD} ; {{"a": 1}} <|python_tag|>{_ADD}'),
    ("words between calls", "llama3/1", "", f"{_ADD} and <|python_tag|>{_ADD}"),
    ("a call alone", "mistral/1", "", f"[TOOL_CALLS] {_ADD};{_ADD} a"),
    ("an array that ends with no call", "mistral/1", "", f"[TOOL_CALLS] [ {_ADD} , 7] a"),
    ("an array without an end", "mistral/1", "", f"[TOOL_CALLS][{_ADD} a"),
    ("an empty array", "mistral/1", "", "[TOOL_CALLS][] a"),
    (
        "a name, an id and arguments",
        "mistral/1",
        "",
        '[TOOL_CALLS]add[CALL_ID]abc123def[ARGS] {"a": {"b": 1}} b',
    ),
    ("two names with arguments", "mistral/1", "", '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]weather[ARGS]{}'),
    ("a name with broken arguments", "mistral/1", "", '[TOOL_CALLS]add{"a": ]}'),
    ("a name that is not offered", "mistral/1", "", '[TOOL_CALLS]rm{"a": 1} [TOOL_CALLS]add{}'),
    ("a name with a blank of another kind", "mistral/1", "", '[TOOL_CALLS]add\u00a0{"a": 1}'),
    ("no name", "mistral/1", "", "[TOOL_CALLS] is a mark"),
    ("generic calls and no call", "generic/1", "", f'{{"tool_calls": [{_ADD}, {{"a": 1}}]}} b'),
    ("generic calls and words", "generic/1", "", f'{{"tool_calls": [{_ADD}]}} b'),
    ("no generic calls", "generic/1", "", '{"tool_calls": []}'),
    ("generic words and more", "generic/1", "", ' { "response" : "a\\q\\"b" } ] c'),
    ("halves of letters", "generic/1", "", '{"response": "\\ud83d \\ude42 \\ud83d'),
    ("an escape that is cut", "generic/1", "", '{"response": "a\\u00e'),
    ("an object of another kind", "generic/1", "", '{"tool": 1}'),
    ("words in no form", "generic/1", "", "a {"),
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


TASK_ANSWERS: Final = (
    ("arithmetic", 0, "9 + 2 = 11"), ("arithmetic", 0, "11 is not 9"), ("arithmetic", 0, "eleven"),
    ("arithmetic", 7, "1,000"), ("instructions", 0, "Island."), ("instructions", 0, "an island"),
    ("instructions", 4, "Waves come and go."), ("instructions", 4, "Write of the sea."),
    ("json", 0, '{ "age":56,"name":"Oscar" }'), ("json", 0, '{"name": "Oscar", "age": "56"}'),
    ("json", 0, "Oscar, 56"), ("knowledge", 0, "(A) 7"), ("knowledge", 0, "7"),
    ("knowledge", 0, "I'd say B, not A"),
    ("strings", 0, ' "Market orange winter." '), ("strings", 0, "market, orange, winter"),
    ("strings", 1, "apple"), ("strings", 1, "**CLOUD**"),
)  # fmt: skip
"""(task, index, answer)"""


def models_vectors() -> dict[str, Any]:
    """Everything of the SPEC that is bytes."""
    text = model_id_text(model_id(SMALL))
    upstream = replace(SMALL, format="upstream", files=(), name="qwen3:8b", quantisation="unknown")
    known = [SMALL, upstream, *(entry.manifest for entry in Catalogue.load() if entry.manifest is not None)]
    return {
        "manifests": [_told(manifest) for manifest in known],
        "refused_ids": [
            {"name": "another prefix", "text": "m2" + text[2:]},
            {"name": "a character too few", "text": text[:-1]},
            {"name": "a capital", "text": text[:2] + text[2:].replace("x", "X", 1)},
            {"name": "the spare bit", "text": text[:-1] + "b"},
        ],
        "scripted": _scripted(),
        "refused_paths": list(REFUSED_PATHS),
        "files": [
            _files({"small.gguf": gguf(PAIRS)}),
            _files({f"small-0000{number}-of-00002.gguf": data for number, data in enumerate(SPLIT, 1)}),
            _files(model_folders.FILES | {"README.md": b"# Tiny"}),
            _files(model_folders.SHARDED | {"consolidated.safetensors": b""}),
        ],
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
        "lists": [_list(name, blob) for name, blob in LISTS.items()],
        "pointers": [_pointers(name, known, shown) for name, (known, shown) in POINTERS.items()],
        "task_set": _task_set(),
    }


def _task_set() -> dict[str, Any]:
    """Its id, the beginning of some orders, and answers to the first item of each task."""
    known = task_set()
    orders = [
        {"seed": seed, "items": [[each.task, each.index] for each in known.items(seed=seed)[:21]]}
        for seed in (0, 7, 2**32 - 1)
    ]
    checked = [
        {
            "task": task,
            "index": index,
            "answer": answer,
            "right": known.tasks[task].items[index].is_right(answer),
        }
        for task, index, answer in TASK_ANSWERS
    ]
    return {"id": known.id, "orders": orders, "checked": checked}


_FULL: Final = lists.table(
    "full",
    aliases=["whole"],
    description="Größer",
    licence="Apache-2.0",
    licence_sha256="ab" * 32,
    licence_url="https://example.org/licence",
    memory={"bytes": 2_000_000_000, "n_ctx": 4096},
    quality=[
        {
            "task_set": "cd" * 32, "seed": 0, "tasks": {"arithmetic": [12, 40]}, "engine": "llama.cpp",
            "build": "", "kv_types": "", "measured": "2026-11-30",
        }
    ],
    remarks="Slow at first.",
    source=["hf:maker/full@main#full.gguf", "https://example.org/full.gguf"],
    tasks=["chat"],
)  # fmt: skip
_BAD_PATH: Final = {"path": "../../x", "size_bytes": 1, "sha256": "11" * 32, "chunks": "44" * 32}
LISTS: Final = {
    "two models": lists.document([lists.table("a"), _FULL], description="Small ones"),
    "none": lists.document([]),
    "a path that leads elsewhere": lists.document([lists.table("a", manifest={"files": [_BAD_PATH]}), _FULL]),
    "a source on this machine": lists.document([lists.table("a", source=["http://127.0.0.1/x"]), _FULL]),
    "a text that turns": lists.document([lists.table("a", remarks="\u202e"), _FULL]),
    "another model's id": lists.document([lists.table("a", id=lists.table("b")["id"])]),
    "out of order": lists.document([lists.table("b"), lists.table("a")]),
    "a name twice": lists.document([lists.table("a"), lists.table("b", aliases=["a"])]),
    "a count that is wrong": lists.document([lists.table("a")], entries=2),
    "blanks": lists.document([lists.table("a")]).replace(b'":', b'": '),
    "another version": lists.document([]).replace(b"list/1", b"list/2", 1),
}
_ONE, _TWO, _FORK, _THREE = (
    lists.pointer(data, revision) for data, revision in ((b"1", 1), (b"2", 2), (b"2 too", 2), (b"3", 3))
)
POINTERS: Final = {
    "the first": (None, [_ONE]),
    "a newer one": (_ONE, [_ONE, _TWO]),
    "the same": (_TWO, [_TWO, _ONE]),
    "rolled back": (_TWO, [_ONE]),
    "forked": (_ONE, [_TWO, _FORK]),
    "forked from what is known": (_TWO, [_FORK]),
    "after a fork": (_TWO, [_FORK, _THREE]),
    "signed by another key": (_ONE, [lists.pointer(b"9", 9, lists.OTHER)]),
    "not signed": (_ONE, [replace(_TWO, signature=bytes(64))]),
}


def _list(name: str, blob: bytes) -> dict[str, Any]:
    told = {"name": name, "document": blob.decode(), "hash": hash_of(blob).hex()}
    try:
        found = parse_list(blob)
    except ConfigError:
        return {**told, "refused": True}
    models = [entry.name for entry in found.entries]
    entry = lists.pointer(blob, found.head.revision).to_bytes().hex()
    return {**told, "entry": entry, "models": models, "left_out": list(found.left_out)}


def _pointers(name: str, known: Entry | None, shown: Sequence[Entry]) -> dict[str, Any]:
    verdict = judge(lists.KEY, known, shown)
    return {
        "name": name,
        "key": lists.KEY.hex(),
        "text": list_key_text(lists.KEY),
        "known": None if known is None else known.to_bytes().hex(),
        "shown": [entry.to_bytes().hex() for entry in shown],
        "taken": verdict.pointer.to_bytes().hex() if isinstance(verdict, Take) else None,
        "refused": isinstance(verdict, NotTaken),
    }


def _answer(name: str, form: str, how: str, text: str) -> dict[str, Any]:
    reader = reader_of(form, TOOLS, reasons=bool(how), thinking=how == "thinking")
    pieces = AnswerPieces(reader)
    said, told = list[Said](), list[int]()
    for letter in text:
        said += pieces.feed(letter)
        told.append(pieces.bytes)
    said += pieces.finish(whole=True)
    return {
        "name": name,
        "format": form,
        "tools": list(TOOLS),
        "reasons": bool(how),
        "thinking": how == "thinking",
        "text": text,
        "said": [[each.channel, each.text, each.call, each.name] for each in _joined(said)],
        "calls": pieces.calls,
        "told": " ".join(map(str, told)),
    }


def _joined(said: list[Said]) -> list[Said]:
    """Neighbours of one channel and call as one."""
    joined: list[Said] = []
    for each in said:
        last = joined[-1] if joined else None
        if last is not None and not each.name and (last.channel, last.call) == (each.channel, each.call):
            joined[-1] = replace(last, text=last.text + each.text)
        else:
            joined.append(each)
    return joined


async def _scripted_answer(ids: tuple[int, ...], seed: int) -> str:
    engine = ScriptedEngine()
    sampling = SamplingParams(temperature=1.0)
    request = GenerateRequest(prompt_ids=ids, sampling=sampling, seed=seed, cache_key=b"")
    text = ""
    async with engine.generate(request) as events:
        async for event in events:
            text += event.text if isinstance(event, Tokens) else ""
            if len(text) >= SCRIPTED_LETTERS:
                break
    return text[:SCRIPTED_LETTERS]


def _scripted() -> dict[str, Any]:
    """What the scripted engine makes of prompts."""

    async def ids_of(body: PromptBody) -> tuple[int, ...]:
        return (await ScriptedEngine().prompt(body)).ids

    prompts = [
        {"body": encode(body).hex(), "ids": list(trio.run(ids_of, body))}
        for body in chat_templates.PROMPTS.values()
        if body.seed
    ]
    return {
        "id": scripted_model_id().hex(),
        "text": model_id_text(scripted_model_id()),
        "prompts": prompts,
        "answers": [
            {"ids": list(ids), "seed": seed, "text": trio.run(_scripted_answer, ids, seed)}
            for ids in ((259,), (258, 104, 105, 256, 259), (258, 104, 105, 256, 259, 98, 97))
            for seed in (0, 7)
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


def _files(files: dict[str, bytes]) -> dict[str, Any]:
    """Files as they lie on a disk, and the manifest of the model that they are."""
    with tempfile.TemporaryDirectory() as folder:
        root = model_folders.write(Path(folder), files)
        first = root / min(files)
        manifest = describe_at("vector", first if first.suffix == ".gguf" else root).manifest
    return {"files": {name: data.hex() for name, data in files.items()}, **_told(manifest)}


def _template(text: str) -> dict[str, Any]:
    overhead = template_overhead(text, frozenset(CONTROL))
    return {"template": text, "control": list(CONTROL), **asdict(overhead)}
