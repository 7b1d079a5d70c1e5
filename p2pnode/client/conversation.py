"""A conversation at its client: what was said, the next question, and all of it kept where that is possible.

::

    conversation = await client.new_conversation()
    async with conversation.ask("Why is the sky blue?") as answer:
        async for piece in answer:
            print(piece, end="")

An answer that was cut short goes on from the token where it stopped (:meth:`Conversation.go_on`), also on
another machine. No answer waits for what is kept: see ``storage/conversations/writer.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from p2pnode.client import interface
from p2pnode.client.answer import Answer
from p2pnode.client.bill import BillItem
from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.history import History, Message
from p2pnode.client.host_rules import HostRules
from p2pnode.client.question import Questions
from p2pnode.client.runtime import Runtime
from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.inference.messages import Role, ToolCall
from p2pnode.protocols.inference.prompt_rules import next_seed
from p2pnode.storage.conversations.records import Finish, Loss, Piece

if TYPE_CHECKING:
    from p2pnode.storage.conversations.stored_conversation import StoredConversation
    from p2pnode.storage.conversations.writer import ConversationWriter


class Conversation(interface.Conversation):
    """A conversation whose answers this client has of hosts itself.

    Where it is kept, a ``writer`` writes it down; ``on_host`` is called with each host that serves it.
    """

    def __init__(
        self,
        runtime: Runtime,
        questions: Questions,
        options: ChatOptions,
        *,
        model: ModelId,
        writer: ConversationWriter | None = None,
        on_host: Callable[[PeerId], None] = lambda _peer: None,
    ) -> None:
        self._runtime, self._questions = runtime, questions
        # No host's cache of one conversation tells anything of another one by what it costs or takes.
        self._options = replace(options, cache_key=options.cache_key or runtime.node.draw(16))
        self._model = model
        self._writer, self._on_host = writer, on_host
        self._trusted = False
        """Whether a host that its user trusts knows what was said."""
        self._left_out = 0
        """How many of the oldest messages, besides the system's, fitted no host."""
        self._branches = 0
        """How many branches the stored conversation had when it was read last."""
        self._open_sessions: set[SessionId] = set()
        """Paid sessions that were not over when they were noted last."""
        self._history = History()
        stored = self.stored
        if stored is not None:
            self._history = History.of_turns(stored.turns)
            rules = HostRules.of(trust=runtime.config.trust)
            self._trusted = any(
                rules.knows(piece.host, piece.wallet) for turn in stored.turns for piece in turn.pieces
            )
            stored.moved, self._branches = False, len(stored.branches)
        if options.system and not self._history.messages:
            self._say("system", options.system)
        # It stands in the history from now on: each prompt would begin with it twice.
        self._options = replace(self._options, system=None)

    @property
    def stored(self) -> StoredConversation | None:
        """The conversation as it is kept; None where it isn't, or nothing was said yet."""
        return self._writer.conversation if self._writer is not None else None

    @property
    def sid(self) -> bytes | None:
        return self.stored.sid if self.stored is not None else None

    @property
    def losses(self) -> Sequence[Loss]:
        """Parts of it that should have been kept and could not be read."""
        stored = self.stored
        return stored.losses if stored is not None else ()

    @property
    def is_kept(self) -> bool:
        return self._writer is not None

    @property
    def messages(self) -> Sequence[Message]:
        """All that was said, oldest first."""
        return self._history.messages

    @property
    def has_question(self) -> bool:
        return self._history.has_question

    @property
    def cut_short(self) -> bool:
        return self._history.unfinished is not None

    @property
    def unanswered(self) -> bool:
        answer = self._history.unfinished
        return answer is not None and not answer.ids

    @property
    def calls(self) -> Sequence[ToolCall]:
        return self._history.calls

    # ---- asking

    def change(self, options: ChatOptions) -> None:
        """Ask with these from the next answer on. The model is to be the same; the system's message stays."""
        self._options = replace(options, cache_key=options.cache_key or self._options.cache_key, system=None)

    def ask(self, question: str) -> Answer:
        self._read_moved()
        self._say("user", question)
        return self._answer(self._history.begin_answer())

    def give_results(self, results: Sequence[str]) -> Answer:
        if not results or len(results) != len(self.calls):
            msg = f"{len(self.calls)} calls of tools wait for their results: give one for each"
            raise ConfigError(msg)
        self._history.give_results(results)
        forced = self._options.tool_choice not in ("auto", "none")
        options = replace(self._options, tool_choice="auto") if forced else self._options
        return self._answer(self._history.begin_answer(), options)

    def again(self) -> Answer:
        if not self.has_question:
            msg = "nothing was asked yet: ask something first"
            raise ConfigError(msg)
        cut = self._history.unfinished
        if cut is not None:
            self._write(Piece(role="assistant", finish="cancelled", at=self._runtime.now()))
            cut.complete = True
        if self._options.seed is not None:
            # With the same seed a host would answer the same again; with the next one it is as repeatable.
            self._options = replace(self._options, seed=next_seed(self._options.seed))
        return self._answer(self._history.begin_answer())

    def go_on(self) -> Answer:
        answer = self._history.unfinished
        if answer is None:
            msg = "no answer was cut short: ask something"
            raise ConfigError(msg)
        return self._answer(answer)

    def _answer(self, message: Message, options: ChatOptions | None = None) -> Answer:
        watcher = _AnswerWatcher(self, message)
        prompt = self._history.prompt_for(message)
        system = [each for each in prompt if each["role"] == "system"]
        # What was left out of an earlier prompt stays out: it would fit no host now either.
        prompt = [*system, *[each for each in prompt if each["role"] != "system"][self._left_out :]]
        return self._questions.answer(
            prompt, options or self._options, held=message.held, watcher=watcher, trusted=self._trusted
        )

    def _say(self, role: Role, text: str) -> None:
        self._history.say(role, text)
        self._write(Piece(role=role, text=text, at=self._runtime.now()))

    def _read_moved(self) -> None:
        """Another machine's version may have replaced ours: then the conversation goes on from that."""
        stored = self.stored
        if stored is not None and stored.moved:
            self._history, stored.moved = History.of_turns(stored.turns), False
            branched, self._branches = len(stored.branches) > self._branches, len(stored.branches)
            fields = {"conversation": stored.sid.hex(), "branched": branched}
            self._runtime.tell("conversation.moved", fields)

    # ---- what its watcher notes

    def note_text(
        self,
        text: str,
        ids: Sequence[int],
        host: PeerId | None,
        session: SessionId | None,
        *,
        aside: int = 0,
    ) -> None:
        """Write down more of the answer. ``aside``: so many bytes were said beside the text."""
        self._write(
            Piece(
                role="assistant", text=text, ids=tuple(ids), host=host, session=session,
                model=self._model, at=self._runtime.now(), aside=aside,
            )
        )  # fmt: skip

    def note_bill(self, item: BillItem, wallet: bytes | None) -> None:
        """Write down what the part of a host with this wallet cost, and the voucher that pays for it."""
        self._write(
            Piece(
                role="assistant", host=item.peer, wallet=wallet, session=item.session,
                tokens_in=item.tokens_in, reused=item.reused, tokens_out=item.tokens_out, cost=item.cost,
                at=self._runtime.now(),
            )
        )  # fmt: skip
        self.note_purchases(item.session)

    def note_end(self, finish: Finish | None) -> None:
        """Write down that the answer is whole."""
        self._write(Piece(role="assistant", finish=finish, at=self._runtime.now()))

    def note_purchases(self, *sessions: SessionId) -> None:
        """Write down these paid sessions, and the earlier ones that are over since.

        Money is to be recovered with the conversation, and another machine must not touch a session that is
        still used.
        """
        if self._writer is None:
            return
        for session in dict.fromkeys((*sessions, *self._open_sessions)):
            saved = self._runtime.purchase(session)
            if saved is None:
                continue
            if session in sessions or saved.over:
                self._writer.paid_with(saved)
            if saved.over:
                self._open_sessions.discard(session)
            else:
                self._open_sessions.add(session)

    @property
    def has_open_sessions(self) -> bool:
        """Whether a paid session of it is not over, so that it may yet be left."""
        self.note_purchases()
        return bool(self._open_sessions)

    def note_course(self, *, trusted: bool, left_out: int) -> None:
        """An answer is over: whether a trusted host was asked, and what its prompt went without."""
        self._trusted = self._trusted or trusted
        self._left_out += left_out

    def note_leaving(self) -> None:
        """Write down that the sessions of this conversation are about to be left with their hosts.

        Before they are: after that no host may take this, and another machine finds them by it.
        """
        if self._writer is None:
            return
        for session in self._open_sessions:
            saved = self._runtime.purchase(session)
            if saved is not None and saved.keep_s and not saved.over:
                self._writer.paid_with(replace(saved, left_until=self._runtime.now() + saved.keep_s))

    def note_host(self, peer: PeerId) -> None:
        """A host serves it, and stores for whom it serves."""
        self._on_host(peer)

    # ---- keeping

    def _write(self, *pieces: Piece) -> None:
        if self._writer is not None:
            self._writer.add(*pieces)

    @property
    def not_written(self) -> str:
        """Why what was said last is not on this machine's disk; "" where it is, or is to be nowhere."""
        return self._writer.trouble if self._writer is not None else ""

    async def wait_written(self) -> None:
        self.note_purchases()
        if self._writer is not None:
            await self._writer.flushed()


class _AnswerWatcher:
    """Follows an answer of a conversation, and tells the conversation what is new of it."""

    def __init__(self, conversation: Conversation, message: Message) -> None:
        self._conversation, self._message = conversation, message
        self._ids_noted, self._text_noted = len(message.ids), len(message.text)
        self._aside_noted = message.aside
        self._sessions: set[SessionId] = set()

    def took(self, answer: Answer) -> None:
        """Tokens came."""
        message = self._message
        message.text, message.ids, message.text_known = answer.text, answer.ids, answer.text_known
        message.aside = answer.said_aside

    def receipted(self, answer: Answer) -> None:
        """The host's receipt over everything so far was checked: a good moment to write it down."""
        self._note(answer, answer.text_known)
        if answer.host is not None:
            self._conversation.note_host(answer.host)
        session = answer.session
        fresh = () if session is None or session in self._sessions else (session,)
        self._sessions.update(fresh)
        self._conversation.note_purchases(*fresh)

    def billed(self, answer: Answer, item: BillItem) -> None:
        """A host's attempt is over."""
        self._note(answer, answer.text_known)  # ids whose text nobody saw may be dropped yet
        self._conversation.note_bill(item, answer.wallet)

    def ended(self, answer: Answer, finish: Finish | None) -> None:
        """It is whole; or it was stopped or cut short, and may go on."""
        self.took(answer)
        self._conversation.note_course(trusted=answer.trusted, left_out=answer.left_out)
        self._note(answer, answer.text_known)
        # In a piece of their own: a piece with a text says that all ids so far have theirs.
        self._note(answer, len(answer.ids))
        self._message.complete = finish in ("stop", "length", "tool_calls")
        if finish == "tool_calls":
            self._message.calls = answer.tool_calls
        if self._message.complete:
            self._conversation.note_end(finish)

    def _note(self, answer: Answer, ids_until: int) -> None:
        ids, text = answer.ids[self._ids_noted : ids_until], answer.text[self._text_noted :]
        said = answer.said_aside
        if ids or text:
            self._ids_noted, self._text_noted = max(self._ids_noted, ids_until), len(answer.text)
            aside, self._aside_noted = said - self._aside_noted, said
            self._conversation.note_text(text, ids, answer.host, answer.session, aside=aside)
