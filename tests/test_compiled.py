"""Compiled copies do what the sources do, and are taken only while they are of these sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode import compiled
from p2pnode.compiler import MODULES

ROOT = Path(__file__).parent.parent
SAYS = "import p2pnode.bounded as b, p2pnode.compiled as c; print(c.is_used(), b.__file__.endswith('.so'))"
RUN = """
from p2pnode.compiled import is_used
from p2pnode.simulations import load, run
from p2pnode.simulations.scenario import with_size
for name, seconds in ("steady", 120.0), ("nat-majority", 120.0), ("byzantine-hosts", 200.0), ("churn", 200.0):
    result = run(with_size(load(name), nodes=24, duration_s=seconds), seed=3)
    print(is_used(), name, result.trace_hash, result.tables_hash, result.events)
"""


def said(program: str, *, pure: bool = False, path: Path | None = None) -> str:
    """What a program prints in a Python of its own; ``path`` comes first where it looks for modules."""
    environment = {name: value for name, value in os.environ.items() if name != compiled.PURE}
    if pure:
        environment[compiled.PURE] = "1"
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=300,
    )
    return ran.stdout


def copies_in(folder: Path, sources: dict[str, str], python: str = sys.implementation.cache_tag) -> Path:
    """A package of copies of such sources: it has one, of a module that there is not."""
    (folder / compiled.PACKAGE).mkdir()
    files = {"p2pnode.none_such": "none_such.so"}
    (folder / compiled.PACKAGE / "__init__.py").write_text(
        f"PYTHON = {python!r}\nFILES = {files!r}\nSOURCES = {sources!r}\nDOCS = {{}}\n"
    )
    return folder


def test_copies_of_these_sources_are_taken(tmp_path: Path) -> None:
    sources = {module: compiled.hash_of(module) for module in MODULES}
    assert said(SAYS, path=copies_in(tmp_path, sources)).startswith("True")


@pytest.mark.parametrize("python", ["cpython-310", "pypy311"])
def test_copies_for_another_python_are_not_taken(python: str, tmp_path: Path) -> None:
    assert said(SAYS, path=copies_in(tmp_path, {}, python)) == "False False\n"


@pytest.mark.parametrize("module", ["p2pnode.bounded", "p2pnode.no_such_module"])
def test_copies_of_other_sources_are_not_taken(module: str, tmp_path: Path) -> None:
    assert said(SAYS, path=copies_in(tmp_path, {module: "00" * 8})) == "False False\n"


def test_who_wants_the_sources_gets_them(tmp_path: Path) -> None:
    assert said(SAYS, path=copies_in(tmp_path, {}), pure=True) == "False False\n"


def test_each_module_that_is_compiled_is_there() -> None:
    assert all(compiled.source_of(module).is_file() for module in MODULES)


@pytest.mark.skipif(not compiled.is_used(), reason="no compiled copies fit: `python -m p2pnode.compiler`")
def test_a_simulation_is_the_same_with_copies_and_without() -> None:
    copies, sources = said(RUN), said(RUN, pure=True)
    assert sources.count("False") == copies.count("True") == len(sources.splitlines()) == 4
    assert copies.replace("True", "False") == sources


@pytest.mark.long
@pytest.mark.parametrize(
    "tests",
    ["protocols", "client", "simulations", "net/test_gossip.py"],
)
def test_what_holds_of_the_copies_holds_of_the_sources(tests: str) -> None:
    """The other way round, where this process has no copies: they are made for it."""
    if not compiled.is_used():
        pytest.skip("the sources are what the other tests try")
    environment = {**os.environ, compiled.PURE: "1"}
    command = [sys.executable, "-m", "pytest", "-n0", "-q", str(ROOT / "tests" / tests)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1200)
    assert not ran.returncode, ran.stdout[-4000:]


@pytest.mark.long
def test_the_copies_are_made_by_one_command(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is here")
    build = f"from p2pnode.compiler import build; build({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, check=True, timeout=600)
    assert said(SAYS, path=tmp_path) == "True True\n"
    assert said(SAYS, path=tmp_path, pure=True) == "False False\n"
