"""``p2pnode sessions evidence``: list receipts that accuse a host, and show them to the chain."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.options import ChainOption, DataDirOption, JsonOption, LogOption, build_config, configure
from p2pnode.cli.output import Output, shorten

if TYPE_CHECKING:
    from pathlib import Path

    from p2pnode.config import NodeConfig
    from p2pnode.payments.journal.journal import Evidence

SubmitOption = Annotated[
    bool, typer.Option("--submit", help="Show it to the chain: the host's stake is lost, a tenth is yours.")
]
FetchOption = Annotated[
    bool,
    typer.Option("--fetch", help="Ask the hosts for their receipts again first, and compare them with ours."),
]


def evidence(
    fetch: FetchOption = False,
    submit: SubmitOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show where a host signed two receipts for one place, and take its stake for it."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        config = build_config(data_dir, chain=chain)
        if fetch:
            await _fetch(config, output)
        found = _evidence(config)
        if submit and any(not each.outcome for each in found):
            found = await _submit(config, output)
        files = [_file(config, each) for each in found]
        if as_json:
            for each, path in zip(found, files, strict=True):
                output.event("evidence", {**_fields(each), "file": None if path is None else str(path)})
        elif found:
            output.table(("session", "host", "epoch", "receipt", "outcome"), map(_row, found))
            for path in files:
                if path is not None:
                    show = output.command(f"stake slash {shlex.quote(str(path))}")
                    output.result(f"{path}\n  {show} shows it to the chain, from any wallet")
        else:
            output.result("no host has signed two receipts for one place")

    run_async(run, on_error=output.failed)


def _evidence(config: NodeConfig) -> list[Evidence]:
    from p2pnode.node.datadir import DataDir
    from p2pnode.payments.journal.journal import Journal

    path = DataDir(config.data_dir).journal
    if not path.exists():
        return []
    journal = Journal.open(path)
    try:
        return journal.evidence()
    finally:
        journal.close()


def _file(config: NodeConfig, each: Evidence) -> Path | None:
    """The file that proves a pair, which is written where it is missing; None for one of another market."""
    from p2pnode.node.datadir import DataDir
    from p2pnode.payments.books import profile_of_config
    from p2pnode.payments.evidence import FOLDER, evidence_path, write_evidence
    from p2pnode.protocols.typed_data import market_domain, session_id

    folder = DataDir(config.data_dir).journal.parent / FOLDER
    if (path := evidence_path(folder, each)).exists():
        return path
    profile = profile_of_config(config)
    if profile is None:
        return None
    market = market_domain(profile.chain_id, profile.job_marketplace)
    return write_evidence(folder, market, each) if session_id(market, each.terms) == each.session else None


async def _fetch(config: NodeConfig, output: Output) -> None:
    from p2pnode.client.client import Client
    from p2pnode.payments.books import need_profile
    from p2pnode.payments.checkpoints import fetch_all

    profile = need_profile(config)
    async with Client(config, remember=False) as client:
        for session, shown, why in await fetch_all(config, profile, client.node):
            fields: dict[str, Any] = {"session": session.hex(), "problem": why}
            text = f"[{session.hex()[:16]}: {why}]"
            if shown is not None:
                fields |= {
                    "same": shown.same, "unknown": len(shown.unknown), "withheld": shown.withheld,
                    "conflicts": len(shown.conflicts),
                }  # fmt: skip
                text = (
                    f"[{session.hex()[:16]}: {shown.same} receipts as ours, {len(shown.unknown)} are new, "
                    f"{shown.withheld} not shown, {len(shown.conflicts)} contradict ours]"
                )
            output.event("receipts", fields, text=text)


async def _submit(config: NodeConfig, output: Output) -> list[Evidence]:
    from p2pnode.cli.plans import order_reporter
    from p2pnode.payments.books import books_of
    from p2pnode.payments.evidence import submit_evidence

    async with books_of(config, sends=True, tell=order_reporter(output)) as books:
        for each in await submit_evidence(books.journal, books.ledger, books.orders):
            output.event("submitted", {**_fields(each.evidence), "reward": each.reward}, text=each.words)
        return books.journal.evidence()


def _fields(each: Evidence) -> dict[str, Any]:
    epoch, seq = each.place
    return {
        "session": each.session.hex(),
        "host": each.host,
        "epoch": epoch,
        "seq": seq,
        "roots": [each.one.checkpoint.root.hex(), each.other.checkpoint.root.hex()],
        "noted_at": each.noted_at,
        "outcome": each.outcome,
    }


def _row(each: Evidence) -> list[str]:
    epoch, seq = each.place
    return [
        each.session.hex()[:16],
        shorten(each.host),
        str(epoch),
        str(seq),
        each.outcome or "not submitted: add --submit",
    ]
