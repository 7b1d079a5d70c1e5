"""Peers of other implementations: only with ``-m interop``, as they are fetched from a package registry."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

JS = Path(__file__).parent / "js"
JS_VERSIONS = ("v2", "v3")
S5 = Path(__file__).parent / "s5"
INSTALL_S = 240


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Left out unless asked for by name, so that `-m "long or not long"` doesn't fetch anything either."""
    if "interop" not in (config.option.markexpr or ""):
        out = [item for item in items if item.get_closest_marker("interop") is not None]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session", params=JS_VERSIONS)
def js_peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with js-libp2p's ``peer.mjs`` and what it imports: of 2.x, then of 3.x."""
    return _installed(tmp_path_factory.mktemp(f"js-{request.param}"), *_js_files(request.param))


@pytest.fixture(scope="session")
def js_peers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The same, both at once."""
    folders = [tmp_path_factory.mktemp(f"both-{version}") for version in JS_VERSIONS]
    return tuple(
        _installed(folder, *_js_files(version)) for folder, version in zip(folders, JS_VERSIONS, strict=True)
    )


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the peer that was written from the SPECs alone, and what it imports."""
    return _installed(tmp_path_factory.mktemp("second"), *sorted((JS / "second").iterdir()))


@pytest.fixture(scope="session")
def libs5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libs5's ``peer.mjs`` and what it imports."""
    return _installed(tmp_path_factory.mktemp("s5"), S5 / "package.json", S5 / "peer.mjs")


def _js_files(version: str) -> list[Path]:
    return [JS / version / "package.json", JS / version / "libp2p.mjs", JS / "peer.mjs"]


def _installed(folder: Path, *files: Path) -> Path:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are needed: install Node.js 20 or later")
    for each in files:
        shutil.copy(each, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, done.stderr
    return folder
