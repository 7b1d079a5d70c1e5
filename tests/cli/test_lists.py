"""``p2pnode models lists`` and ``models search``: from twelve words to another machine's catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pnode.files import write_private
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.subscriptions import list_file
from p2pnode.node.datadir import DataDir
from p2pnode.storage.keys import StorageKeys
from tests.cli.support import Ran, join, run, start, wallet
from tests.models.lists import KEY, OTHER, blob_of, document, pointer, table
from tests.models.test_search import scored

KEYS = StorageKeys.from_entropy(bytes(range(16)))


def lists(data_dir: Path, *arguments: object, network: bool = False, ask: bool = True) -> Ran:
    """``p2pnode models lists`` on a data dir, with ``--json``."""
    flags = ("--no-mdns",) if network else ()
    return run("models", "lists", *arguments, *flags, "--data-dir", data_dir, *(("--json",) if ask else ()))


def curator(folder: Path) -> Path:
    """A data dir that can sign, without the seconds that a wallet takes."""
    data = DataDir(folder / "curator")
    data.prepare()
    write_private(data.storage_key, KEYS.root.hex().encode())
    return data.root


def file_of(folder: Path, *names: str, revision: int = 1, name: str = "x") -> Path:
    path = folder / f"{name}-{revision}-{'-'.join(names)}.list"
    blob = blob_of(*names, revision=revision)
    path.write_bytes(list_file(pointer(blob, revision), blob))
    return path


def test_a_list_is_published_and_carried_to_another_machine(tmp_path: Path) -> None:
    mine, theirs = curator(tmp_path), tmp_path / "reader"
    DataDir(mine).quality.write_text(json.dumps({"version": 1, "qualities": [scored_default().to_mapping()]}))
    made = lists(mine, "publish", "small", "--from", DEFAULT_MODEL, "--description", "Tried", network=True)
    (published,) = made.named("list.published")
    assert (published["revision"], published["entries"], published["places"]) == (1, 1, {"this machine": ""})
    again = lists(mine, "publish", "small", "--from", DEFAULT_MODEL, network=True)
    assert again.named("list.published")[0]["revision"] == 1
    told = run("models", "lists", "publish", "small", "--description", "New", "--no-mdns", "--data-dir", mine)
    assert "revision 2, 1 model" in told.err
    assert f"subscribe {published['key']}" in told.err
    assert "only this machine has it" in told.err

    # The curator's own store is a place: here it stands for any.
    taken = lists(mine, "subscribe", published["key"], "--as", "best", network=True)
    (event,) = taken.named("list.taken")
    assert (event["name"], event["revision"], event["description"]) == ("best", 2, "New")
    path = tmp_path / "best.list"
    assert lists(mine, "export", "best", path).code == 0
    assert lists(theirs, "import", path).named("list.taken")[0]["name"] == "small"
    (row,) = lists(theirs).named("list")
    assert (row["name"], row["key"], row["entries"]) == ("small", published["key"], 1)
    assert lists(theirs, "import", path).code == 0

    found = run("models", "search", "--list", "small", "--data-dir", theirs)
    assert found.out.startswith(f"small/{DEFAULT_MODEL}  (98 MB, Q4_1, 8192 tokens, Apache-2.0)")
    assert "right 80% (71 to 87%) of 100 items, says the list small on 2026-11-30" in found.out
    assert lists(theirs, "unsubscribe", "small").named("list.given_up")
    assert lists(theirs).events == []


def scored_default() -> Any:
    from dataclasses import replace

    model = Catalogue.load().find(DEFAULT_MODEL).model_id
    assert model is not None
    return replace(scored("any", 80, 100), model=model)


@pytest.mark.long
def test_what_is_published_can_be_edited_added_to_and_withdrawn(tmp_path: Path) -> None:
    mine = curator(tmp_path)
    drafted = run("models", "lists", "draft", DEFAULT_MODEL, "--data-dir", mine)
    path = tmp_path / "mine.toml"
    path.write_text(
        drafted.out.replace(DEFAULT_MODEL, "renamed") + "\n[renamed.memory]\nbytes = 1\nn_ctx = 2\n"
    )
    assert lists(mine, "publish", "small", path, network=True).code == 0
    added = lists(mine, "publish", "small", "--from", DEFAULT_MODEL, "--add", network=True)
    assert (added.events[-1]["revision"], added.events[-1]["entries"]) == (2, 2)
    gone = lists(mine, "withdraw", "small", network=True)
    assert (gone.events[-1]["revision"], gone.events[-1]["entries"]) == (3, 0)
    refused = lists(mine, "subscribe", gone.events[-1]["key"], network=True)
    assert refused.code == 1
    assert "its curator has withdrawn it, with revision 3" in refused.events[-1]["message"]


def test_who_has_no_words_is_told_how_to_have_some(tmp_path: Path) -> None:
    refused = lists(tmp_path / "d", "publish", "small", "--from", DEFAULT_MODEL, network=True)
    assert refused.code == 1
    assert "p2pnode wallet new" in refused.events[-1]["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("subscribe", "l1nonsense"), 2, "no key of a list"),
        (("subscribe", "l1" + "a" * 52, "--as", "../x"), 2, "no name for a list"),
        (("refresh", "none"), 2, "no list is called 'none'"),
        (("unsubscribe", "none"), 2, "no list is called 'none'"),
        (("export", "none", "x.list"), 2, "no list is called 'none'"),
        (("import", "none.list"), 2, "can't be read"),
        (("publish", "small"), 2, "name a FILE"),
        (("publish", "Small", "--from", DEFAULT_MODEL), 2, "no name for a list"),
        (("publish", "small", "none.toml"), 2, "there is no such file"),
        (("publish", "small", "--from", "nobody"), 2, "unknown model"),
        (
            ("publish", "small", "--from", DEFAULT_MODEL, "--from", DEFAULT_MODEL),
            2,
            "two models are called smollm2-135m-instruct",
        ),
        (("withdraw", "small"), 2, "no list of yours called small"),
        (("draft", "nobody"), 2, "unknown model"),
    ],
)
def test_what_is_typed_wrongly_is_told(
    tmp_path: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    asks = arguments[0] in {"subscribe", "refresh", "publish", "withdraw"}
    ran = lists(curator(tmp_path), *arguments, network=asks, ask=False)
    assert ran.code == code, ran
    assert why in ran.err.replace("\n", " ")


@pytest.mark.parametrize("case", ["rolled back", "did not sign"])
def test_a_hostile_list_is_refused_in_words_and_the_one_before_stays(tmp_path: Path, case: str) -> None:
    data = tmp_path / "reader"
    assert lists(data, "import", file_of(tmp_path, "a", "b", revision=5)).code == 0
    newer = blob_of("c", revision=6)
    files = {
        "rolled back": file_of(tmp_path, "a", revision=4).read_bytes(),
        "did not sign": list_file(pointer(newer, 6, OTHER), newer).replace(
            pointer(newer, 6, OTHER).to_bytes()[2:34].hex().encode(), KEY.hex().encode()
        ),
    }
    path = tmp_path / "hostile.list"
    path.write_bytes(files[case])
    ran = lists(data, "import", path)
    assert ran.code == 2
    assert case in ran.events[-1]["message"]
    (row,) = lists(data).events
    assert (row["revision"], row["entries"]) == (5, 2)


def test_a_stranger_s_words_neither_command_a_terminal_nor_stand_in_a_list(tmp_path: Path) -> None:
    blob = document([table("a", description="\x1b]0;x\x07"), table("b", remarks="\u202egpj.exe"), table("c")])
    path = tmp_path / "x.list"
    path.write_bytes(list_file(pointer(blob), blob))
    ran = lists(tmp_path / "d", "import", path, ask=False)
    assert ran.code == 0
    assert "left out: a: [a] description must be at most 200 printable characters" in ran.err
    shown = run("models", "search", "--data-dir", tmp_path / "d", "--list", "small").out
    assert "small/c" in shown
    assert "small/a" not in shown + ran.out
    assert all(letter.isprintable() or letter == "\n" for letter in shown + ran.err)


def test_the_licence_of_a_lists_model_is_asked_for_before_anything_is_fetched(tmp_path: Path) -> None:
    blob = document(
        [table("a", licence="llama3", licence_url="https://example.org/l", source=["https://example.org/x"])]
    )
    path = tmp_path / "x.list"
    path.write_bytes(list_file(pointer(blob), blob))
    data = tmp_path / "d"
    assert lists(data, "import", path).code == 0
    ran = run("models", "pull", "small/a", "--data-dir", data, "--json")
    assert ran.code == 1
    assert "was not downloaded: its licence is llama3" in ran.events[-1]["message"]
    assert "Read it at https://example.org/l, then accept it" in ran.events[-1]["message"]
    assert "`p2pnode models pull small/a --accept-licence llama3`" in ran.events[-1]["message"]


def test_a_search_finds_what_is_said_in_all_catalogues(tmp_path: Path) -> None:
    data = tmp_path / "d"
    assert lists(data, "import", file_of(tmp_path, "a", "b")).code == 0

    def names(*arguments: object) -> list[str]:
        ran = run("models", "search", *arguments, "--data-dir", data, "--json")
        assert ran.code == 0, ran
        return [each["name"] for each in ran.named("model")]

    assert set(names()) == {DEFAULT_MODEL, "small/a", "small/b"}
    assert names("small/b") == ["small/b"]
    assert names("--max-size", "1MB") == ["small/a", "small/b"]
    assert names("--licence", "mit") == []
    assert names("--limit", 1) == ["small/a"]
    listed = run("models", "list", "--data-dir", data, "--json")
    assert [each["name"] for each in listed.named("model")] == [DEFAULT_MODEL, "small/a", "small/b"]
    wrong = run("models", "search", "--max-size", "much", "--data-dir", data)
    assert (wrong.code, "no size" in wrong.err) == (2, True)
    assert "no list is called" in run("models", "search", "--list", "none", "--data-dir", data).err


@pytest.mark.long
def test_a_list_goes_from_a_curator_over_s5_and_a_node_to_a_reader(tmp_path: Path) -> None:
    keeper = tmp_path / "keeper.ready"
    flags: list[object] = [
        "join",
        "--client-only",
        "--s5-listen",
        "127.0.0.1:0",
        "--no-mdns",
        "--store-for",
        "anyone",
    ]
    flags += ["--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", tmp_path / "keeper", "--ready-file", keeper]
    with start(tmp_path, "keeper", flags) as node, join(tmp_path, "host") as host:
        url = node.wait_event("s5")["url"]
        address = node.wait_event("ready")["multiaddrs"][0]
        mine = tmp_path / "curator"
        wallet(mine)
        over_s5 = lists(mine, "publish", "one", "--from", DEFAULT_MODEL, "--s5-url", url, network=True)
        assert over_s5.events[-1]["places"] == {url: "", "this machine": ""}
        over_peer = lists(mine, "publish", "two", "--from", DEFAULT_MODEL, "--store", address, network=True)
        assert sorted(over_peer.events[-1]["places"].values()) == ["", ""]
        here = lists(tmp_path / "host", "publish", "three", "--from", DEFAULT_MODEL, network=True)
        assert here.events[-1]["places"] == {"this machine": ""}  # its own node is no other place
        one, two = over_s5.events[-1]["key"], over_peer.events[-1]["key"]
        reader = tmp_path / "reader"
        assert lists(reader, "subscribe", one, "--s5-url", url, network=True).code == 0
        assert lists(reader, "subscribe", two, "--bootstrap", address, network=True).code == 0
        fresh = lists(reader, "refresh", "--bootstrap", address, "--s5-url", url, network=True)
        assert [each["name"] for each in fresh.named("list.unchanged")] == ["one", "two"]
        # What a command wrote into the store of a data dir, the node that runs there gives to others.
        three = here.events[-1]["key"]
        assert lists(reader, "subscribe", three, "--bootstrap", host.multiaddr, network=True).code == 0
        # A reader who knows only the host; the other one has met the keeper, and remembers it.
        nobody = lists(tmp_path / "new", "subscribe", one, "--bootstrap", host.multiaddr, network=True)
        assert nobody.code == 1
        assert "nobody who was asked has this list" in nobody.events[-1]["message"]
        found = run(
            "models", "search", "--hosts", "--bootstrap", host.multiaddr, "--no-mdns", "--data-dir", reader,
            "--json",
        )  # fmt: skip
        assert {each["name"]: each["hosts"]["count"] for each in found.named("model")} == {
            DEFAULT_MODEL: 0, **{f"{name}/{DEFAULT_MODEL}": 0 for name in ("one", "two", "three")},
        }  # fmt: skip
