"""The conversations of one client: begun, taken up again, kept, and recovered from the recovery phrase.

Nothing is opened before it is needed: a question of a client that keeps nothing touches no store. What is
kept where is the keeper's, what is said the talk's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from p2pnode.client.conversation import Talk
from p2pnode.client.hosts import Searches
from p2pnode.client.question import ChatOptions, Questions, resolve_model
from p2pnode.client.runtime import Runtime
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import P2PNodeError, StorageError
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.manifest import model_id_text
from p2pnode.protocols.inference.messages import SamplingParams

if TYPE_CHECKING:
    from p2pnode.storage.conversations.archive import Recovery
    from p2pnode.storage.conversations.conversation import Conversation
    from p2pnode.storage.conversations.replicator import Replicator

log = structlog.get_logger()


class Conversations:
    """Of one client, in its data dir. ``in_thread``: see ``LocalStore.open``."""

    def __init__(
        self, runtime: Runtime, searches: Searches, questions: Questions, *, in_thread: bool = True
    ) -> None:
        self._runtime, self._searches, self._questions = runtime, searches, questions
        self._in_thread = in_thread
        self._keeper: Replicator | None = None
        self._opening = trio.Lock()
        self._talks: list[Talk] = []
        self._forgotten: list[bytes] = []

    @property
    def are_kept(self) -> bool:
        """Does this data dir keep conversations?"""
        return self._runtime.config.save and self._runtime.data.storage_key.exists()

    async def new(self, options: ChatOptions, *, keep: bool = True) -> Talk:
        """A new one; where the store can't be opened, one that is not kept. Raises ``ConfigError``."""
        known = resolve_model(options.model if options.model is not None else DEFAULT_MODEL)
        keeper = None
        wanted = keep and self._runtime.config.save
        if wanted and not self.are_kept and (self._runtime.config.stores or self._runtime.config.s5_url):
            reason = "there is no key here to seal it with: `p2pnode wallet new` makes one from twelve words"
            self._runtime.tell("conversation.not_kept", {"reason": reason})
        if keep and self.are_kept:
            try:
                keeper = await self.keeper()
            except StorageError as error:  # a full disk costs nobody an answer
                self._runtime.tell("conversation.not_kept", {"reason": str(error)})
        return self._talk(options, known.model, keeper, None)

    async def resume(self, sid: bytes, options: ChatOptions) -> Talk:
        """One that was kept; its model and sampling unless ``options`` name others."""
        keeper, kept = await self.keeper(), await self.open(sid)
        if options.model is not None or kept.model is None:
            model = resolve_model(options.model or DEFAULT_MODEL).model
        else:
            model = kept.model
        sampling = options.sampling or kept.sampling
        return self._talk(
            replace(options, model=model_id_text(model), sampling=sampling), model, keeper, kept
        )

    async def open(self, sid: bytes) -> Conversation:
        """One that was kept, with what its replicas know of it. Raises as ``Archive.open``."""
        keeper = await self.keeper()
        await self._searches.connect_first_peers()
        await keeper.find_holders(sid)
        return await keeper.archive.open(sid)

    async def keeper(self) -> Replicator:
        """Where they are kept, opened when it is first needed. Raises ``LocalError``."""
        async with self._opening:
            if self._keeper is None:
                self._keeper = await self._runtime.tasks.start(self._hold)
        return self._keeper

    async def look_for_replicas(self) -> None:
        """Connect to the first peers, find who keeps replicas, and send there what waits."""
        keeper = await self.keeper()
        await self._searches.connect_first_peers()
        await keeper.find_replicas()

    async def recover(self) -> Recovery:
        """Ask whoever may have them for this user's conversations, and for money that was paid elsewhere.

        Nodes that were named and could not be reached stand among the ``failures``.
        """
        keeper = await self.keeper()
        unreached = await self._searches.connect_first_peers()
        await self._searches.connect_neighbours()
        recovery = await keeper.recover()
        failures = {str(peer): why for peer, why in unreached.items()} | dict(recovery.failures)
        recovery = replace(recovery, failures=failures)
        if recovery.sessions and self._runtime.pays:
            from p2pnode.payments.payer import restore_purchases

            now = self._runtime.now()
            await restore_purchases(self._runtime.config, recovery.sessions, now)
        return recovery

    async def forget(self, sid: bytes) -> None:
        """Here and on every replica that can be had, now or with a later run."""
        keeper = await self.keeper()
        await self.look_for_replicas()
        await keeper.archive.forget(sid)
        self._forgotten.append(sid)

    async def finish(self) -> None:
        """Before the client leaves: all that was said on our disk, and with others as far as time allows."""
        keeper = self._keeper
        if keeper is None:
            return
        with trio.CancelScope(shield=True):
            try:
                await self._settle()
                kept = await keeper.finish()
            except P2PNodeError as error:
                self._runtime.tell("conversation.not_kept", {"reason": str(error)})
                return
        sids = [talk.conversation.sid for talk in self._talks if talk.conversation is not None]
        cut = {
            talk.conversation.sid for talk in self._talks if talk.conversation is not None and talk.trouble
        }
        for sid in dict.fromkeys((*sids, *self._forgotten)):
            if not kept.is_news(sid) and sid not in cut:
                continue
            fields = {**kept.fields(sid), "cut": sid in cut, "gone": sid in self._forgotten}
            self._runtime.tell("conversation.kept", fields)

    async def _settle(self) -> None:
        """All that was said on our disk. What waits for others, as a fork may, does so for a while only."""
        deadline_s = self._runtime.limits.keep_deadline_s
        with trio.move_on_after(deadline_s) as scope:
            for talk in self._talks:
                await talk.settled()
        if scope.cancelled_caught:
            reason = f"the last of it could not be written down within {deadline_s:g} s"
            self._runtime.tell("conversation.not_kept", {"reason": reason})

    async def _hold(self, *, task_status: trio.TaskStatus[Replicator]) -> None:
        from p2pnode.storage.conversations.replicator import open_replicator

        async with open_replicator(
            self._runtime.config, self._runtime.node, in_thread=self._in_thread
        ) as keeper:
            task_status.started(keeper)
            await trio.sleep_forever()

    def _talk(
        self, options: ChatOptions, model: ModelId, keeper: Replicator | None, kept: Conversation | None
    ) -> Talk:
        if keeper is None:
            return Talk(self._runtime, self._questions, options, model=model)
        from p2pnode.storage.conversations.writer import ConversationWriter

        recorder = ConversationWriter(
            keeper.archive,
            kept,
            model=model,
            sampling=options.sampling or SamplingParams(),
            spawn=self._runtime.tasks.start_soon,
            on_trouble=lambda why: self._runtime.tell("conversation.not_kept", {"reason": why}),
        )

        def on_host(peer: PeerId) -> None:
            if keeper.served_by(peer):
                self._look_soon()

        talk = Talk(self._runtime, self._questions, options, model=model, recorder=recorder, on_host=on_host)
        self._talks.append(talk)
        self._look_soon()
        return talk

    def _look_soon(self) -> None:
        """While an answer streams: so that there is somewhere to keep it when it is over."""
        self._runtime.tasks.start_soon(self._look_quietly)

    async def _look_quietly(self) -> None:
        try:
            await self.look_for_replicas()
        except P2PNodeError as error:
            log.debug("replicas.not_found", reason=str(error))
