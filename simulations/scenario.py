"""``Scenario``: all that a run is told but its seed. Read from TOML and written as such.

The parameters of a model live in a record beside it (``links.py``, ``nat.py``, …). This module puts them
together, and checks what no record can see by itself. A part that is None is not in the run.
"""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import ConfigError, UsageError
from p2pnode.files import read_text_or_none
from p2pnode.simulations.churn import Churn
from p2pnode.simulations.conversations import Conversations
from p2pnode.simulations.cpu import Cpu
from p2pnode.simulations.dht import Dht
from p2pnode.simulations.faults import Fault
from p2pnode.simulations.gossip import Gossip
from p2pnode.simulations.links import Links
from p2pnode.simulations.market.market import Market
from p2pnode.simulations.nat import Nat
from p2pnode.simulations.parameters import require_not_negative, require_positive
from p2pnode.simulations.records import as_mapping, changes, read_record, typed, with_values
from p2pnode.simulations.topic import Topic

LIBRARY: Final = Path(__file__).parent / "library"
NODES_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens in a run. Times are simulated seconds.

    Figures leave out what began in the first ``warmup_s`` and the last ``cooldown_s`` seconds.
    """

    name: str
    description: str = ""
    nodes: int = 100
    duration_s: float = 120.0
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    links: Links = field(default_factory=Links)
    nat: Nat | None = None
    cpu: Cpu | None = None
    gossip: Gossip | None = None
    dht: Dht | None = None
    market: Market | None = None
    """Its hosts and clients are nodes of the run: ``nodes`` is how many they are in all."""
    topic: Topic | None = None
    """Adverts alone: all nodes are hosts of one model."""
    conversations: Conversations | None = None
    """Users who write, and nodes that store. Those that store are the hosts of churn and faults."""
    churn: Churn | None = None
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "duration_s")
        require_not_negative(self, "warmup_s", "cooldown_s")
        if not self.name.strip():
            msg = "name is empty: give the scenario one"
            raise ValueError(msg)
        if not 2 <= self.nodes <= NODES_MAX:  # noqa: PLR2004 - one node has nobody to talk to
            msg = f"nodes is {self.nodes}: it must be from 2 to {NODES_MAX:,}"
            raise ValueError(msg)
        if self.warmup_s + self.cooldown_s >= self.duration_s:
            spans = f"warmup_s is {self.warmup_s:g}, cooldown_s {self.cooldown_s:g}"
            msg = f"{spans} and duration_s {self.duration_s:g}: nothing would be measured"
            raise ValueError(msg)
        self._check_against_nodes()
        for place, fault in enumerate(self.faults):
            if fault.at_s >= self.duration_s:
                msg = f"faults.{place}.at_s is {fault.at_s:g}: the run ends before, at {self.duration_s:g} s"
                raise ValueError(msg)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels to another process: as what its TOML says.

        Some of its records are compiled (``p2pnode/compiled.py``), and Python can't set the fields of such a
        frozen one when it unpickles it.
        """
        return scenario_from, (as_mapping(self),)

    def _check_against_nodes(self) -> None:
        """What has to be fewer than the nodes."""
        if self.topic is not None and (self.market is not None or self.gossip is not None):
            msg = "topic is there beside market or gossip: adverts alone are a run of their own, take one out"
            raise ValueError(msg)
        if self.conversations is not None:
            if self.topic is not None or self.market is not None:
                msg = "conversations are there beside a topic or a market: they are a run of their own"
                raise ValueError(msg)
            users = self.conversations.users(self.nodes)
            if not 0 < users < self.nodes:
                share = f"conversations.users_share is {self.conversations.users_share:g}"
                msg = f"{share}: {users} of {self.nodes} nodes write, and one has to store, and one to write"
                raise ValueError(msg)
        asked = {
            "topic.dials": self.topic.dials if self.topic else 0,
            "gossip.dials": self.gossip.dials if self.gossip else 0,
            "dht.contacts": self.dht.contacts if self.dht else 0,
        }
        for path, count in asked.items():
            if count >= self.nodes:
                msg = f"{path} is {count}: of {self.nodes} nodes a node can dial {self.nodes - 1} others"
                raise ValueError(msg)
        if self.market is not None and self.market.nodes != self.nodes:
            hosts, clients = self.market.hosts.count, self.market.clients.count
            msg = f"nodes is {self.nodes}: the market has {hosts} hosts and {clients} clients"
            raise ValueError(msg)
        if self.market is not None and self.gossip is not None:
            msg = "gossip and market are both there: a market's hosts gossip by themselves, take gossip out"
            raise ValueError(msg)
        if self.gossip is not None and self.gossip.publishers > self.nodes:
            msg = f"gossip.publishers is {self.gossip.publishers}: there are only {self.nodes} nodes"
            raise ValueError(msg)


def scenario_from(values: Mapping[str, Any]) -> Scenario:
    """A scenario from a table of TOML or JSON. Raises ``ConfigError`` that names the parameter."""
    return read_record(Scenario, values)


def changed(scenario: Scenario, values: Mapping[str, Any]) -> Scenario:
    """A scenario with other values, by their paths (``"links.jitter_share"``); text is read as TOML.

    Another number of ``nodes`` changes a market's hosts and clients with it, as :func:`with_size` does.
    Raises ``ConfigError`` that names the parameter.
    """
    given = dict(values)
    if (
        scenario.market is not None
        and "nodes" in given
        and not any(each.startswith("market") for each in given)
    ):
        wanted = with_values(replace(scenario, market=None), {"nodes": given.pop("nodes")})
        scenario = with_size(scenario, nodes=wanted.nodes)
    return with_values(scenario, given)


def with_size(scenario: Scenario, *, nodes: int | None = None, duration_s: float | None = None) -> Scenario:
    """A scenario with another number of nodes, or of simulated seconds. Raises ``ConfigError``."""
    try:
        market = scenario.market.scaled(nodes) if nodes is not None and scenario.market is not None else None
        sized = scenario if nodes is None else replace(scenario, nodes=nodes, market=market)
        return sized if duration_s is None else replace(sized, duration_s=duration_s)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def as_toml(scenario: Scenario) -> str:
    """A scenario as TOML, with every parameter but those that are none. :func:`load` reads it."""
    from p2pnode.extras import need

    need("a scenario as TOML", "sim")
    import tomli_w

    return tomli_w.dumps(as_mapping(scenario))


def load(name_or_path: str | Path) -> Scenario:
    """A scenario of the library by its name, or one in a file. Raises ``ConfigError``.

    A word with a dot or a slash in it is a path, any other one a name.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, str) and not set(text) & {"/", "."}:
        return _read(_in_library(text))
    return _read(Path(name_or_path))


def replay_command(scenario: Scenario, seed: int, source: str = "") -> str:
    """The command that runs a scenario again; ``source`` is the name or file that it was made from.

    Without one it is the scenario of the library with its name, or a file named after it.
    """
    where = source or (scenario.name if scenario.name in names() else f"./{scenario.name}.toml")
    try:
        began = as_mapping(load(where))
    except ConfigError:
        began = as_mapping(scenario)
    made = changes(began, as_mapping(scenario))
    options = " ".join(f"--set {shlex.quote(f'{path}={typed(value)}')}" for path, value in made.items())
    return f"p2pnode simulate {shlex.quote(where)} --seed {seed} {options}".rstrip()


def names() -> list[str]:
    """The names of the library, in order."""
    return sorted(path.stem for path in LIBRARY.glob("*.toml"))


def _in_library(name: str) -> Path:
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        if Path(name).is_dir():
            raise _folder(Path(name))
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
        raise UsageError(f"there is no scenario {name!r}: {hint} For a file of your own, write ./{name}.toml")
    return LIBRARY / f"{name}.toml"


def _folder(path: Path) -> UsageError:
    return UsageError(f"{path} is a folder: name a file in it, such as {path / 'params.json'} of a run")


def _read(path: Path) -> Scenario:
    if path.is_dir():
        raise _folder(path)
    text = read_text_or_none(path)
    if text is None:
        raise UsageError(
            f"there is no file {path}: `p2pnode simulate list` shows the scenarios that there are"
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML ({error}): fix that line") from error
    try:
        return scenario_from({"name": path.stem, **values})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
