"""Evidence against hosts: two receipts for one place, shown to the contract, which takes the host's stake.

A client that sees a second receipt for a place keeps both in its journal, and writes a file that proves the
lie to anyone: the session's terms, both receipts, and the market that they are of. Whoever has the file can
show it to the contract. Each pair of a journal is shown once, and the journal has what came of it. One that
the contract refuses for good (the place was punished before, nothing is at stake, the session was never
opened) is not tried again; one that could not be sent is. Knows nothing of how evidence was found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import Ledger, Outcome, RevertedError, Slash, Slashed
from p2pnode.contract_rules import BPS, REPORTER_BPS
from p2pnode.errors import ConfigError, LocalError
from p2pnode.files import off_the_loop, read_text_or_none, write_private
from p2pnode.ids import ModelId, SessionId
from p2pnode.money import fab_text
from p2pnode.payments.journal.journal import Evidence, Journal
from p2pnode.payments.orders import Orders
from p2pnode.payments.plans import Plan, PlanError
from p2pnode.payments.stakes import StakeStanding
from p2pnode.protocols.inference.messages import Checkpoint, Receipt, SessionTerms
from p2pnode.protocols.inference.receipts import receipt_holds
from p2pnode.protocols.typed_data import Domain, market_domain, session_id

log = structlog.get_logger()
_FORMAT: Final = "p2pnode/evidence/1"
_FILE_MAX: Final = 1 << 16
FOLDER: Final = "evidence"
"""In the data dir, beside the journal."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """What came of one pair of receipts. ``reward`` is in FAB wei."""

    evidence: Evidence
    reward: int
    words: str


async def submit_evidence(journal: Journal, ledger: Ledger, orders: Orders | None = None) -> list[Accusation]:
    """Submit the evidence of this market that has no outcome yet. Raises ``ChainError``.

    ``orders`` is None for a ledger in memory: nothing can be on its way from an earlier process.
    """
    market = ledger.domains.market
    return [
        await _submit(each, journal, ledger, orders)
        for each in journal.evidence()
        if not each.outcome and session_id(market, each.terms) == each.session
    ]


async def _submit(evidence: Evidence, journal: Journal, ledger: Ledger, orders: Orders | None) -> Accusation:
    call = Slash(evidence.terms, evidence.one, evidence.other)
    try:
        # An earlier process may have been cut off while its order landed: the contract refuses a second one.
        outcome = None if orders is None else await orders.carried_out(call)
        if outcome is None:
            await ledger.check(call)
            outcome = await (ledger if orders is None else orders).transact(call)
    except RevertedError as error:
        await journal.evidence_submitted(evidence, f"refused: {error.reason}")
        return Accusation(evidence, 0, f"the contract refused: {error.reason}")
    slashed = next((each for each in outcome.events if isinstance(each, Slashed)), None)
    lost, reward = (slashed.amount, slashed.reward) if slashed is not None else (0, 0)
    await journal.evidence_submitted(evidence, f"slashed: {outcome.transaction.hex()}")
    log.info("host.slashed", session=evidence.session.hex()[:16], amount=lost, reward=reward)
    words = f"host {evidence.host} lost its stake of {fab_text(lost)}; {fab_text(reward)} of it are yours"
    return Accusation(evidence, reward, words)


# ---- evidence as a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivocation:
    """Two receipts that one host signed for one place of a session, with all that is needed to check them."""

    chain_id: int
    market: bytes
    terms: SessionTerms
    one: Receipt
    other: Receipt

    @property
    def session(self) -> SessionId:
        """The session's id: the digest of its terms."""
        return session_id(market_domain(self.chain_id, self.market), self.terms)

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and seq of both."""
        return self.one.epoch, self.one.checkpoint.seq


async def note_shown(
    journal: Journal, market: Domain, session: SessionId, receipt: Receipt, now: int
) -> None:
    """Record a receipt that its host signed and showed. Where there is another one for its place, both are
    written to a file, too; a disk that can't take that costs a log line: the journal has them."""
    await journal.bought_shown(session, receipt, now)
    for each in journal.evidence():
        if each.session == session and each.place == (receipt.epoch, receipt.checkpoint.seq):
            write = partial(write_evidence, journal.path.parent / FOLDER, market, each)
            try:
                path = await off_the_loop(write, in_thread=journal.in_thread)
                log.warning("host.equivocated", session=session.hex()[:16], host=each.host, file=str(path))
            except LocalError as error:
                log.warning("evidence.not_written", reason=str(error))


def write_evidence(folder: Path, market: Domain, evidence: Evidence) -> Path:
    """Write a pair to a file of its own. Blocks. Raises ``ConfigError``."""
    found = Equivocation(
        chain_id=market.chain_id,
        market=market.contract,
        terms=evidence.terms,
        one=evidence.one,
        other=evidence.other,
    )
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} can't be made ({error.strerror})") from error
    path = evidence_path(folder, evidence)
    write_private(path, evidence_text(found).encode())
    return path


def evidence_path(folder: Path, evidence: Evidence) -> Path:
    """Where the file of a pair is, once it is written."""
    epoch, seq = evidence.place
    return folder / f"{evidence.session.hex()[:16]}-{epoch}-{seq}.json"


def evidence_text(found: Equivocation) -> str:
    """The file: JSON, bytes in hex."""
    receipts = [
        {
            "previous": each.previous.hex(),
            **{name: _plain(getattr(each.checkpoint, name)) for name in _CHECKPOINT_FIELDS},
        }
        for each in (found.one, found.other)
    ]
    epoch, seq = found.place
    body = {
        "format": _FORMAT,
        "chain_id": found.chain_id,
        "market": shown_address(found.market),
        "session": found.session.hex(),
        "epoch": epoch,
        "seq": seq,
        "terms": {each.name: _plain(getattr(found.terms, each.name)) for each in fields(SessionTerms)},
        "receipts": receipts,
    }
    return json.dumps(body, indent=1) + "\n"


def read_evidence(path: Path) -> Equivocation:
    """Read a file, and check that it proves what it says: two roots for one place, both signed by the key
    that the session's terms name.

    Raises ``ConfigError`` that says what is wrong with it.
    """
    text = read_text_or_none(path)
    if text is None:
        raise ConfigError(f"{path} does not exist")
    if len(text) > _FILE_MAX:
        raise ConfigError(f"{path} is too long for evidence ({len(text)} characters)")
    try:
        found = _parsed(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        msg = f"{path} is no evidence file ({error}): `p2pnode sessions evidence` writes them"
        raise ConfigError(msg) from error
    if found.one.checkpoint.root == found.other.checkpoint.root:
        raise ConfigError(f"{path} accuses nobody: both receipts say the same")
    for each in (found.one, found.other):
        if not receipt_holds(found.session, each, found.terms.receipt_key):
            msg = f"{path} proves nothing: a receipt is not signed by the session's receipt key"
            raise ConfigError(msg)
    return found


def _parsed(body: dict[str, Any]) -> Equivocation:
    if body.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT}")
    terms: dict[str, Any] = {
        name: bytes.fromhex(value) if isinstance(value, str) else _count(value)
        for name, value in dict(body["terms"]).items()
    }
    terms["model"] = ModelId(terms["model"])
    one, other = (_receipt(each, _count(body["epoch"]), _count(body["seq"])) for each in body["receipts"])
    return Equivocation(
        chain_id=_count(body["chain_id"]),
        market=bytes.fromhex(body["market"].removeprefix("0x")),
        terms=SessionTerms(**terms),
        one=one,
        other=other,
    )


def _receipt(body: dict[str, Any], epoch: int, seq: int) -> Receipt:
    values: dict[str, Any] = {
        name: bytes.fromhex(body[name]) if isinstance(body[name], str) else _count(body[name])
        for name in _CHECKPOINT_FIELDS
    }
    return Receipt(
        epoch=epoch, previous=bytes.fromhex(body["previous"]), checkpoint=Checkpoint(seq=seq, **values)
    )


_CHECKPOINT_FIELDS: Final = (
    "tokens_in", "tokens_out", "token_hash", "fingerprint_hash", "root", "signature",
)  # fmt: skip


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no whole number")
    return value


def slash_plan(found: Equivocation, market: Domain, host: StakeStanding, reporter: bytes) -> Plan:
    """Show a pair to the contract. ``host``: how the accused stands in the registry. Raises ``PlanError``."""
    if (found.chain_id, found.market) != (market.chain_id, market.contract):
        raise PlanError(
            "no_evidence",
            f"this evidence is of another market (chain {found.chain_id}, {shown_address(found.market)}): "
            "name its chain profile with --chain",
        )
    name, at_stake = shown_address(found.terms.host), host.record.stake + host.record.unbonding
    if at_stake == 0:
        raise PlanError("not_staked", f"host {name} has nothing at stake that it could lose")
    reward = 0 if reporter == found.terms.host else at_stake * REPORTER_BPS // BPS
    words = (
        f"Show the chain that host {name} signed two receipts for one place of session "
        f"{found.session.hex()[:16]}: it loses {fab_text(at_stake)}, of which {fab_text(reward)} go to this "
        "wallet and the rest is destroyed. Whoever shows it first gets the reward."
    )
    return Plan((Slash(found.terms, found.one, found.other),), (words,))


async def note_slashed(journal: Journal, found: Equivocation, outcome: Outcome) -> None:
    """Record what came of a pair that the journal has, too."""
    for each in journal.evidence():
        if each.session == found.session and each.place == found.place:
            await journal.evidence_submitted(each, f"slashed: {outcome.transaction.hex()}")
