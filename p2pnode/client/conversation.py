"""A conversation at its client: what was said, the next question, and all of it kept where that is possible.

::

    talk = await client.talk(model="smollm2-135m-instruct")
    async with talk.ask("Why is the sky blue?") as answer:
        async for piece in answer:
            print(piece, end="")

An answer that was cut short goes on from the token where it stopped (:meth:`Talk.go_on`), also on another
machine. Keeping never holds an answer up: see ``recorder.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from p2pnode.client.failover import Held
from p2pnode.client.question import ChatOptions, Questions
from p2pnode.client.runtime import Runtime
from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.inference.messages import Role, SamplingParams
from p2pnode.storage.conversations.records import Finish, Piece
from p2pnode.storage.conversations.turns import Turn

if TYPE_CHECKING:
    from p2pnode.client.answer import Answer
    from p2pnode.client.bill import BillItem
    from p2pnode.storage.conversations.conversation import Conversation
    from p2pnode.storage.conversations.records import Loss
    from p2pnode.storage.conversations.writer import ConversationWriter


_SEEDS: Final = 1 << 32
"""A seed has 32 bits on the wire."""


class Talk:
    """Made by ``Client.talk`` and ``Client.resume``. One answer at a time."""

    def __init__(
        self,
        runtime: Runtime,
        questions: Questions,
        options: ChatOptions,
        *,
        model: ModelId,
        recorder: ConversationWriter | None = None,
        on_host: Callable[[PeerId], None] = lambda _peer: None,
    ) -> None:
        self._runtime, self._questions = runtime, questions
        self._options, self._model = options, model
        self._recorder, self._on_host = recorder, on_host
        self._branches = 0
        self._purchases: set[SessionId] = set()
        """Paid sessions that were not over when they were noted last."""
        kept = self.conversation
        self._lines: list[Line] = lines_of(kept.turns) if kept is not None else []
        if kept is not None:
            kept.moved, self._branches = False, len(kept.branches)
        if options.system and not self._lines:
            self._say("system", options.system)

    @property
    def conversation(self) -> Conversation | None:
        """As it is kept; None where it isn't, or nothing was said yet."""
        return self._recorder.conversation if self._recorder is not None else None

    @property
    def losses(self) -> Sequence[Loss]:
        """What should be kept of it and could not be read."""
        kept = self.conversation
        return kept.losses if kept is not None else ()

    @property
    def is_kept(self) -> bool:
        """Does it go to the archive?"""
        return self._recorder is not None

    @property
    def lines(self) -> Sequence[Line]:
        """All that was said, oldest first."""
        return tuple(self._lines)

    @property
    def cut_short(self) -> bool:
        """Can :meth:`go_on` go on with the last answer?"""
        return unfinished(self._lines) is not None

    @property
    def unanswered(self) -> bool:
        """Did nothing come of that answer yet?"""
        line = unfinished(self._lines)
        return line is not None and not line.ids

    def ask(self, question: str) -> Answer:
        """The next question."""
        self._catch_up()
        self._say("user", question)
        return self._answer(Line("assistant", over=False))

    def again(self) -> Answer:
        """The last question once more, with the next seed. Raises ``ConfigError`` where there is none."""
        if not any(line.role == "user" for line in self._lines):
            msg = "nothing was asked yet: ask something first"
            raise ConfigError(msg)
        cut = unfinished(self._lines)
        if cut is not None:
            self._record(Piece(role="assistant", finish="cancelled", at=self._runtime.now()))
            cut.over = True
        sampling = self._options.sampling or SamplingParams()
        # With the seed it had, the host would say the same again; the next one is as repeatable.
        sampling = replace(sampling, seed=(sampling.seed + 1) % _SEEDS)
        self._options = replace(self._options, sampling=sampling)
        return self._answer(Line("assistant", over=False))

    def go_on(self) -> Answer:
        """The rest of the answer that was cut short. Raises ``ConfigError`` where there is none."""
        line = unfinished(self._lines)
        if line is None:
            msg = "no answer was cut short: ask something"
            raise ConfigError(msg)
        return self._answer(line)

    def _answer(self, line: Line) -> Answer:
        before = [each for each in self._lines if each is not line]
        while before and before[-1].role == "assistant":
            before.pop()  # asked for again: the model must not see what it said
        if line not in self._lines:
            self._lines.append(line)
        notes = _Notes(self, line)
        return self._questions.answer(prompt_of(before), self._options, held=line.held, watcher=notes)

    def _say(self, role: Role, text: str) -> None:
        self._lines.append(Line(role, text))
        self._record(Piece(role=role, text=text, at=self._runtime.now()))

    def _catch_up(self) -> None:
        """Another machine's line may have taken the place of ours: then it is what we go on from."""
        kept = self.conversation
        if kept is not None and kept.moved:
            self._lines, kept.moved = lines_of(kept.turns), False
            branched, self._branches = len(kept.branches) > self._branches, len(kept.branches)
            self._runtime.tell("conversation.moved", {"conversation": kept.sid.hex(), "branched": branched})

    # ---- for its notes

    def note_text(
        self, text: str, ids: Sequence[int], host: PeerId | None, session: SessionId | None
    ) -> None:
        """More of the answer."""
        self._record(
            Piece(
                role="assistant", text=text, ids=tuple(ids), host=host, session=session,
                model=self._model, at=self._runtime.now(),
            )
        )  # fmt: skip

    def note_bill(self, item: BillItem) -> None:
        """What a host's part of it cost, and the voucher that pays for it."""
        self._record(
            Piece(
                role="assistant", host=item.peer, session=item.session, tokens_in=item.tokens_in,
                reused=item.reused, tokens_out=item.tokens_out, cost=item.cost, at=self._runtime.now(),
            )
        )  # fmt: skip
        self.note_purchases(item.session)

    def note_end(self, finish: Finish | None) -> None:
        """It is whole."""
        self._record(Piece(role="assistant", finish=finish, at=self._runtime.now()))

    def note_purchases(self, *sessions: SessionId) -> None:
        """The paid sessions it came from, and the earlier ones that are over since.

        Money is to be recovered with the conversation, and another machine must not touch what is still used.
        """
        if self._recorder is None:
            return
        for session in dict.fromkeys((*sessions, *self._purchases)):
            saved = self._runtime.purchase(session)
            if saved is None:
                continue
            if session in sessions or saved.over:
                self._recorder.paid_with(saved)
            if saved.over:
                self._purchases.discard(session)
            else:
                self._purchases.add(session)

    def note_host(self, peer: PeerId) -> None:
        """Who serves it: a host stores for whom it serves."""
        self._on_host(peer)

    def _record(self, *pieces: Piece) -> None:
        if self._recorder is not None:
            self._recorder.add(*pieces)

    @property
    def trouble(self) -> str:
        """Why what was said last is not on our disk; "" where it is, or is to be nowhere."""
        return self._recorder.trouble if self._recorder is not None else ""

    async def settled(self) -> None:
        """Until all of it is on our disk, if that takes it."""
        self.note_purchases()
        if self._recorder is not None:
            await self._recorder.flushed()


class _Notes:
    """Follows an answer, and tells the talk what is new of it."""

    def __init__(self, talk: Talk, line: Line) -> None:
        self._talk, self._line = talk, line
        self._ids, self._text = len(line.ids), len(line.text)
        self._sessions: set[SessionId] = set()

    def took(self, answer: Answer) -> None:
        """Tokens came, or the receipt for them."""
        line = self._line
        line.text, line.ids, line.told = answer.text, answer.ids, answer.text_known

    def receipted(self, answer: Answer) -> None:
        """The host's receipt over all of it was checked: a good moment to keep it."""
        self._keep(answer, answer.text_known)
        if answer.host is not None:
            self._talk.note_host(answer.host)
        session = answer.session
        fresh = () if session is None or session in self._sessions else (session,)
        self._sessions.update(fresh)
        self._talk.note_purchases(*fresh)

    def billed(self, answer: Answer, item: BillItem) -> None:
        """A host's part is over."""
        self._keep(answer, answer.text_known)
        self._keep(answer, len(answer.ids))  # what no text came of stands apart
        self._talk.note_bill(item)

    def ended(self, answer: Answer, finish: Finish | None) -> None:
        """It is whole, or it was stopped or cut short: then it may go on."""
        self.took(answer)
        self._keep(answer, answer.text_known)
        self._line.over = finish in ("stop", "length")
        if self._line.over:
            self._talk.note_end(finish)

    def _keep(self, answer: Answer, ids_until: int) -> None:
        ids, text = answer.ids[self._ids : ids_until], answer.text[self._text :]
        if ids or text:
            self._ids, self._text = max(self._ids, ids_until), len(answer.text)
            self._talk.note_text(text, ids, answer.host, answer.session)


# What was said in a conversation, and what of it goes into the next prompt. Pure.
#
# A question that got no answer and was asked again, and an answer that was asked for again, stay in the
# history and leave the prompt. It knows neither hosts nor where a conversation is kept.


@dataclass(slots=True)
class Line:
    """One turn. ``told`` of an answer's ``ids`` have their text; ``over`` is False while more may come."""

    role: Role
    text: str = field(default="", repr=False)
    ids: list[int] = field(default_factory=list, repr=False)
    told: int = 0
    over: bool = True

    @property
    def held(self) -> Held:
        """What an answer goes on from."""
        return Held(tuple(self.ids), self.text, self.told)


def lines_of(turns: Iterable[Turn]) -> list[Line]:
    """Turns that were kept. A question that got no answer waits for it, as one that was cut short at once."""
    lines = [_line(turn) for turn in turns]
    if lines and lines[-1].role == "user":
        lines.append(Line("assistant", over=False))
    return lines


def _line(turn: Turn) -> Line:
    told = count = 0
    for piece in turn.pieces:
        count += len(piece.ids)
        told = count if piece.text else told
    over = turn.role != "assistant" or turn.finish is not None
    return Line(turn.role, turn.text, list(turn.ids), told, over)


def prompt_of(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Messages for a host: of lines of one role in a row, the last. An answer without text says nothing."""
    said = [line for line in lines if line.text or line.role != "assistant"]
    kept = [
        line
        for at, line in enumerate(said)
        if line.role == "system" or at + 1 == len(said) or said[at + 1].role != line.role
    ]
    return [{"role": line.role, "content": line.text} for line in kept]


def unfinished(lines: Sequence[Line]) -> Line | None:
    """The answer that was cut short, if it is the last thing said."""
    last = lines[-1] if lines else None
    return last if last is not None and last.role == "assistant" and not last.over else None
