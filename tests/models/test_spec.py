"""``models/SPEC.md`` says what the code does: ids, what follows from a file, and the numbers."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from p2pnode.errors import ConfigError
from p2pnode.models import answer, gguf, scripted
from p2pnode.models.engine import GenerateRequest, Tokens
from p2pnode.models.evaluation.task_set import task_set
from p2pnode.models.generic_form import generic_messages
from p2pnode.models.local_models import describe_at, hashes_of
from p2pnode.models.manifest import (
    Manifest,
    ModelFile,
    model_id,
    model_id_text,
    parse_model_id,
    scripted_model_id,
)
from p2pnode.models.model_list import (
    ENTRIES_MAX,
    LINE_BYTES_MAX,
    LIST_BYTES_MAX,
    list_key_text,
    parse_list,
    parse_list_key,
)
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.models.subscriptions import NotTaken, Subscriptions, Take, judge
from p2pnode.models.template_overhead import template_overhead
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, SamplingParams, Tool
from p2pnode.protocols.s5.entries import parse_entry
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.protocols.wire import decode_record

FOLDER: Final = Path(__file__).parents[2] / "models"
VECTORS: Final[dict[str, Any]] = json.loads((FOLDER / "vectors.json").read_text(encoding="utf-8"))
SPEC: Final = (FOLDER / "SPEC.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "told", [*VECTORS["manifests"], *VECTORS["files"]], ids=lambda told: told["text"][:8]
)
def test_a_manifest_has_one_id(told: dict[str, Any]) -> None:
    manifest = Manifest.from_mapping(told["manifest"])
    canonical = told["canonical"].encode("ascii")
    assert manifest.canonical() == canonical
    assert hashlib.sha256(b"p2pnode/model/1\0" + canonical).hexdigest() == told["id"]
    assert model_id(manifest).hex() == told["id"]
    assert model_id_text(model_id(manifest)) == told["text"]
    assert parse_model_id(told["text"]) == model_id(manifest)


@pytest.mark.parametrize("told", VECTORS["lists"], ids=lambda told: told["name"])
def test_a_document_is_a_list_or_none(told: dict[str, Any], tmp_path: Path) -> None:
    blob = told["document"].encode("ascii")
    assert hash_of(blob).hex() == told["hash"]
    if told.get("refused"):
        with pytest.raises(ConfigError, match="this list of models is refused"):
            parse_list(blob)
        return
    taken, found = Subscriptions(tmp_path).take(parse_entry(bytes.fromhex(told["entry"])), blob, 0)
    assert [entry.name for entry in found.entries] == told["models"]
    assert list(found.left_out) == told["left_out"]
    assert taken.pointer.points_at == hash_of(blob)


def test_the_task_set_that_ships_has_the_id_the_order_and_the_answers_of_the_vectors() -> None:
    told = VECTORS["task_set"]
    content = json.loads((FOLDER / "evaluation" / "task_set.json").read_text(encoding="utf-8"))
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
    assert hashlib.sha256(b"p2pnode/task-set/1\0" + canonical).hexdigest() == told["id"]
    assert task_set().id == told["id"]
    for order in told["orders"]:
        found = task_set().items(seed=order["seed"])[: len(order["items"])]
        assert [[each.task, each.index] for each in found] == order["items"]
        for name in content["tasks"]:
            drawn = [index for task, index in order["items"] if task == name]
            assert (
                drawn
                == sorted(
                    range(len(content["tasks"][name]["items"])),
                    key=lambda index: hashlib.sha256(f"{order['seed']}/{name}/{index}".encode()).digest(),
                )[: len(drawn)]
            )
    for each in told["checked"]:
        assert task_set().tasks[each["task"]].items[each["index"]].is_right(each["answer"]) is each["right"]


@pytest.mark.parametrize("told", VECTORS["pointers"], ids=lambda told: told["name"])
def test_what_follows_from_pointers_is_what_the_vectors_say(told: dict[str, Any]) -> None:
    assert list_key_text(parse_list_key(told["text"])) == told["text"]
    known = parse_entry(bytes.fromhex(told["known"])) if told["known"] else None
    shown = [parse_entry(bytes.fromhex(each)) for each in told["shown"]]
    verdict = judge(parse_list_key(told["text"]), known, shown)
    assert parse_list_key(told["text"]).hex() == told["key"]
    assert isinstance(verdict, NotTaken) is told["refused"]
    assert (verdict.pointer.to_bytes().hex() if isinstance(verdict, Take) else None) == told["taken"]


def test_the_bounds_of_a_list_are_those_of_the_spec() -> None:
    assert f"| a list of models | {LIST_BYTES_MAX:,} bytes, {ENTRIES_MAX:,} models |" in SPEC
    assert f"| a line of it | {LINE_BYTES_MAX:,} bytes |" in SPEC
    stated = re.findall(
        r"^\| `(\w+)` \|", SPEC.split("| key of the list |")[1].split("And of")[0], re.MULTILINE
    )
    assert stated == list(json.loads(VECTORS["lists"][0]["document"].splitlines()[1]))


@pytest.mark.parametrize("told", VECTORS["refused_ids"], ids=lambda told: told["name"])
def test_a_text_that_is_no_id_is_refused(told: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="no model id"):
        parse_model_id(told["text"])


def test_the_scripted_engine_has_an_id_of_its_own() -> None:
    told = VECTORS["scripted"]
    assert scripted_model_id().hex() == told["id"]
    assert model_id_text(scripted_model_id()) == told["text"]


@pytest.mark.parametrize("told", VECTORS["files"], ids=["gguf", "split", "folder", "shards"])
def test_a_manifest_follows_from_files(told: dict[str, Any], tmp_path: Path) -> None:
    names = list(told["files"])
    for name, data in told["files"].items():
        (tmp_path / name).write_bytes(bytes.fromhex(data))
    where = tmp_path / names[0] if names[0].endswith(".gguf") else tmp_path
    assert describe_at("mine", where).manifest == Manifest.from_mapping(told["manifest"])


@pytest.mark.parametrize("path", VECTORS["refused_paths"], ids=lambda path: path[:20] or "empty")
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="no name of a model's file"):
        ModelFile(path=path, size_bytes=1, sha256="0" * 64, chunks="0" * 64)


@pytest.mark.parametrize("told", VECTORS["templates"], ids=lambda told: told["template"][:30])
def test_a_template_has_one_overhead(told: dict[str, Any]) -> None:
    found = template_overhead(told["template"], frozenset(told["control"]))
    assert (found.fixed, found.per_message) == (told["fixed"], told["per_message"])


def test_the_fields_of_a_manifest_stand_in_the_order_in_which_they_are_hashed() -> None:
    stated = re.findall(r"^\| `(\w+)` \|", SPEC.split("### Manifest")[1].split("### From")[0], re.MULTILINE)
    assert stated == list(json.loads(VECTORS["manifests"][0]["canonical"]))


def test_the_kinds_of_weights_are_those_of_the_code(tmp_path: Path) -> None:
    text = " ".join(SPEC.split("`quantisation` by number:")[1].split("; another number")[0].split())
    stated = {int(number): name for number, name in re.findall(r"(\d+) ([A-Z]\w+)", text)}
    header = bytes.fromhex(VECTORS["files"][0]["files"]["small.gguf"])
    key = b"general.file_type" + (4).to_bytes(4, "little")
    assert header.count(key) == 1
    path = tmp_path / "kind.gguf"
    found = {}
    for number in range(64):
        path.write_bytes(header.replace(key + (7).to_bytes(4, "little"), key + number.to_bytes(4, "little")))
        kind = gguf.describe([gguf.read_header(path)], [hashes_of(path)]).quantisation
        if kind != f"ftype{number}":
            found[number] = kind
    assert found == stated


@pytest.mark.parametrize("told", VECTORS["scripted"]["prompts"])
async def test_the_scripted_engine_renders_prompts_as_its_vectors_say(told: dict[str, Any]) -> None:
    prompt = await ScriptedEngine().prompt(decode_record(PromptBody, bytes.fromhex(told["body"])))
    assert list(prompt.ids) == told["ids"]


@pytest.mark.parametrize("told", VECTORS["scripted"]["answers"])
async def test_the_scripted_engine_says_what_its_vectors_say(told: dict[str, Any]) -> None:
    request = GenerateRequest(
        prompt_ids=tuple(told["ids"]),
        sampling=SamplingParams(temperature=1.0, tokens_max=len(told["text"])),
        seed=told["seed"],
        cache_key=b"",
    )
    async with ScriptedEngine().generate(request) as events:
        said = [event.text async for event in events if isinstance(event, Tokens)]
    assert "".join(said) == told["text"]


@pytest.mark.parametrize("told", VECTORS["scripted"]["answers"])
def test_the_scripted_engine_says_what_the_spec_says(told: dict[str, Any]) -> None:
    text = "".join(itertools.islice(words_of_the_spec(told["ids"], told["seed"]), len(told["text"])))
    assert text == told["text"]


def words_of_the_spec(ids: Iterable[int], seed: int) -> Iterator[str]:
    """The scripted engine's answer, in the words of the SPEC."""
    state, last = zlib.crc32(seed.to_bytes(8, "big")), 0
    for last in ids:
        state = zlib.crc32(last.to_bytes(2, "little"), state)
    while True:
        draw = state * 2654435761 % 2**32 // 256
        if chr(last) in "bdfgklmnprstvz":
            last = b"aeiou"[draw % 5]
        elif chr(last) in "aeiou" and draw % 3 == 0:
            last = ord(" ")
        else:
            last = b"bdfgklmnprstvz"[draw % 14]
        yield chr(last)
        state = zlib.crc32(last.to_bytes(2, "little"), state)


def test_the_template_of_the_scripted_engine_is_that_of_the_spec() -> None:
    block = SPEC.split("by the template\n\n```\n")[1].split("\n```")[0]
    assert block.replace("\n", "") == scripted.TEMPLATE.source


def test_the_limits_of_an_answer_are_those_of_the_code() -> None:
    for row in (
        f"| a call | {answer.CALL_MAX:,} letters, {answer.DEPTH_MAX} levels |",
        f"| calls of an answer | {answer.CALLS_MAX} |",
    ):
        assert row in SPEC


def test_the_words_that_tell_of_tools_are_those_of_the_spec() -> None:
    body = PromptBody(messages=(ChatMessage.of("user", "hi"),), tools=(Tool(name="f"),), seed=bytes(16))
    told, *_ = generic_messages(body)
    words, _, tools = told.text.partition("\n")
    block = (FOLDER / "SPEC.md").read_text("utf-8").split("a line each:\n\n```\n")[1].split("\n```")[0]
    assert words == block.replace("\n", " ")
    assert json.loads(tools) == {
        "name": "f",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }
