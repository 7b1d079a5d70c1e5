"""The patches fit the installed library, and a library that differs is an error that names the patch."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from p2pnode.errors import LocalError
from p2pnode.net import patches


def test_every_patch_fits_the_installed_library() -> None:
    patches.check()


def test_a_library_that_changed_stops_the_start_with_the_name_of_the_patch() -> None:
    target = "libp2p.network.swarm:Swarm.remove_conn"
    with pytest.raises(LocalError, match=r"'inbound slots'.*has changed.*Install libp2p==0\.8\.1"):
        patches.check({"inbound slots": {target: "0" * 16}})


def test_a_function_that_is_gone_stops_the_start_too() -> None:
    with pytest.raises(LocalError, match="missing"):
        patches.check({"gone": {"libp2p.network.swarm:Swarm.no_such_function": "0" * 16}})


def test_the_fingerprint_follows_the_source() -> None:
    def one() -> int:
        return 1

    def other() -> int:
        return 2

    assert patches.fingerprint(one) == patches.fingerprint(one)
    assert patches.fingerprint(one) != patches.fingerprint(other)


def test_the_library_prints_nothing_on_a_normal_disconnect(capfd: pytest.CaptureFixture[str]) -> None:
    patches.apply_patches()
    logging.getLogger("libp2p.network.swarm").warning("a peer left")
    logging.getLogger("libp2p.stream_muxer.yamux").error("a peer left rudely")
    assert capfd.readouterr().err == ""
    assert not any(type(handler) is logging.StreamHandler for handler in logging.getLogger().handlers)


BASELINE = """
from p2pnode.net import patches
assert patches.apply_patches(only_fixes=True) is False
import trio
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.protocols.gossipsub.commands import ACCEPT
async def main():
    a = Network(NetworkConfig(key_seed=b"a" * 32, listen=("/ip4/127.0.0.1/tcp/0",)))
    b = Network(NetworkConfig(key_seed=b"b" * 32, listen=("/ip4/127.0.0.1/tcp/0",)))
    async with trio.open_nursery() as nursery:
        await nursery.start(a.run)
        await nursery.start(b.run)
        got = await a.subscribe("t", lambda author, data: ACCEPT)
        await b.subscribe("t", lambda author, data: ACCEPT)
        await b.connect(a.multiaddrs[0])
        with trio.fail_after(20):
            while not b.topic_peers("t"):
                await trio.sleep(0.05)
            await b.publish("t", b"hello")
            async for author, data in got:
                assert (author, data) == (b.peer_id, b"hello")
                break
        await b.aclose()
        await a.aclose()
trio.run(main)
print("ok")
"""


def test_the_network_also_works_without_the_speed_patches() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BASELINE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip().endswith("ok"), done.stderr
