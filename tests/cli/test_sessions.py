"""Conversations through the command line: kept, shown, taken up again anywhere, exported, deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Program, Ran, ask, join, run, start, wallet
from tests.cli.terminal import Terminal


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, host: Program) -> Iterator[list[Program]]:
    """Two nodes that store for anyone. Nobody may stop them."""
    folder = tmp_path_factory.mktemp("stores")
    flags = ("--client-only", "--store-for", "anyone", "--bootstrap", host.multiaddr)
    with join(folder, "s1", *flags) as one, join(folder, "s2", *flags) as two:
        yield [one, two]


def sessions(data_dir: Path, *arguments: object) -> Ran:
    """``p2pnode sessions``, on loopback, for scripts."""
    return run("sessions", *arguments, "--json", "--data-dir", data_dir)


def talk(data_dir: Path, host: Program, stores: list[Program], question: str = "what is it?") -> str:
    """A conversation of one question that is kept; its id."""
    if not data_dir.exists():
        wallet(data_dir)
    flags = [flag for store in stores for flag in ("--store", store.multiaddr)]
    ran = ask(data_dir, question, "--bootstrap", host.multiaddr, "--json", "--max-tokens", 20, *flags)
    assert ran.code == 0, ran
    (kept,) = ran.named("conversation.kept")
    assert (kept["kept"], kept["replicas"] >= len(stores)) == (True, True), kept
    return str(kept["conversation"])


def reaching(stores: list[Program]) -> tuple[str, ...]:
    """Flags that name every store: a quorum may be one of them and the host."""
    return (*(flag for store in stores for flag in ("--bootstrap", store.multiaddr)), "--no-mdns")


def elsewhere(tmp_path: Path, data_dir: Path) -> Path:
    """A data dir on another machine: nothing but the words."""
    other = tmp_path / "other"
    words = data_dir.parent / f"{data_dir.name}.words"
    ran = run("wallet", "restore", "--phrase-file", words, "--random", "--json", "--data-dir", other)
    assert ran.code == 0, ran
    return other


def test_a_conversation_goes_on_on_another_machine_and_comes_back(
    tmp_path: Path, data_dir: Path, host: Program, stores: list[Program]
) -> None:
    sid = talk(data_dir, host, stores)
    other = elsewhere(tmp_path, data_dir)
    network = reaching(stores)
    listed = sessions(other, "list", "--recover", *network)
    assert [each["conversation"] for each in listed.named("conversation")] == [sid]
    shown = sessions(other, "show", sid[:6], *network).named("conversation")[0]
    assert [(turn["role"], turn["finish"]) for turn in shown["turns"]] == [
        ("user", None),
        ("assistant", "length"),
    ]
    ran = sessions(
        other, "resume", sid, "and then?", *network, "--bootstrap", host.multiaddr, "--max-tokens", 9
    )
    assert ran.code == 0, ran
    assert ran.named("done")[0]["tokens_out"] == 9
    back = sessions(data_dir, "resume", sid, "and now?", *network)
    assert back.code == 0, back
    texts = [turn["text"] for turn in sessions(data_dir, "show", sid).named("conversation")[0]["turns"]]
    assert texts[0::2] == ["what is it?", "and then?", "and now?"]


def test_without_a_question_one_talks_on(data_dir: Path, host: Program, stores: list[Program]) -> None:
    sid = talk(data_dir, host, stores)
    ran = run(
        "sessions", "resume", sid, "--json", "--data-dir", data_dir, "--bootstrap", host.multiaddr,
        "--no-mdns", "--max-tokens", 8, stdin="one more\n/exit\n",
    )  # fmt: skip
    assert ran.code == 0, ran
    assert len(ran.named("done")) == 1
    turns = sessions(data_dir, "show", sid).named("conversation")[0]["turns"]
    assert [turn["text"] for turn in turns][2] == "one more"


def test_an_export_holds_every_turn_and_overwrites_nothing(
    tmp_path: Path, data_dir: Path, host: Program, stores: list[Program]
) -> None:
    sid = talk(data_dir, host, stores)
    path = tmp_path / "talk.json"
    assert run("sessions", "export", sid, path, "--data-dir", data_dir).code == 0
    whole = json.loads(path.read_text())
    assert (whole["sid"], [turn["role"] for turn in whole["turns"]]) == (sid, ["user", "assistant"])
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("mine")
    again = run("sessions", "export", sid, path, "--data-dir", data_dir)
    assert (again.code, "name another file" in again.err, path.read_text()) == (2, True, "mine")
    assert run("sessions", "export", sid, path, "--force", "--data-dir", data_dir).code == 0
    assert json.loads(path.read_text()) == whole


@pytest.mark.long
def test_what_is_forgotten_is_gone_on_the_other_machine_too(
    tmp_path: Path, data_dir: Path, host: Program, stores: list[Program]
) -> None:
    sid = talk(data_dir, host, stores)
    other = elsewhere(tmp_path, data_dir)
    network = reaching(stores)
    assert sessions(other, "list", "--recover", *network).named("conversation")
    unasked = sessions(data_dir, "forget", sid, *network)
    assert (unasked.code, "add --yes" in unasked.events[-1]["message"]) == (2, True)
    with Terminal(["sessions", "forget", sid[:4], *network, "--data-dir", data_dir]) as terminal:
        terminal.answer("(what is it?) will be deleted here and on its replicas, for good", "no")
        assert terminal.end() == 1
    assert sessions(data_dir, "list").named("conversation")
    ran = sessions(data_dir, "forget", sid, "--yes", *network, "--bootstrap", stores[1].multiaddr)
    assert ran.code == 0, ran
    assert ran.named("conversation.kept")[0]["gone"]
    assert not sessions(data_dir, "list").named("conversation")
    assert not sessions(other, "list", "--recover", *network).named("conversation")
    assert sessions(other, "resume", sid, "hello?", *network).code == 2


def test_where_it_is_kept_is_said_once_and_not_after_each_command(data_dir: Path, host: Program) -> None:
    wallet(data_dir)
    flags = ("--bootstrap", host.multiaddr, "--max-tokens", 5)
    first, second = ask(data_dir, "hello", *flags), ask(data_dir, "hello", *flags)
    assert (first.code, "is kept here and on " in first.err) == (0, True)
    assert (second.code, "kept" in second.err) == (0, False)


def test_no_save_keeps_nothing(data_dir: Path, host: Program) -> None:
    wallet(data_dir)
    ran = ask(data_dir, "hello", "--bootstrap", host.multiaddr, "--json", "--max-tokens", 5, "--no-save")
    assert ran.code == 0, ran
    assert not ran.named("conversation.kept")
    assert not sessions(data_dir, "list").events


def test_a_data_dir_without_words_says_how_to_keep_conversations(data_dir: Path, host: Program) -> None:
    assert ask(data_dir, "hello", "--bootstrap", host.multiaddr, "--max-tokens", 5).code == 0
    listed = run("sessions", "list", "--data-dir", data_dir)
    assert (listed.code, "no conversations" in listed.out) == (0, True)
    ran = run("sessions", "resume", "abc", "--data-dir", data_dir, "--no-mdns")
    assert (ran.code, "wallet new" in ran.err) == (1, True)


def test_a_question_that_nobody_answered_is_asked_again_by_a_later_command(
    data_dir: Path, host: Program
) -> None:
    wallet(data_dir)
    ran = ask(data_dir, "is anybody there?")
    (sid,) = [each["conversation"] for each in sessions(data_dir, "list").named("conversation")]
    # As it is printed it works: on the same data dir.
    again = f"[unanswered: `p2pnode sessions resume {sid[:8]} --data-dir {data_dir}` asks again]"
    assert (ran.code, again in ran.err) == (3, True)
    network = ("--bootstrap", host.multiaddr, "--no-mdns", "--max-tokens", 7)
    ran = sessions(data_dir, "resume", sid, *network)
    assert (ran.code, [each["tokens_out"] for each in ran.named("done")]) == (0, [7])
    turns = sessions(data_dir, "show", sid).named("conversation")[0]["turns"]
    assert [(turn["role"], turn["finish"]) for turn in turns] == [("user", None), ("assistant", "length")]


def test_without_another_node_to_recover_from_that_is_said(tmp_path: Path, host: Program) -> None:
    wallet(tmp_path / "d")
    words = ("sessions", "list", "--recover", "--data-dir", tmp_path / "d", "--no-mdns")
    alone = run(*words)
    assert (alone.code, "no other node answered" in alone.err, "--recover" in alone.out) == (3, True, False)
    nowhere = host.multiaddr.replace(host.multiaddr.split("/")[4], "1", 1)
    dead = run(*words, "--bootstrap", nowhere)
    assert (dead.code, "refused" in dead.err, "Nothing is lost" in dead.err) == (3, True, True), dead
    asked = run(*words, "--bootstrap", host.multiaddr)
    assert (asked.code, "[1 other node answered: 0 conversations" in asked.err) == (0, True)


def test_a_conversation_of_which_only_the_name_was_recovered_says_how_to_find_it(
    tmp_path: Path, data_dir: Path, host: Program, stores: list[Program]
) -> None:
    sid = talk(data_dir, host, stores)
    other = elsewhere(tmp_path, data_dir)
    network = reaching(stores)
    assert sessions(other, "list", "--recover", *network).named("conversation")
    (other / "peers.json").unlink()
    alone = run("sessions", "show", sid, "--data-dir", other, "--no-mdns")
    assert (alone.code, "name a node that may have it (--store" in " ".join(alone.err.split())) == (1, True)
    assert sessions(other, "show", sid, *network).named("conversation")


def test_an_export_to_a_folder_that_is_not_there_names_it(
    tmp_path: Path, data_dir: Path, host: Program, stores: list[Program]
) -> None:
    sid = talk(data_dir, host, stores)
    ran = run("sessions", "export", sid, tmp_path / "none" / "talk.json", "--data-dir", data_dir)
    assert (ran.code, f"there is no folder {tmp_path / 'none'}" in ran.err) == (2, True)


def test_a_store_that_is_no_multiaddr_and_an_unknown_id_are_told_at_once(data_dir: Path) -> None:
    wallet(data_dir)
    ran = ask(data_dir, "hello", "--store", "here")
    assert (ran.code, "--store" in ran.err) == (2, True)
    ran = run("sessions", "show", "abc", "--data-dir", data_dir)
    assert (ran.code, "abc" in ran.err) == (2, True)


@pytest.mark.long
def test_an_answer_whose_only_host_died_is_finished_by_a_later_command(
    tmp_path: Path, data_dir: Path, host: Program
) -> None:
    wallet(data_dir)
    flags = ("--data-dir", data_dir, "--no-mdns", "--model", "scripted")
    with join(tmp_path, "dies", "--scripted-tokens-per-s", 25) as dies:
        to_it = (*flags, "--bootstrap", dies.multiaddr, "--max-tokens", 60)
        with start(tmp_path, "asking", ["ask", "what is it?", *to_it]) as asking:
            asking.wait_event("text", count=10)
            dies.kill()
            assert asking.wait() == 3
    (cut,) = [each for each in asking.events if each["event"] == "cut_short"]
    assert 0 < cut["held"] < 60
    ran = sessions(
        data_dir, "resume", cut["conversation"], "thanks", "--bootstrap", host.multiaddr, "--no-mdns",
        "--max-tokens", 60,
    )  # fmt: skip
    assert ran.code == 0, ran
    rest, _ = ran.named("done")
    assert rest["tokens_out"] == 60 - cut["held"]
    turns = sessions(data_dir, "show", cut["conversation"]).named("conversation")[0]["turns"]
    assert [(turn["finish"], turn["tokens"]) for turn in turns][1] == ("length", 60)
