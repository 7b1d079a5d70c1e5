"""What a node's work costs on this machine, measured with the node's own code: a :class:`Cpu`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.protocols.crypto import peer_id_of, verify_key
from p2pnode.protocols.gossipsub.messages import decode_rpc, message_of
from p2pnode.simulations.cpu import Cpu
from p2pnode.simulations.experiment import Experiment
from p2pnode.simulations.gossip import Gossip
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.scenario import Scenario

_ROUNDS: Final = 5
_ROUND_S: Final = 0.1


def calibrate() -> Cpu:
    """Measure this machine: about five seconds, on one core. Each cost is the least of five rounds."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    data = bytes(1000)
    signature = key.sign(data)
    author = peer_id_of(public).encode()
    rpc = message_of(_Sent(author, data, signature)).encode()
    return Cpu(
        message_s=_message_s(),
        decode_s=_least(lambda: decode_rpc(rpc)),
        sign_s=_least(lambda: key.sign(data)),
        check_s=_least(lambda: verify_key(public, data, signature)),
    )


class _Sent:
    """An entry of ``publish`` as protocol buffers have it."""

    topics = (b"/p2pnode/adverts/1/" + b"0" * 64,)
    seqno = bytes(8)
    key = b""

    def __init__(self, author: bytes, data: bytes, signature: bytes) -> None:
        self.author, self.data, self.signature = author, data, signature


def _least(work: Callable[[], object]) -> float:
    """Seconds of one call: the least mean of some rounds, for other programs only ever make one longer."""
    calls, best = 1, 1e9
    for _ in range(_ROUNDS):
        began = time.process_time()
        done = 0
        while time.process_time() - began < _ROUND_S:
            for _ in range(calls):
                work()
            done += calls
            calls = min(1000, calls * 2)
        best = min(best, (time.process_time() - began) / done)
    return best


def _message_s() -> float:
    """Of a small network of gossip without signatures: all its work by the messages that it carried."""
    best = 1e9
    gossip = Gossip(publishers=5, messages_per_s=5.0)
    for seed in range(3):
        run = Experiment(
            Scenario(name="calibration", nodes=40, duration_s=20.0, gossip=gossip), seed, Recorder()
        )
        began = time.process_time()
        run.run()
        best = min(best, (time.process_time() - began) / run.world.sent)
    return best
