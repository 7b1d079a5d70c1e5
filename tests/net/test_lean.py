"""libp2p is loaded late where we hardly ever use it, and all of it works when it is needed."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from p2pnode.net.lean import quieten

_LEAN = "import sys, p2pnode.net.network\n"


def run(program: str) -> str:
    """Run code in an interpreter of its own: what was imported can't be imported anew."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_a_network_brings_no_quic_no_http_and_no_dns_library() -> None:
    heavy = ("aioquic", "requests", "httpx", "zeroconf", "dns", "Crypto.PublicKey.RSA")
    assert run(f"{_LEAN}print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_the_library_as_it_comes_brings_them_all() -> None:
    heavy = ("aioquic", "requests", "httpx", "zeroconf", "dns")
    assert run(f"import sys, libp2p; print([name for name in {heavy} if name not in sys.modules])") == "[]"


def test_what_the_packages_offer_is_there_when_it_is_asked_for() -> None:
    program = """
from libp2p import new_host
from libp2p.peer import id
print(new_host().get_id() is not None, id.__name__)
"""
    assert run(_LEAN + program) == "True libp2p.peer.id"


def test_an_rsa_key_that_a_peer_shows_is_still_read() -> None:
    program = """
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.crypto.rsa import RSAPublicKey, create_new_key_pair
print(isinstance(3, RSAPublicKey), "Crypto.PublicKey.RSA" in sys.modules)
public = create_new_key_pair(1024).public_key
again = deserialize_public_key(public.serialize())
print(isinstance(again, RSAPublicKey), again.to_bytes() == public.to_bytes())
"""
    assert run(_LEAN + program).split("\n") == ["False False", "True True"]


def test_a_name_that_is_nowhere_is_an_import_error() -> None:
    program = """
for text in ("from libp2p import nothing_of_the_kind", "import libp2p.nothing_of_the_kind"):
    try:
        exec(text)
    except ImportError as error:
        print("nothing_of_the_kind" in str(error))
"""
    assert run(_LEAN + program).split("\n") == ["True", "True"]


def test_the_library_prints_nothing_on_a_normal_disconnect(capfd: pytest.CaptureFixture[str]) -> None:
    quieten()
    logging.getLogger("libp2p.network.swarm").warning("a peer left")
    logging.getLogger("libp2p.stream_muxer.yamux").error("a peer left rudely")
    assert capfd.readouterr().err == ""
    assert not any(type(handler) is logging.StreamHandler for handler in logging.getLogger().handlers)
