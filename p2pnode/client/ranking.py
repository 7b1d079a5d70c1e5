"""Which host to ask: the order of hosts by advert and by what was measured, and the choice of the next.

Pure: no I/O, and the wall clock is an argument. The score is the expected time of a typical answer in
seconds, made worse by load and failures; lower is better::

    score = (connect + ttft + TYPICAL_TOKENS / tokens_per_s) * (1 + queue) * (1 + 4 * failure_share) + warm_in

The queue is that of its advert, or what of its slots this client's own turns take, and one more where they
take them all: turns that are asked at the same time first take the slots of hosts that are about as good.

A host whose model isn't loaded is so much later: ``warm_in``, as its advert says.

Hosts that the user trusts come first, then those that ask for no money. Those that do are ordered by score
times expected cost: one that is twice as fast may cost twice as much. One that has a stake, which it loses
by a lie about a paid session, may be a tenth worse. A fee that is paid already costs
nothing; of one that is due a host that keeps sessions is charged a share, for it serves several turns.

A host with which a session is open, or was left, goes before its equals; a free one where what its prompt
cache may save is worth more than what another host is faster, one that is paid while it has a slot. Hosts
outside of what the user allows and can pay are left out, also where no other host is found. A free one that
failed a few times in a row rests, and is asked only then: it may be back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from p2pnode.client.host_rules import HostRules
from p2pnode.client.reputation import BREAKER_FAILURES, Measured, failure_share, reputation
from p2pnode.contract_rules import TOKENS_PER_PRICE
from p2pnode.ids import ModelId, PeerId
from p2pnode.money import price_text, usdc_text
from p2pnode.protocols.adverts.messages import RELEASE, Advert, Capability, Offer, capability_names
from p2pnode.protocols.inference.messages import PromptBody

Verified: TypeAlias = Literal["always", "paid", "never"]
Payable: TypeAlias = Callable[[Advert, Offer], str]
"""Gives why this client can't pay an offer; "" where it can."""
TYPICAL_TOKENS: Final = 256
TYPICAL_INPUT: Final = 1024
"""Input tokens of a typical question, with the conversation before it."""
SHARED_INPUT: Final = 0.5
"""The share of them that a host had in an earlier turn, and bills anew only if it has forgotten them."""
FEE_TURNS: Final = 5
"""So many turns of a session share its fee, with a host that keeps the session between them."""
CACHE_WORTH: Final = 0.5
"""The share of a typical answer's time that a processor needs to read the input that it may have in its
cache: some 8 ms a token, and 30 tokens/s of output."""
STAKED_WORTH: Final = 0.9
"""What a stake makes of a host's score times cost: it goes before one that is better by less than that."""
_UNKNOWN_TTFT_S: Final = 0.5
_UNKNOWN_TOKENS_PER_S: Final = 30.0
_UNKNOWN_CONNECT_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the user allows. Prices are USDC units per million tokens; None allows any."""

    price_in_max: int | None = None
    price_out_max: int | None = None
    n_ctx_min: int = 0
    cost_max: int | None = None
    """Token units that one answer may cost in all, at the most that its hosts can bill."""
    rules: HostRules = field(default_factory=HostRules)
    caps: int = 0
    """What a host must be able to do: bits of ``Capability``."""
    equivalents: tuple[ModelId, ...] = ()
    """Models that the user takes for the one that is asked for, where no host of that one is left."""
    reputation_min: float = 0.0
    """The least lower end of a host's ``Reputation``, from 0 to 1: a host that nobody here asked has 0."""
    verified: Verified | None = None
    """For which hosts weights must be such as can be held against a hash; None is as ``paid``."""


def needs_of(body: PromptBody) -> Capability:
    """What a host must be able to do to answer this prompt as it is meant.

    A conversation in which tools were called needs a host that can tell its model of them, also where no tool
    may be called any more.
    """
    needs = Capability(0)
    called = any(message.role == "tool" or message.tool_calls for message in body.messages)
    if body.tools or called:
        needs |= Capability.TOOLS
    if body.response_format.kind in ("json_object", "json_schema"):
        needs |= Capability.SCHEMA
    if body.response_format.kind == "grammar":
        needs |= Capability.GRAMMAR
    if body.logprobs >= 0:
        needs |= Capability.LOGPROBS
    if body.embed:
        needs |= Capability.EMBEDDINGS
    if any(part.kind == "image" for message in body.messages for part in message.content):
        needs |= Capability.VISION
    return needs


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnBound:
    """The most that a question can take, in tokens. ``spent``: what its answer has cost so far, in token
    units."""

    tokens_in: int
    tokens_out: int
    spent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBound:
    """The most that a host can bill for a turn, in token units: ``fee`` is 0 where it is paid already."""

    tokens_in: int
    tokens_out: int
    fee: int
    total: int
    """Rounded once: at most one unit below the sum of the parts."""


def cost_bound(offer: Offer, turn: TurnBound, *, fee_paid: bool) -> CostBound:
    """The most that a turn of this size costs at this offer."""
    fee = 0 if fee_paid or not is_priced(offer) else offer.session_fee
    parts = turn.tokens_in * offer.price_in, turn.tokens_out * offer.price_out
    each_in, each_out, total = (-(-part // TOKENS_PER_PRICE) for part in (*parts, sum(parts)))
    return CostBound(tokens_in=each_in, tokens_out=each_out, fee=fee, total=fee + total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A host that was found, its offer of the model, and its score in seconds.

    ``cost`` is what a typical answer is expected to cost there, in token units, with its share of the fee.
    """

    advert: Advert
    offer: Offer
    score: float
    cost: float = 0.0
    fee_paid: bool = False
    """Whether a session with it is open, or was left with it, so that no fee is due."""
    goes_first: bool = False
    """Whether it is asked before its equals, for a session with it is open or was left."""
    trusted: bool = False
    """Whether the user named it as one to trust."""
    equivalent: bool = False
    """Whether its model is another one, which the user takes for the one that is asked for."""
    stake: int = 0
    """What it has at stake, in FAB's smallest unit; 0 where that isn't known."""
    known: Measured = field(default_factory=Measured)
    """What was measured of it."""
    excluded: str = ""
    """Why it may not be chosen; "" where it may."""
    unpaid: bool = False
    """Whether it may not be chosen for want of money alone."""
    rests: bool = False
    """Whether it is left out for its failures alone, and costs nothing: it is asked where nobody else is."""
    under_way: int = 0
    """How many turns of this client it has now."""

    @property
    def is_full(self) -> bool:
        """Whether this client's own turns have all of its slots."""
        return self.under_way >= slots_of(self.advert)

    @property
    def has_room(self) -> bool:
        """Whether it has a free slot, by its advert and by this client's own turns."""
        load = self.advert.load
        return not load.queued and max(load.active, self.under_way) < slots_of(self.advert)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Hosts in the order to try, and those left out with the reason."""

    chosen: tuple[Candidate, ...] = ()
    excluded: tuple[Candidate, ...] = field(default=())


def rank(
    adverts: Iterable[Advert],
    model: ModelId,
    measured: Mapping[PeerId, Measured],
    filters: Filters,
    now: float,
    *,
    payable: Payable | None = None,
    fee_paid: Callable[[PeerId], bool] = lambda _peer: False,
    stake_of: Callable[[Advert], int] = lambda _advert: 0,
    under_way: Callable[[PeerId], int] = lambda _peer: 0,
    turn: TurnBound | None = None,
) -> Ranking:
    """Order hosts of ``model``; the same input gives the same order.

    ``fee_paid`` says whether a session with a host is there, open or left; ``stake_of`` what it has at stake;
    ``under_way`` how many turns of this client it has now; ``turn`` is the question.
    """
    candidates = []
    for advert in adverts:
        offer = _offer(advert, model, filters)
        if offer is None:
            continue
        known, paid = measured.get(advert.peer, Measured()), fee_paid(advert.peer)
        turns = under_way(advert.peer)
        barred = _bar(advert, offer, filters, known)
        rest = "" if barred else _rest(offer, known, now)
        unpayable = (payable or why_not_free)(advert, offer)
        dear = _too_dear(offer, filters, turn, fee_paid=paid)
        candidates.append(
            Candidate(
                advert=advert,
                offer=offer,
                score=_score(advert, offer, known, turns),
                cost=expected_cost(offer, known, fee_paid=paid),
                fee_paid=paid,
                trusted=filters.rules.trusts(advert),
                equivalent=offer.model != model,
                stake=stake_of(advert),
                known=known,
                excluded=barred or rest or unpayable or dear,
                unpaid=bool(unpayable) and not (barred or rest),
                rests=bool(rest) and _may_rest(offer, known) and not (unpayable or dear),
                under_way=turns,
            )
        )
    chosen = [each for each in candidates if not each.excluded]
    fastest: dict[bool, float] = {}
    for each in chosen:
        if not is_priced(each.offer):
            fastest[each.trusted] = min(each.score, fastest.get(each.trusted, each.score))
    chosen = [
        replace(each, goes_first=True)
        if _goes_first(each, fastest.get(each.trusted, 0.0), measured)
        else each
        for each in chosen
    ]
    excluded = sorted((each for each in candidates if each.excluded), key=_order)
    return Ranking(tuple(sorted(chosen, key=_order)), tuple(excluded))


def _offer(advert: Advert, model: ModelId, filters: Filters) -> Offer | None:
    """A host's offer of the model, or else of one that the user takes for it."""
    offers = (advert.offer(each) for each in (model, *filters.equivalents))
    return next((offer for offer in offers if offer is not None), None)


def _order(candidate: Candidate) -> tuple[bool, bool, bool, bool, float, int, PeerId]:
    offer, priced = candidate.offer, is_priced(candidate.offer)
    # One unit more: whoever costs next to nothing still has to be fast.
    worth = candidate.score * (candidate.cost + 1 if priced else 1)
    if priced and candidate.stake:  # a free session is on no chain: no stake is lost by a lie in one
        worth *= STAKED_WORTH
    first = candidate.goes_first
    return (
        not candidate.trusted,
        candidate.equivalent,
        priced,
        not first,
        worth,
        _price(offer),
        candidate.advert.peer,
    )


def _goes_first(candidate: Candidate, fastest: float, measured: Mapping[PeerId, Measured]) -> bool:
    """Whether a session with this host is worth that others are not asked. ``fastest``: the best score of
    the free hosts that are trusted as it is."""
    if not candidate.fee_paid or is_priced(candidate.offer):
        # A turn would wait there for the end of another one: what that is worth beside a fee, its rank says.
        return candidate.fee_paid and not candidate.is_full
    reuse = measured.get(candidate.advert.peer, Measured()).reuse
    return candidate.score <= (1 + CACHE_WORTH * (1.0 if reuse is None else reuse)) * fastest


def expected_cost(offer: Offer, known: Measured, *, fee_paid: bool) -> float:
    """What a typical answer is expected to cost, in token units, the fee's share included.

    A host that bills anew what it has read before costs more input. One that closed a session that was left
    with it takes its fee with each visit, whatever it promises.
    """
    if not is_priced(offer):
        return 0.0
    keeps = offer.can(Capability.KEEP_TIME) and not known.left_closed
    turns = FEE_TURNS if keeps else 1
    fee = 0.0 if fee_paid else offer.session_fee / turns
    reuse = 1.0 if known.reuse is None else known.reuse
    tokens_in = TYPICAL_INPUT * (1 - SHARED_INPUT * reuse)
    return fee + (tokens_in * offer.price_in + TYPICAL_TOKENS * offer.price_out) / TOKENS_PER_PRICE


def _too_dear(offer: Offer, filters: Filters, turn: TurnBound | None, *, fee_paid: bool) -> str:
    if filters.cost_max is None or turn is None:
        return ""
    bound = turn.spent + cost_bound(offer, turn, fee_paid=fee_paid).total
    if bound <= filters.cost_max:
        return ""
    spent = f", with the {usdc_text(turn.spent)} that it cost so far" if turn.spent else ""
    return (
        f"can cost up to {usdc_text(bound)}{spent}, and --max-cost allows {usdc_text(filters.cost_max)}: "
        f"allow more, or {'lower --max-tokens' if turn.tokens_out else 'give fewer or shorter texts'}"
    )


def _may_rest(offer: Offer, known: Measured) -> bool:
    """Whether a host that the circuit breaker leaves out may be asked where nobody else is: that must cost
    nothing, for nobody bounds how often it is."""
    return not (known.is_costly or is_priced(offer))


def _rest(offer: Offer, known: Measured, now: float) -> str:
    """Why the circuit breaker leaves a host out; "" where it doesn't."""
    rest_s = known.broken_until() - now
    if rest_s <= 0:
        return ""
    what = f"failed {known.failures_in_a_row} times in a row"
    if known.failures_in_a_row < BREAKER_FAILURES:
        what = f"took pay for {math.ceil(known.unanswered)} questions and gave next to nothing"
    if known.faults:
        what = "broke the protocol"
    where = ", unless no other host is there" if _may_rest(offer, known) else ""
    return f"{what}: left out for {rest_s:.0f} s more{where}"


def _bar(advert: Advert, offer: Offer, filters: Filters, known: Measured) -> str:
    """Why a host may not be chosen whatever others there are; "" where it may."""
    if why := filters.rules.exclusion(advert):
        return why
    if advert.release_min > RELEASE:
        return (
            f"talks with release {advert.release_min} and later only, and this is {RELEASE}: upgrade p2pnode"
        )
    if advert.draining:
        return "draining: it is about to leave"
    if filters.reputation_min and (low := reputation(known).low) < filters.reputation_min:
        turns = f"{known.kept} of {known.kept + known.broken} turns ended as promised"
        return f"its reputation here is {low:.2f} ({turns}), and {filters.reputation_min:g} is asked for"
    if filters.price_in_max is not None and offer.price_in > filters.price_in_max:
        highest = usdc_text(filters.price_in_max)
        return f"input price {usdc_text(offer.price_in)} is above the allowed {highest}"
    if filters.price_out_max is not None and offer.price_out > filters.price_out_max:
        highest = usdc_text(filters.price_out_max)
        return f"output price {usdc_text(offer.price_out)} is above the allowed {highest}"
    if offer.n_ctx < filters.n_ctx_min:
        return f"context of {offer.n_ctx} tokens is below the needed {filters.n_ctx_min}"
    if offer.can(Capability.UPSTREAM) and (
        filters.verified == "always" or (filters.verified != "never" and is_priced(offer))
    ):
        return (
            "has its answers of another server, whose weights nobody can hold against a hash: --no-verified "
            "allows it"
        )
    if lacking := capability_names(filters.caps & ~offer.caps):
        return f"lacks {' and '.join(lacking)}, which is needed"
    return ""


def is_priced(offer: Offer) -> bool:
    """Whether it costs anything."""
    return bool(offer.price_in or offer.price_out)


def why_not_free(_advert: Advert, offer: Offer) -> str:
    """Why a client that has nothing to pay with leaves an offer out; "" where the offer is free."""
    if not is_priced(offer):
        return ""
    return (
        f"asks {price_text(offer.price_in, offer.price_out, offer.session_fee)}: to pay, make a wallet "
        "(`p2pnode wallet new`) and name a chain profile (--chain)"
    )


class HostChoice:
    """Which host to ask next for one question, among those found so far. Each is given out once.

    ``has_session`` says whether an idle session with a host is open, ``has_left`` whether one was left with
    it. Each ``now`` is wall clock, in seconds.
    """

    def __init__(
        self,
        model: ModelId,
        filters: Filters,
        *,
        measured: Mapping[PeerId, Measured],
        payable: Payable = why_not_free,
        has_session: Callable[[PeerId], bool] = lambda _peer: False,
        has_left: Callable[[PeerId], bool] = lambda _peer: False,
        stake_of: Callable[[Advert], int] = lambda _advert: 0,
        under_way: Callable[[PeerId], int] = lambda _peer: 0,
    ) -> None:
        self._model, self._filters = model, filters
        self._measured, self._payable = measured, payable
        self._has_session, self._has_left = has_session, has_left
        self._stake_of, self._under_way = stake_of, under_way
        self.turn: TurnBound | None = None
        """The most that is asked of the next host."""
        self._found: dict[PeerId, Advert] = {}
        self._tried: set[PeerId] = set()
        self._first: PeerId | None = None
        self.standby: PeerId | None = None
        """The host that is kept ready."""

    def found(self, advert: Advert) -> None:
        """A host was found, or a newer advert of one. An older one changes nothing.

        A free host that was started anew since may be given once more: what it was given for before died
        with it.
        """
        held = self._found.get(advert.peer)
        if held is not None:
            if (advert.binding.seq, advert.seq) < (held.binding.seq, held.seq):
                return
            offer = _offer(advert, self._model, self._filters)
            known = self._measured.get(advert.peer, Measured())
            if advert.instance != held.instance and offer is not None and _may_rest(offer, known):
                self._tried.discard(advert.peer)
        self._found[advert.peer] = advert

    def try_first(self, advert: Advert) -> None:
        """Give this host first: a session with it is open. Of several the last one named is given."""
        self.found(advert)
        self._first = advert.peer

    def pass_over(self, peer: PeerId) -> None:
        """Don't give this host."""
        self._tried.add(peer)

    def need_context(self, tokens: int) -> None:
        """Leave out hosts whose context is smaller."""
        self._filters = replace(self._filters, n_ctx_min=max(tokens, self._filters.n_ctx_min))

    def may_ask_again(self, peer: PeerId, now: float) -> bool:
        """Whether :attr:`turn` may be asked once more of this host, which was given out: another session with
        it could cost more than is allowed, and the circuit breaker may leave it out by now."""
        known, advert = self._measured.get(peer, Measured()), self._found.get(peer)
        offer = _offer(advert, self._model, self._filters) if advert is not None else None
        if known.broken_until() > now:
            alone = offer is not None and _may_rest(offer, known) and not self.has_untried(now)
            if not alone:
                return False
        paid = self._fee_paid(peer)
        return offer is None or not _too_dear(offer, self._filters, self.turn, fee_paid=paid)

    def keep_to_trusted(self) -> None:
        """Leave out hosts that the user didn't name as ones to trust, where any were named."""
        self._filters = replace(self._filters, rules=self._filters.rules.keep_to_trusted())

    def ranking(self, now: float) -> Ranking:
        """All hosts found so far."""
        return self._rank(self._found.values(), now)

    def _rank(self, adverts: Iterable[Advert], now: float) -> Ranking:
        return rank(
            adverts,
            self._model,
            self._measured,
            self._filters,
            now,
            payable=self._payable,
            fee_paid=self._fee_paid,
            stake_of=self._stake_of,
            under_way=self._under_way,
            turn=self.turn,
        )

    def _fee_paid(self, peer: PeerId) -> bool:
        # Of a host that closed a session that was left with it, the next one's fee is as good as due.
        closes = self._measured.get(peer, Measured()).left_closed > 0
        return self._has_session(peer) or (self._has_left(peer) and not closes)

    def best(self, now: float, *, standby_first: bool = True, resting: bool = True) -> Candidate | None:
        """The host to give next, as far as is known now. One that rests: only if ``resting``, and where there
        is no other.

        Hosts that are trusted go first, then those of the very model, then free ones. Among their equals
        those with a session that is worth it go first. Then the standby, if ``standby_first``: it answers at
        once. Then by rank.
        """

        return next(iter(self._in_order(now, standby_first=standby_first, resting=resting)), None)

    def _in_order(self, now: float, *, standby_first: bool = True, resting: bool = False) -> list[Candidate]:
        def order(candidate: Candidate) -> tuple[bool, bool, bool, bool, bool]:
            ready = standby_first and candidate.advert.peer == self.standby
            priced, first = is_priced(candidate.offer), candidate.goes_first
            return not candidate.trusted, candidate.equivalent, priced, not first, not ready

        return sorted(self._untried(now, resting=resting), key=order)

    def take_best(self, now: float, *, resting: bool = True) -> Candidate | None:
        """:meth:`best`, given out."""
        best = self.best(now, resting=resting)
        if best is not None:
            self._tried.add(best.advert.peer)
        return best

    def take_second(self, now: float, allows: Callable[[Candidate], bool]) -> Candidate | None:
        """The best host that ``allows`` takes, given out; None where there is none."""
        second = next(filter(allows, self._in_order(now)), None)
        if second is not None:
            self._tried.add(second.advert.peer)
        return second

    def take_first(self, now: float) -> Candidate | None:
        """The host that is to be tried first, given out; None where there is none, or it may not be used."""
        first, self._first = self._first, None
        for candidate in self.ranking(now).chosen if first is not None else ():
            if candidate.advert.peer == first:
                self._tried.add(first)
                return candidate
        return None

    def may_use(self, peer: PeerId, now: float) -> bool:
        """Whether this host was not given out yet, and is allowed."""
        # By itself: what else was found changes its place and nothing of whether it may be given.
        advert = self._found.get(peer)
        if advert is None or peer in self._tried:
            return False
        ranking = self._rank([advert], now)
        return bool(ranking.chosen) or any(each.rests for each in ranking.excluded)

    def has_untried(self, now: float) -> bool:
        """Whether a host is left that may be given out."""
        return any(self.may_use(peer, now) for peer in self._found)

    def _untried(self, now: float, *, resting: bool) -> list[Candidate]:
        ranking = self.ranking(now)
        untried = [each for each in ranking.chosen if each.advert.peer not in self._tried]
        if untried or not resting:
            return untried
        return [each for each in ranking.excluded if each.rests and each.advert.peer not in self._tried]


def _score(advert: Advert, offer: Offer, known: Measured, under_way: int) -> float:
    connect = _UNKNOWN_CONNECT_S if known.connect_s is None else known.connect_s
    ttft = _UNKNOWN_TTFT_S if known.ttft_s is None else known.ttft_s
    speed = known.tokens_per_s or _UNKNOWN_TOKENS_PER_S
    load, slots = advert.load, slots_of(advert)
    queue = (load.active + load.queued) / slots if load.active >= load.slots else 0.0
    # An advert is older than what this client asks now, and turns that share an engine slow one another.
    # Where they have all its slots the next one also waits for an answer to end.
    queue = max(queue, under_way / slots + (under_way >= slots))
    answer_s = (connect + ttft + TYPICAL_TOKENS / speed) * (1 + queue) * (1 + 4 * failure_share(known))
    return answer_s + offer.warm_in_s


def slots_of(advert: Advert) -> int:
    """How many turns a host can run at once, as it says."""
    return max(1, advert.load.slots)


def _price(offer: Offer) -> int:
    return offer.price_in + offer.price_out
