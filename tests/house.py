"""Figures about the source tree as a whole: how it is cut, and how many files a flow crosses.

::

    python tests/house.py                 # tables
    python tests/house.py --json          # the same as one JSON object
    python tests/house.py --start 10      # also the CPU time of a start of `ask`, and of a bare interpreter

The figures are a thermometer and no aim. Only the package's own modules are counted, never tests.

A flow is measured with ``sys.setprofile`` in every thread: a file belongs to it when one of its functions
ran between the flow's first and last moment. Whole nodes run in memory, in virtual time, with the scripted
engine; paid ones use the ledger in memory (``chain/memory/``), which has the contracts' rules and no RPC.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import pkgutil
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
AREAS: Final = ("chain", "models", "protocols", "simulations", "storage")
MAY_REPEAT: Final = frozenset({"__init__", "messages", "host", "client"})
"""Basenames that mean the same thing in each folder."""
REPEATS_MAX: Final = 3
_TO_TOOLS: Final = ("# noqa", "# type: ignore", "# fmt:")
CARRIERS: Final = (
    "p2pnode/net/", "p2pnode/node/node.py", "p2pnode/node/keys.py", "p2pnode/node/sleep.py",
    "protocols/framing/", "protocols/wire.py", "protocols/crypto.py", "protocols/effects.py",
    "protocols/events.py", "protocols/typed_data.py",
)  # fmt: skip
"""What carries and checks the bytes of every flow alike, with the small modules directly in p2pnode/."""
BACKGROUND: Final = (
    "protocols/adverts/", "protocols/lookup/", "p2pnode/node/adverts.py", "p2pnode/node/advert_exchange.py",
    "p2pnode/node/finder.py", "p2pnode/node/peers.py", "p2pnode/node/peer_selection.py",
)  # fmt: skip
"""What nodes exchange with one another before a flow and beside it."""
RUNS: Final = 5
FLOW_DEADLINE_S: Final = 600
"""Of virtual time: a flow that never ends must fail, since a mock clock never tires."""


# ---- how the tree is cut


@dataclass(frozen=True, slots=True)
class Module:
    """A source file. ``imports`` are modules of the package; ``typing_only`` those for type checkers."""

    name: str
    path: Path
    lines: int
    code: int
    comments: int
    imports: frozenset[str]
    typing_only: frozenset[str]

    @property
    def folder(self) -> str:
        return self.name.rpartition(".")[0]


def read_modules(root: Path = ROOT) -> dict[str, Module]:
    """All modules of the package by dotted name, from the real folders."""
    paths = {}
    for folder in (root / "p2pnode", *(root / area for area in AREAS)):
        for path in folder.rglob("*.py"):
            if path.resolve().relative_to(root) == path.relative_to(root):  # not through a link to an area
                parts = path.relative_to(root).with_suffix("").parts
                parts = parts if parts[0] == "p2pnode" else ("p2pnode", *parts)
                paths[".".join(parts)] = path
    # What a package's own file imports counts as an importer, but such a file is no module of its own.
    names = {name.removesuffix(".__init__") for name in paths}
    return {name: _read(name, path, names) for name, path in sorted(paths.items())}


def _read(name: str, path: Path, names: set[str]) -> Module:
    text = path.read_text()
    tree = ast.parse(text)
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    plain: set[str] = set()
    typing_only: set[str] = set()
    for node in ast.walk(tree):
        (typing_only if node in guarded else plain).update(_imported(node, names))
    code, comments = _lines_of(path)
    own = name.removesuffix(".__init__")
    return Module(
        name,
        path,
        len(text.splitlines()),
        code,
        comments,
        frozenset(plain - {own}),
        frozenset(typing_only - plain - {own}),
    )


def _imported(node: ast.AST, names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (each.name for each in node.names if each.name in names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for each in node.names:
            whole = f"{node.module}.{each.name}"
            if whole in names:
                yield whole
            elif node.module in names:
                yield node.module


def _lines_of(path: Path) -> tuple[int, int]:
    """Lines with code or a docstring on them, and lines with a comment that is no word to a tool."""
    code: set[int] = set()
    comments: set[int] = set()
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                if not token.string.startswith(_TO_TOOLS):
                    comments.add(token.start[0])
            elif token.type not in {*no_code, tokenize.ENCODING, tokenize.ENDMARKER}:
                code.update(range(token.start[0], token.end[0] + 1))
    return len(code), len(comments)


def single_importers(modules: dict[str, Module]) -> dict[str, str]:
    """Modules that exactly one module imports, which stands in their own folder; with that one."""
    importers: dict[str, set[str]] = defaultdict(set)
    for module in modules.values():
        for imported in module.imports | module.typing_only:
            importers[imported].add(module.name)
    found = {}
    for name, module in modules.items():
        by = importers[name]
        if len(by) == 1 and modules[min(by)].folder == module.folder:
            found[name] = min(by)
    return found


def repeated(modules: dict[str, Module]) -> dict[str, int]:
    """Basenames that more modules have than may have them."""
    counted = Counter(module.path.stem for module in modules.values())
    return {
        stem: count for stem, count in counted.most_common() if count > REPEATS_MAX and stem not in MAY_REPEAT
    }


def cycles(modules: dict[str, Module], *, typing_too: bool) -> list[list[str]]:
    """Groups of modules that import one another, lazily or not. ``typing_too``: also for type checkers."""
    edges = {
        name.removesuffix(".__init__"): module.imports | (module.typing_only if typing_too else frozenset())
        for name, module in modules.items()
    }
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in edges[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in number:
            visit(name)
    return sorted(found)


def cut_figures(root: Path = ROOT) -> dict[str, Any]:
    """How the tree is cut, without running anything."""
    everything = read_modules(root)
    modules = {name: module for name, module in everything.items() if module.path.stem != "__init__"}
    lines = sorted(module.lines for module in modules.values())
    single = single_importers(everything)
    code = sum(module.code for module in modules.values())
    return {
        "modules": len(modules),
        "lines": sum(lines),
        "lines_median": round(statistics.median(lines)),
        "lines_p90": round(statistics.quantiles(lines, n=10)[-1]),
        "single_importer": len(single),
        "single_importer_share": round(len(single) / len(modules), 3),
        "repeated_basenames": repeated(modules),
        "typing_only_imports": sum(len(module.typing_only) for module in everything.values()),
        "cycles": cycles(everything, typing_too=False),
        "cycles_with_typing": cycles(everything, typing_too=True),
        "comments_per_100_lines": round(100 * sum(m.comments for m in modules.values()) / code, 1),
    }


# ---- what a flow crosses


class Recorder:
    """Which files' functions are called, from :meth:`begin` (or a call that is waited for) to :meth:`end`."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._recording = False
        self._begins_at: tuple[str, str] | None = None

    def install(self) -> None:
        """For this thread and all that start later."""
        threading.setprofile(self._called)
        sys.setprofile(self._called)

    @staticmethod
    def remove() -> None:
        """For this thread; others only look at a flag."""
        threading.setprofile(None)
        sys.setprofile(None)

    def begin(self) -> None:
        self._recording = True

    def begin_at(self, file: str, function: str) -> None:
        """Begin with the first call of a function. ``file`` is the end of its path."""
        self._begins_at = (file, function)

    def end(self) -> list[str]:
        """Our own files, relative to the root. Raises ``LookupError`` where nothing was recorded."""
        self._recording = False
        package, areas = ROOT / "p2pnode", [ROOT / area for area in AREAS]
        paths = {Path(name).resolve() for name in self._files}
        own = [path for path in paths if any(path.is_relative_to(folder) for folder in (package, *areas))]
        if not own:
            msg = f"nothing of the flow was seen: was {self._begins_at} called?"
            raise LookupError(msg)
        return sorted(str(path.relative_to(ROOT)) for path in own)

    def _called(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if self._begins_at is not None and code.co_name == self._begins_at[1]:
            file = self._begins_at[0]
            if code.co_filename.endswith(file):
                self._begins_at, self._recording = None, True
        # Bodies of modules and classes are no calls.
        if self._recording and code.co_flags & CO_OPTIMIZED:
            self._files.add(code.co_filename)


async def one_prompt(recorder: Recorder, _folder: Path) -> None:
    """A question asked -> its answer ended. A free session; the client finds and dials the host first."""
    from p2pnode.protocols.inference.messages import SamplingParams
    from tests.node.world import scripted_host, world

    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            recorder.begin()
            answer = client.chat(
                "hello", model="scripted", sampling=SamplingParams(tokens_max=80, temperature=0)
            )
            async for _ in answer:
                pass
            recorder.end()


async def one_voucher(recorder: Recorder, folder: Path) -> None:
    """A receipt signed -> its voucher kept by both sides -> the session's settlement mined."""
    import trio

    from p2pnode.protocols.inference.messages import SamplingParams
    from tests.host.paid import paid_world

    async with paid_world(folder) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            recorder.begin_at("protocols/inference/receipts.py", "receipt_digest")
            answer = client.chat(
                "hello", model="scripted", sampling=SamplingParams(tokens_max=20, temperature=0)
            )
            async for _ in answer:
                pass
        opened_and_closed = 2
        while w.chain.block < opened_and_closed:  # noqa: ASYNC110 - the chain tells nobody of its blocks
            await trio.sleep(0.05)
        recorder.end()


async def one_turn(recorder: Recorder, folder: Path) -> None:
    """A turn appended to a conversation -> a quorum of its replicas has it; they are found on the way."""
    from p2pnode.storage.conversations.records import Piece
    from tests.client.machines import machine
    from tests.node.world import scripted_host, world
    from tests.storage.blob_world import serve_store

    async with world() as w:
        host = await w.add([scripted_host()])
        stores = [await w.add(bootstrap=host.node.multiaddrs[:1]) for _ in range(2)]
        for each in stores:
            serve_store(each)
        async with machine(w, folder, knows=[host], stores=stores) as client:
            archive = (await client.conversations.replicator()).archive
            conversation = await archive.new(title="one")
            recorder.begin()
            await conversation.append(
                Piece(role="user", text="one"), Piece(role="assistant", text="two", ids=(1, 2), finish="stop")
            )
            await client.conversations.look_for_replicas()
            await archive.wait_kept(conversation.sid)
            recorder.end()


FLOWS: Final = {"prompt": one_prompt, "voucher": one_voucher, "turn": one_turn}


def trace(flow: Callable[[Recorder, Path], Any]) -> list[str]:
    """The files that one run of a flow crosses."""
    import trio
    from trio.testing import MockClock

    recorder = Recorder()

    async def run(folder: Path) -> None:
        with trio.fail_after(FLOW_DEADLINE_S):
            await flow(recorder, folder)

    with tempfile.TemporaryDirectory() as folder:
        recorder.install()
        try:
            trio.run(partial(run, Path(folder)), clock=MockClock(autojump_threshold=0))
        finally:
            recorder.remove()
    return recorder.end()


def trace_all() -> dict[str, list[str]]:
    """Each flow with the files that it crosses, after everything was imported once."""
    sys.path[0] = str(ROOT)  # for `tests.…`, and not the tests' folder, whose names are those of the areas
    import p2pnode
    from p2pnode.log import configure_logging

    configure_logging("error")
    for module in pkgutil.walk_packages(p2pnode.__path__, "p2pnode."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # what an extra would bring
                importlib.import_module(module.name)
    return {name: _always(flow) for name, flow in FLOWS.items()}


def _always(flow: Callable[[Recorder, Path], Any]) -> list[str]:
    """What each of some runs crosses: what a background task did beside one of them is no part of it."""
    runs = [set(trace(flow)) for _ in range(RUNS)]
    return sorted(set.intersection(*runs))


# ---- how long `ask` takes to start

NOBODY: Final = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWEhfcUBvF7wtzVGMGEMXhvkS25DuwTzhDMiSvuhxX9nrh"


def measure_start(rounds: int) -> dict[str, float]:
    """CPU seconds of ``ask`` up to a host that refuses the connection, and of ``python -c pass``; the ratio.

    Each is the least of ``rounds``, in turns: other load of the machine only ever adds.
    """
    with tempfile.TemporaryDirectory() as folder:
        ask = [sys.executable, "-m", "p2pnode", "ask", "hello", "--no-discovery", "--no-mdns", "--no-save"]
        ask += ["--peer", NOBODY, "--data-dir", folder]
        bare = [sys.executable, "-c", "pass"]
        took = [(_cpu_s(ask), _cpu_s(bare)) for _ in range(rounds)]
    ask_s, bare_s = min(each[0] for each in took), min(each[1] for each in took)
    return {"ask_cpu_s": round(ask_s, 3), "bare_cpu_s": round(bare_s, 3), "ratio": round(ask_s / bare_s, 1)}


def _cpu_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ---- the tables


def on_the_way(files: Iterable[str]) -> int:
    """How many of a flow's files are about it, and neither carry every flow nor belong to the background."""
    return sum(
        not file.startswith(CARRIERS + BACKGROUND) and Path(file).parent != Path("p2pnode") for file in files
    )


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    repeats = ", ".join(f"{stem} x{count}" for stem, count in figures["repeated_basenames"].items())
    share = 100 * figures["single_importer_share"]
    rows = [
        ("modules", figures["modules"]),
        ("lines: all, median, 90th percentile", "{lines}, {lines_median}, {lines_p90}".format(**figures)),
        ("modules with one importer, in their own folder", f"{figures['single_importer']} ({share:.1f}%)"),
        (f"basenames that repeat more than {REPEATS_MAX} times", repeats or "none"),
        ("imports for type checkers only", figures["typing_only_imports"]),
        (
            "cycles of imports; with those for type checkers",
            f"{len(figures['cycles'])}; {len(figures['cycles_with_typing'])}",
        ),
        ("comment lines per 100 lines of code", figures["comments_per_100_lines"]),
    ]
    for name, files in figures["flows"].items():
        rows.append(
            (f"own files while one {name} runs; of these on its way", f"{len(files)}; {on_the_way(files)}")
        )
    if start := figures.get("start"):
        words = "{ask_cpu_s} s / {bare_cpu_s} s = {ratio}".format(**start)
        rows.append(("CPU time of `ask` / of a bare interpreter", words))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Figures about the source tree as a whole.")
    parser.add_argument("--json", action="store_true", help="one JSON object, with the files of each flow")
    parser.add_argument("--start", type=int, default=0, metavar="ROUNDS", help="measure the start of `ask`")
    parser.add_argument("--no-flows", action="store_true", help="trace nothing")
    asked = parser.parse_args()
    os.environ["P2PNODE_PURE"] = (
        "1"  # a profile sees nothing of compiled copies; read when p2pnode is imported
    )
    figures = cut_figures()
    figures["flows"] = {} if asked.no_flows else trace_all()
    if asked.start:
        figures["start"] = measure_start(asked.start)
    sys.stdout.write((json.dumps(figures, indent=1) if asked.json else table(figures)) + "\n")


if __name__ == "__main__":
    main()
