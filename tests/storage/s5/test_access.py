"""Who may: web pages, rebound names, tokens, accounts and their challenges."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.limits import Limits
from p2pnode.protocols.s5.accounts import Purpose
from p2pnode.protocols.s5.entries import EntryKey, tagged
from p2pnode.protocols.s5.ids import BlobId, base64url, multihash
from p2pnode.storage.s5.server.accounts import ChallengeError, Challenges
from p2pnode.storage.s5.wire import entry_json
from p2pnode.storage.store import OwnerKey
from tests.storage.s5.support import (
    HELLO,
    KEY,
    OWNER,
    SIGNER,
    answered,
    challenge_of,
    entered,
    entry,
    serving,
)

PK = base64url(tagged(KEY))
TOKEN = "a token of the owner"
HELLO_PATH = f"/{BlobId.of(HELLO).text()}"


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5050", "127.0.0.1.evil.example", "10.0.0.1", ""]
)
async def test_a_name_that_was_rebound_to_us_is_refused(tmp_path: Path, host: str) -> None:
    async with serving(tmp_path) as running:
        response = await running.http.post("/s5/upload", content=HELLO, headers={"host": host})
        assert response.status_code == 403
        assert response.json()["error"]
        assert running.store.blobs == {}


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]:80", "ours"]
)
async def test_our_own_names_are_taken(tmp_path: Path, host: str) -> None:
    async with serving(tmp_path, names=frozenset({"ours"})) as running:
        assert (await running.http.get("/s5/version", headers={"host": host})).status_code == 200


async def test_a_web_page_is_refused_and_told_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        for origin in ("https://evil.example", "null", f"http://127.0.0.1:{running.port}"):
            response = await running.http.post("/s5/upload", content=HELLO, headers={"origin": origin})
            assert response.status_code == 403
            assert "access-control-allow-origin" not in response.headers
        assert running.store.blobs == {}


async def test_a_web_page_that_was_allowed_may_and_another_may_not(tmp_path: Path) -> None:
    ours = "https://app.example"
    async with serving(tmp_path, origins=frozenset({ours})) as running:
        good = await running.http.post("/s5/upload", content=HELLO, headers={"origin": ours})
        assert good.headers["access-control-allow-origin"] == ours
        asked = {"origin": ours, "access-control-request-method": "PATCH"}
        assert (await running.http.options("/s5/upload/tus/x", headers=asked)).status_code == 200
        bad = await running.http.post("/s5/upload", content=HELLO, headers={"origin": "https://evil.example"})
        assert bad.status_code == 403


async def test_with_a_token_everything_needs_it(tmp_path: Path) -> None:
    async with serving(tmp_path, token=TOKEN) as running:
        await running.store.put(HELLO, owner=OWNER)
        good: list[dict[str, Any]] = [
            {"headers": {"authorization": f"Bearer {TOKEN}"}},
            {"headers": {"cookie": f"s5-auth-token={TOKEN}"}},
            {"params": {"auth_token": TOKEN}},
        ]
        bad: list[dict[str, Any]] = [
            {},
            {"headers": {"authorization": f"Bearer {TOKEN}x"}},
            {"headers": {"authorization": f"Basic {TOKEN}"}},
            {"headers": {"authorization": "Bearer é".encode()}},
            {"params": {"auth_token": ""}},
        ]
        for method, path in (("GET", HELLO_PATH), ("POST", "/s5/upload"), ("GET", f"/s5/registry?pk={PK}")):
            for given_ in bad:
                response = await running.http.request(
                    method, httpx.URL(path, params=None), **_merged(path, given_)
                )
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in response.text
            for given_ in good:
                response = await running.http.request(method, path, **_merged(path, given_))
                assert response.status_code in (200, 404)


def _merged(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """httpx replaces a query that stands in the path by ``params``."""
    query = dict(httpx.URL(path).params)
    return {**given, "params": {**query, **given.get("params", {})}}


# ---- accounts


async def test_an_account_is_made_and_what_it_uploads_is_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path, accounts=True) as running:
        refused = await running.http.post("/s5/upload", content=HELLO)
        assert refused.status_code == 401
        token = await entered(running, "register")
        assert token.startswith("S5A")
        mine = {"authorization": f"Bearer {token}"}
        assert (await running.http.post("/s5/upload", content=HELLO, headers=mine)).status_code == 200
        assert list(running.store.blobs[BlobId.of(HELLO).hash].leases) == [OwnerKey(KEY)]
        stats = (await running.http.get("/s5/account/stats", headers=mine)).json()
        assert stats["stats"]["total"]["usedStorage"] == len(HELLO)
        pins = (await running.http.get("/s5/account/pins.bin", headers=mine)).content
        unpacker = msgpack.Unpacker()
        unpacker.feed(pins)
        assert list(unpacker) == [0, 1, [multihash(BlobId.of(HELLO).hash, old=True)]]
        assert (await running.http.get("/s5/account", headers=mine)).json()["createdAt"] > 0


async def test_what_is_public_is_read_without_an_account_and_nothing_is_written(tmp_path: Path) -> None:
    async with serving(tmp_path, accounts=True) as running:
        await running.store.put(HELLO, owner=OWNER)
        await running.store.set(entry(1), owner=OWNER)
        assert (await running.http.get(HELLO_PATH)).status_code == 200
        assert (await running.http.get("/s5/registry", params={"pk": PK})).status_code == 200
        for method, path in (
            ("POST", "/s5/registry"),
            ("POST", "/s5/upload/tus"),
            ("POST", f"/s5/pin{HELLO_PATH}"),
            ("DELETE", f"/s5/delete{HELLO_PATH}"),
            ("GET", "/s5/account"),
            ("GET", "/s5/account/pins.bin"),
        ):
            response = await running.http.request(method, path, json=entry_json(entry(2)))
            assert response.status_code == 401


async def test_a_login_survives_a_restart_and_only_the_hash_of_a_token_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path, accounts=True) as running:
        first = await entered(running, "register")
        second = await entered(running, "login")
    async with serving(tmp_path, accounts=True) as running:
        for token in (first, second):
            response = await running.http.get("/s5/account", headers={"authorization": f"Bearer {token}"})
            assert response.status_code == 200
            kept = bytes_of(tmp_path)
            assert token.encode() not in kept
            assert base64url(blake3(token.encode()).digest()).encode() not in kept


async def test_the_vector_of_a_register_response_is_taken() -> None:
    response = bytes.fromhex(
        "0100000000000000000000000000000000000000000000000000000000000000004cee03ff17d8dd8e3565f3f514b693c37fcdc405"
        "ced575d162acae8f0c612c97"
    )
    signature = bytes.fromhex(
        "d0f1d3ba2b66878cd5e97c8611393c6ba5ca6c9c73ec5cfc8f6639139731f32d655e371b4c0c27c217693a2d0994e27cd3a75be29d4"
        "19e9290d61f7c1a63ac03"
    )
    assert SIGNER.sign(response) == signature


async def test_a_challenge_is_good_once_for_one_key_purpose_and_host(tmp_path: Path) -> None:
    now = [1000.0]
    async with serving(tmp_path, accounts=True, wall=lambda: now[0]) as running:
        host = f"127.0.0.1:{running.port}"
        other = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
        other_pk = base64url(tagged(EntryKey(other.public_key().public_bytes_raw())))

        async def posted(purpose: str, body: dict[str, Any]) -> int:
            return (await running.http.post(f"/s5/account/{purpose}", json=body)).status_code

        register = await challenge_of(running, "register")
        assert await posted("register", answered(register, 2, host)) == 400  # the type byte
        assert await posted("register", answered(register, 1, "other.example")) == 400
        assert await posted("register", answered(register, 1, host)) == 400  # used up by the try before
        register = await challenge_of(running, "register")
        assert await posted("register", answered(register, 1, host, other)) == 400  # another's signature
        register = await challenge_of(running, "register", other_pk)
        assert await posted("register", answered(register, 1, host)) == 400  # another's challenge
        register = await challenge_of(running, "register")
        now[0] += 300
        assert await posted("register", answered(register, 1, host)) == 400  # too old
        assert await posted("login", answered(await challenge_of(running, "login"), 2, host)) == 404
        register = await challenge_of(running, "register")
        good = answered(register, 1, host)
        assert await posted("register", good) == 200
        assert await posted("register", good) == 400  # once
        assert await posted("register", answered(await challenge_of(running, "register"), 1, host)) == 409
        assert await posted("login", answered(await challenge_of(running, "login"), 2, host)) == 200


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"{}", b'{"pubKey": 1, "response": "", "signature": ""}', b"[" * 9000]
)
async def test_a_login_that_is_no_json_of_one_is_400(tmp_path: Path, body: bytes) -> None:
    async with serving(tmp_path, accounts=True) as running:
        assert (await running.http.post("/s5/account/login", content=body)).status_code == 400


async def test_accounts_and_tokens_are_bounded(tmp_path: Path) -> None:
    limits = Limits(s5_accounts_max=0)
    async with serving(tmp_path / "a", accounts=True, limits=limits) as running:
        body = answered(await challenge_of(running, "register"), 1, f"127.0.0.1:{running.port}")
        assert (await running.http.post("/s5/account/register", json=body)).status_code == 403
    limits = Limits(s5_account_tokens_max=2)
    async with serving(tmp_path / "b", accounts=True, limits=limits) as running:
        tokens = [await entered(running, "register"), *[await entered(running, "login") for _ in range(2)]]
        told = [
            (await running.http.get("/s5/account", headers={"authorization": f"Bearer {token}"})).status_code
            for token in tokens
        ]
        assert told == [401, 200, 200]
        [(kept,)] = sqlite3.connect(tmp_path / "b" / "accounts.sqlite").execute("SELECT count(*) FROM tokens")
        assert kept == 2


async def test_without_accounts_there_are_no_such_routes(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        assert (await running.http.get("/s5/account/login", params={"pubKey": PK})).status_code == 404


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 4))
def test_no_challenge_is_ever_taken_twice_and_few_are_open(numbers: list[int], open_max: int) -> None:
    challenges, taken, given_ = Challenges(open_max=open_max, life_s=10), set[int](), list[int]()

    def is_taken(number: int) -> bool:
        response = b"\x02" + bytes([number]) * 32 + blake3(b"h").digest()
        try:
            challenges.check(response, SIGNER.sign(response), key=KEY, purpose=Purpose.LOGIN, host="h", now=9)
        except ChallengeError:
            return False
        return True

    for number in numbers:
        if number not in given_:
            challenges.give(bytes([number]) * 32, KEY, Purpose.LOGIN, 0)
            given_.append(number)
        elif is_taken(number):
            assert number not in taken
            taken.add(number)
    assert sum(is_taken(number) for number in given_) <= open_max
