"""Flags that several commands share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from p2pnode.money import USDC_DIGITS

if TYPE_CHECKING:
    from p2pnode.config import NodeConfig
    from p2pnode.node.datadir import DataDir

Item = TypeVar("Item")


def model_names(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell's completion: names that the catalogue and lists have, and models that are here."""
    from p2pnode.errors import P2PNodeError
    from p2pnode.models.catalogue import Catalogue
    from p2pnode.models.local_models import installed

    try:
        models = data_of(context.params.get("data_dir")).models
        names = {each.name for each in Catalogue.of(models).every_entry()}
        names |= {each.name for each in installed(models)}
    except (P2PNodeError, OSError):
        return []  # a shell has nowhere to say why
    return sorted(name for name in names if name.startswith(incomplete))


DataDirOption: TypeAlias = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the node keeps its identity, models and peers.")
]
BootstrapOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--bootstrap", help="A first peer: a multiaddr or an invite. May be repeated."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON event per line on stdout.")]
LogOption: TypeAlias = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error; logs go to stderr.")
]
ModelOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", help="A name of the catalogue or a model id (m1…).", autocompletion=model_names),
]
ChainOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--chain", help="The chain profile to pay on; without it chain.toml in the data dir."),
]
StoreOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--store", help="A node that keeps replicas of conversations: a multiaddr or an invite. Repeatable."
    ),
]
S5UrlOption: TypeAlias = Annotated[
    str | None, typer.Option("--s5-url", help="An S5 node that keeps replicas of conversations too.")
]
NoSaveOption: TypeAlias = Annotated[
    bool, typer.Option("--no-save", help="Keep nothing of this conversation, neither here nor elsewhere.")
]
MdnsOption: TypeAlias = Annotated[
    bool | None, typer.Option("--mdns/--no-mdns", help="Find peers on the local network.")
]
YesOption: TypeAlias = Annotated[
    bool, typer.Option("--yes", help="Don't ask first. Needed where there is no terminal to ask at.")
]
ForceOption: TypeAlias = Annotated[
    bool,
    typer.Option("--force", help="Overwrite the file that is there; only a file is ever replaced."),
]


def build_config(data_dir: Path | None, **flags: Any) -> NodeConfig:
    """The configuration of a command: flags over ``<data-dir>/config.toml`` over the defaults."""
    from p2pnode.config import default_data_dir, load_config
    from p2pnode.errors import ConfigError
    from p2pnode.files import user_path
    from p2pnode.node.datadir import DataDir

    with blaming("--data-dir"):
        root = user_path(data_dir or default_data_dir())
        if root.is_file():
            raise ConfigError(f"{root} is a file: name a folder")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in flags.items()}
    return load_config(DataDir(root).config, {**given, "data_dir": root})


def data_of(data_dir: Path | None) -> DataDir:
    """The data dir that a command works on. It is not made."""
    from p2pnode.node.datadir import DataDir

    return DataDir(build_config(data_dir).data_dir)


def check_target(
    model: str | None, peer: str | None, data_dir: Path | None, *, no_discovery: bool = False
) -> None:
    """Raise ``UsageError`` when nobody could be meant by these flags. Tries nothing."""
    from p2pnode.errors import UsageError

    if no_discovery and peer is None:
        msg = "--no-discovery needs --peer MULTIADDR: there is nobody to ask"
        raise UsageError(msg)
    if peer is not None:
        from p2pnode.ids import pasted
        from p2pnode.net.multiaddrs import split_peer

        with blaming("--peer"):
            split_peer(pasted(peer))
    if model is not None:
        from p2pnode.client.question import resolve_model

        models_dir = data_of(data_dir).models
        with blaming("--model"):
            resolve_model(model, models_dir)


def all_meant(known: Iterable[Item], begins: str, id_of: Callable[[Item], str]) -> list[Item]:
    """Those whose id begins so. An empty beginning means nobody: it raises ``UsageError``."""
    wanted = id_beginning(begins)
    return [each for each in known if id_of(each).startswith(wanted)]


def id_beginning(typed: str) -> str:
    """How an id begins, in lower-case digits. Raises ``UsageError`` for nothing."""
    from p2pnode.errors import UsageError
    from p2pnode.ids import pasted

    wanted = pasted(typed).lower().removeprefix("0x")
    if not wanted:
        msg = "the id is empty: give one, or how it begins (`p2pnode sessions list` shows them)"
        raise UsageError(msg)
    return wanted


def one_meant(known: Iterable[Item], begins: str, id_of: Callable[[Item], str], what: str) -> Item:
    """The one whose id begins so. Raises ``UsageError`` for none and for several."""
    from p2pnode.errors import UsageError

    found = all_meant(known, begins, id_of)
    if not found:
        msg = f"no {what} begins with {begins!r}: see `p2pnode sessions list`"
        raise UsageError(msg)
    if len({id_of(each) for each in found}) > 1:
        msg = f"{len(found)} {what}s begin with {begins!r}: give more of the id"
        raise UsageError(msg)
    return found[0]


@contextmanager
def blaming(flag: str) -> Iterator[None]:
    """A ``ConfigError`` in here comes of what was typed: a ``UsageError`` that names the flag."""
    from p2pnode.errors import ConfigError, UsageError

    try:
        yield
    except ConfigError as error:
        raise UsageError(f"{flag}: {error}" if flag else str(error)) from error


def units_of(text: str, flag: str, digits: int = USDC_DIGITS) -> int:
    """An amount that was typed, in its smallest unit. Raises ``UsageError`` that names the flag."""
    from p2pnode.errors import UsageError
    from p2pnode.money import decimal_units

    try:
        return decimal_units(text, digits)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from error


def address_of(text: str, flag: str) -> bytes:
    """An account that was typed, as 20 bytes. Raises ``UsageError`` that names the flag."""
    from p2pnode.chain.addresses import address_from
    from p2pnode.errors import UsageError

    try:
        return address_from(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from error


def configure(log_level: str) -> None:
    """Set up logging from ``--log-level``."""
    from typing import get_args

    from p2pnode.log import Level, configure_logging

    if log_level not in get_args(Level):
        msg = f"{log_level!r} is not one of {', '.join(get_args(Level))}"
        raise typer.BadParameter(msg, param_hint="--log-level")
    configure_logging(log_level)  # type: ignore[arg-type]


# ---- how commands are declared


_MAY_BE_EMPTY: Final = frozenset({"question", "system", "stop", "name", "arguments"})
"""Text that is nobody's id and no place, or that its command checks by itself."""


_WHOLE: Final = 1000
"""Letters of a command's line in the help of its group: all of its first sentence, on as many lines."""


class _Command(TyperCommand):
    def get_short_help_str(self, limit: int = _WHOLE) -> str:
        return super().get_short_help_str(max(limit, _WHOLE))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)


class _Group(TyperGroup):
    default = ""
    """The command that is meant where the first word names none."""

    def get_short_help_str(self, limit: int = _WHOLE) -> str:
        return super().get_short_help_str(max(limit, _WHOLE))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.default and args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self.default, *args]
        _refuse_empty(self, ctx, args)
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A group of commands, as typer's; but no argument and no option takes an empty word for a value.

    An empty word is what a script passes whose variable is not set. It must not mean the current folder, the
    only conversation, or the default.
    """

    def __init__(self, *, default: str = "", **settings: Any) -> None:
        """``default`` is the command that is meant where the first word names none."""
        kind = type("_Group", (_Group,), {"default": default})
        super().__init__(cls=kind, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Declare a command of the group."""
        return super().command(name, cls=_Command, **settings)


def _refuse_empty(command: TyperCommand | TyperGroup, ctx: Any, args: list[str]) -> None:
    """Before any value is converted: a path made of an empty word is the current folder."""
    given, _, _ = command.make_parser(ctx).parse_args(args=list(args))
    parameter: Any
    for parameter in command.get_params(ctx):
        value = given.get(parameter.name or "")
        values = value if isinstance(value, (list, tuple)) else (value,)
        if parameter.name in _MAY_BE_EMPTY:
            continue
        if any(isinstance(each, str) and not each.strip() for each in values):
            msg = "it is empty: give it a value, or leave it out (is a variable of your script not set?)"
            raise typer.BadParameter(msg, ctx=ctx, param=parameter)
