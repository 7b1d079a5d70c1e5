"""``python -m p2pnode.compiler``: make the compiled copies that ``p2pnode/compiled.py`` describes.

It needs mypy, setuptools and a C compiler, takes about a minute of one core, and leaves the sources as
they are. ``--if-possible``: where a compiler is missing it says so and ends well, for p2pnode runs without.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from p2pnode.compiled import LIBRARY, PACKAGE, ROOT, hash_of, source_of, used

MODULES: Final = (
    "p2pnode.bounded",
    "p2pnode.client.failover",
    "p2pnode.client.ranking",
    "p2pnode.node.advert_exchange",
    "p2pnode.protocols.adverts.book",
    "p2pnode.protocols.adverts.exchange",
    "p2pnode.protocols.adverts.signatures",
    "p2pnode.protocols.crypto",
    "p2pnode.protocols.effects",
    "p2pnode.protocols.events",
    "p2pnode.protocols.framing.codec",
    "p2pnode.protocols.gossipsub.cache",
    "p2pnode.protocols.gossipsub.commands",
    "p2pnode.protocols.gossipsub.messages",
    "p2pnode.protocols.gossipsub.parameters",
    "p2pnode.protocols.gossipsub.router",
    "p2pnode.protocols.gossipsub.scoring",
    "p2pnode.protocols.inference.channel",
    "p2pnode.protocols.inference.client",
    "p2pnode.protocols.inference.client_turn",
    "p2pnode.protocols.inference.host",
    "p2pnode.protocols.inference.host_turn",
    "p2pnode.protocols.inference.open_session",
    "p2pnode.protocols.inference.receipts",
    "p2pnode.protocols.inference.replay",
    "p2pnode.protocols.lookup.search",
    "p2pnode.protocols.typed_data",
    "p2pnode.protocols.wire",
    "p2pnode.simulations.event_loop",
    "p2pnode.simulations.gossip_service",
    "p2pnode.simulations.market.adverts",
    "p2pnode.simulations.market.client",
    "p2pnode.simulations.market.company",
    "p2pnode.simulations.market.engines",
    "p2pnode.simulations.market.host",
    "p2pnode.simulations.market.market",
    "p2pnode.simulations.market.question",
    "p2pnode.simulations.market.session",
    "p2pnode.simulations.market.standby",
    "p2pnode.simulations.market.watch",
    "p2pnode.simulations.recorder",
    "p2pnode.simulations.world",
)
"""What is compiled: where simulated gossip and markets spend their time, and what these modules call most. Of
their classes none is the base of one that isn't compiled, and no annotation in them is read at run time."""
_SHOWN: Final = 2000
"""Characters of what a compiler says."""
_FLAGS: Final = (
    # Our own modules are read for their types, other packages not at all: that is seconds, and not a minute.
    "--config-file=", "--explicit-package-bases", "--namespace-packages", "--follow-imports=skip",
    "--ignore-missing-imports", "--no-warn-unused-ignores", f"--cache-dir={os.devnull}",
)  # fmt: skip
_DIRECT: Final = ["-fvisibility=hidden", "-fno-semantic-interposition", "-fno-plt"]
"""For gcc and clang. Nobody replaces a function of the library from outside: its calls go straight there."""


def main() -> None:
    """Make the copies, and say so; or say why that can't be."""
    if used() == set(MODULES):
        print("the compiled modules are of these sources already")  # noqa: T201
        return
    where = Path(sysconfig.get_path("platlib")) / PACKAGE
    with tempfile.TemporaryDirectory() as folder:
        wrong = _why_not(folder)
        if not wrong:
            shutil.rmtree(where, ignore_errors=True)
            shutil.copytree(Path(folder) / PACKAGE, where)
            print(f"{len(MODULES)} modules are compiled, in {where}")  # noqa: T201
        elif "--if-possible" in sys.argv[1:]:
            print(f"{wrong}\np2pnode runs without compiled modules, and is slower")  # noqa: T201
        else:
            raise SystemExit(wrong)


def _why_not(folder: str) -> str:
    """Compile into a folder; "" where that went well."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "there is no C compiler (cc, gcc or clang)"
    # In a process of its own: mypyc wants names of files that are relative to where it runs.
    command = [sys.executable, "-c", f"from p2pnode.compiler import build; build({folder!r})"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    said = f"{ran.stdout}{ran.stderr}".strip()
    return f"compiling failed; the last lines are:\n{said[-_SHOWN:]}" if ran.returncode else ""


def build(folder: str) -> None:
    """Compile into this folder; the working directory is the one that holds the package."""
    from mypyc.build import mypycify
    from setuptools import Distribution  # type: ignore[import-untyped]
    from setuptools.command.build_ext import build_ext  # type: ignore[import-untyped]

    class BuildAtOnce(build_ext):  # type: ignore[misc]
        """With as many compilers at a time as there are processors: setuptools runs one."""

        def build_extensions(self) -> None:
            compile_some = self.compiler.compile

            def compile_all(sources: list[str], *arguments: Any, **options: Any) -> list[str]:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    made = pool.map(lambda one: compile_some([one], *arguments, **options), sources)
                    return [each for objects in made for each in objects]

            self.compiler.compile = compile_all
            super().build_extensions()

    needed = sorted(_needed(MODULES))
    sources = {module: hash_of(module) for module in needed}  # before mypyc reads them
    paths = [str(source_of(module).relative_to(ROOT)) for module in needed]
    extensions = mypycify(
        [*_FLAGS, *paths],
        only_compile_paths=[str(source_of(module).relative_to(ROOT)) for module in MODULES],
        target_dir=f"{folder}/c",
        group_name=LIBRARY.removesuffix("__mypyc"),
        opt_level="2",  # some 4% faster than 1, which takes three quarters of the time
        debug_level="0",
        multi_file=True,  # several are compiled at once, and all together take a third less than one would
    )
    if os.name == "posix":
        for each in extensions:
            each.extra_compile_args.extend(_DIRECT)
    arguments = ["build_ext", f"--build-lib={folder}/lib", f"--build-temp={folder}/o"]
    distribution = Distribution(
        {
            "name": PACKAGE,
            "ext_modules": extensions,
            "script_args": arguments,
            "cmdclass": {"build_ext": BuildAtOnce},
        }
    )
    distribution.parse_command_line()
    distribution.run_commands()
    made, lib = Path(folder) / PACKAGE, Path(folder) / "lib"
    made.mkdir()
    files = {}
    for file in lib.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"):
        module = ".".join((*file.relative_to(lib).parent.parts, file.name.partition(".")[0]))
        files[module] = f"{module}.so"
        file.rename(made / files[module])
    docs = {module: _docs(module) for module in MODULES}
    (made / "__init__.py").write_text(
        f'"""Compiled by p2pnode/compiler.py, which see."""\nPYTHON = {sys.implementation.cache_tag!r}\n'
        f"FILES = {files!r}\nSOURCES = {sources!r}\nDOCS = {docs!r}\n"
    )


def _docs(module: str) -> dict[str, str]:
    """The docstrings of its classes, which the copies lack: somebody may ask ``help`` for a public one."""
    classes = (
        node for node in ast.parse(source_of(module).read_text()).body if isinstance(node, ast.ClassDef)
    )
    return {each.name: text for each in classes if (text := ast.get_docstring(each)) is not None}


def _needed(modules: Iterable[str]) -> set[str]:
    """These and all that they import of this package, whose types and constants get into the copies."""
    found, left = set[str](), list(modules)
    while left:
        module = left.pop()
        if module in found or not source_of(module).is_file():
            continue
        found.add(module)
        for node in ast.walk(ast.parse(source_of(module).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("p2pnode"):
                left += [str(node.module), *(f"{node.module}.{each.name}" for each in node.names)]
    return found


if __name__ == "__main__":
    main()
