"""What a curator's list is made of: models of a file, and models that were named by name, id or path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from p2pnode.errors import ConfigError
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.catalogue_entry import CatalogueEntry, with_quality
from p2pnode.models.local_models import installed
from p2pnode.models.manifest import model_id_text
from p2pnode.models.pull.pull import pull
from p2pnode.models.quality import Quality


async def drafted(
    entries: Iterable[CatalogueEntry],
    names: Iterable[str],
    models_dir: Path,
    *,
    measured: Sequence[Quality],
    before_pull: Callable[[], None],
) -> list[CatalogueEntry]:
    """The entries, then those of the models that are named by name, id or path, with what was measured.

    A path is pulled, after ``before_pull`` has made the place for it. Raises ``ConfigError`` for a model that
    is not known, and for two of one name.
    """
    found = [*entries, *[await _entry_of(name, models_dir, before_pull) for name in names]]
    seen: set[str] = set()
    for entry in found:
        if entry.name in seen:
            msg = f"two models are called {entry.name}: `models lists draft` writes a FILE, rename one in it"
            raise ConfigError(msg)
        seen.add(entry.name)
    return [with_quality(entry, measured) for entry in found]


async def _entry_of(name: str, models_dir: Path, before_pull: Callable[[], None]) -> CatalogueEntry:
    here = (each for each in installed(models_dir) if name in (each.name, model_id_text(each.model_id)))
    local = next(here, None)
    try:
        entry = Catalogue.of(models_dir).find(name)
    except ConfigError:
        if local is None:
            raise
        entry = CatalogueEntry(name=local.name, manifest=local.manifest)
    if entry.path is not None:
        before_pull()
        pulled = await pull(entry, models_dir)
        entry = CatalogueEntry(name=entry.name, manifest=pulled.manifest)
    # In its own list a model has its bare name.
    return replace(entry, name=entry.name.rpartition("/")[2], list_name="", path=None)
