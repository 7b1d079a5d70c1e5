"""Stake and votes by the command line alone, on a chain whose time is moved; and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2pnode.chain.profile import ChainProfile, load_profile
from p2pnode.contract_rules import BOND, QUORUM, STAKE_MIN, UNBONDING_S, VOTING_S
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import load_or_create_seed
from p2pnode.payments.evidence import note_shown
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.messages import Receipt
from p2pnode.protocols.inference.receipts import link_root, receipt_digest
from p2pnode.protocols.typed_data import market_domain
from tests.cli.support import Program, Ran, ask, give, join_for_pay, run, start, wallet
from tests.cli.terminal import Terminal
from tests.payments.journals import writing

FAB = 10**18
MODEL = "smollm2-135m-instruct"
ETHER = "0.5"


@dataclass
class Someone:
    """A data dir with a wallet, on one chain."""

    data_dir: Path
    profile: Path
    address: str

    def run(self, *command: object, yes: bool = True, as_json: bool = True) -> Ran:
        flags: list[object] = ["--chain", self.profile, "--data-dir", self.data_dir]
        return run(*command, *flags, *["--yes"] * yes, *["--json"] * as_json)

    def does(self, *command: object) -> dict[str, Any]:
        """Its last event; it must succeed."""
        ran = self.run(*command)
        assert ran.code == 0, ran
        return ran.events[-1]

    def refused(self, code: str, *command: object) -> str:
        """It ends with exit code 1 and this stable code, and sends nothing. The message."""
        ran = self.run(*command)
        assert ran.code == 1, ran
        assert not ran.named("sent")
        assert ran.events[-1]["code"] == code, ran
        return str(ran.events[-1]["message"])

    @property
    def stake(self) -> dict[str, Any]:
        ran = self.run("stake", "status", self.address, yes=False)
        assert ran.code == 0, ran
        return ran.events[-1]

    @property
    def fab(self) -> int:
        return int(self.stake["fab"])


def someone(folder: Path, name: str, profile: Path, *, fab: int = 0, ether: str = ETHER) -> Someone:
    address = wallet(folder / name)
    ran = run("chain", "faucet", address, "0", "--ether", ether, "--fab", fab, "--chain", profile)
    assert ran.code == 0, ran
    return Someone(folder / name, profile, address)


class Chain:
    """A development chain of its own, whose time can be moved."""

    def __init__(self, program: Program) -> None:
        self.profile = Path(program.wait_event("chain.ready")["profile"])

    def travel(self, seconds: int) -> None:
        for method, params in (("evm_increaseTime", [seconds]), ("evm_mine", [])):
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            answer = httpx.post(load_profile(self.profile).rpc_urls[0], json=body).json()
            assert "error" not in answer, answer


# ---- the whole way


@pytest.mark.long
def test_a_model_is_proposed_voted_on_and_attested_and_every_fab_is_where_it_should_be(
    tmp_path: Path,
) -> None:
    with start(tmp_path, "dev", ["chain", "dev", "--port", 0, "--data-dir", tmp_path / "dev"]) as program:
        chain = Chain(program)
        quorum = QUORUM // FAB
        host = someone(tmp_path, "host", chain.profile, fab=2_500)
        holder = someone(tmp_path, "holder", chain.profile, fab=quorum + 10)
        rival = someone(tmp_path, "rival", chain.profile, fab=quorum - 1)
        friend = someone(tmp_path, "friend", chain.profile)

        shown = host.does("models", "propose", MODEL)
        assert (shown["number"], shown["model"], shown["state"]) == (1, MODEL, "open")
        assert (shown["proposer"], shown["bond"], host.fab) == (host.address, BOND, 2_500 * FAB - BOND)
        assert "--again" in host.refused("already_proposed", "models", "propose", MODEL)
        second = host.does("models", "propose", MODEL, "--again")
        assert (second["number"], host.fab) == (2, 2_500 * FAB - 2 * BOND)
        host.refused("no_fab", "models", "propose", MODEL, "--again")

        # One reaches the quorum, in two steps; the other has a majority and misses it by one.
        assert holder.does("models", "vote", 1, "for", quorum - 1)["votes_for"] == QUORUM - FAB
        assert "--more" in holder.refused("voted_already", "models", "vote", 1, "for", 1)
        assert holder.does("models", "vote", 1, "for", 1, "--more")["votes_for"] == QUORUM
        assert rival.does("models", "vote", 2, "for", quorum - 1)["locked"] == QUORUM - FAB
        assert holder.does("models", "vote", 2, "against", 3)["votes_against"] == 3 * FAB

        # What voted can't be moved, so it can't vote again from another wallet. What didn't, can.
        assert holder.fab == 7 * FAB
        assert "has 7 FAB" in holder.refused("no_fab", "funds", "send", 8, "fab", friend.address)
        holder.does("funds", "send", 7, "fab", friend.address)
        assert (holder.fab, friend.fab) == (0, 7 * FAB)
        friend.refused("no_fab", "models", "vote", 1, "for", 8)
        assert friend.does("models", "vote", 1, "for", 7)["votes_for"] == QUORUM + 7 * FAB
        for command in (("models", "unlock", 1), ("models", "bond", 1)):
            (holder if "unlock" in command else host).refused("vote_on", *command)

        chain.travel(VOTING_S + 1)
        holder.refused("vote_over", "models", "vote", 1, "for", 1, "--more")
        listed = run("models", "proposals", "--json", "--chain", chain.profile, "--data-dir", tmp_path / "x")
        assert [(each["number"], each["state"]) for each in listed.events] == [
            (2, "no_quorum"),
            (1, "accepted"),
        ]
        assert not (tmp_path / "x").exists(), "reading needs no wallet and makes nothing"
        one = run("models", "proposals", 1, "--json", "--chain", chain.profile, "--data-dir", tmp_path / "x")
        assert one.events[0]["manifest"]["n_ctx"] > 0

        for person, number, back in (
            (holder, 1, quorum), (holder, 2, quorum + 3), (rival, 2, quorum - 1), (friend, 1, 7),
        ):  # fmt: skip
            person.does("models", "unlock", number)
            assert person.fab == back * FAB
            person.refused("nothing_locked", "models", "unlock", number)
        rival.refused("not_proposer", "models", "bond", 1)
        host.does("models", "bond", 1)
        rival.does("models", "bond", 2, "--for-another")
        assert host.fab == 2_500 * FAB
        host.refused("bond_is_back", "models", "bond", 2)


@pytest.mark.long
def test_an_attestation_is_said_checked_by_anyone_and_taken_back(tmp_path: Path) -> None:
    with start(tmp_path, "dev", ["chain", "dev", "--port", 0, "--data-dir", tmp_path / "dev"]) as program:
        chain = Chain(program)
        host = someone(tmp_path, "host", chain.profile)
        statement = tmp_path / "statement.txt"
        statement.write_text("I ran it for a week, and it answers.")
        said = host.does("models", "attest", MODEL, statement)["statement"]
        host.refused("already_attested", "models", "attest", MODEL, statement)
        asked = ("models", "attestation", MODEL, host.address)
        flags = ("--json", "--chain", chain.profile, "--data-dir", tmp_path / "x")
        assert run(*asked, statement, *flags).events[0]["matches"] is True
        assert host.does("models", "attest", MODEL, "--revoke")["statement"] is None
        assert said is not None
        statement.write_text("something else")
        assert run(*asked, statement, *flags).code == 1
        host.refused("not_attested", "models", "attest", MODEL, "--revoke")


@pytest.mark.long
def test_stake_is_put_in_taken_out_over_time_and_lost_by_a_host_that_lies(tmp_path: Path) -> None:
    with start(tmp_path, "dev", ["chain", "dev", "--port", 0, "--data-dir", tmp_path / "dev"]) as program:
        chain = Chain(program)
        with join_for_pay(tmp_path, chain.profile) as served:
            address = run("wallet", "show", "--json", "--data-dir", tmp_path / "h").events[0]["address"]
            host = Someone(tmp_path / "h", chain.profile, address)
            reporter = someone(tmp_path, "reporter", chain.profile)
            give_fab = ("chain", "faucet", address, "0", "--fab", 5_000, "--chain", chain.profile)
            assert run(*give_fab).code == 0

            found = host.does("stake", 3_000)
            assert (found["stake"], found["fab"], found["here"]) == (3 * STAKE_MIN, 2 * STAKE_MIN, True)
            assert found["peer"] == served.ready["peer_id"]
            assert "--more" in host.refused("already_staked", "stake", 1)
            assert host.does("stake", 1_000, "--more")["stake"] == 4 * STAKE_MIN
            by_peer = run(
                "stake", "status", found["peer"], "--json", "--chain", chain.profile,
                "--data-dir", tmp_path / "x",
            )  # fmt: skip
            assert (by_peer.events[0]["wallet"], by_peer.events[0]["stake"]) == (address, 4 * STAKE_MIN)

            gone = host.does("unstake", 1_000)
            assert (gone["stake"], gone["unbonding"]) == (3 * STAKE_MIN, STAKE_MIN)
            assert "can be withdrawn on" in host.refused("not_unbonded", "stake", "withdraw")
            assert host.does("stake", "rebond")["unbonding"] == 0
            host.does("stake", "unbond", 1_000)

            # A session on the chain, before its time is moved: the host serves by the wall clock.
            payer = tmp_path / "payer"
            give(chain.profile, wallet(payer), usdc="1")
            asked = ask(payer, "hello", "--peer", served.multiaddr, "--chain", chain.profile, "--close",
                        "--max-tokens", 40)  # fmt: skip
            assert asked.code == 0, asked
            # The client asked the chain while it was open; the next command knows.
            found_hosts = run("hosts", "--model", "scripted", "--bootstrap", served.multiaddr, "--no-mdns",
                              "--json", "--chain", chain.profile, "--data-dir", payer)  # fmt: skip
            assert found_hosts.named("host")[0]["stake"] == 3 * STAKE_MIN, found_hosts
            served.interrupt()
            served.wait()
            known = json.loads((host.data_dir / "staked.json").read_text())
            assert known["registry"] == load_profile(chain.profile).node_registry.hex()
            path = lie_about(payer, host.data_dir, load_profile(chain.profile))

        shown = run("sessions", "evidence", "--json", "--chain", chain.profile, "--data-dir", payer)
        (evidence,) = shown.named("evidence")
        assert Path(evidence["file"]) == path
        chain.travel(UNBONDING_S + 1)
        before = host.fab
        assert host.does("stake", "withdraw")["fab"] == before + STAKE_MIN
        host.refused("nothing_unbonding", "stake", "withdraw")
        host.does("unstake", 1_000)  # what unbonds is lost, too

        tried = reporter.run("stake", "slash", path, "--dry-run")
        assert (tried.code, tried.named("sent")) == (0, [])
        assert "it loses 3000 FAB, of which 300 FAB go to this wallet" in tried.events[0]["calls"][0]["words"]
        slashed = reporter.does("stake", "slash", path)
        assert (slashed["amount"], slashed["reward"]) == (3 * STAKE_MIN, 3 * STAKE_MIN // 10)
        assert reporter.fab == 3 * STAKE_MIN // 10
        now = host.stake
        assert (now["stake"], now["unbonding"], now["fab"]) == (0, 0, before + STAKE_MIN)
        reporter.refused("not_staked", "stake", "slash", path)
        host.does("stake", 1_000)  # it may begin anew; the same lie doesn't count again
        assert "already punished" in reporter.refused("refused", "stake", "slash", path)


def lie_about(payer: Path, host: Path, profile: ChainProfile) -> Path:
    """The host signs another receipt for the first place of a session, and the client sees it. The file."""
    market = market_domain(profile.chain_id, profile.job_marketplace)
    journal = Journal.open(DataDir(payer).journal)
    try:
        (record,) = journal.purchases()
        honest = journal.taken(record.session)[0]
    finally:
        journal.close()
    lie = _other(record, honest, load_or_create_seed(DataDir(host).receipt_key))

    async def see() -> None:
        async with writing(DataDir(payer).journal) as journal:
            await note_shown(journal, market, record.session, lie, record.opened_at)

    trio.run(see)
    (path,) = (payer / "evidence").iterdir()
    return path


def _other(record: BoughtSession, honest: Receipt, secret: bytes) -> Receipt:
    other = replace(honest.checkpoint, tokens_out=honest.checkpoint.tokens_out - 1)
    root = link_root(honest.previous, other)
    signature = sign_digest(secret, receipt_digest(record.session, honest.epoch, root))
    return replace(honest, checkpoint=replace(other, root=root, signature=signature))


# ---- what is shown, asked and refused


def test_a_dry_run_says_what_is_signed_and_what_it_costs_and_sends_nothing(
    tmp_path: Path, profile: Path
) -> None:
    host = someone(tmp_path, "h", profile, fab=1_500)
    (host.data_dir / "config.toml").write_text("ether_usd = 3000\n")
    ran = host.run("stake", 1_000, "--dry-run", yes=False)
    assert ran.code == 0, ran
    (plan,) = ran.events
    assert [each["call"] for each in plan["calls"]] == ["Approve", "Register"]
    assert plan["gas"] * plan["gas_price_wei"] == plan["cost_wei"] > 0
    assert plan["cost"] > 0
    assert (plan["untried"], plan["dry_run"]) == (0, True)
    words = host.run("stake", 1_000, "--dry-run", yes=False, as_json=False).err
    for each in (
        "1. Let the contract 0x",
        "2. Stake 1000 FAB",
        "All of it is lost if",
        "USDC",
        "nothing was",
    ):
        assert each in words
    assert (host.stake["stake"], host.fab) == (0, 1_500 * FAB)
    asked = host.run("stake", 1_000, yes=False)
    assert asked.code == 2, "a script says --yes"
    assert "add --yes" in asked.events[-1]["message"]


@pytest.mark.long
def test_a_person_reads_what_is_signed_before_the_answer(tmp_path: Path, profile: Path) -> None:
    host = someone(tmp_path, "h", profile, fab=1_000)
    command = ["stake", "1000", "--chain", str(profile), "--data-dir", str(host.data_dir)]
    with Terminal(command) as terminal:
        terminal.expect("All of it is lost if")
        terminal.answer("Type yes to go on:", "no")
        assert terminal.end() == 1
    assert host.stake["stake"] == 0
    with Terminal(command) as terminal:
        terminal.answer("Type yes to go on:", "yes")
        assert terminal.end() == 0
    assert host.stake["stake"] == STAKE_MIN


def test_what_is_lacking_is_named_with_what_to_do(tmp_path: Path, profile: Path) -> None:
    nowhere = run("stake", 1_000, "--data-dir", tmp_path / "none")
    assert (nowhere.code, "no chain is configured" in nowhere.err) == (1, True)
    bare = run("stake", 1_000, "--chain", profile, "--data-dir", tmp_path / "bare")
    assert (bare.code, "p2pnode wallet new" in bare.err) == (1, True)
    own = run("stake", "status", "--chain", profile, "--data-dir", tmp_path / "bare")
    assert (own.code, "name a host" in own.err) == (1, True)
    poor = someone(tmp_path, "poor", profile, ether="0")
    assert "send it 1000 FAB more" in poor.refused("no_fab", "stake", 1_000)
    run("chain", "faucet", poor.address, "0", "--fab", 1_000, "--chain", profile)
    ran = poor.run("stake", 1_000)
    assert (ran.code, ran.events[-1]["code"], ran.named("sent")) == (1, "no_ether", [])
    assert "send it some ether" in ran.events[-1]["message"]
    poor.refused("not_staked", "unstake")
    poor.refused("no_proposal", "models", "vote", 999, "for", 1)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("stake", "1e3"), "AMOUNT"),
        (("stake", "0.0000000000000000001"), "AMOUNT"),
        (("stake", "withdraw", "--to", "0x12"), "--to"),
        (("stake", "status", "nobody"), "PEER"),
        (("stake", "slash", "nowhere.json"), "does not exist"),
        (("models", "vote", 1, "maybe", 1), "for|against"),
        (("models", "vote", 0, "for", 1), ""),
        (("models", "propose", "no-such-model"), "MODEL"),
        (("models", "attest", MODEL), "--revoke"),
        (("models", "attest", MODEL, "nowhere.txt"), "FILE"),
        (("models", "attestation", MODEL, "0x12"), "WALLET"),
        (("funds", "send", "1", "gold", "0x" + "07" * 20), "usdc|fab"),
        (("funds", "send", "1", "fab", "0x12"), "ADDRESS"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_before_anything_is_opened(
    tmp_path: Path, command: tuple[object, ...], words: str
) -> None:
    ran = run(*command, "--data-dir", tmp_path / "none", "--json")
    assert ran.code == 2, ran
    if words:
        assert words in json.loads(ran.out.splitlines()[-1])["message"]


def test_a_peer_that_nobody_registered_has_no_stake(tmp_path: Path, profile: Path) -> None:
    peer = "12D3KooWEvk97Ar5iYGLABPC3aCBLXqRVi1AKb5pfpdPRhzvXcDF"
    ran = run("stake", "status", peer, "--chain", profile, "--data-dir", tmp_path / "none")
    assert (ran.code, "it has no stake" in ran.err) == (1, True)
    listed = run("models", "proposals", "--chain", profile, "--data-dir", tmp_path / "none")
    assert listed.code == 0, listed
