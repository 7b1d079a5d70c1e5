"""An invite carries a node's multiaddrs through a chat window, or says that it was damaged there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.node.invite import make_invite, read_bootstrap
from p2pnode.node.keys import PeerKey
from tests.net.memory_world import seed_of

PEER = PeerKey(seed_of(1)).peer_id
FAR, LOOPBACK = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}", f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"
addresses = st.builds("/ip4/{}.{}.{}.{}/tcp/{}".format, *[st.integers(1, 254)] * 4, st.integers(1, 65535))


@given(parts=st.lists(addresses, min_size=1, max_size=4, unique=True))
def test_what_goes_in_comes_out(parts: list[str]) -> None:
    multiaddrs = tuple(f"{part}/p2p/{PEER}" for part in parts)
    far = tuple(each for each in multiaddrs if not each.startswith("/ip4/127."))
    assert read_bootstrap(make_invite(multiaddrs)) == (far or multiaddrs)
    assert read_bootstrap(f"  {make_invite(multiaddrs)}\n") == (far or multiaddrs)


@given(
    breaks=st.lists(st.tuples(st.integers(0, 200), st.sampled_from("\n \t\r\u200b\u00a0\ufeff")), max_size=12)
)
def test_an_invite_works_wherever_a_chat_window_broke_it(breaks: list[tuple[int, str]]) -> None:
    broken = make_invite([FAR, LOOPBACK])
    for at, space in breaks:
        broken = broken[:at] + space + broken[at:]
    assert read_bootstrap(broken) == (FAR,)


def test_a_multiaddr_that_was_broken_works_too() -> None:
    assert read_bootstrap(f" {FAR[:30]}\n{FAR[30:]} ") == (FAR,)


def test_loopback_is_left_out_unless_there_is_nothing_else() -> None:
    assert read_bootstrap(make_invite([LOOPBACK, FAR])) == (FAR,)
    assert read_bootstrap(make_invite([LOOPBACK])) == (LOOPBACK,)


def test_a_multiaddr_is_taken_as_it_is() -> None:
    assert read_bootstrap(FAR) == (FAR,)


@given(data=st.data())
def test_one_changed_or_lost_character_is_noticed(data: st.DataObject) -> None:
    invite = make_invite([FAR])
    at = data.draw(st.integers(len("p2pnode1"), len(invite) - 2))
    changed = invite[:at] + ("A" if invite[at] != "A" else "B") + invite[at + 1 :]
    for damaged in (changed, invite[:at]):
        with pytest.raises(ConfigError, match="damaged: copy it again"):
            read_bootstrap(damaged)
