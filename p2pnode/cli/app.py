"""All commands, by name."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from p2pnode.cli.ask import ask
from p2pnode.cli.background import stop
from p2pnode.cli.bench import bench
from p2pnode.cli.block import block, blocked, unblock
from p2pnode.cli.chain import chain_app
from p2pnode.cli.chat import chat
from p2pnode.cli.dashboard import dashboard
from p2pnode.cli.demo import demo
from p2pnode.cli.doctor import doctor
from p2pnode.cli.embed import embed
from p2pnode.cli.evaluation import evaluate
from p2pnode.cli.evidence import evidence
from p2pnode.cli.funds import funds_app
from p2pnode.cli.gateway import gateway
from p2pnode.cli.governance import COMMANDS
from p2pnode.cli.hosts import hosts
from p2pnode.cli.join import join
from p2pnode.cli.keys import keys_app
from p2pnode.cli.launch import connect, run
from p2pnode.cli.lists import lists_app
from p2pnode.cli.model_details import show
from p2pnode.cli.models import models_app
from p2pnode.cli.offers import offer, pause, resume, withdraw
from p2pnode.cli.options import Commands
from p2pnode.cli.recommendation import recommend
from p2pnode.cli.service import service_app
from p2pnode.cli.sessions import sessions_app
from p2pnode.cli.simulate import simulate_app
from p2pnode.cli.stake import stake_app, unbond
from p2pnode.cli.status import invite, status
from p2pnode.cli.storage import storage_app
from p2pnode.cli.wallet import wallet_app

app = Commands(
    name="p2pnode",
    help="A node in a peer-to-peer marketplace for LLM inference, with no central component.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help takes as long to import as all the rest of `--help`
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import p2pnode

        sys.stdout.write(f"p2pnode {p2pnode.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """A node in a peer-to-peer marketplace for LLM inference, with no central component."""


for command in (join, ask, chat, embed, gateway, dashboard, run, connect):
    app.command()(command)
for of_node in (hosts, invite, status, stop, doctor, bench, demo):
    app.command()(of_node)
for of_owner in (pause, resume, block, unblock, blocked):
    app.command()(of_owner)
sessions_app.command()(evidence)
app.command("unstake")(unbond)
for on_models in (*COMMANDS, offer, withdraw, evaluate, recommend, show):
    models_app.command()(on_models)
models_app.add_typer(lists_app, name="lists")
app.add_typer(models_app, name="models")
app.add_typer(chain_app, name="chain")
app.add_typer(funds_app, name="funds")
app.add_typer(keys_app, name="keys")
app.add_typer(service_app, name="service")
app.add_typer(sessions_app, name="sessions")
app.add_typer(simulate_app, name="simulate")
app.add_typer(stake_app, name="stake")
app.add_typer(storage_app, name="storage")
app.add_typer(wallet_app, name="wallet")
