"""Links that work once, and the two secrets that they give a browser."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from p2pnode.gateway.dashboard.access import (
    LINK_S,
    SESSION_S,
    Access,
    AccessFile,
    LinkError,
    near_url,
    new_link,
    new_links,
)

NOW = 1_000_000.0
NONCE = bytes(16)


def test_a_link_gives_two_secrets_which_admit_only_together_and_for_their_time() -> None:
    access = Access(b"k" * 32)
    session = access.begin(access.link(NONCE, NOW), b"s" * 16, NOW)
    assert access.admits(session.cookie, session.secret, NOW + SESSION_S)
    assert not access.admits(session.cookie, session.secret, NOW + SESSION_S + 1)
    other = access.begin(access.link(b"\x01" * 16, NOW), b"t" * 16, NOW)
    for cookie, secret in (
        (session.cookie, other.secret),
        (other.cookie, session.secret),
        (session.cookie, ""),
        ("", session.secret),
        ("", ""),
        (session.cookie[:-1] + "0", session.secret),
        ("ffffffffffff" + session.cookie[session.cookie.index(".") :], session.secret),
        ("é.é.é", "é"),
    ):
        assert not access.admits(cookie, secret, NOW), cookie
    assert not Access(b"x" * 32).admits(session.cookie, session.secret, NOW)


def test_a_link_is_refused_the_second_time_too_late_and_under_another_key() -> None:
    access = Access(b"k" * 32)
    token = access.link(NONCE, NOW)
    access.begin(token, NONCE, NOW + LINK_S)
    with pytest.raises(LinkError, match="used already"):
        access.begin(token, NONCE, NOW)
    with pytest.raises(LinkError, match="too old"):
        access.begin(access.link(b"\x01" * 16, NOW), NONCE, NOW + LINK_S + 1)
    for wrong in ("", "..", "é", "a.b.c", token[1:], Access(b"x" * 32).link(NONCE, NOW)):
        with pytest.raises(LinkError, match="not of this node"):
            access.begin(wrong, NONCE, NOW)


def test_a_sessions_cookie_is_no_link_and_a_link_no_cookie() -> None:
    access = Access(b"k" * 32)
    token = access.link(NONCE, NOW)
    session = access.begin(token, b"s" * 16, NOW)
    with pytest.raises(LinkError):
        access.begin(session.cookie, NONCE, NOW)
    assert not access.admits(token, session.secret, NOW)


def test_links_that_were_used_are_remembered_while_they_hold_and_so_many() -> None:
    access = Access(b"k" * 32)
    for index in range(1024):
        access.begin(access.link(index.to_bytes(16, "big"), NOW), NONCE, NOW)
    with pytest.raises(LinkError, match="too many"):
        access.begin(access.link(b"x" * 16, NOW), NONCE, NOW)
    later = NOW + LINK_S + 1
    access.begin(access.link(b"x" * 16, later), NONCE, later)
    assert len(access.used) == 1


def test_the_file_keeps_the_key_and_a_damaged_one_is_made_anew(tmp_path: Path) -> None:
    file = AccessFile(tmp_path / "data" / "dashboard.json")
    first = file.load()
    assert file.load() == first
    assert stat.S_IMODE((tmp_path / "data" / "dashboard.json").stat().st_mode) == 0o600
    url = new_link(tmp_path / "data" / "dashboard.json", "http://127.0.0.1:1", NOW)
    assert url.startswith("http://127.0.0.1:1/dashboard/#")
    session = first.begin(url.partition("#")[2], NONCE, NOW)
    file.save(first)
    again = file.load()
    with pytest.raises(LinkError, match="used already"):
        again.begin(url.partition("#")[2], NONCE, NOW)
    assert again.admits(session.cookie, session.secret, NOW)
    for damaged in ("", "{", "[]", '{"key": "00", "used": {}}', '{"key": 5, "used": []}'):
        (tmp_path / "data" / "dashboard.json").write_text(damaged)
        assert not file.load().admits(session.cookie, session.secret, NOW)
    assert near_url("http://0.0.0.0:80") == "http://127.0.0.1:80"


def test_a_server_on_all_addresses_has_a_link_for_each_and_another_one_a_single(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("127.0.0.1/8", "192.168.1.5/24", "10.1.2.3/8", "::1/128", "2001:db8::5/64")
    monkeypatch.setattr("p2pnode.gateway.dashboard.access.interface_addresses", lambda: here)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "dashboard.json"
    links = new_links(path, "http://0.0.0.0:80", NOW)
    shown = ["http://127.0.0.1:80", "http://192.168.1.5:80", "http://10.1.2.3:80"]
    assert [each.partition("/dashboard/")[0] for each in links] == shown
    assert len({each.partition("#")[2] for each in links}) == len(links)
    (only,) = new_links(path, "http://127.0.0.1:80", NOW)
    assert only.startswith("http://127.0.0.1:80/")
