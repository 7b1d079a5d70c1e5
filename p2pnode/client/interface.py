"""What a program uses of a client, wherever its answers come from.

There are two implementations. The client in ``client.py`` has a network of its own; the one in ``proxy`` has
the gateway of its data dir do the work. One of them is chosen in ``chosen.py``. This module imports neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from p2pnode.client.bill import BillItem, Usage
from p2pnode.client.chat_options import ChatOptions, ContextChoice, Estimate, Messages, tools_of
from p2pnode.client.failover import Held, PartialAnswer
from p2pnode.client.ranking import Filters, Ranking
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.answer import Said
from p2pnode.protocols.adverts.messages import Advert, Offer, Sheet
from p2pnode.protocols.inference.messages import ResponseFormat, SamplingParams, TokenLogprob, ToolCall
from p2pnode.protocols.inference.prompt_rules import call_id, seed_of

if TYPE_CHECKING:
    from array import array

    from p2pnode.client.hedging import HedgeMode
    from p2pnode.payments.journal.keys import Key
    from p2pnode.storage.conversations.records import Loss, SavedConversation


class Answer(ABC):
    """``async for piece in answer``. After the end: ``usage``, ``bill``, ``host``, ``text``, ``ids``.

    Several hosts may give it, one after another; the reader sees one text, each token once. When no host can
    go on, what came stays in ``text`` and ``ids``, and ``Client.go_on`` goes on from there. A host that broke
    the protocol may cost the last ids whose text nobody saw.

    Who leaves the loop ends the turn: at once with ``async with``, soon where the answer is dropped.
    """

    _partial: PartialAnswer
    host: PeerId | None
    """The last host that was asked."""
    usage: Usage | None
    """Set once the answer is whole."""
    checkpoints: int
    """How many receipts were checked."""
    logprobs: list[TokenLogprob]
    """Of the ids that this answer brought, where they were asked for. No host proves them."""
    trusted: bool
    """Whether a host that the user trusts was asked."""
    left_out: int
    """How many of the oldest messages were left out of the prompt."""

    @property
    @abstractmethod
    def text_checked(self) -> bool:
        """Whether text and calls of tools were compared with the ids that hosts were paid for."""

    @property
    @abstractmethod
    def session(self) -> SessionId | None:
        """The session that is asked now."""

    @property
    @abstractmethod
    def wallet(self) -> bytes | None:
        """The wallet of the host that was asked last, by its binding; 20 bytes."""

    @property
    @abstractmethod
    def offer(self) -> Offer | None:
        """The offer of the host that was asked last: its model and prices."""

    @property
    @abstractmethod
    def standby(self) -> PeerId | None:
        """The next host, if one is ready to go on."""

    @property
    @abstractmethod
    def bill(self) -> tuple[BillItem, ...]:
        """What each host was used for, in order; a host's item comes when its attempt is over."""

    @abstractmethod
    async def next_said(self) -> Said:
        """The next piece in any channel. Raises ``StopAsyncIteration`` at the end."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop the turn if it still runs. What was delivered, and is billed, is in ``text`` and ``ids``."""

    @abstractmethod
    def rest(self) -> Answer:
        """Another answer that goes on from what this one holds."""

    # ---- what came

    @property
    def seed(self) -> bytes:
        """The seed of its prompt: 16 bytes."""
        return self._partial.body.seed

    @property
    def next_seed(self) -> bytes:
        """See ``Held.seed``."""
        return self._partial.seed

    @property
    def reasoning(self) -> str:
        """What the model thought so far."""
        return self._partial.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls so far; the last one may be cut where the answer is. Each has an id that stays."""
        seed = self._partial.body.seed
        calls = enumerate(self._partial.calls)
        return tuple(ToolCall(id=call_id(seed, at), name=name, arguments=said) for at, (name, said) in calls)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._partial.text

    @property
    def ids(self) -> list[int]:
        """The token ids so far; their text may come later."""
        return self._partial.ids

    @property
    def text_known(self) -> int:
        """How many of ``ids`` have their text in ``text``."""
        return self._partial.text_known

    @property
    def held(self) -> Held:
        """What another answer can go on from, perhaps in another process: ``Client.chat`` takes it."""
        return self._partial.held

    # ---- reading

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while True:
            said = await self.next_said()
            if said.channel == "content" and said.text:
                return said.text

    def events(self) -> AsyncIterator[Said]:
        """All that the model says as it comes: content, reasoning, and calls of tools in pieces.

        Use it instead of ``async for`` over the answer, which gives the content only.
        """
        return _Events(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Events:
    """See ``Answer.events``. No generator: one that is left half read has to be closed, and is often not."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Said:
        return await self._answer.next_said()


class Embedding(ABC):
    """``async for vector in embedding``: an array of float32 for each text, in the order of the texts."""

    vectors: list[array[float]]
    """Those that came so far."""

    @property
    @abstractmethod
    def bill(self) -> tuple[BillItem, ...]:
        """What each host was used for, in order."""

    @property
    def cost(self) -> int:
        """Token units that it cost so far."""
        return sum(item.cost for item in self.bill)

    @property
    def tokens_in(self) -> int:
        """Tokens of the texts that were billed."""
        return sum(item.tokens_in - item.reused for item in self.bill)

    def __aiter__(self) -> Self:
        return self

    @abstractmethod
    async def __anext__(self) -> array[float]: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Ask for no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What other nodes had of this user's conversations and paid sessions: how many of each.

    ``answered`` other nodes answered; ``failures`` has those that did not, and why.
    """

    conversations: int
    sessions: int
    answered: int
    failures: Mapping[str, str]
    revision: int | None
    """The index's revision; None where no node that answered has an index."""
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Conversations whose ids begin as asked. ``recovered``: what others had, if they were asked."""

    conversations: tuple[SavedConversation, ...]
    recovered: Recovered | None = None


class Conversation(ABC):
    """Made by ``Client.new_conversation`` and ``Client.resume``. It gives one answer at a time."""

    @property
    @abstractmethod
    def sid(self) -> bytes | None:
        """The name by which it is kept, 16 bytes; None where it isn't, or nothing was said yet."""

    @property
    @abstractmethod
    def is_kept(self) -> bool:
        """Whether it is written down."""

    @property
    @abstractmethod
    def losses(self) -> Sequence[Loss]:
        """Parts of it that should have been kept and could not be read."""

    @property
    @abstractmethod
    def has_question(self) -> bool:
        """Whether anything was asked, so that :meth:`again` can ask it again."""

    @property
    @abstractmethod
    def cut_short(self) -> bool:
        """Whether :meth:`go_on` can go on with the last answer."""

    @property
    @abstractmethod
    def unanswered(self) -> bool:
        """Whether the last answer was cut short before anything came."""

    @property
    @abstractmethod
    def calls(self) -> Sequence[ToolCall]:
        """The tools that the last answer called, while their results are waited for."""

    @abstractmethod
    def ask(self, question: str) -> Answer:
        """Ask the next question."""

    @abstractmethod
    def give_results(self, results: Sequence[str]) -> Answer:
        """Give the results of :attr:`calls`, in their order, and ask on.

        Which tool is called from here on is the model's to choose, whatever ``tool_choice`` demanded before:
        it would never answer. Raises ``ConfigError`` for another number of results.
        """

    @abstractmethod
    def again(self) -> Answer:
        """Ask the last question again, with the next seed. Raises ``ConfigError`` where there is none."""

    @abstractmethod
    def go_on(self) -> Answer:
        """Ask for the rest of the answer that was cut short. Raises ``ConfigError`` where there is none."""

    @abstractmethod
    async def wait_written(self) -> None:
        """Until all of it is on this machine's disk, or the disk did not take it."""


class Client(ABC):
    """Finds hosts and asks them, or has somebody do so."""

    last_failures: Mapping[PeerId, str]
    """Of the last :meth:`hosts`: hosts that were not reached, and why."""
    alone: bool
    """Whether the last :meth:`hosts` met no other node, and knew of none."""

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        peer: str | None = None,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        filters: Filters | None = None,
        context: ContextChoice = "refuse",
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str = "auto",
        response_format: ResponseFormat | None = None,
        logprobs: int = -1,
        seed: int | None = None,
        budget: Key | None = None,
        hedge: HedgeMode | None = None,
        held: Held | None = None,
    ) -> Answer:
        """Ask a question; iterate over the result for pieces of text as they stream.

        ``messages``: a question, or a conversation as ``{"role", "content"}`` maps, as OpenAI's API has them.
        ``tools`` has functions that the model may call, in the same form; ``Answer.events`` brings calls as
        they stream, ``Answer.tool_calls`` has them. ``tool_choice`` is "auto", "none", "required" or "name:"
        and a tool's name. ``response_format`` shapes the content. ``logprobs`` asks for those of the answer's
        tokens and so many likely ones, ``seed`` makes sampling repeatable on one engine. ``model``: a name of
        the catalogue or a model id; the default model otherwise. ``peer``: the multiaddr of the host to ask;
        then none is searched. ``context``: see ``ChatOptions``. ``budget``: the key that pays. ``hedge``:
        whether a second host is asked where the first token is late (see ``NodeConfig``). ``held``: what came
        of this answer before, to go on from. Raises, while iterating: ``NoHostError``, ``RefusedError``,
        ``UnreachableError``, and ``LocalError`` where this side can't or may not pay
        (``BudgetError`` where the key does not); ``ConfigError`` for an unknown model or malformed multiaddr,
        at once or while iterating.
        """
        options = ChatOptions(
            model=model,
            peer=peer,
            system=system,
            sampling=sampling,
            filters=filters,
            context=context,
            tools=tools_of(tools),
            tool_choice=tool_choice,
            response_format=response_format or ResponseFormat(),
            logprobs=logprobs,
            seed=None if seed is None else seed_of(seed),
            budget=budget,
            hedge=hedge,
        )
        return self.answer(messages, options, held=held)

    @abstractmethod
    def answer(self, messages: Messages, options: ChatOptions, *, held: Held | None = None) -> Answer:
        """As :meth:`chat`, with all options in one."""

    def go_on(self, answer: Answer) -> Answer:
        """Go on with an answer that was cut short, from exactly what it holds: no token is asked for twice.

        The new answer's ``text`` and ``ids`` begin with those of the old one; its pieces and its bill don't.
        """
        return answer.rest()

    @abstractmethod
    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        peer: str | None = None,
        filters: Filters | None = None,
        budget: Key | None = None,
    ) -> Embedding:
        """The vector of each text: iterate over the result, which gives tuples of numbers in their order.

        Only hosts whose engine makes embeddings are asked, in as many turns as the texts take; each text is
        billed once, as input. Other parameters and what is raised are as in :meth:`chat`; ``ConfigError`` for
        a text that is empty, at once.
        """

    @abstractmethod
    async def estimate(self, messages: Messages, options: ChatOptions | None = None) -> list[Estimate]:
        """What a question can cost at each host that may be asked; see ``Questions.estimate``."""

    @abstractmethod
    async def count(self, messages: Messages, options: ChatOptions) -> tuple[int, bool]:
        """How many tokens a prompt has, and whether that is exact; see ``Questions.count``."""

    @abstractmethod
    async def new_conversation(
        self, options: ChatOptions | None = None, *, keep: bool = True
    ) -> Conversation:
        """A new conversation, kept where this data dir keeps any. Raises ``LocalError``."""

    @abstractmethod
    async def resume(self, sid: bytes, options: ChatOptions | None = None) -> Conversation:
        """A conversation that was kept, here or elsewhere. Raises ``LocalError``; see ``Archive.open``."""

    @abstractmethod
    async def find_conversation(self, begins: str) -> Found:
        """Kept conversations whose ids begin with these digits, or those that other nodes keep if none does.

        Raises ``LocalError``.
        """

    @abstractmethod
    async def hosts(self, model: str | None = None, filters: Filters | None = None) -> Ranking:
        """Hosts of a model in the order they would be tried, and those left out with the reason."""

    @abstractmethod
    async def sheets(self, adverts: Iterable[Advert]) -> dict[PeerId, Sheet]:
        """What these hosts say at length, asked of all at once; those that don't answer are left out."""

    @abstractmethod
    async def known_adverts(self) -> list[Advert]:
        """Live adverts of every model that the first peers and those on the local network know of."""
