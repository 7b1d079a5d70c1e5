"""Who can read a conversation: the client and the host that serves it. A node that only stores it can't."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.node.datadir import DataDir
from p2pnode.storage.conversations.replicator import open_archive
from p2pnode.storage.key_file import save_storage_key
from p2pnode.storage.keys import StorageKeys
from tests.cli.support import DEADLINE_S, Program, join, start
from tests.storage.conversations.worlds import texts
from tests.storage.process_memory import encoded, found_in_files, found_in_memory

ENTROPY = secrets.token_bytes(16)
KEYS = StorageKeys.from_entropy(ENTROPY)
WORDS = [secrets.token_hex(8) for _ in range(16)]
"""They are nowhere else, and too many for a title: it has the first seven."""
ASKED = {"first": WORDS[0], "middle": WORDS[6], "last": WORDS[-1]}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="another process's memory is read through /proc, which Linux has"
)


@dataclass(frozen=True)
class Parties:
    """Three processes, a conversation that is kept, and what to look for."""

    storing: Program
    serving: Program
    client: Program
    root: Path
    sid: bytes
    answer: str
    heard: set[str]
    """What of the question the serving host had in memory while it answered."""

    @property
    def said(self) -> dict[str, bytes]:
        """Words of the title, of the question, and of the answer."""
        return encoded({**ASKED, "answer": self.answer[8:32]})

    @property
    def secrets(self) -> dict[str, bytes]:
        """What would open it."""
        return {"root": KEYS.root, "sealing key": KEYS.conversation(self.sid).sealing}

    @property
    def stored(self) -> dict[str, bytes]:
        """What a storing node does have: how its pointers and blobs are called."""
        keys = {"pointer": KEYS.conversation(self.sid).entry_key, "list": KEYS.index.entry_key}
        return {**keys, **{f"blob {path.name}": bytes.fromhex(path.name) for path in self.blobs}}

    @property
    def ciphertext(self) -> dict[str, bytes]:
        """How the sealed objects begin, nonce and all."""
        return {f"object {path.name}": path.read_bytes()[:64] for path in self.blobs}

    @property
    def blobs(self) -> list[Path]:
        """Files of the storing node."""
        found = (self.root / "storing" / "store" / "blobs").rglob("*")
        return [path for path in found if path.is_file()]


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    """A node that stores, another that serves, and a chat that has been answered and kept."""
    root = tmp_path_factory.mktemp("blind")
    data = DataDir(root / "client")
    data.prepare()
    save_storage_key(data, ENTROPY)
    nobody, slow = bytes(32).hex(), ("--scripted-tokens-per-s", 10)
    with ThreadPoolExecutor() as threads:  # both are slow to start
        waiting = threads.submit(join, root, "storing", "--client-only", "--store-for", "anyone")
        with join(root, "serving", "--store-for", nobody, *slow) as serving, waiting.result() as storing:
            _need_memory_of(storing)
            flags = ("--model", "scripted", "--no-mdns", "--temperature", 0, "--max-tokens", 32)
            nodes = ("--bootstrap", serving.multiaddr, "--store", storing.multiaddr)
            with start(root, "chat", ["chat", *flags, *nodes, "--data-dir", data.root], stdin=True) as client:
                client.send(" ".join(WORDS) + "\n")
                client.wait_event("text")
                serving.process.send_signal(signal.SIGSTOP)  # the answer can't end while we look
                heard = found_in_memory(serving.process.pid, encoded(ASKED))
                assert "done" not in client.names
                serving.process.send_signal(signal.SIGCONT)
                client.wait_event("done")
                answer = "".join(event["text"] for event in client.events if event["event"] == "text")
                client.wait_until(lambda: trio.run(_kept, data.root), "kept conversation")
                sid = trio.run(_sid, data.root)
                yield Parties(storing, serving, client, root, sid, answer, heard)


def _need_memory_of(program: Program) -> None:
    try:
        found_in_memory(program.process.pid, {"ELF": b"ELF"})
    except PermissionError:
        pytest.skip("this system lets nobody read the memory of a process (kernel.yama.ptrace_scope)")


async def _kept(root: Path) -> bool:
    """Whether the client's data dir has the whole answer, and a quorum all of it."""
    async with open_archive(NodeConfig(data_dir=root)) as archive:
        found = await archive.conversations()
        turns = (await archive.open(found[0].sid, ask=False)).turns if found else ()
        over = len(turns) == 2 and turns[-1].finish is not None
        return over and (await archive.status()).kept


async def _sid(root: Path) -> bytes:
    async with open_archive(NodeConfig(data_dir=root)) as archive:
        return (await archive.conversations())[0].sid


def test_a_node_that_only_stores_a_conversation_has_no_word_of_it(parties: Parties) -> None:
    sought = {**parties.said, **parties.secrets}
    assert found_in_memory(parties.storing.process.pid, sought) == set()
    assert found_in_files(parties.root / "storing", sought) == set()


def test_the_search_finds_what_that_node_does_have(parties: Parties) -> None:
    assert len(parties.blobs) >= 4  # a segment and a manifest, of the conversation and of the list
    assert all(begin.startswith(b"p2pc\x01") for begin in parties.ciphertext.values())
    assert found_in_memory(parties.storing.process.pid, parties.stored) == set(parties.stored)
    sought = {**parties.stored, **parties.ciphertext}
    assert found_in_files(parties.root / "storing", sought) == set(sought)


def test_the_search_finds_in_the_client_what_it_does_not_find_in_that_node(parties: Parties) -> None:
    found = found_in_memory(parties.client.process.pid, {**parties.said, **parties.secrets})
    assert found >= {"first in utf-8", "middle in utf-8", "last in utf-8", "answer in utf-8", "root"}
    assert found_in_files(parties.root / "client", parties.said) == set()  # sealed there too


def test_a_host_that_serves_a_conversation_reads_it_and_has_no_key_of_it(parties: Parties) -> None:
    assert parties.heard >= {"first in utf-8", "middle in utf-8", "last in utf-8"}
    assert found_in_memory(parties.serving.process.pid, parties.secrets) == set()


def test_what_that_node_has_is_the_whole_conversation_for_who_has_the_words(
    parties: Parties, tmp_path: Path
) -> None:
    data = DataDir(tmp_path)
    data.prepare()
    save_storage_key(data, ENTROPY)
    config = NodeConfig(data_dir=tmp_path, stores=(parties.storing.multiaddr,), mdns=False)

    async def recover() -> list[str]:
        with trio.fail_after(DEADLINE_S):
            async with Client(config, remember=False) as client:
                await client.conversations.recover()
                archive = (await client.conversations.replicator()).archive
                return texts((await archive.open(parties.sid)).turns)

    assert trio.run(recover) == [" ".join(WORDS), parties.answer]
