"""What this machine has, and what is known here of a model before an engine loads it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from p2pnode.errors import ConfigError
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.context import ModelMemory, memory_at_hand, memory_of
from p2pnode.models.engines import EngineName, available_engines
from p2pnode.models.exllama.devices import gpus
from p2pnode.models.gguf import read_header
from p2pnode.models.llamacpp.calibrate import read_choice, weights_per_s
from p2pnode.models.local_models import LocalModel
from p2pnode.models.recommendation import Machine, Option
from p2pnode.platforms import cores_here


async def machine_here(data_dir: Path, models_dir: Path, *, memory: int = 0) -> Machine:
    """This machine; with ``memory``, so many bytes of its memory."""
    gpu_memory = 0
    if not available_engines()["exllama"]:
        with suppress(ConfigError):  # its GPUs don't say it, so nothing is known to fit
            gpu_memory = sum(each.free for each in await gpus())
    return Machine(
        memory=memory or memory_at_hand(),
        cores=cores_here(),
        disk=await trio.to_thread.run_sync(_disk_free, models_dir),
        gpu_memory=gpu_memory,
        weights_per_s=await trio.to_thread.run_sync(partial(weights_per_s, data_dir, models_dir)),
    )


def option_of(
    entry: CatalogueEntry, local: LocalModel | None, engines: Mapping[EngineName, str], data_dir: Path
) -> Option:
    """What is known of a model that has a manifest; ``local`` where it is here. Blocks on the disk.

    ``engines``: why each engine can't be used here, "" for one that can.
    """
    manifest, model = entry.manifest, entry.model_id
    if manifest is None or model is None:
        raise ConfigError(f"model {entry.name!r} is known by its path alone: pull it first")
    on_gpu = manifest.format != "gguf"
    timing = read_choice(data_dir, local) if local is not None and not on_gpu else None
    return Option(
        name=entry.name,
        model=model,
        size_bytes=manifest.size_bytes,
        quantisation=manifest.quantisation,
        licence=entry.licence,
        n_ctx=manifest.n_ctx,
        on_gpu=on_gpu,
        unusable=engines["exllama" if on_gpu else "llamacpp"],
        is_here=local is not None,
        need=_need(local) if local is not None and not on_gpu else None,
        hint=(entry.memory.bytes, entry.memory.n_ctx) if entry.memory is not None else None,
        tokens_per_s=timing.tokens_per_s if timing is not None else None,
        tasks=entry.tasks,
    )


def _need(local: LocalModel) -> ModelMemory | None:
    """What a model that is here takes; None where its file doesn't say."""
    try:
        return memory_of(read_header(local.weights_path), local.manifest.size_bytes)
    except ConfigError:
        return None


def _disk_free(folder: Path) -> int:
    """The bytes that are free where this folder is, or will be made."""
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    return shutil.disk_usage(there).free
