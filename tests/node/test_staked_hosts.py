"""Who is staked, as the chain last said: read without waiting, bounded, kept while the chain is silent."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.ledger import (
    AddStake,
    Approve,
    NodeRecord,
    Register,
    UnavailableError,
    Unbond,
)
from p2pnode.chain.memory.ledger import MemoryChain, MemoryLedger
from p2pnode.contract_rules import STAKE_MIN
from p2pnode.ids import PeerId
from p2pnode.node.staked_hosts import (
    BELIEVED_S,
    REFRESH_S,
    UNSTAKED_MAX,
    UNSTAKED_S,
    WANTED_MAX,
    StakedHosts,
)
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.adverts.signatures import parse
from p2pnode.protocols.crypto import public_key_of
from tests.chain.memory_world import MEMORY_DOMAINS, START
from tests.protocols.support import Identity

WALL = START
CHAIN, REGISTRY = MEMORY_DOMAINS.chain_id, MEMORY_DOMAINS.node_registry


def advert_of(name: object, **changes: object) -> Advert:
    """An advert of a host that is paid on the chain of these tests."""
    made = parse(Identity(name).signed())
    terms = {"chain_id": CHAIN, "node_registry": REGISTRY, **changes}
    return replace(made, binding=replace(made.binding, **terms))  # type: ignore[arg-type]


class Known:
    """What a node knows, whose clock is set."""

    def __init__(self) -> None:
        self.now = float(WALL)
        self.hosts = self.make()

    def make(self) -> StakedHosts:
        draw = random.Random(1).randrange
        return StakedHosts(chain_id=CHAIN, registry=REGISTRY, wall=lambda: self.now, draw=draw)

    def says(self, advert: Advert, stake: int, *, key: bytes | None = None) -> None:
        """The chain's answer about a host's wallet."""
        peer_key = public_key_of(advert.peer) if key is None else key
        record = NodeRecord(peer_key=peer_key, receipt_key=b"\1" * 20, stake=stake)
        self.hosts.answered(advert.peer, advert.binding.wallet, record)


@pytest.fixture
def known() -> Known:
    return Known()


def test_a_host_is_staked_once_the_chain_has_said_so(known: Known) -> None:
    alice = advert_of("alice")
    known.hosts.heard(alice)
    assert not known.hosts.is_staked(alice.peer)
    assert known.hosts.next_question() == (alice.peer, alice.binding.wallet)
    known.says(alice, STAKE_MIN)
    assert known.hosts.is_staked(alice.peer)
    assert known.hosts.stake_of(alice) == STAKE_MIN
    assert known.hosts.next_question() is None
    known.hosts.heard(alice)
    assert known.hosts.next_question() is None, "it is known"


def test_a_stake_for_another_peer_or_of_another_wallet_is_not_its_own(known: Known) -> None:
    alice, mallory = advert_of("alice"), advert_of("mallory")
    known.says(alice, STAKE_MIN, key=public_key_of(mallory.peer))
    assert not known.hosts.is_staked(alice.peer)
    known.says(mallory, STAKE_MIN)
    claimed = replace(mallory, binding=replace(mallory.binding, wallet=b"\x99" * 20))
    assert known.hosts.stake_of(claimed) == 0
    assert known.hosts.stake_of(mallory) == STAKE_MIN


def test_a_host_of_another_chain_or_of_none_is_not_asked_for(known: Known) -> None:
    for terms in (
        {"chain_id": 1},
        {"node_registry": b"\x77" * 20},
        {"chain_id": 0, "node_registry": bytes(20)},
    ):
        known.hosts.heard(advert_of("alice", **terms))
    assert known.hosts.next_question() is None


def test_a_staked_host_is_asked_for_again_and_can_lose_it(known: Known) -> None:
    alice = advert_of("alice")
    known.says(alice, STAKE_MIN)
    known.now += REFRESH_S - 1
    assert known.hosts.next_question() is None
    known.now += 1
    assert known.hosts.next_question() == (alice.peer, alice.binding.wallet)
    known.says(alice, 0)
    assert not known.hosts.is_staked(alice.peer)


def test_one_without_a_stake_is_asked_for_again_after_an_hour_if_it_is_heard_of(known: Known) -> None:
    alice = advert_of("alice")
    known.says(alice, 0)
    for later, asked in ((UNSTAKED_S - 1, False), (1, True)):
        known.now += later
        known.hosts.heard(alice)
        assert (known.hosts.next_question() is not None) is asked


def test_what_the_chain_said_counts_for_a_day_of_silence(known: Known) -> None:
    alice = advert_of("alice")
    known.says(alice, STAKE_MIN)
    known.now += BELIEVED_S - 1
    assert known.hosts.is_staked(alice.peer)
    known.now += 1
    assert not known.hosts.is_staked(alice.peer)
    assert known.hosts.stake_of(alice) == 0


def adverts(count: int) -> Iterator[Advert]:
    """Of so many hosts; made of one, for keys cost time."""
    like = advert_of("somebody")
    for number in range(count):
        wallet = number.to_bytes(20, "big")
        yield replace(like, peer=PeerId(f"peer {number}"), binding=replace(like.binding, wallet=wallet))


def test_a_flood_of_names_fills_the_queue_and_displaces_no_staked_host(known: Known) -> None:
    alice = advert_of("alice")
    known.says(alice, STAKE_MIN)
    asked = set()
    for each in adverts(10 * WANTED_MAX):
        known.hosts.heard(each)
    late = advert_of("late")
    known.hosts.heard(late)
    while (question := known.hosts.next_question()) is not None:
        asked.add(question[0])
        known.hosts.answered(*question, NodeRecord())
    assert len(asked) == WANTED_MAX
    assert late.peer in asked, "who comes late gets in"
    for each in adverts(UNSTAKED_MAX + 10):
        known.hosts.answered(each.peer, each.binding.wallet, NodeRecord())
    assert known.hosts.is_staked(alice.peer)


# ---- the chain


async def test_the_chain_is_asked_while_gossip_goes_on_and_its_silence_is_no_outage(
    autojump_clock: MockClock,
) -> None:
    chain = MemoryChain(MEMORY_DOMAINS, lambda: WALL)
    alice, bob = advert_of("alice"), advert_of("bob")
    for each in (alice, bob):
        wallet = each.binding.wallet
        chain.mint_fab(wallet, 3 * STAKE_MIN)
        chain.send(wallet, Approve(REGISTRY, 3 * STAKE_MIN))
    chain.send(alice.binding.wallet, Register(public_key_of(alice.peer), b"\1" * 20, STAKE_MIN))
    ledger, silent = MemoryLedger(chain), False
    asked: list[bytes] = []

    async def ask(wallet: bytes) -> NodeRecord:
        asked.append(wallet)
        if silent:
            raise UnavailableError("no endpoint answers")
        return await ledger.node(wallet)

    began = trio.current_time()
    hosts = StakedHosts(
        chain_id=CHAIN, registry=REGISTRY, wall=lambda: WALL + trio.current_time() - began, draw=lambda _n: 0
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(hosts.follow, ask)
        hosts.heard(alice)
        hosts.heard(bob)
        assert not hosts.is_staked(alice.peer), "nobody waits"
        await trio.sleep(2)
        assert (hosts.is_staked(alice.peer), hosts.is_staked(bob.peer)) == (True, False)
        silent = True
        asked.clear()
        await trio.sleep(3600)
        assert hosts.is_staked(alice.peer)
        assert 5 < len(asked) < 40, "a silent chain is asked less and less often"
        silent = False
        chain.send(alice.binding.wallet, AddStake(STAKE_MIN))
        await trio.sleep(1000)
        assert hosts.stake_of(alice) == 2 * STAKE_MIN
        chain.send(alice.binding.wallet, Unbond(2 * STAKE_MIN))
        chain.send(bob.binding.wallet, Register(public_key_of(bob.peer), b"\1" * 20, STAKE_MIN))
        await trio.sleep(UNSTAKED_S)
        hosts.heard(bob)
        await trio.sleep(2)
        assert (hosts.is_staked(alice.peer), hosts.is_staked(bob.peer)) == (False, True)
        nursery.cancel_scope.cancel()


# ---- between runs


def test_the_next_run_knows_what_this_one_did(known: Known, tmp_path: Path) -> None:
    alice, path = advert_of("alice"), tmp_path / "staked.json"
    known.says(alice, STAKE_MIN)
    known.hosts.save(path)
    again = known.make()
    again.load(path)
    assert again.stake_of(alice) == STAKE_MIN
    other = StakedHosts(chain_id=1, registry=REGISTRY, wall=lambda: known.now, draw=lambda _n: 0)
    other.load(path)
    assert not other.is_staked(alice.peer), "another chain's"


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"chain_id": CHAIN, "registry": REGISTRY.hex()})])
def test_a_file_that_can_not_be_read_is_worth_nothing(known: Known, tmp_path: Path, text: str) -> None:
    path = tmp_path / "staked.json"
    path.write_text(text)
    known.hosts.load(path)
    known.hosts.load(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    known.hosts.save(tmp_path / "folder")  # a disk that takes nothing costs a log line


def test_a_file_of_the_future_is_not_believed(known: Known, tmp_path: Path) -> None:
    alice, path = advert_of("alice"), tmp_path / "staked.json"
    known.now += 1000
    known.says(alice, STAKE_MIN)
    known.hosts.save(path)
    known.now -= 1000
    again = known.make()
    again.load(path)
    assert not again.is_staked(alice.peer)
