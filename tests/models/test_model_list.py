"""Signed lists of models: what breaks their form refuses them, a model that is wrong is left out by name."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.models.catalogue import catalogue_text, parse_catalogue
from p2pnode.models.catalogue_entry import MemoryHint
from p2pnode.models.manifest import ModelFile, model_id
from p2pnode.models.model_list import (
    ENTRIES_MAX,
    FORM,
    LINE_BYTES_MAX,
    LIST_BYTES_MAX,
    entries_with,
    head_of,
    list_blob,
    list_key_text,
    parse_list,
    parse_list_key,
    revised,
    same_content,
)
from p2pnode.models.quality import Quality, TaskResult
from tests.models.lists import KEY, blob_of, document, entry, head, line, manifest_of, many, table


def quality(name: str) -> Quality:
    return Quality(
        model=model_id(manifest_of(name)),
        task_set="ab" * 32,
        seed=0,
        tasks=(
            TaskResult(task="arithmetic", right=12, items=40),
            TaskResult(task="reading", right=5, items=10),
        ),
        engine="llama.cpp",
        build="b1",
        measured="2026-11-30",
    )


FULL = entry(
    "full",
    description="All that can be said: „größer“",
    licence="other",
    licence_url="https://example.org/licence",
    licence_sha256="cd" * 32,
    remarks="Slow at first.",
    aliases=("full-one", "whole"),
    tasks=("chat", "code"),
    memory=MemoryHint(bytes=2_000_000_000, n_ctx=4096),
    quality=(quality("full"),),
)


def test_a_list_is_read_as_it_was_written() -> None:
    made = list_blob(head(7), [entry("b"), FULL, entry("a", sources=())])
    found = parse_list(made)
    assert (found.head, found.left_out) == (head(7), {})
    assert found.entries == (entry("a", sources=()), entry("b"), FULL)
    assert head_of(made) == head(7)
    assert list(entries_with(made, "whole")) == [FULL]
    assert list(entries_with(made, "nobody")) == []


def test_the_same_models_are_the_same_list_whenever_it_is_made() -> None:
    first = blob_of("a", "b")
    assert same_content(first, list_blob(head(9, created=1), [entry("b"), entry("a")]))
    assert not same_content(first, blob_of("a", "c"))
    assert not same_content(first, list_blob(head(1, description="other"), [entry("a"), entry("b")]))


@pytest.mark.parametrize(
    ("given", "add", "names"),
    [("bc", False, "bc"), ("bc", True, "abc"), ("", False, "ab"), ("b", True, "ab")],
)
def test_a_revision_has_what_is_given_and_what_it_is_added_to(given: str, add: bool, names: str) -> None:
    before = list_blob(head(1, description="old"), [entry("a"), entry("b")])
    new = [entry(each, description="new") for each in given]
    made = parse_list(revised(head(2, created=7), new, before, add=add, described=False))
    assert [each.name for each in made.entries] == list(names)
    assert [each for each in made.entries if each.name in given] == new
    assert made.head.description == "old"


def test_a_revision_in_which_nothing_changes_is_the_one_before() -> None:
    before = list_blob(head(1, description="old"), [entry("a")])
    assert revised(head(2), [entry("a")], before, add=False, described=False) == before
    changed = revised(head(2, description="new"), [], before, add=False, described=True)
    assert parse_list(changed).head == head(2, description="new")
    assert parse_list(revised(head(1), [entry("a")], None, add=True, described=False)).head.revision == 1


def test_a_document_that_cannot_be_read_is_replaced_and_never_added_to() -> None:
    assert parse_list(revised(head(2), [entry("a")], b"x", add=False, described=False)).head == head(2)
    with pytest.raises(ConfigError):
        revised(head(2), [entry("a")], b"x", add=True, described=False)


def test_a_file_of_models_and_a_list_say_the_same() -> None:
    text = catalogue_text([FULL, entry("b")])
    assert list(parse_catalogue(text, "mine.toml").values()) == [FULL, entry("b")]


def test_a_key_is_copied_as_text_and_has_one_spelling() -> None:
    text = list_key_text(KEY)
    assert parse_list_key(text) == KEY
    for wrong in (text[:-1], text.upper(), "m1" + text[2:], text + "a", "", text[:-1] + "b"):
        with pytest.raises(ConfigError, match="no key of a list"):
            parse_list_key(wrong)


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no list of models"),
    "another document": (b"<html>", "no list of models"),
    "a later version": (FORM.replace(b"/1", b"/2") + b"{}\n", "another version"),
    "no first line": (FORM, "no JSON"),
    "a first line without its end": (document([])[:-1], "has no end"),
    "deep nesting": (document([], entries=1) + b"[" * 100_000 + b"\n", "no JSON"),
    "a line of many brackets": (FORM + b'{"a":' * 90_000 + b"\n", "no JSON"),
    "a line that is too long": (document([]) + b'"' + b"a" * LINE_BYTES_MAX + b'"\n', "more than"),
    "too many bytes": (FORM + b"x" * LIST_BYTES_MAX, "at most"),
    "spaces": (document([]).replace(b'":', b'": '), "canonical"),
    "a key that stands twice": (document([]).replace(b'"entries"', b'"entries":1,"entries"'), "canonical"),
    "a number with a point": (document([], revision=1.5), "no JSON"),
    "a number that is none": (document([], created=float("nan")), "no JSON"),
    "other letters than ASCII": (document([]).replace(b'"small"', '"smäll"'.encode()), "no JSON"),
    "an array": (FORM + b"[]\n", "canonical"),
    "too many models": (document([], entries=ENTRIES_MAX + 1), "at most 10000"),
    "fewer models than it says": (document([table("a")], entries=2), "it has 2 models, and has 1"),
    "more models than it says": (document([table("a"), table("b")], entries=1), "more than"),
    "a count that is none": (document([], entries=True), "how many"),
    "models out of order": (document([table("b"), table("a")]), "sorted"),
    "a model twice": (document([table("a"), table("a")]), "sorted"),
    "an alias of two models": (
        document([table("a", aliases=["x"]), table("b", aliases=["x"])]), "'x' names two models",
    ),
    "an alias that is a name": (document([table("a", aliases=["b"]), table("b")]), "'b' names two models"),
    "a model without a name": (document([{**table("a"), "name": None}]), "no name"),
    "a name that leads elsewhere": (document([table("../a")]), "no name"),
    "a name with an escape": (document([table("a\x1b[2J")]), "no name"),
    "no key": (document([], key=""), "key"),
    "a key in capitals": (document([], key=KEY.hex().upper()), "lower-case"),
    "a key with spaces": (document([], key=KEY.hex()[:2] + " " + KEY.hex()[2:]), "lower-case"),
    "a revision below 0": (document([], revision=-1), "revision"),
    "a revision beyond all": (document([], revision=2**48 + 1), "revision"),
    "a list's name that turns": (document([], name="a\u202e"), "name"),
    "a description that turns": (document([], description="\u202egpj.exe"), "description"),
    "half a letter": (document([], description="\ud800"), "description"),
    "a date that is a text": (document([], created="today"), "created"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_the_form_refuses_the_list_in_words(case: str) -> None:
    made, why = BROKEN[case]
    with pytest.raises(ConfigError, match="this list of models is refused") as told:
        parse_list(made)
    assert why in str(told.value)
    assert str(told.value).isprintable()


def file(**more: Any) -> dict[str, Any]:
    return {"path": "model.gguf", "size_bytes": 1, "sha256": "11" * 32, "chunks": "44" * 32, **more}


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "a manifest that names ../../x": ({"manifest": {"files": [file(path="../../x")]}}, "out of the model's"),
    "a path of Windows": ({"manifest": {"files": [file(path="C:\\x")]}}, "out of the model's"),
    "a manifest of a later form": ({"manifest": {"more": 1}}, "manifest"),
    "a manifest without weights": ({"manifest": {"format": "upstream", "name": "x", "files": []}}, "hashes"),
    "an architecture that is a number": ({"manifest": {"architecture": 5}}, "architecture"),
    "another model's id": ({"id": "m1" + "a" * 52}, "hash of its manifest"),
    "no id": ({"id": None}, "hash of its manifest"),
    "a file of this machine": ({"source": ["file:///etc/passwd"]}, "no model source"),
    "a path of this machine": ({"source": ["/etc/passwd"]}, "no model source"),
    "an address of this machine": ({"source": ["http://127.0.0.1:8080/x"]}, "public internet"),
    "this machine by its name": ({"source": ["http://localhost/x"]}, "public internet"),
    "this machine in disguise": ({"source": ["http://127.1/x"]}, "disguise"),
    "this machine in hex": ({"source": ["http://0x7f.0.0.0x1/x"]}, "disguise"),
    "this machine as one number": ({"source": ["http://2130706433/x"]}, "disguise"),
    "this machine in IPv6": ({"source": ["http://[::1]/x"]}, "public internet"),
    "a mapped address": ({"source": ["http://[::ffff:10.0.0.1]/x"]}, "public internet"),
    "an address that is none": ({"source": ["http://[::1/x"]}, "no address"),
    "a private network": ({"source": ["https://192.168.1.1/x"]}, "public internet"),
    "a cloud's metadata": ({"source": ["http://169.254.169.254/latest"]}, "public internet"),
    "a machine of the local network": ({"source": ["http://printer/x"]}, "public internet"),
    "a user's name": ({"source": ["https://user@example.org/x"]}, "has a user"),
    "a source with an escape": ({"source": ["https://example.org/\x1b[2J"]}, "printable"),
    "a source that is too long": ({"source": ["https://example.org/" + "a" * 1024]}, "source"),
    "too many sources": ({"source": ["https://example.org/x"] * 17}, "source"),
    "sources that are a table": ({"source": {}}, "source"),
    "a repository that leads out": ({"source": ["hf:a/b@main#../x"]}, "no model source"),
    "words that command a terminal": ({"description": "\x1b]0;x\x07"}, "printable"),
    "words that turn": ({"remarks": "\u202egpj.exe"}, "printable"),
    "a line end": ({"licence": "MIT\nid m1"}, "printable"),
    "too many words": ({"description": "a" * 201}, "at most 200"),
    "a licence that is a number": ({"licence": 1}, "licence"),
    "a licence's text elsewhere": ({"licence_url": "file:///x"}, "http(s)"),
    "an alias with a slash": ({"aliases": ["a/b"]}, "aliases"),
    "an alias that is the name": ({"aliases": ["a"]}, "aliases"),
    "a task that is none": ({"tasks": ["Ä"]}, "tasks"),
    "memory that is none": ({"memory": {"bytes": 0, "n_ctx": 1}}, "memory"),
    "memory that is a text": ({"memory": "8GB"}, "memory"),
    "a score above all": (
        {"quality": [{"task_set": "ab" * 32, "seed": 0, "tasks": {"a": [2, 1]}, "engine": "x",
                      "build": "", "kv_types": "", "measured": "2026-11-30"}]}, "quality",
    ),
    "quality that is a text": ({"quality": ["good"]}, "quality"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_model_whose_entry_is_wrong_is_left_out_and_costs_no_other(case: str) -> None:
    more, why = LEFT_OUT[case]
    made = document([table("a", **more), table("b")])
    found = parse_list(made)
    assert [each.name for each in found.entries] == ["b"]
    assert why in found.left_out["a"]
    assert found.left_out["a"].isprintable()
    assert [each.name for each in entries_with(made, "a")] == []


def test_what_a_reader_does_not_know_is_left_alone() -> None:
    made = document([table("a", later={"x": [1, 2]})], later="y")
    assert [each.name for each in parse_list(made).entries] == ["a"]


@pytest.mark.parametrize("depth", range(100, 1100, 50))
def test_brackets_within_brackets_are_an_error_at_any_depth(depth: int) -> None:
    made = document([{**table("a"), "more": "HERE"}]).replace(b'"HERE"', b"[" * depth + b"]" * depth)
    try:
        names = [each.name for each in parse_list(made).entries]
    except ConfigError as error:
        names = [str(error)]
    assert names == ["a"] or "no JSON" in names[0]


def test_a_curator_hears_what_no_reader_would_take() -> None:
    with pytest.raises(ConfigError, match=r"a can't stand in a list: .*printable"):
        list_blob(head(), [entry("a", description="\u202e")])
    with pytest.raises(ConfigError, match="no manifest yet"):
        list_blob(head(), [replace(entry("a"), manifest=None)])
    with pytest.raises(ConfigError, match="sorted"):
        list_blob(head(), [entry("a"), entry("a")])


def test_a_model_of_as_many_files_as_there_may_be_fits_on_a_line() -> None:
    names = sorted(f"{number:04}{'x' * 100}.safetensors" for number in range(1022))
    files = [
        ModelFile(path=path, size_bytes=1 << 37, sha256="11" * 32, chunks="44" * 32)
        for path in ("config.json", "tokenizer.json", *names)
    ]
    manifest = manifest_of(
        "big", format="safetensors", files=tuple(sorted(files, key=lambda each: each.path))
    )
    made = list_blob(head(), [entry("big", manifest=manifest)])
    assert LINE_BYTES_MAX // 2 < len(made) < LINE_BYTES_MAX
    assert parse_list(made).entries[0].manifest == manifest


@given(st.data())
def test_no_bytes_make_a_reader_fail_otherwise_than_in_words(data: st.DataObject) -> None:
    made = bytearray(document([table("a", source=["https://example.org/x"]), table("b")]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(made) - 1))
        cut = data.draw(st.integers(0, 8))
        made[at : at + cut] = data.draw(st.binary(max_size=8))
    try:
        found = parse_list(bytes(made))
    except ConfigError:
        return
    assert len(found.entries) + len(found.left_out) <= 2


def test_a_line_is_read_alone() -> None:
    made = many(200)
    assert [each.name for each in entries_with(made, "model-00123")] == ["model-00123"]
    assert len(parse_list(made).entries) == 200


@pytest.mark.long
def test_ten_thousand_models_are_read_within_seconds_and_bounds() -> None:
    made = many(ENTRIES_MAX)
    assert len(made) < LIST_BYTES_MAX
    began, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = parse_list(made)
    took = time.process_time() - began
    grew = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
    assert (len(found.entries), found.left_out) == (ENTRIES_MAX, {})
    assert took < 20  # about one second on a quiet core: this only finds what grows with the square
    assert grew < 200_000  # KiB; all objects take 20 MB
    with pytest.raises(ConfigError, match="at most 10000"):
        parse_list(many(ENTRIES_MAX + 1))


def test_the_text_of_a_line_is_the_one_of_the_spec() -> None:
    assert document([table("a")]).endswith(line(table("a")))
