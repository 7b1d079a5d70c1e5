"""The scope of an address, with the traps of Python's own words for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.scopes import SCOPES, Scope, is_global_ip, is_loopback, scope_of_host


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("8.8.8.8", "global"),
        ("2606:4700::1111", "global"),
        ("host.example.org", "global"),
        ("192.168.1.1", "private"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("192.0.2.7", "private"),  # documentation
        ("fd00::1", "private"),
        ("router", "private"),
        ("box.local", "private"),
        ("100.64.0.1", "shared"),
        ("100.127.255.254", "shared"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("[::1]", "loopback"),
        ("localhost", "loopback"),
        ("LOCALHOST.", "loopback"),
    ],
)
def test_each_address_has_the_scope_that_its_range_says(host: str, scope: Scope) -> None:
    assert scope_of_host(host) == scope


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1"]
)
def test_what_is_nobodys_address_has_no_scope(host: str) -> None:
    assert scope_of_host(host) is None


@pytest.mark.parametrize(
    ("wrapped", "scope"),
    [
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:100.64.0.1", "shared"),
        ("64:ff9b::7f00:1", None),
        ("64:ff9b::c0a8:101", None),
        ("64:ff9b::808:808", "global"),
        ("64:ff9b:1::a00:1", None),
        ("2002:7f00:1::1", None),
        ("2002:808:808::1", "global"),
    ],
)
def test_an_address_inside_another_keeps_its_scope(wrapped: str, scope: Scope | None) -> None:
    assert scope_of_host(wrapped) == scope


@pytest.mark.parametrize("neighbour", ["100.63.255.255", "100.128.0.0"])
def test_what_is_beside_the_shared_range_is_global(neighbour: str) -> None:
    assert scope_of_host(neighbour) == "global"


@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    assert scope_of_host(text) in (*SCOPES, None)
    assert not (is_loopback(text) and is_global_ip(text))
