"""Whether a prompt fits a host's context is found out before anything is signed: a paid fee is gone.

What its bytes say for sure is decided here; in between, the host that is to be paid is asked to count.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from p2pnode.errors import RefusedError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.net.network import Network
from p2pnode.node.channel import MessageChannel
from p2pnode.protocols.count.messages import CODEC, PROTOCOL, Count, Counted
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import Refuse, prompt_bytes_max
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.wire import encode


async def require_fit(network: Network, host: PeerId, model: ModelId, n_ctx: int, ask: Ask) -> None:
    """Return if the prompt leaves room for a token at least. Deadlines are the caller's.

    Raises ``RefusedError``: ``context_overflow`` where it doesn't, ``capacity`` and the like where the host
    can't say now; ``UnreachableError``; ``ProtocolError`` for an answer that is none.
    """
    raw = encode(ask.body)
    bytes_max = prompt_bytes_max(n_ctx)
    if len(raw) > bytes_max:
        msg = f"the conversation takes {len(raw)} bytes; a context of {n_ctx} tokens takes {bytes_max}"
        raise RefusedError("context_overflow", msg)
    if ask.input_max < n_ctx:
        return  # no token of a text spans less than one of its bytes
    answer = await _ask_host(network, host, [Count(model=model, total=len(raw)), *prompt_parts(1, raw)])
    match answer:
        case Counted(tokens_in=tokens_in) if tokens_in < n_ctx:
            return
        case Counted(tokens_in=tokens_in):
            msg = f"the conversation takes {tokens_in} tokens, this host's context is {n_ctx}"
            raise RefusedError("context_overflow", msg)
        case Refuse(code=code, detail=detail, retry_after_s=retry_after_s):
            raise RefusedError(code, detail, retry_after_s=retry_after_s, said=True)
        case _:
            msg = "the host did not say how many tokens the conversation takes, and is not paid before"
            raise UnreachableError(msg)


async def _ask_host(network: Network, host: PeerId, messages: Sequence[object]) -> object:
    stream = await network.open_stream(host, PROTOCOL)
    try:
        channel = MessageChannel(stream, CODEC)
        await channel.send(messages)
        return await channel.receive()
    finally:
        with trio.CancelScope(shield=True):
            await stream.reset()
