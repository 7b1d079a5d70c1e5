"""Brings a model's files from peers: from who shares them, as the DHT says, and from hosts that serve it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from p2pnode.client.client import Client
from p2pnode.errors import ConfigError, RemoteError
from p2pnode.ids import ModelId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.local_models import LocalModel
from p2pnode.models.manifest import model_id_text, parse_model_id
from p2pnode.models.pull.pull import Progress, pull
from p2pnode.storage.model_peers import ModelPeer, fetch_manifest, peers_that_share

_NAME_LETTERS: Final = 14


async def pull_from_network(
    client: Client,
    name: str,
    models_dir: Path,
    *,
    progress: Progress,
    licences: Collection[str],
    on_download: Callable[[CatalogueEntry], None],
) -> LocalModel:
    """The model of a catalogue name or an id, from peers.

    Nobody says under which licence one comes that is known by its id alone; ``licences`` are accepted. Raises
    ``ConfigError`` where nobody has all of it, and ``StorageError`` where it doesn't fit on the disk.
    """
    entry = _known(name, models_dir)
    model = parse_model_id(name) if entry is None else entry.model_id
    if model is None:
        raise ConfigError(f"{name} is on this machine: it is pulled from no peer")
    ranking = await client.hosts(model_id_text(model))
    hosts = [each.advert.peer for each in (*ranking.chosen, *ranking.excluded)]
    async with peers_that_share(client.node, model, hosts) as peers:
        if entry is None:
            entry = await _entry_of(model, peers)
        return await pull(
            entry,
            models_dir,
            progress=progress,
            peers=peers,
            licences=licences,
            on_download=on_download,
        )


def _known(name: str, models_dir: Path) -> CatalogueEntry | None:
    """The entry of the catalogue; None for the id of a model that is not in it."""
    try:
        return Catalogue.of(models_dir).find(name)
    except ConfigError:
        try:
            parse_model_id(name)
        except ConfigError:
            pass
        else:
            return None
        raise


async def _entry_of(model: ModelId, peers: list[ModelPeer]) -> CatalogueEntry:
    """An entry for a model that is known by its id alone, which is the hash of what a peer gives."""
    for peer in peers:
        try:
            manifest = await fetch_manifest(peer, model)
        except RemoteError:
            continue
        return CatalogueEntry(name=model_id_text(model)[:_NAME_LETTERS], manifest=manifest)
    raise ConfigError(
        f"no peer knows the model {model_id_text(model)}: "
        + ("give a peer's address with --bootstrap" if not peers else "ask again when others are there")
    )
