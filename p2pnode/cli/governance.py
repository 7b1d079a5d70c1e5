"""``p2pnode models propose|proposals|vote|unlock|bond|attest|attestation``: opinions on models, on the chain.

They gate nothing: a host serves what it likes. JSON events::

    propose, vote, unlock, bond, attest
                 plan{…} sent{…} order.waiting{…} as stake; then proposal{…}, or attestation{…}
    proposals    proposal{number, model, model_id, proposer, state, ends_at, votes_for, votes_against, bond,
                 locked?, manifest?}: FAB in its smallest unit; the state is open, accepted, no_quorum or
                 no_majority; `locked` is what this wallet has in it
    attestation  attestation{model, model_id, attester, statement, matches?}: the SHA-256 of what is said,
                 null for nothing
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from p2pnode.cli.options import (
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    YesOption,
    address_of,
    blaming,
    build_config,
    configure,
    units_of,
)
from p2pnode.cli.output import Output
from p2pnode.cli.plans import DryRunOption, carry_out, locked_wallet, wallet_address
from p2pnode.money import FAB_DIGITS
from p2pnode.words import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2pnode.chain.ledger import Proposal, RegistryLedger
    from p2pnode.config import NodeConfig
    from p2pnode.ids import ModelId
    from p2pnode.payments.plans import Plan
    from p2pnode.payments.votes import VoteStanding

_LISTED: Final = 50
_OPEN_MAX: Final = 200
_STATEMENT_MAX: Final = 1 << 24
_SIDES: Final = {"for": True, "yes": True, "against": False, "no": False}
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A catalogue name or a model id (m1…).")]
NumberArgument = Annotated[int, typer.Argument(metavar="PROPOSAL", min=1, help="The proposal's number.")]


def propose(
    model: ModelArgument,
    again: Annotated[
        bool, typer.Option("--again", help="Also where a vote on the same model is under way.")
    ] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Put a model to the vote of FAB's holders, with a bond of 1000 FAB that comes back after seven days."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.chain.ledger import Proposed
        from p2pnode.payments.votes import propose as plan_propose

        config = build_config(data_dir, chain=chain)
        name, model_id, manifest = _with_manifest(config, model)
        async with locked_wallet(config) as wallet:
            ledger, account = wallet.ledger, wallet.account
            plan = plan_propose(
                manifest,
                name,
                await ledger.fab(account),
                account=account,
                registry=ledger.domains.model_registry,
                open_one=None if again else await _open_proposal(ledger, model_id),
            )
            for outcome in await carry_out(output, wallet, plan, dry_run=dry_run, yes=yes):
                for event in outcome.events:
                    if isinstance(event, Proposed):
                        await _show(output, ledger, event.proposal, account)

    run_async(run, on_error=output.failed)


def vote(
    number: NumberArgument,
    side: Annotated[str, typer.Argument(metavar="for|against", help="What you vote.")],
    amount: Annotated[str, typer.Argument(help="FAB to vote with, such as 1000; locked until the end.")],
    more: Annotated[bool, typer.Option("--more", help="Add to what this wallet voted before.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Vote on a proposal with FAB, which is locked until the vote ends: `p2pnode models vote 3 for 1000`."""
    from p2pnode.models.catalogue import shown_name
    from p2pnode.payments.votes import vote as plan_vote

    def checked() -> Callable[[VoteStanding], Plan]:
        from p2pnode.errors import UsageError

        units, support = units_of(amount, "AMOUNT", FAB_DIGITS), _SIDES.get(side.lower())
        if support is None:
            raise UsageError(f"for|against: {side[:40]!r} is neither: say `for` or `against`")
        return lambda found: plan_vote(
            found, shown_name(found.proposal.model), units, support=support, more=more
        )

    _order(checked, number, dry_run, yes, chain, data_dir, as_json, log_level)


def unlock(
    number: NumberArgument,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Bring back the FAB that this wallet voted with, once that vote is over."""
    from p2pnode.payments.votes import unlock as plan_unlock

    _order(lambda: plan_unlock, number, dry_run, yes, chain, data_dir, as_json, log_level)


def bond(
    number: NumberArgument,
    for_another: Annotated[
        bool, typer.Option("--for-another", help="Also where another wallet proposed: the bond goes there.")
    ] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Bring the bond of a proposal back to its proposer, once the vote is over, whatever the outcome."""
    from p2pnode.payments.votes import return_bond

    def checked() -> Callable[[VoteStanding], Plan]:
        return lambda found: return_bond(found, for_another=for_another)

    _order(checked, number, dry_run, yes, chain, data_dir, as_json, log_level)


def proposals(
    number: Annotated[
        int | None,
        typer.Argument(metavar="PROPOSAL", min=1, help="Show this one, with its manifest; all without it."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list, the latest first.")] = _LISTED,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """List proposals of models and how their votes stand, the latest first. Needs no wallet."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.payments.books import need_profile, open_ledger

        config = build_config(data_dir, chain=chain)
        account = wallet_address(config)
        async with open_ledger(need_profile(config)) as ledger:
            if number is not None:
                await _show(output, ledger, number, account, with_manifest=True)
                return
            count = await ledger.proposal_count()
            first = max(1, count - limit + 1)
            for each in range(count, first - 1, -1):
                await _show(output, ledger, each, account)
            if not count:
                output.note("no model was proposed yet: `p2pnode models propose MODEL` does")
            elif first > 1:
                output.note(f"[{first - 1} older ones: --limit {count} lists all]")

    run_async(run, on_error=output.failed)


def attest(
    model: ModelArgument,
    statement: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="What you say, in a file that you publish: its SHA-256 counts."),
    ] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take back what this wallet says.")] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Say something of a model in this wallet's name: the hash of a statement goes on the record."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.errors import UsageError
        from p2pnode.payments.votes import attest as plan_attest
        from p2pnode.payments.votes import revoke as plan_revoke

        if (statement is None) != revoke:
            msg = "FILE: name the statement's file, or give --revoke to take back what was said"
            raise UsageError(msg)
        config = build_config(data_dir, chain=chain)
        name, model_id = _named(config, model)
        said = b"" if statement is None else _hash_of(statement)
        async with locked_wallet(config) as wallet:
            account = wallet.account
            held = await wallet.ledger.attestation(model_id, account)
            plan = plan_revoke(model_id, name, held) if revoke else plan_attest(model_id, name, said, held)
            if await carry_out(output, wallet, plan, dry_run=dry_run, yes=yes):
                now = await wallet.ledger.attestation(model_id, account)
                _show_attestation(output, name, model_id, account, now, None)

    run_async(run, on_error=output.failed)


def attestation(
    model: ModelArgument,
    attester: Annotated[str, typer.Argument(metavar="WALLET", help="Who says it (0x…).")],
    statement: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Compare with this file's SHA-256.")
    ] = None,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show what an account says of a model, and whether a file is that statement. Needs no wallet."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.errors import ConfigError
        from p2pnode.payments.books import need_profile, open_ledger

        who = address_of(attester, "WALLET")
        config = build_config(data_dir, chain=chain)
        name, model_id = _named(config, model)
        wanted = None if statement is None else _hash_of(statement)
        async with open_ledger(need_profile(config)) as ledger:
            held = await ledger.attestation(model_id, who)
        _show_attestation(output, name, model_id, who, held, wanted)
        if wanted is not None and wanted != held:
            raise ConfigError(f"{statement} is not what that account says of {name}")

    run_async(run, on_error=output.failed)


COMMANDS: Final = (propose, proposals, vote, unlock, bond, attest, attestation)
"""Of the group ``models``."""


# ---- parts


def _order(
    checked: Callable[[], Callable[[VoteStanding], Plan]],
    number: int,
    dry_run: bool,
    yes: bool,
    chain: str | None,
    data_dir: Path | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Carry out the plan for how this wallet stands to a proposal, and show how that stands then.

    ``checked`` checks what was typed, before a wallet is unlocked, and returns what makes the plan.
    """
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.payments.votes import vote_standing

        plan_of, config = checked(), build_config(data_dir, chain=chain)
        async with locked_wallet(config) as wallet:
            plan = plan_of(await vote_standing(wallet.ledger, wallet.account, number))
            if await carry_out(output, wallet, plan, dry_run=dry_run, yes=yes):
                await _show(output, wallet.ledger, number, wallet.account)

    run_async(run, on_error=output.failed)


def _named(config: NodeConfig, text: str) -> tuple[str, ModelId]:
    """A model's name and id. Raises ``UsageError``; an id that nobody here knows is taken as it is."""
    from p2pnode.errors import ConfigError
    from p2pnode.models.catalogue import shown_name
    from p2pnode.models.manifest import parse_model_id

    try:
        found = parse_model_id(text)
    except ConfigError:
        name, model_id, _ = _with_manifest(config, text)
        return name, model_id
    return shown_name(found), found


def _with_manifest(config: NodeConfig, text: str) -> tuple[str, ModelId, bytes]:
    """A model's name, id and canonical manifest: of the catalogue, or on this machine. Raises
    ``UsageError``."""
    from p2pnode.errors import UsageError
    from p2pnode.models.catalogue import Catalogue
    from p2pnode.models.local_models import installed
    from p2pnode.models.manifest import model_id_text
    from p2pnode.node.datadir import DataDir

    for local in installed(DataDir(config.data_dir).models):
        if text in (local.name, model_id_text(local.model_id)):
            return local.name, local.model_id, local.manifest.canonical()
    with blaming("MODEL"):
        entry = Catalogue.of(DataDir(config.data_dir).models).find(text)
    if entry.manifest is not None and not entry.manifest.verified:
        raise UsageError(f"MODEL: the manifest of {text} proves no weights: nobody can check what it names")
    if entry.model_id is None or entry.manifest is None:
        msg = f"MODEL: the id of {text} is not known yet: `p2pnode models pull {text}` hashes it first"
        raise UsageError(msg)
    return entry.name, entry.model_id, entry.manifest.canonical()


def _hash_of(path: Path) -> bytes:
    from p2pnode.errors import UsageError
    from p2pnode.files import user_path

    try:
        with user_path(path).open("rb") as file:
            data = file.read(_STATEMENT_MAX + 1)
    except OSError as error:
        raise UsageError(f"FILE: {path} can't be read ({error.strerror})") from error
    if not data:
        raise UsageError(f"FILE: {path} is empty: it says nothing")
    if len(data) > _STATEMENT_MAX:
        raise UsageError(f"FILE: {path} has more than {_STATEMENT_MAX >> 20} MiB")
    return hashlib.sha256(data).digest()


async def _open_proposal(ledger: RegistryLedger, model: ModelId) -> int | None:
    """The number of a proposal of this model that is voted on now. Votes end in the order of numbers."""
    count, now = await ledger.proposal_count(), (await ledger.head()).timestamp
    for number in range(count, max(0, count - _OPEN_MAX), -1):
        found = await ledger.proposal(number)
        if found is None or found.is_over(now):
            break
        if found.model == model:
            return number
    return None


State = Literal["open", "accepted", "no_quorum", "no_majority"]


def _state(proposal: Proposal, now: int) -> State:
    if not proposal.is_over(now):
        return "open"
    if proposal.is_accepted(now):
        return "accepted"
    return "no_quorum" if proposal.has_majority else "no_majority"


async def _show(
    output: Output,
    ledger: RegistryLedger,
    number: int,
    account: bytes | None,
    *,
    with_manifest: bool = False,
) -> None:
    """Print a proposal. Raises ``PlanError`` where there is none."""
    from p2pnode.chain.addresses import shown_address
    from p2pnode.models.catalogue import shown_name
    from p2pnode.models.manifest import model_id_text
    from p2pnode.money import fab_text
    from p2pnode.payments.votes import outcome_text, proposal_of

    found, now = await proposal_of(ledger, number), (await ledger.head()).timestamp
    fields: dict[str, Any] = {
        "number": number,
        "model": shown_name(found.model),
        "model_id": model_id_text(found.model),
        "proposer": shown_address(found.proposer),
        "state": _state(found, now),
        "ends_at": found.ends_at,
        "votes_for": found.votes_for,
        "votes_against": found.votes_against,
        "bond": found.bond,
    }
    lines = [f"proposal {number}: {fields['model']}, {outcome_text(found, now)}"]
    if account is not None:
        fields["locked"] = await ledger.locked(number, account)
        if fields["locked"]:
            lines.append(f"  this wallet has {fab_text(fields['locked'])} locked in it")
    if with_manifest:
        raw = await ledger.manifest(found)
        fields["manifest"] = _manifest_of(found.model, raw)
        shown = "no endpoint has it any more" if raw is None else "not what its id says: don't trust it"
        if fields["manifest"] is not None:
            shown = one_line(json.dumps(fields["manifest"]), 4096)
        bond_is = fab_text(found.bond) if found.bond else "given back"
        lines += [
            f"  model id  {fields['model_id']}",
            f"  proposer  {fields['proposer']}, bond {bond_is}",
            f"  manifest  {shown}",
        ]
    if output.as_json:
        output.event("proposal", fields)
    else:
        output.result("\n".join(lines))


def _manifest_of(model: ModelId, raw: bytes | None) -> Any:
    """A proposed manifest as JSON; None where there is none, or it isn't the model's."""
    if raw is None or hashlib.sha256(b"p2pnode/model/1\0" + raw).digest() != model:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _show_attestation(
    output: Output, name: str, model: ModelId, attester: bytes, held: bytes, wanted: bytes | None
) -> None:
    from p2pnode.chain.addresses import shown_address
    from p2pnode.models.manifest import model_id_text

    said = held.hex() if any(held) else None
    fields: dict[str, Any] = {
        "model": name, "model_id": model_id_text(model), "attester": shown_address(attester),
        "statement": said,
    }  # fmt: skip
    if wanted is not None:
        fields["matches"] = wanted == held
    if output.as_json:
        output.event("attestation", fields)
    elif said is None:
        output.result(f"{fields['attester']} says nothing of {name}")
    else:
        output.result(f"{fields['attester']} attests {name}: a statement whose SHA-256 is {said}")
