"""Twelve words: the published vectors, what is forgiven, and what is said about a wrong one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.wallet.phrase import entropy_of, new_entropy, phrase_of, text_of, wallet_secret
from p2pnode.errors import ConfigError
from p2pnode.protocols.crypto import key_address

JUNK = "test test test test test test test test test test test junk"
OZONE = "ozone drill grab fiber curtain grace pudding thank cruise elder eight picnic"
# Entropy and phrase are Trezor's vectors for BIP-39; the addresses are those that wallets everywhere show.
VECTORS = [
    ("00" * 16, "abandon " * 11 + "about", "0x9858EfFD232B4033E47d90003D41EC34EcaEda94"),
    ("7f" * 16, "legal winner thank year wave sausage worth useful legal winner thank yellow", None),
    ("80" * 16, "letter advice cage absurd amount doctor acoustic avoid letter advice cage above", None),
    ("ff" * 16, "zoo " * 11 + "wrong", None),
    ("9e885d952ad362caeb4efe34a8e91bd2", OZONE, None),
    ("df9bf37e6fcdf9bf37e6fcdf9bf37e3c", JUNK, "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
]


@pytest.mark.parametrize(("entropy", "phrase", "address"), VECTORS)
def test_published_vectors_hold(entropy: str, phrase: str, address: str | None) -> None:
    assert entropy_of(phrase).hex() == entropy
    assert phrase_of(bytes.fromhex(entropy)) == phrase
    if address is not None:
        assert shown_address(key_address(wallet_secret(bytes.fromhex(entropy)))) == address


def test_the_key_is_that_of_the_first_account_as_everybody_derives_it() -> None:
    known = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
    assert wallet_secret(entropy_of(JUNK)).hex() == known


@settings(max_examples=200)
@given(st.binary(min_size=16, max_size=16))
def test_any_entropy_comes_back_from_its_words(entropy: bytes) -> None:
    assert entropy_of(phrase_of(entropy)) == entropy


def test_new_entropy_is_new_each_time() -> None:
    drawn = {new_entropy() for _ in range(20)}
    assert len(drawn) == 20
    assert {len(each) for each in drawn} == {16}


@pytest.mark.parametrize(
    "written",
    [
        JUNK.upper(),
        f"  {JUNK.replace(' ', '   ')}\n",
        JUNK.replace(" ", "\n"),
        JUNK.replace(" ", ", "),
        unicodedata.normalize("NFKD", JUNK),
    ],
)
def test_case_and_space_are_forgiven(written: str) -> None:
    assert entropy_of(written) == entropy_of(JUNK)


def test_words_cut_to_four_letters_are_known_and_to_three_are_not() -> None:
    whole = OZONE
    assert entropy_of(" ".join(word[:4] for word in whole.split())) == entropy_of(whole)
    with pytest.raises(ConfigError, match="are not in the list"):
        entropy_of(" ".join(word[:3] for word in whole.split()))


def test_an_unknown_word_is_told_by_its_place_and_never_repeated() -> None:
    with pytest.raises(ConfigError, match=r"^word 3 is not in the list") as caught:
        entropy_of(JUNK.replace("test test test", "test test tset", 1))
    assert "tset" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^words 1, 12 are not in the list"):
        entropy_of("tst" + JUNK[4:-4] + "jnuk")


def test_a_wrong_word_or_order_is_named() -> None:
    good = OZONE
    words = good.split()
    swapped = " ".join([words[1], words[0], *words[2:]])
    for bad in (swapped, good.replace("ozone", "oxygen")):
        with pytest.raises(ConfigError, match="two have changed places") as caught:
            entropy_of(bad)
        assert "drill" not in str(caught.value)


@pytest.mark.parametrize(("phrase", "count"), [("", 0), ("test", 1), (JUNK + " junk", 13), (JUNK * 2, 23)])
def test_another_number_of_words_is_refused(phrase: str, count: int) -> None:
    with pytest.raises(ConfigError, match=f"has 12 words, this has {count}"):
        entropy_of(phrase)


@pytest.mark.parametrize("text", ["é" * 12, "\x00 " * 12, "ab\u200bandon " * 12, "ñandú " * 12])
def test_strange_text_is_no_phrase(text: str) -> None:
    with pytest.raises(ConfigError):
        entropy_of(text)


GRID = """
 1 legal        2 winner       3 thank        4 year
 5 wave         6 sausage      7 worth        8 useful
 9 legal       10 winner      11 thank       12 yellow
"""
LEGAL = "legal winner thank year wave sausage worth useful legal winner thank yellow"


@pytest.mark.parametrize(
    "written",
    [
        GRID,
        GRID.upper(),
        GRID.replace(" ", "\u00a0"),
        "\n".join(f"{place}. {word}" for place, word in enumerate(LEGAL.split(), 1)),
        "\n".join(f"{place}){word}," for place, word in enumerate(LEGAL.split(), 1)),
        " ".join(
            f"{place}\t{word}" for place, word in sorted(enumerate(LEGAL.split(), 1), key=lambda e: e[0] % 3)
        ),
        "\ufeff" + LEGAL.replace(" ", "\r\n"),
        LEGAL.replace("e", "e\u200b"),
        "\n".join(f"'{word}'" for word in LEGAL.split()),
        "".join(chr(0xFEE0 + ord(letter)) if letter != " " else "\u3000" for letter in LEGAL),
    ],
    ids=["grid", "capitals", "no-break", "dots", "brackets", "columns", "mark", "unseen", "quotes", "wide"],
)
def test_words_are_taken_as_they_were_written_down(written: str) -> None:
    assert entropy_of(written) == entropy_of(LEGAL)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (GRID.replace("year", "yaer"), "word 4 is not in the list"),
        (GRID.replace("sausage", "s4usage"), "word 6 has something else in it than the letters a to z"),
        (GRID.replace("thank", "thänk"), "words 3, 11 have something else in it"),
        (GRID.replace(" 7 worth", " 7      "), "this has 11"),
        (GRID + "\nthe same again", "this has 15"),
    ],
)
def test_what_is_wrong_with_words_is_told_by_their_place(written: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        entropy_of(written)
    assert not set(LEGAL.split()) & set(str(caught.value).split())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_of_words_may_come_from_any_editor(encoding: str) -> None:
    data = LEGAL.encode(encoding)
    if encoding == "utf-16-be":
        data = b"\xfe\xff" + data
    assert entropy_of(text_of(data)) == entropy_of(LEGAL)
    with pytest.raises(ConfigError, match="save it as plain text"):
        text_of(b"\xff\xc3\x28")
