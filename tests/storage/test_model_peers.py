"""A model's files between nodes: found in the DHT, from several at once, whatever some of them do."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pnode.errors import ConfigError, StoreRefusedError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.local_models import LocalModel, chunk_list_of, describe_at, installed
from p2pnode.models.manifest import CHUNK_BYTES
from p2pnode.models.prompt_files import KeptPromptFiles, read_prompt_files
from p2pnode.models.pull.peers import pull_from_peers
from p2pnode.models.pull.pull import PullConfig, pull
from p2pnode.models.pull.target import Target
from p2pnode.net.memory import MemoryNet
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.storage.blob_service import BlobService
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.model_peers import (
    ModelPeer,
    fetch_manifest,
    fetch_prompt_files,
    make_public,
    peers_that_share,
    share_files,
)
from p2pnode.storage.node_store import StoreFor
from p2pnode.storage.peer_store import PeerStore
from p2pnode.storage.public_files import PublicFiles, StoreWithPublicFiles, hashes_in
from tests.models.gguf_files import TINY
from tests.node.world import world
from tests.storage.stores import Wall

RATE = float(1 << 30)


class Shared(StoreWithPublicFiles):
    """What a node serves. ``bend`` changes what it gives; ``served`` is told of each piece."""

    def __init__(
        self,
        public: PublicFiles,
        *,
        bend: Callable[[bytes], bytes] = lambda data: data,
        served: Callable[[int], None] = lambda _count: None,
    ) -> None:
        super().__init__(MemoryStore(Wall(), None), public)
        self._bend, self._served = bend, served
        self.pieces = 0

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().read(digest, offset, length)
        self.pieces += 1
        self._served(self.pieces)
        return self._bend(data) if self.pieces > 6 else data  # the list, and a chunk or so, are right


def another(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if data else data


def model_at(path: Path, size: int) -> LocalModel:
    path.write_bytes(TINY + random.Random(7).randbytes(size))
    return describe_at("tiny", path)


def serve(node: Node, shared: StoreWithPublicFiles) -> None:
    store = MemoryStore(Wall(), None)
    BlobService(node, shared, store, admits=StoreFor(()).admits).start()


def targets_of(model: LocalModel, folder: Path) -> list[Target]:
    (file,) = model.manifest.files
    return [Target(name="tiny", path=folder / "got.gguf", file=file)]


async def test_a_model_comes_from_three_peers_of_whom_one_lies_and_one_dies(
    tmp_path: Path, autojump_clock: object
) -> None:
    model = model_at(tmp_path / "model.gguf", 12 * CHUNK_BYTES)
    async with world(net=MemoryNet(latency=0.02)) as w:
        first = await w.add()
        seed = first.node.multiaddrs
        liar, dying, honest, asker = [await w.add(bootstrap=seed) for _ in range(4)]

        def die(pieces: int) -> None:
            if pieces == 20:  # five chunks of four pieces each
                w.crash(dying)

        kinds = [(liar, {"bend": another}), (dying, {"served": die}), (honest, {})]
        shared = {}
        for member, kind in kinds:
            public = PublicFiles(RATE, in_thread=False)
            await make_public(public, model, in_thread=False)
            shared[member.index] = Shared(public, **kind)  # type: ignore[arg-type]
            serve(member.node, shared[member.index])
            await w.nursery.start(_sharing, member.node, public, model)
        await trio.sleep(60)  # provider records go out again while peers become known
        config = PullConfig(in_thread=False)
        async with peers_that_share(asker.node, model.model_id) as peers:
            assert {each.name for each in peers} == {each.node.peer_id for each in (liar, dying, honest)}
            await pull_from_peers(peers, targets_of(model, tmp_path), config)
        assert (tmp_path / "got.gguf").read_bytes() == model.path.read_bytes()
        assert dying.scope.cancel_called
        now = trio.current_time()
        assert asker.node.faults.count(liar.node.peer_id, now) >= 1
        assert asker.node.faults.count(honest.node.peer_id, now) == 0
        # Four pieces a chunk: who lied was asked for no more than what was under way.
        assert shared[liar.index].pieces <= 4 * 4
        assert shared[honest.index].pieces >= 4 * 4


async def _sharing(
    node: Node, public: PublicFiles, model: LocalModel, *, task_status: trio.TaskStatus[None]
) -> None:
    task_status.started()
    await share_files(node, public, model, in_thread=False)


async def test_manifest_tokenizer_and_template_are_had_by_their_hashes_alone(
    tmp_path: Path, autojump_clock: object
) -> None:
    model = model_at(tmp_path / "model.gguf", 100)
    async with world(net=MemoryNet(latency=0.02)) as w:
        holder, asker = await w.add(), await w.add()
        public = PublicFiles(RATE, in_thread=False)
        await make_public(public, model, in_thread=False)
        serve(holder.node, Shared(public))
        store = PeerStore(asker.node, holder.node.peer_id, holder.node.multiaddrs, sign=_never)
        peer = ModelPeer(store)
        assert await fetch_manifest(peer, model.model_id) == model.manifest
        for sha256 in (model.manifest.tokenizer, model.manifest.chat_template):
            assert hashlib.sha256(await peer.fetch(bytes.fromhex(sha256))).hexdigest() == sha256
        # The files themselves are not shared unless their owner says so.
        for sha256 in (model.manifest.files[0].chunks, model.manifest.files[0].sha256):
            with pytest.raises(StoreRefusedError, match="not_found"):
                await peer.fetch(bytes.fromhex(sha256))


def _never(_owner: bytes, _digest: bytes) -> bytes:
    raise AssertionError("nothing is written")


async def test_a_host_gives_no_faster_than_its_owner_allows(tmp_path: Path, autojump_clock: object) -> None:
    model = model_at(tmp_path / "model.gguf", 12 * CHUNK_BYTES)
    async with world(net=MemoryNet(latency=0.0)) as w:
        holder, asker = await w.add(), await w.add()
        public = PublicFiles(float(CHUNK_BYTES) / 2, in_thread=False)
        serve(holder.node, Shared(public))
        await w.nursery.start(_sharing, holder.node, public, model)
        await trio.sleep(1)
        store = PeerStore(asker.node, holder.node.peer_id, holder.node.multiaddrs, sign=_never)
        began = trio.current_time()
        await pull_from_peers([ModelPeer(store)], targets_of(model, tmp_path), PullConfig(in_thread=False))
        # 12 MiB at half a MiB a second, one of which was there at once.
        assert 20 <= trio.current_time() - began <= 60
        assert (tmp_path / "got.gguf").read_bytes() == model.path.read_bytes()


async def test_who_asks_for_a_byte_of_each_chunk_has_no_more_read_than_the_owner_allows(
    tmp_path: Path, autojump_clock: object
) -> None:
    model = model_at(tmp_path / "model.gguf", 12 * CHUNK_BYTES)
    chunks = chunk_list_of(model.path, model.manifest.files[0].chunks)
    public = PublicFiles(float(CHUNK_BYTES) / 2, in_thread=False)
    public.add_file(model.path, model.manifest.files[0].size_bytes, chunks)
    began = trio.current_time()
    for digest in hashes_in(chunks):
        assert len(await public.read(digest, 0, 1)) == 1
    assert trio.current_time() - began >= 20


async def test_a_file_that_changed_is_not_shared_and_its_host_called_no_liar(
    tmp_path: Path, autojump_clock: object
) -> None:
    model = model_at(tmp_path / "model.gguf", 2 * CHUNK_BYTES)
    async with world(net=MemoryNet(latency=0.0)) as w:
        holder, asker = await w.add(), await w.add()
        public = PublicFiles(RATE, in_thread=False)
        serve(holder.node, Shared(public))
        await w.nursery.start(_sharing, holder.node, public, model)
        await trio.sleep(1)
        data = bytearray(model.path.read_bytes())
        data[CHUNK_BYTES] ^= 1
        model.path.write_bytes(data)
        store = PeerStore(asker.node, holder.node.peer_id, holder.node.multiaddrs, sign=_never)
        config = PullConfig(in_thread=False)
        with pytest.raises(ConfigError, match="1 peer asked"):
            await pull_from_peers([ModelPeer(store)], targets_of(model, tmp_path), config)
        assert asker.node.faults.count(holder.node.peer_id, trio.current_time()) == 0
        await share_files(holder.node, PublicFiles(RATE), model, in_thread=False)  # logged, and it returns


async def test_a_client_keeps_what_prompts_are_made_of_and_finds_a_host_that_bends_it(
    tmp_path: Path, autojump_clock: object
) -> None:
    model = model_at(tmp_path / "model.gguf", 100)
    async with world(net=MemoryNet(latency=0.0)) as w:
        liar, honest, asker = [await w.add() for _ in range(3)]
        for member in (liar, honest):
            public = PublicFiles(RATE, in_thread=False)
            await make_public(public, model, in_thread=False)
            shared = Shared(public, bend=another if member is liar else lambda data: data)
            shared.pieces = 6
            serve(member.node, shared)
            await asker.node.network.connect(member.node.multiaddrs[0])
        kept = KeptPromptFiles(tmp_path / "prompts")
        ask = partial(fetch_prompt_files, asker.node)
        now = trio.current_time()
        for manifest in (None, model.manifest):
            assert await ask(liar.node.peer_id, model.model_id, manifest, kept) is None
        assert asker.node.faults.count(liar.node.peer_id, now) == 2
        assert kept.missing(model.manifest) == [model.manifest.tokenizer, model.manifest.chat_template]
        files = await ask(honest.node.peer_id, model.model_id, None, kept)
        assert files == read_prompt_files(model) == kept.get(model.manifest)
        assert kept.manifest(model.model_id) == model.manifest
        assert asker.node.faults.count(honest.node.peer_id, now) == 0
        (tmp_path / "prompts" / model.manifest.tokenizer).write_bytes(b"bent on the disk")
        assert kept.get(model.manifest) is None


# ---- for real


def _node(seed: tuple[str, ...] = ()) -> Node:
    return Node(
        NodeSetup(
            key=PeerKey(os.urandom(32)),
            listen=("/ip4/127.0.0.1/tcp/0",),
            bootstrap=seed,
            limits=replace(DEFAULT_LIMITS, provide_first_s=0.5),
        )
    )


@pytest.mark.long
async def test_100_mb_over_sockets_from_three_peers_one_lying_and_one_dying_then_resumed(
    tmp_path: Path,
) -> None:
    model = model_at(tmp_path / "model.gguf", 100_000_000)
    entry = CatalogueEntry(name="tiny", licence="MIT", manifest=model.manifest)
    models = tmp_path / "models"
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            first = _node()
            await nursery.start(first.run)
            liar, dying, honest, asker = nodes = [_node(first.multiaddrs) for _ in range(4)]
            for node in nodes:
                await nursery.start(node.run)

            def die(pieces: int) -> None:
                if pieces == 80:  # about twenty chunks
                    nursery.start_soon(dying.aclose)

            begun = trio.Event()

            def note(pieces: int) -> None:
                if pieces == 100:
                    begun.set()

            kinds = {liar: {"bend": another}, dying: {"served": die}, honest: {"served": note}}
            shared = {}
            for node, kind in kinds.items():
                public = PublicFiles(RATE)
                await make_public(public, model)
                shared[node.peer_id] = Shared(public, **kind)  # type: ignore[arg-type]
                serve(node, shared[node.peer_id])
                node.start_soon(share_files, node, public, model)
            names = set[str]()
            while not names >= {node.peer_id for node in kinds}:  # until all have told the DHT
                async with peers_that_share(asker, model.model_id) as found:
                    names = {each.name for each in found}
            async with peers_that_share(asker, model.model_id) as peers:
                with trio.CancelScope() as power_cut:

                    async def cut() -> None:
                        await begun.wait()
                        power_cut.cancel()

                    nursery.start_soon(cut)
                    await pull(entry, models, peers=peers)
                assert power_cut.cancelled_caught
                assert installed(models) == []
            before = shared[honest.peer_id].pieces
            async with peers_that_share(asker, model.model_id) as peers:
                pulled = await pull(entry, models, peers=peers)
            assert installed(models) == [pulled]
            assert pulled.path.read_bytes() == model.path.read_bytes()
            assert pulled.model_id == model.model_id
            assert shared[liar.peer_id].pieces < 60
            # What had come was not asked for again: 96 chunks of 4 pieces each, 100 of the pieces before.
            assert shared[honest.peer_id].pieces - before <= 4 * 96 - 80
            for node in (*nodes, first):
                await node.aclose()
            nursery.cancel_scope.cancel()
