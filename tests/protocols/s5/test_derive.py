"""The key tree is the one that live data of s5.js was read with."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.derive import (
    Identity,
    WriteKeys,
    account_key,
    child_write_key,
    derive_int,
    derive_string,
    hidden_keys,
    hidden_path_key,
    identity_of,
    phrase_entropy,
    phrase_numbers,
    root_keys,
)
from p2pnode.protocols.s5.entries import tagged
from p2pnode.protocols.s5.ids import hash_of
from tests.protocols.s5.support import Key

ENTROPY = bytes.fromhex("cafe1d4accd7636ab5865140e97d2eb8")
PHRASE = "sign weight spy quality sudden minute pizza great fear adapt nobody evident control alive crime"
USER = identity_of(ENTROPY)


def test_keys_are_derived_by_number_and_by_text_as_in_the_vectors() -> None:
    zero = bytes(32)
    by_number = "4d006976636a8696d909a630a4081aad4d7c50f81afdee04020bf05086ab6a55"
    by_text = "e40b877081c208036d451b898700b4bf938792ffa3e4426f2bf871aa057d992b"
    assert derive_int(zero, 0).hex() == by_number
    assert derive_string(zero, bytes(32)).hex() == by_text


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("main", "cfd56b7ae598cf803aece249815c41db0520b0183b0fa02b6e89a056dbafaea9"),
        ("private", "b8c491b844f9543040549c3f875599f7071c361e43e3a8217780d08e09f01913"),
        ("accounts", "cf7f891b2562978c3e27c8c4bea25cd7359828c77a6b8c0a6107dbdc7d8543df"),
        ("hidden", "c01c660c1719132d714aa1217cac236e0fc22135c02db72ad1b4195d6c4c78a8"),
        ("files", "b5af40cd2ec582bdd8f999ea4a0424d99eba96964262f1c42a30b58f7722a756"),
    ],
)
def test_the_identity_of_the_phrase_is_the_vector(name: str, key: str) -> None:
    assert hash_of(ENTROPY).hex() == "088c3ec7060509dde2c0ca180cc0a82883f8de58b0ea543cdfadddf0408e0715"
    assert getattr(USER, name).hex() == key


def test_the_signing_key_is_on_the_public_branch() -> None:
    assert USER.signing == derive_int(derive_int(derive_int(USER.main, 1), 0), 2)
    assert USER.private == derive_int(derive_int(USER.main, 64), 0)


def test_the_root_directory_has_the_keys_of_the_vector() -> None:
    root = root_keys(USER)
    assert root.write.hex() == "600e8e9bec1f21659047f3f5df5e36248afaee337c1d57ce5015375a01224da4"
    assert root.encrypt.hex() == "8a4236b8ec2696eee098b46c48874b534b3c062ba2c22a98fe9c980a56e092d6"
    public = "edda2ac81e06b6050cae27eaafb58f5010b4b0db5ae53512c7acda19d2d4c36d5d"
    assert tagged(Key(root.write).entry_key).hex() == public


def test_the_directory_home_has_the_keys_of_the_vector() -> None:
    home = child_write_key(root_keys(USER).write, "home")
    assert home.hex() == "de801855ca2f4de1e5a82cc5e0c125ccd4b4b046635f1d8825c796208909da30"
    public = "ed0d240e9b687a6712b4e77121a1be7eae7bf8a49d5a7bd90a2157abe423c67216"
    assert tagged(Key(home).entry_key).hex() == public


def test_the_hidden_list_of_accounts_has_the_keys_of_the_vector() -> None:
    path = hidden_path_key(USER, "accounts.json")
    assert path.hex() == "028e2a8624e34e9c6617cbeef1ddeebd559690a25f26ae0972196f6dc3131852"
    keys = hidden_keys(USER, "accounts.json")
    assert keys.encrypt.hex() == "db99465f98af517d75985d572669bfed91308f57b2767d20e038b56a5b06973c"
    public = "ed76845c5daedec065b65096f51cf51744e784351cafbfb7a71223821bc03ec858"
    assert tagged(Key(keys.write).entry_key).hex() == public


def test_a_hidden_path_is_read_as_s5js_reads_it() -> None:
    assert hidden_keys(USER, "/a/ b /") == hidden_keys(USER, "a//b")
    assert hidden_keys(USER, "a/b") != hidden_keys(USER, "b/a")
    assert hidden_path_key(USER, "") == derive_int(USER.hidden, 1)


def test_the_key_of_an_account_depends_on_both_seeds() -> None:
    assert account_key(USER.accounts, bytes(32)) == hash_of(USER.accounts + bytes(32))
    assert account_key(USER.accounts, bytes(32)) != account_key(USER.hidden, bytes(32))


def test_no_key_shows_itself() -> None:
    for held in (USER, root_keys(USER)):
        assert isinstance(held, Identity | WriteKeys)
        for each in fields(held):
            assert getattr(held, each.name).hex() not in repr(held)
            assert str(getattr(held, each.name)) not in repr(held)


# ---- the phrase


def test_the_numbers_of_the_phrase_stand_in_the_order_of_its_words() -> None:
    """No list of words is here, but lists are alphabetical: so the numbers sort as the words do."""
    numbers, words = phrase_numbers(ENTROPY), PHRASE.split()
    assert len(numbers) == len(words) == 15
    assert [word for _, word in sorted(zip(numbers, words, strict=True))] == sorted(words)
    assert phrase_entropy(numbers) == ENTROPY


@given(st.binary(min_size=16, max_size=16))
def test_every_entropy_comes_back_from_its_phrase(entropy: bytes) -> None:
    assert phrase_entropy(phrase_numbers(entropy)) == entropy


@given(st.integers(0, 14), st.integers(1, 1023))
def test_a_phrase_with_one_wrong_word_is_refused_or_fits_by_chance(index: int, shift: int) -> None:
    numbers = list(phrase_numbers(ENTROPY))
    numbers[index] = (numbers[index] + shift) % 1024
    try:
        found = phrase_entropy(numbers)
    except ProtocolError:
        return
    assert index < 13
    assert found != ENTROPY


def test_a_mistyped_phrase_says_what_is_wrong() -> None:
    numbers = phrase_numbers(ENTROPY)
    with pytest.raises(ProtocolError, match="out of order"):
        phrase_entropy([numbers[1], numbers[0], *numbers[2:]])
    with pytest.raises(ProtocolError, match="word 13"):
        phrase_entropy([*numbers[:12], 256, *numbers[13:]])
    for wrong in (numbers[:14], [*numbers, 1], [*numbers[:14], 1024], [-1, *numbers[1:]]):
        with pytest.raises(ProtocolError, match="15 words"):
            phrase_entropy(wrong)
    for entropy in (b"", bytes(15), bytes(32)):
        with pytest.raises(ValueError, match="16 bytes"):
            phrase_numbers(entropy)
        with pytest.raises(ValueError, match="16 bytes"):
            identity_of(entropy)
