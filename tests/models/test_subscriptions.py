"""Lists that are subscribed: an older one is never taken again, and none that its key did not sign."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.errors import ConfigError, StorageError
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.manifest import model_id_text
from p2pnode.models.model_list import list_blob, list_key_text
from p2pnode.models.subscriptions import (
    SUBSCRIPTIONS_MAX,
    NotTaken,
    Subscriptions,
    Take,
    Unchanged,
    judge,
    list_file,
    read_list_file,
)
from p2pnode.protocols.s5.entries import Entry, make_entry, pointer_to
from p2pnode.protocols.s5.ids import hash_of
from tests.models.lists import KEY, OTHER, SIGNER, blob_of, entry, head, key_of, pointer
from tests.models.test_model_list import quality

NOW = 1_800_000_000
FIRST, SECOND, FORK = (pointer(name, revision) for name, revision in ((b"1", 1), (b"2", 2), (b"2 too", 2)))
FORGED = replace(pointer(b"3", 3), signature=bytes(64))
FOREIGN = pointer(b"9", 9, OTHER)


@pytest.mark.parametrize(
    ("known", "seen", "expected"),
    [
        (None, [FIRST], Take(FIRST)),
        (None, [FIRST, SECOND, FIRST], Take(SECOND)),
        (FIRST, [SECOND], Take(SECOND)),
        (SECOND, [SECOND], Unchanged()),
        (SECOND, [SECOND, FIRST], Unchanged()),
        (FIRST, [FORGED, SECOND], Take(SECOND)),
        (FORK, [FIRST, pointer(b"3", 3)], Take(pointer(b"3", 3))),
    ],
)
def test_the_newest_pointer_that_the_key_signed_is_taken(
    known: Entry | None, seen: list[Entry], expected: object
) -> None:
    assert judge(KEY, known, seen) == expected


@pytest.mark.parametrize(
    ("known", "seen", "why", "hostile"),
    [
        (SECOND, [FIRST], "rolled back", True),
        (SECOND, [FORK], "two different lists as revision 2", True),
        (FIRST, [SECOND, FORK], "two different lists as revision 2", True),
        (None, [SECOND, FORK], "two different lists as revision 2", True),
        (None, [FORGED], "did not sign", True),
        (None, [FOREIGN], "did not sign", True),
        (FIRST, [replace(FOREIGN, key=KEY)], "did not sign", True),
        (None, [], "nobody who was asked", False),
        (SECOND, [], "nobody who was asked", False),
    ],
)
def test_what_is_older_forked_or_not_signed_is_refused_in_words(
    known: Entry | None, seen: list[Entry], why: str, hostile: bool
) -> None:
    verdict = judge(KEY, known, seen)
    assert isinstance(verdict, NotTaken)
    assert why in verdict.why
    assert verdict.hostile is hostile


def taken(folder: Path, *names: str, revision: int = 1, name: str = "") -> Subscriptions:
    made = Subscriptions(folder)
    blob = blob_of(*names, revision=revision)
    made.take(pointer(blob, revision), blob, NOW, name=name)
    return made


def test_a_list_that_is_taken_is_in_the_catalogue_under_its_name(tmp_path: Path) -> None:
    taken(tmp_path, "a", "b")
    catalogue = Catalogue.of(tmp_path)
    found = catalogue.find("small/a")
    assert (found.name, found.list_name, found.sources) == ("small/a", "small", entry("a").sources)
    assert catalogue.find("SMALL/A") == found
    assert found.model_id is not None
    assert catalogue.find(model_id_text(found.model_id)) == found
    assert catalogue.manifest_of(found.model_id) == found.manifest
    assert [each.name for each in catalogue.every_entry()] == [DEFAULT_MODEL, "small/a", "small/b"]
    assert [each.name for each in catalogue.of_list("small")] == ["small/a", "small/b"]


def test_a_bare_name_is_never_a_lists(tmp_path: Path) -> None:
    taken(tmp_path, "a", DEFAULT_MODEL)
    catalogue = Catalogue.of(tmp_path)
    assert catalogue.find(DEFAULT_MODEL).list_name == ""
    assert catalogue.find(f"small/{DEFAULT_MODEL}").list_name == "small"
    for wrong in ("a", "small/none", "other/a"):
        with pytest.raises(ConfigError):
            catalogue.find(wrong)


def test_what_a_list_says_of_a_models_quality_is_found_by_its_id(tmp_path: Path) -> None:
    made = Subscriptions(tmp_path)
    blob = list_blob(head(), [entry("a", quality=(quality("a"),)), entry("b")])
    made.take(pointer(blob), blob, NOW)
    catalogue = Catalogue.of(tmp_path)
    model = catalogue.find("small/a").model_id
    assert model is not None
    assert catalogue.qualities(model) == [("small", quality("a"))]
    assert Catalogue.load().qualities(model) == []


def test_a_newer_revision_replaces_and_an_older_one_is_refused(tmp_path: Path) -> None:
    made = taken(tmp_path, "a", "b", revision=3)
    taken(tmp_path, "a", "c", revision=4)
    (each,) = made
    assert (each.pointer.revision, each.entries, each.name) == (4, 2, "small")
    assert [path.suffix for path in sorted((tmp_path / "lists").iterdir())] == [".list", ".json"] or [
        path.suffix for path in sorted((tmp_path / "lists").iterdir())
    ] == [".json", ".list"]
    with pytest.raises(ConfigError, match="rolled back"):
        taken(tmp_path, "a", "b", revision=3)
    with pytest.raises(ConfigError, match="two different lists"):
        taken(tmp_path, "other", revision=4)
    assert [entry.name for entry in made.entries(each)] == ["small/a", "small/c"]


def test_a_list_that_was_given_up_can_not_be_rolled_back_either(tmp_path: Path) -> None:
    made = taken(tmp_path, "a", revision=5)
    made.give_up("small")
    assert list(made) == []
    with pytest.raises(ConfigError, match="no list is called 'small'"):
        made.named("small")
    with pytest.raises(ConfigError, match="rolled back"):
        taken(tmp_path, "a", revision=4)
    taken(tmp_path, "a", revision=5)
    assert made.named(list_key_text(KEY)).pointer.revision == 5


def test_bytes_that_are_another_list_are_refused(tmp_path: Path) -> None:
    made, blob = Subscriptions(tmp_path), blob_of("a", revision=2)
    theirs = blob_of("a", revision=2, key=key_of(OTHER))
    for signed, data, why in (
        (pointer(blob, 2), blob + b"x", "not those that its curator signed"),
        (pointer(blob, 3), blob, "revision 2 of the list, and was signed as revision 3"),
        (pointer(theirs, 2), theirs, "another key has signed it as its own"),
        (replace(pointer(blob, 2), signature=bytes(64)), blob, "did not sign"),
        (pointer(b"p2pnode", 2), b"p2pnode", "no list of models"),
    ):
        with pytest.raises(ConfigError, match=why):
            made.take(signed, data, NOW)
    assert list(made) == []
    assert made.pointer_of(KEY) is None


def test_two_lists_have_two_names(tmp_path: Path) -> None:
    made = taken(tmp_path, "a")
    blob = blob_of("z", key=key_of(OTHER))
    with pytest.raises(ConfigError, match=r"another list is called small here: .*--as"):
        made.take(pointer(blob, 1, OTHER), blob, NOW)
    with pytest.raises(ConfigError, match="no name for a list"):
        made.take(pointer(blob, 1, OTHER), blob, NOW, name="../x")
    made.take(pointer(blob, 1, OTHER), blob, NOW, name="theirs")
    assert [each.name for each in made] == ["small", "theirs"]
    assert Catalogue.of(tmp_path).find("theirs/z").list_name == "theirs"


def test_there_is_a_most_of_lists(tmp_path: Path) -> None:
    made, blob = taken(tmp_path, "a"), blob_of("z", key=key_of(OTHER))
    index = tmp_path / "lists" / "lists.json"
    data = json.loads(index.read_text())
    (record,) = data["lists"]
    data["lists"] = [{**record, "name": f"l{number}"} for number in range(SUBSCRIPTIONS_MAX)]
    index.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="which is the most"):
        made.take(pointer(blob, 1, OTHER), blob, NOW, name="more")


def test_a_damaged_list_is_told_and_costs_no_other(tmp_path: Path) -> None:
    made = taken(tmp_path, "a")
    (path,) = (tmp_path / "lists").glob("*.list")
    path.write_bytes(path.read_bytes().replace(b"Apache-2.0", b"Apache-9.0"))
    catalogue = Catalogue.of(tmp_path)
    with pytest.raises(ConfigError, match=r"its bytes have changed.*lists refresh"):
        catalogue.find("small/a")
    assert [each.name for each in catalogue.every_entry()] == [DEFAULT_MODEL]
    assert catalogue.find(DEFAULT_MODEL).name == DEFAULT_MODEL
    path.unlink()
    with pytest.raises(ConfigError, match="damaged"):
        made.blob(made.named("small"))


def test_an_index_that_can_not_be_read_is_not_begun_anew(tmp_path: Path) -> None:
    made = taken(tmp_path, "a", revision=5)
    index = tmp_path / "lists" / "lists.json"
    for text in ("", "[]", '{"version": 9}', '{"version": 1, "lists": [{}], "given_up": []}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(ConfigError, match="which lists are subscribed can't be read"):
            list(made)
        with pytest.raises(ConfigError, match="can't be read"):
            taken(tmp_path, "a", revision=4)
    assert Catalogue.of(tmp_path).find(DEFAULT_MODEL).name == DEFAULT_MODEL


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    (tmp_path / "lists").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        taken(tmp_path, "a")


def test_a_list_travels_as_a_file_with_its_signature(tmp_path: Path) -> None:
    blob = blob_of("a")
    path = tmp_path / "small.list"
    path.write_bytes(list_file(pointer(blob), blob))
    assert read_list_file(path) == (pointer(blob), blob)
    for content in (
        b"",
        blob,
        b"p2pnode/model-list-file/1 zz\n",
        b"p2pnode/model-list-file/1 " + b"a" * 9000,
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="no list of models"):
            read_list_file(path)
    with pytest.raises(ConfigError, match="can't be read"):
        read_list_file(tmp_path)


def test_a_pointer_of_the_highest_revision_is_taken_and_ends_the_list(tmp_path: Path) -> None:
    blob = blob_of("a", revision=2**48)
    made = Subscriptions(tmp_path)
    made.take(pointer(blob, 2**48), blob, NOW)
    assert made.named("small").pointer.revision == 2**48


def test_a_pointer_that_names_nothing_known_is_no_list(tmp_path: Path) -> None:
    odd = make_entry(KEY, 1, b"hello", SIGNER.sign)
    with pytest.raises(ConfigError, match="not those that its curator signed"):
        Subscriptions(tmp_path).take(odd, blob_of("a"), NOW)
    assert odd.points_at is None
    assert pointer_to(hash_of(b"")) != odd.data
