"""The default model as it is installed, verified once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.local_models import LocalModel
from p2pnode.models.pull.pull import pull


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    async def fetch(models_dir: Path) -> LocalModel:
        return await pull(Catalogue.load().find(DEFAULT_MODEL), models_dir)

    return trio.run(fetch, tmp_path_factory.mktemp("models"))
