"""A model's files between peers: a host makes them public and says so in the DHT, others find and take them.

Nothing that a peer says is believed: all bytes are asked for by their hash, which ``PeerStore`` checks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NoReturn

import structlog
import trio

from p2pnode.errors import ConfigError, RemoteError, StoreRefusedError
from p2pnode.files import off_the_loop
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.local_models import LocalModel, chunk_list_of
from p2pnode.models.manifest import Manifest, model_id
from p2pnode.models.prompt_files import KeptPromptFiles, PromptFiles, read_prompt_files
from p2pnode.node.node import Node
from p2pnode.protocols.blob.messages import files_key
from p2pnode.storage.peer_store import PeerStore
from p2pnode.storage.public_files import PublicFiles
from p2pnode.storage.store import NoBlobError

PEERS_MAX: Final = 8
"""Peers that one model is taken from at the same time."""

log = structlog.get_logger()


async def make_public(public: PublicFiles, model: LocalModel, *, in_thread: bool = True) -> None:
    """Give manifest, tokenizer and chat template of ``model`` to peers. Raises ``ConfigError``."""
    files = await off_the_loop(partial(read_prompt_files, model), in_thread=in_thread)
    for blob in (model.manifest.blob(), files.tokenizer, files.chat_template.encode()):
        public.add_blob(blob)


async def share_files(node: Node, public: PublicFiles, model: LocalModel, *, in_thread: bool = True) -> None:
    """Give the files of ``model`` to peers, and say so in the DHT, until cancelled.

    A file that is not what was hashed is logged and not given.
    """
    for file, path in zip(model.manifest.files, model.paths.values(), strict=True):
        try:
            chunks = await off_the_loop(partial(chunk_list_of, path, file.chunks), in_thread=in_thread)
        except ConfigError as error:
            log.warning("model.not_shared", name=model.name, reason=str(error))
            return
        public.add_file(path, file.size_bytes, chunks)
    log.info("model.shared", name=model.name, files=len(model.manifest.files))
    await node.provide_key(files_key(model.model_id))


class ModelPeer:
    """A peer as ``models/pull/peers.py`` asks it (``FilePeer``)."""

    def __init__(self, store: PeerStore) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """The peer's id."""
        return self._store.peer

    async def fetch(self, sha256: bytes) -> bytes:
        """See ``FilePeer``."""
        try:
            return await self._store.public(sha256)
        except NoBlobError as error:
            raise StoreRefusedError("not_found", str(error)) from error


@asynccontextmanager
async def peers_that_share(
    node: Node, model: ModelId, also: Sequence[PeerId] = ()
) -> AsyncIterator[list[ModelPeer]]:
    """Peers that are said to share the files of ``model``, and ``also``; their streams end with the block."""
    found: dict[PeerId, tuple[str, ...]] = dict.fromkeys(also, ())
    with trio.move_on_after(node.limits.dht_deadline_s):
        for each in await node.network.find_providers(files_key(model), limit=PEERS_MAX):
            found.setdefault(each.peer, tuple(each.addrs))
    stores = []
    for peer, heard in list(found.items())[:PEERS_MAX]:
        if peer != node.peer_id:
            store = PeerStore(node, peer, sign=_signs_nothing)
            store.also_at(heard)
            stores.append(store)
    try:
        yield [ModelPeer(store) for store in stores]
    finally:
        for store in stores:
            store.close()


async def fetch_manifest(peer: ModelPeer, model: ModelId) -> Manifest:
    """The manifest of a model by its id alone. Raises as ``FilePeer.fetch``, and ``ConfigError``."""
    manifest = Manifest.of_blob(await peer.fetch(model))
    assert model_id(manifest) == model  # noqa: S101 - the bytes have that hash
    return manifest


async def fetch_prompt_files(
    node: Node, peer: PeerId, model: ModelId, manifest: Manifest | None, kept: KeptPromptFiles
) -> PromptFiles | None:
    """What prompts of a model are made of, from a host of it, which is connected; kept for later.

    ``manifest`` where it is known. None where the host gives it not; what it gives that has another hash
    counts against it.
    """
    store = PeerStore(node, peer, sign=_signs_nothing)
    asked = ModelPeer(store)
    try:
        if manifest is None:
            manifest = await fetch_manifest(asked, model)
            await trio.to_thread.run_sync(kept.put, manifest.blob())
        for sha256 in await trio.to_thread.run_sync(kept.missing, manifest):
            await trio.to_thread.run_sync(kept.put, await asked.fetch(bytes.fromhex(sha256)))
    except (RemoteError, ConfigError) as error:
        log.info("model.prompt_files_missing", peer=peer, reason=str(error))
        return None
    finally:
        store.close()
    return await trio.to_thread.run_sync(kept.get, manifest)


def _signs_nothing(_owner: bytes, _digest: bytes) -> NoReturn:
    raise ConfigError("nothing is written at a peer that shares a model")
