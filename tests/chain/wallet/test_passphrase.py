"""Where passphrases come from: files, the keyring and people; and errors, which never show a passphrase."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.chain.wallet import files as keystores
from p2pnode.chain.wallet.files import WalletFiles
from p2pnode.chain.wallet.passphrase import PassphraseFile, PassphrasePrompt
from p2pnode.chain.wallet.wallet import Wallet, make_wallet, open_wallet
from p2pnode.errors import ChainError, ConfigError

ACCOUNT = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
ENTROPY = bytes.fromhex("9e885d952ad362caeb4efe34a8e91bd2")
PASSPHRASE = "pässword with ünicode ☃"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystores, "WORK", 1 << 12)


def person(*answers: str, questions: list[str] | None = None) -> PassphrasePrompt:
    """A person who types these answers, one after the other."""
    left = iter(answers)

    def ask(question: str) -> str:
        if questions is not None:
            questions.append(question)
        return next(left)

    return PassphrasePrompt(ask=ask, is_terminal=lambda: True)


def test_a_person_is_asked_twice_for_a_new_one_and_once_for_an_old_one() -> None:
    questions: list[str] = []
    fresh = person(PASSPHRASE, PASSPHRASE, questions=questions).fresh(ACCOUNT)
    assert (fresh.passphrase, fresh.drawn) == (PASSPHRASE.encode(), False)
    assert len(questions) == 2
    assert person(PASSPHRASE, questions=questions).existing(ACCOUNT) == PASSPHRASE.encode()
    assert len(questions) == 3
    assert ACCOUNT in questions[0]
    assert ACCOUNT in questions[2]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (("short",) * 6, "has at least 8 characters"),
        (("",) * 6, "has at least 8 characters"),
        ((PASSPHRASE, PASSPHRASE + "!"), "the two passphrases differ: nothing was written"),
    ],
)
def test_a_passphrase_that_will_not_do_is_refused_without_being_repeated(
    answers: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        person(*answers).fresh(ACCOUNT)
    assert not any(answer and answer in str(caught.value) for answer in answers)


def test_one_that_is_too_short_is_asked_again_and_its_rule_is_told_before() -> None:
    questions: list[str] = []
    fresh = person("short", "", PASSPHRASE, PASSPHRASE, questions=questions).fresh(ACCOUNT)
    assert fresh.passphrase == PASSPHRASE.encode()
    assert "8 characters or more" in questions[0]
    assert [each.startswith("That is shorter than 8 characters") for each in questions] == [
        False, True, True, False,
    ]  # fmt: skip


def test_without_a_terminal_nobody_is_asked() -> None:
    prompt = PassphrasePrompt(ask=lambda _question: PASSPHRASE, is_terminal=lambda: False)
    for use in (prompt.fresh, prompt.existing):
        with pytest.raises(ConfigError, match="there is no terminal to ask"):
            use(ACCOUNT)


def test_the_end_of_the_input_is_no_passphrase() -> None:
    def ends(_question: str) -> str:
        raise EOFError

    with pytest.raises(ConfigError, match="no passphrase was given"):
        PassphrasePrompt(ask=ends, is_terminal=lambda: True).existing(ACCOUNT)


@pytest.mark.parametrize("text", [PASSPHRASE, PASSPHRASE + "\n", PASSPHRASE + "\r\n"])
def test_the_line_end_of_a_file_is_not_part_of_the_passphrase(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text.encode())
    assert PassphraseFile(path).existing(ACCOUNT) == PASSPHRASE.encode()


def test_the_spaces_of_a_file_are(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f" {PASSPHRASE} ")
    assert PassphraseFile(path).existing(ACCOUNT) == f" {PASSPHRASE} ".encode()


def _nothing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.write_text("\n")


@pytest.mark.parametrize(("make", "why"), [(_nothing, "does not exist"), (_empty, "is empty")])
def test_a_file_without_a_passphrase_is_named(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    make(tmp_path / "secret")
    with pytest.raises(ChainError, match=f"{why}: put the passphrase of {ACCOUNT} into it"):
        PassphraseFile(tmp_path / "secret").existing(ACCOUNT)


def test_a_drawn_passphrase_is_private_random_and_drawn_once(tmp_path: Path) -> None:
    made = PassphraseFile(tmp_path / "one", draw=True)
    first, second = made.fresh(ACCOUNT), made.fresh(ACCOUNT)
    assert (first.drawn, second.drawn) == (True, False)
    assert first.passphrase == second.passphrase == made.existing(ACCOUNT)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    other = PassphraseFile(tmp_path / "other", draw=True).fresh(ACCOUNT)
    assert other.passphrase != first.passphrase
    assert len(first.passphrase) >= 43
    assert first.passphrase.decode() not in repr(first)


# ---- a wallet of a person


def _opened(files: WalletFiles, *answers: str) -> Wallet:
    wallet = open_wallet(files, prompt=person(*answers))
    assert wallet is not None
    return wallet


def test_a_person_opens_a_wallet_with_the_right_passphrase_only(tmp_path: Path) -> None:
    files = WalletFiles(tmp_path / "wallet.json", tmp_path / "phrase.json", tmp_path / "wallet.pass")
    made = make_wallet(files, person(PASSPHRASE, PASSPHRASE), entropy=ENTROPY)
    assert not files.passphrase.exists()
    opened = _opened(files, PASSPHRASE, PASSPHRASE)
    assert opened.source.kind == "prompt"
    assert opened.unlock()(bytes(32)) == made.unlock(PASSPHRASE.encode())(bytes(32))
    assert opened.phrase() == made.phrase(PASSPHRASE.encode())
    wrong = "x-wrong-x"
    opened = _opened(files, wrong, wrong, wrong)
    for use in (opened.unlock, opened.phrase, opened.exported):
        with pytest.raises(ChainError, match="the passphrase is wrong, or the file is damaged") as caught:
            use()
        assert wrong not in str(caught.value)
