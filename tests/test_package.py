"""The package as others see it: its public names, its lightness, its links, its documents."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import typer.main

import p2pnode
from p2pnode.cli.app import app

ROOT = Path(__file__).parent.parent
PROTOCOLS = [
    "adverts", "blob", "checkpoint", "count", "framing", "gossipsub", "identify", "inference", "kademlia",
    "lookup", "s5",
]  # fmt: skip
AREAS = ("chain", "models", "protocols", "simulations", "storage")
HEAVY = (
    "libp2p",
    "trio",
    "web3",
    "xllamacpp",
    "torch",
    "httpx",
    "typer",
    "rich",
    "structlog",
    "cryptography",
)


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(p2pnode.__all__) == p2pnode.__all__
    assert dir(p2pnode) == p2pnode.__all__
    for name in p2pnode.__all__:
        public = getattr(p2pnode, name)
        assert public is getattr(importlib.import_module(public.__module__), name)
        assert inspect.isclass(public)
        assert public.__doc__, name


def test_type_checkers_see_the_same_names_as_programs() -> None:
    source = (ROOT / "p2pnode" / "__init__.py").read_text()
    imported = source.partition("if TYPE_CHECKING:")[2].partition("_WHERE")[0]
    words = set(imported.replace(",", " ").split())
    assert set(p2pnode.__all__) <= words


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'p2pnode' has no attribute 'Cleint'"):
        _ = p2pnode.Cleint


def _modules_after(statement: str) -> set[str]:
    told = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    code = f"import sys, json; {statement}; {told}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30, text=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not _modules_after("import p2pnode") & set(HEAVY)


def test_errors_can_be_caught_without_importing_the_network() -> None:
    assert not _modules_after("from p2pnode import NoHostError, RefusedError") & set(HEAVY)


def test_the_commands_are_known_without_importing_the_network() -> None:
    loaded = _modules_after("import p2pnode.cli.app")
    assert "typer" in loaded
    assert not loaded & {"libp2p", "trio", "web3", "xllamacpp", "torch", "httpx", "structlog"}


@pytest.mark.parametrize("area", AREAS)
def test_an_area_is_reached_by_a_relative_link(area: str) -> None:
    link = ROOT / "p2pnode" / area
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{area}"
    module = importlib.import_module(f"p2pnode.{area}")
    assert Path(str(module.__file__)).resolve() == (ROOT / area / "__init__.py").resolve()


def test_no_area_is_importable_by_its_bare_name() -> None:
    for area in AREAS:
        assert area not in _modules_after("import p2pnode.protocols.framing.codec")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_has_its_specification(protocol: str) -> None:
    spec = (ROOT / "protocols" / protocol / "SPEC.md").read_text()
    assert spec.startswith("# ")
    assert len(spec.splitlines()) > 20


def test_every_protocol_is_in_the_list_above() -> None:
    found = {path.parent.name for path in (ROOT / "protocols").glob("*/__init__.py")}
    assert found == set(PROTOCOLS)


def _commands() -> list[str]:
    group: Any = typer.main.get_command(app)
    return sorted(group.commands)


@pytest.mark.parametrize("command", _commands())
def test_each_command_stands_in_the_readme(command: str) -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"p2pnode {command}" in readme or f"make {command}" in readme


def test_every_public_module_says_what_it_is() -> None:
    """A docstring each: what it does, and no machine's paths in it."""
    folders = [ROOT / "p2pnode", *(ROOT / area for area in AREAS)]
    for path in (each for folder in folders for each in folder.rglob("*.py")):
        text = path.read_text()
        assert text.startswith(('"""', 'r"""')), path
        assert str(ROOT) not in text, path


def test_the_version_is_that_of_what_is_installed() -> None:
    installed = importlib.metadata.version("p2pnode")
    assert p2pnode.__version__ == installed
    ran = subprocess.run(
        [sys.executable, "-m", "p2pnode", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"p2pnode {installed}\n", "")


def test_a_program_beside_the_clone_finds_the_package_and_keeps_its_standard_output(tmp_path: Path) -> None:
    """The clone's folder has the package's name: `python -P` looks for no package beside the program."""
    (tmp_path / "p2pnode").mkdir()
    (tmp_path / "sample.py").write_text(
        "import p2pnode, structlog\n"
        "p2pnode.Client\n"
        "log = structlog.get_logger()\n"
        "log.info('a detail'); log.warning('a trouble')\n"
        "print('the answer')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "sample.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "the answer\n"), ran.stderr
    assert "a trouble" in ran.stderr
    assert "a detail" not in ran.stderr


def test_the_source_archive_is_whole(tmp_path: Path) -> None:
    """What the README links to is in it, what an installation is made with too, and no odd test."""
    command = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (root,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not (root / "tests").exists()
    assert (root / "constraints.txt").read_bytes() == (ROOT / "constraints.txt").read_bytes()
    for area in AREAS:
        ours = {path.relative_to(ROOT / area) for path in (ROOT / area).rglob("*.py")}
        assert ours == {
            path.relative_to(root / "p2pnode" / area) for path in (root / "p2pnode" / area).rglob("*.py")
        }
    for page in ("README.md", "ARCHITECTURE.md", "THREAT_MODEL.md"):
        linked = re.findall(r"\]\(([^)#:]+)\)", (root / page).read_text())
        assert [each for each in linked if not (root / each).exists()] == [], page
