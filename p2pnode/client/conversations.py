"""The conversations of one client: begun, resumed, kept, and recovered from the recovery phrase.

Nothing is opened before it is needed: a question of a client that keeps nothing touches no store. What is
kept where is the replicator's business, what is said the conversation's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.conversation import Conversation
from p2pnode.client.hosts import Searches
from p2pnode.client.interface import Found, Recovered
from p2pnode.client.question import Questions, resolve_model
from p2pnode.client.runtime import Runtime
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import P2PNodeError, StorageError
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.models.manifest import model_id_text
from p2pnode.protocols.inference.messages import SamplingParams

if TYPE_CHECKING:
    from p2pnode.storage.conversations.archive import Recovery
    from p2pnode.storage.conversations.records import SavedConversation
    from p2pnode.storage.conversations.replicator import Replicator
    from p2pnode.storage.conversations.stored_conversation import StoredConversation

log = structlog.get_logger()


class Conversations:
    """The conversations of one client, in its data dir. ``in_thread``: see ``LocalStore.open``."""

    def __init__(
        self, runtime: Runtime, searches: Searches, questions: Questions, *, in_thread: bool = True
    ) -> None:
        self._runtime, self._searches, self._questions = runtime, searches, questions
        self._in_thread = in_thread
        self._replicator: Replicator | None = None
        self._opening = trio.Lock()
        self._conversations: list[Conversation] = []
        self._ended: list[Conversation] = []
        """Those of them in which nothing more is said."""
        self._forgotten: list[bytes] = []

    @property
    def are_kept(self) -> bool:
        """Whether this data dir keeps conversations."""
        return self._runtime.config.save and self._runtime.data.storage_key.exists()

    async def new(self, options: ChatOptions, *, keep: bool = True) -> Conversation:
        """A new conversation; where the store can't be opened it is not kept. Raises ``ConfigError``.

        With tools it isn't either: what is kept of a conversation has no calls, and would make no sense.
        """
        keep = keep and not options.tools
        named = options.model if options.model is not None else DEFAULT_MODEL
        known = resolve_model(named, self._runtime.data.models)
        replicator = None
        wanted = keep and self._runtime.config.save
        if wanted and not self.are_kept and (self._runtime.config.stores or self._runtime.config.s5_url):
            reason = "there is no key here to seal it with: `p2pnode wallet new` makes one from twelve words"
            self._runtime.tell("conversation.not_kept", {"reason": reason})
        if keep and self.are_kept:
            try:
                replicator = await self.replicator()
            except StorageError as error:  # a full disk must not cost an answer
                self._runtime.tell("conversation.not_kept", {"reason": str(error)})
        return self._conversation(options, known.model, replicator, None)

    async def resume(self, sid: bytes, options: ChatOptions, *, ask: bool = True) -> Conversation:
        """A conversation that was kept, with its model and sampling unless ``options`` name others. ``ask``
        is as in :meth:`open`."""
        replicator, stored = await self.replicator(), await self.open(sid, ask=ask)
        if options.model is not None or stored.model is None:
            model = resolve_model(options.model or DEFAULT_MODEL, self._runtime.data.models).model
        else:
            model = stored.model
        sampling = options.sampling or stored.sampling
        options = replace(options, model=model_id_text(model), sampling=sampling)
        return self._conversation(options, model, replicator, stored)

    async def open(self, sid: bytes, *, ask: bool = True) -> StoredConversation:
        """A conversation that was kept: as this machine has it or, with ``ask``, with what its replicas know
        of it. Raises as ``Archive.open``."""
        replicator = await self.replicator()
        if not ask:
            return await replicator.archive.open(sid, ask=False)
        await self._searches.connect_first_peers()
        await replicator.find_holders(sid)
        return await replicator.archive.open(sid)

    async def replicator(self) -> Replicator:
        """What keeps them, opened when it is first needed. Raises ``LocalError``."""
        async with self._opening:
            if self._replicator is None:
                self._replicator = await self._runtime.tasks.start(self._hold)
        return self._replicator

    async def look_for_replicas(self) -> None:
        """Connect to the first peers, find nodes that keep replicas, and send them what waits."""
        replicator = await self.replicator()
        await self._searches.connect_first_peers()
        await replicator.find_replicas()

    async def recover(self) -> Recovery:
        """Fetch this user's conversations and paid sessions from all nodes that may have them.

        First peers that could not be reached stand among the ``failures``.
        """
        replicator = await self.replicator()
        unreached = await self._searches.connect_first_peers()
        await self._searches.connect_neighbours()
        recovery = await replicator.recover()
        failures = {str(peer): why for peer, why in unreached.items()} | dict(recovery.failures)
        recovery = replace(recovery, failures=failures)
        if recovery.sessions and self._runtime.pays:
            from p2pnode.payments.payer import restore_purchases

            config, now = self._runtime.config, self._runtime.now()
            await restore_purchases(config, recovery.sessions, now, in_thread=self._in_thread)
        return recovery

    async def find(self, begins: str) -> Found:
        """Those whose ids begin with these digits: the ones known here, or else those that others keep."""
        replicator = await self.replicator()
        known = _beginning(await replicator.archive.conversations(), begins)
        if known:
            return Found(conversations=known)
        recovery = await self.recover()
        found = _beginning(recovery.conversations, begins)
        return Found(conversations=found, recovered=recovered_of(recovery))

    async def forget(self, sid: bytes) -> None:
        """Delete a conversation here and on every replica, on those that can't be reached in a later run."""
        replicator = await self.replicator()
        await self.look_for_replicas()
        await replicator.archive.forget(sid)
        self._forgotten.append(sid)

    async def note_taken(self, session: SessionId) -> None:
        """Write down that a session which was left is used here, before anything is signed in it.

        Other machines of this user leave it alone then. A store that fails must not cost the answer: the host
        decides anyway who has the session.
        """
        saved = self._runtime.purchase(session)
        if saved is None or not self.are_kept:
            return
        try:
            await (await self.replicator()).archive.save_session(saved)
        except StorageError as error:
            log.warning("session.not_marked", session=session.hex()[:16], reason=str(error))

    async def end(self, conversation: Conversation) -> None:
        """Nothing more is said in it: write down what was, send it to replicas, and tell where it is kept.

        Where its sessions are still open it is remembered, so that it notes when they are left.
        """
        if self._replicator is None or conversation not in self._conversations:
            return
        await self._keep((conversation,))
        self._ended.append(conversation)
        for each in [each for each in self._ended if not each.has_open_sessions]:
            self._ended.remove(each)
            self._conversations.remove(each)

    async def finish(self, *, leaves: bool = True) -> None:
        """Before the client ends: write down all that was said, and send it to replicas while time allows.

        ``leaves``: sessions are left with the hosts that keep them, and not closed.
        """
        if self._replicator is None:
            return
        if leaves:
            for conversation in self._conversations:
                conversation.note_leaving()
        await self._keep(self._conversations)

    async def _keep(self, conversations: Sequence[Conversation]) -> None:
        replicator = self._replicator
        if replicator is None:
            return
        with trio.CancelScope(shield=True):
            try:
                await self._wait_written(conversations)
                kept = await replicator.finish()
            except P2PNodeError as error:
                self._runtime.tell("conversation.not_kept", {"reason": str(error)})
                return
        stored = [(each.stored, each.not_written) for each in conversations]
        sids = [each.sid for each, _ in stored if each is not None]
        cut = {each.sid for each, not_written in stored if each is not None and not_written}
        for sid in dict.fromkeys((*sids, *self._forgotten)):
            if not kept.is_news(sid) and sid not in cut:
                continue
            fields = {**kept.fields(sid), "cut": sid in cut, "gone": sid in self._forgotten}
            self._runtime.tell("conversation.kept", fields)

    async def _wait_written(self, conversations: Sequence[Conversation]) -> None:
        """Until all that was said is on our disk; for ``keep_deadline_s`` at most: a fork may wait."""
        deadline_s = self._runtime.limits.keep_deadline_s
        with trio.move_on_after(deadline_s) as scope:
            for conversation in conversations:
                await conversation.wait_written()
        if scope.cancelled_caught:
            reason = f"the last of it could not be written down within {deadline_s:g} s"
            self._runtime.tell("conversation.not_kept", {"reason": reason})

    async def _hold(self, *, task_status: trio.TaskStatus[Replicator]) -> None:
        from p2pnode.storage.conversations.replicator import open_replicator

        async with open_replicator(
            self._runtime.config, self._runtime.node, in_thread=self._in_thread
        ) as replicator:
            task_status.started(replicator)
            await trio.sleep_forever()

    def _conversation(
        self,
        options: ChatOptions,
        model: ModelId,
        replicator: Replicator | None,
        stored: StoredConversation | None,
    ) -> Conversation:
        if replicator is None:
            return Conversation(self._runtime, self._questions, options, model=model)
        from p2pnode.storage.conversations.writer import ConversationWriter

        writer = ConversationWriter(
            replicator.archive,
            stored,
            model=model,
            sampling=options.sampling or SamplingParams(),
            spawn=self._runtime.tasks.start_soon,
            on_trouble=lambda why: self._runtime.tell("conversation.not_kept", {"reason": why}),
        )

        def on_host(peer: PeerId) -> None:
            if replicator.served_by(peer):
                self._look_soon()

        conversation = Conversation(
            self._runtime, self._questions, options, model=model, writer=writer, on_host=on_host
        )
        self._conversations.append(conversation)
        self._look_soon()
        return conversation

    def _look_soon(self) -> None:
        """While an answer streams, so that replicas are known when it is over."""
        self._runtime.tasks.start_soon(self._look_quietly)

    async def _look_quietly(self) -> None:
        try:
            await self.look_for_replicas()
        except P2PNodeError as error:
            log.debug("replicas.not_found", reason=str(error))


def recovered_of(recovery: Recovery) -> Recovered:
    """How much a recovery brought, without what is secret in it."""
    from p2pnode.storage.conversations.replicator import OWN

    return Recovered(
        conversations=len(recovery.conversations),
        sessions=len(recovery.sessions),
        answered=len(recovery.answered - {OWN}),
        failures=dict(recovery.failures),
        revision=recovery.revision,
        losses=recovery.losses,
    )


def _beginning(known: Iterable[SavedConversation], begins: str) -> tuple[SavedConversation, ...]:
    return tuple(each for each in known if each.sid.hex().startswith(begins))
