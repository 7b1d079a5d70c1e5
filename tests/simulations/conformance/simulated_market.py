"""``SimulatedMarket``: the script of a market by the simulation's hosts and clients."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, SamplingParams
from p2pnode.simulations.market import engines
from p2pnode.simulations.market.client import Clients
from p2pnode.simulations.market.economy import Economy, Prices
from p2pnode.simulations.market.engines import Engines, named_by, seed_of_length
from p2pnode.simulations.market.host import Hosts
from p2pnode.simulations.market.ledger import EPOCH_S, Chain
from p2pnode.simulations.market.market import Market, MarketService
from p2pnode.simulations.market.question import Question
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.world import Node, World
from tests.simulations.conformance.market_script import (
    BLOCK_S,
    END_S,
    FEE,
    LIMITS,
    LINKS,
    N_CTX,
    PRICE_IN,
    PRICE_OUT,
    REQUEST_S,
    RICH,
    SLOTS,
    TOKENS_PER_S,
    MarketOutcome,
    MarketScript,
    Step,
    cache_key_of,
    ip_of,
)

_FAST: float = 1e9
"""Tokens of a prompt that are read in a second."""


class SimulatedMarket:
    """See the module."""

    def __init__(self, script: MarketScript, **changes: Any) -> None:
        self._script = script
        self._outcome = MarketOutcome()
        self._world = World(script.seed, links=LINKS)
        parameters = Market(
            hosts=Hosts(count=script.hosts, bootstrap=1, turns_per_session=SLOTS, count_s=0.0),
            clients=Clients(conversations_per_hour=0.0, tokenizer_share=1.0),
            engines=Engines(
                **{
                    "slots": SLOTS,
                    "n_ctx": N_CTX,
                    "prefill_tokens_per_s": _FAST,
                    "decode_tokens_per_s": TOKENS_PER_S,
                    "batch_slowdown": 0.0,
                    "spread": 0.0,
                    **changes,
                }
            ),
            economy=Economy(
                price_in=PRICE_IN, price_out=PRICE_OUT, price_spread=0.0, session_fee=FEE, wallet=RICH
            ),
            chain=Chain(block_s=BLOCK_S, request_s=REQUEST_S),
        )
        self._recorder = Recorder(self.heard)
        self._market = MarketService(self._world, parameters, recorder=self._recorder)
        self._market.limits = LIMITS
        self._keys = [public_key_of(key.peer_id) for key in script.keys]
        self._nodes: dict[int, Node] = {}
        self._believed: set[tuple[int, int, int]] = set()
        self._asked: dict[int, tuple[int, int, int]] = {}
        """By client, what a host is asked that has answered nothing: question, host, prefix."""
        self._questions: dict[int, dict[int, Question]] = {}
        """By client and number, those under way."""

    def run(self) -> MarketOutcome:
        """Play it to its end."""
        for step in self._script.steps:
            self._world.loop.at(step.at_s, self._do, step)
        with patch.object(engines, "BYTES_PER_TOKEN", 1):  # as the scripted engine
            self._world.run_until(END_S)
        return self._outcome

    def _do(self, step: Step) -> None:
        market, number = self._market, step.node
        if step.kind == "start":
            self._nodes[number] = market.add_host(key=self._keys[number], ip=ip_of(number))
        elif step.kind == "price":
            profile = market.host_profiles[self._nodes[number].number]
            profile.prices = Prices(*step.prices, FEE)
            if (host := market.hosts.get(self._nodes[number].peer)) is not None:
                host.announce()
        elif step.kind == "crash":
            self._world.crash(self._nodes[number])
        elif step.kind == "restart":
            self._world.restart(self._nodes[number])
        elif step.kind == "ask":
            self._ask(step)
        else:
            for session in list(market.clients[self._nodes[number].peer].sessions):
                session.close()

    def _ask(self, step: Step) -> None:
        if step.node not in self._nodes:
            node = self._market.add_client(key=self._keys[step.node], ip=ip_of(step.node))
            profile = self._market.client_profiles[node.number]
            profile.bootstrap = (self._nodes[self._script.first_peer(step.node)],)
            self._nodes[step.node] = node
        client = self._market.clients[self._nodes[step.node].peer]
        # As many tokens as the scripted engine counts: a message has one more than its text here.
        text = f"{step.number:04x}".ljust(step.tokens_in - 1, "x")
        seed = seed_of_length(step.tokens_out, bytes([step.number % 256, step.number // 256]))
        body = PromptBody(
            messages=(ChatMessage.of("user", text),),
            sampling=SamplingParams(tokens_max=step.tokens_out + 50),
            seed=seed,
            now=named_by(seed),
            cache_key=cache_key_of(step),
        )
        question = Question(client, self._market.models[0], body, lambda over: self._over(step, over))
        self._questions.setdefault(step.node, {})[step.number] = question
        question.begin()

    def _over(self, step: Step, question: Question) -> None:
        del self._questions[step.node][step.number]
        items = question.failover.bill.items
        tokens_in = sum(item.tokens_in for item in items)
        self._outcome.note(
            self._world.now, step.node, "answer", step.number, question.outcome, tokens_in,
            len(question.partial.ids), question.cost,
        )  # fmt: skip

    # ---- what is told

    def heard(self, now: float, number: int, kind: str, values: tuple[Any, ...]) -> None:
        """An application event of the simulation."""
        script = {node.number: each for each, node in self._nodes.items()}
        node = script.get(number, -1)
        if node < 0 and number >= 0:
            return  # it starts, and says so of itself
        if kind == "advert" and node < self._script.hosts:
            self._advert(now, node, values[0])
        elif kind == "turn asked":
            (question,) = self._questions[node]
            self._asked[node] = question, script[values[0]], values[1]
        elif kind == "tokens":
            (question,) = self._questions[node]
            if (asked := self._asked.pop(node, None)) is not None:
                self._outcome.note(now, node, "host", *asked)
            self._outcome.note(now, node, "tokens", question, values[0] + values[1])
        elif kind in ("receipt", "signed", "paid"):
            self._outcome.note(now, node, kind, script[values[0]], *values[1:])
        elif kind == "SessionOpened":
            terms = self._market.chain.in_escrow[values[0]]
            self._outcome.note(now, -1, "opened", self._of(terms.payer), self._of(terms.host))
        elif kind == "SessionClosed":
            closed = self._market.chain.closed[values[0]]
            payer, host = self._of(closed.payer), self._of(closed.host)
            self._outcome.note(now, -1, "settled", payer, host, closed.amount)

    def _of(self, wallet: bytes) -> int:
        return next(
            each
            for each, node in self._nodes.items()
            if wallet in (self._wallet(node.number, "host"), self._wallet(node.number, "client"))
        )

    def _wallet(self, number: int, role: str) -> bytes:
        return self._market.keys.address(f"{role} {number}")

    def _advert(self, now: float, node: int, peer: PeerId) -> None:
        entry = self._market.adverts[self._nodes[node].peer].book.get(peer, EPOCH_S + now)
        if entry is None:
            return
        other = next(each for each, known in self._nodes.items() if known.peer == peer)
        fact = node, other, entry.advert.offers[0].price_out
        if fact not in self._believed:
            self._believed.add(fact)
            self._outcome.note(now, node, "advert", *fact[1:])
