"""A wallet: made once from words or an imported key, opened when it must sign, and never overwritten."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.chain.wallet import files as keystores
from p2pnode.chain.wallet.files import Keystore, WalletFiles, encrypt, read_keystore
from p2pnode.chain.wallet.passphrase import PassphraseFile
from p2pnode.chain.wallet.phrase import entropy_of, phrase_of, wallet_secret
from p2pnode.chain.wallet.wallet import Wallet, make_wallet, open_or_make_wallet, open_wallet, parse_key
from p2pnode.errors import ChainError, ConfigError
from p2pnode.protocols.crypto import keccak256, key_address, recover_address

DIGEST = keccak256(b"anything")
KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
ENTROPY = bytes.fromhex("9e885d952ad362caeb4efe34a8e91bd2")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a passphrase of a person costs is shown by tests/cli/test_wallet.py."""
    monkeypatch.setattr(keystores, "WORK", 1 << 12)


def files_in(folder: Path) -> WalletFiles:
    return WalletFiles(folder / "wallet.json", folder / "phrase.json", folder / "wallet.pass")


def opened(files: WalletFiles) -> Wallet:
    wallet = open_wallet(files)
    assert wallet is not None
    return wallet


@pytest.fixture
def files(tmp_path: Path) -> WalletFiles:
    return files_in(tmp_path)


@pytest.fixture
def made(files: WalletFiles) -> WalletFiles:
    """As `join` makes it."""
    open_or_make_wallet(files)
    return files


def test_a_new_wallet_is_private_and_holds_no_secret_in_the_clear(made: WalletFiles) -> None:
    wallet = opened(made)
    words = wallet.phrase()
    for path in (made.keystore, made.phrase, made.passphrase):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text()
        assert entropy_of(words).hex() not in text
        assert wallet_secret(entropy_of(words)).hex() not in text
    assert json.loads(made.keystore.read_text())["version"] == 3
    assert made.passphrase.read_text() not in made.keystore.read_text() + made.phrase.read_text()


def test_an_opened_wallet_signs_for_its_address(made: WalletFiles) -> None:
    wallet = opened(made)
    assert recover_address(DIGEST, wallet.unlock()(DIGEST)) == wallet.address


def test_its_words_make_its_key_on_any_other_machine(made: WalletFiles, tmp_path: Path) -> None:
    wallet = opened(made)
    assert wallet.origin == "phrase"
    assert key_address(wallet_secret(entropy_of(wallet.phrase()))) == wallet.address
    (tmp_path / "other").mkdir()
    elsewhere = files_in(tmp_path / "other")
    source = PassphraseFile(elsewhere.passphrase, draw=True)
    assert make_wallet(elsewhere, source, entropy=entropy_of(wallet.phrase())).address == wallet.address


def test_the_second_start_takes_the_same_wallet(made: WalletFiles) -> None:
    before = made.keystore.read_bytes()
    assert open_or_make_wallet(made).address == opened(made).address
    assert made.keystore.read_bytes() == before


def test_no_wallet_is_none(files: WalletFiles) -> None:
    assert open_wallet(files) is None


@pytest.mark.parametrize("present", ["keystore", "phrase"])
def test_nothing_is_ever_overwritten(made: WalletFiles, present: str) -> None:
    kept = getattr(made, present)
    for path in {made.keystore, made.phrase} - {kept}:
        path.unlink()
    before, passphrase = kept.read_bytes(), made.passphrase.read_bytes()
    with pytest.raises(ChainError, match="exists: move it away first"):
        make_wallet(made, PassphraseFile(made.passphrase, draw=True), entropy=ENTROPY)
    assert kept.read_bytes() == before
    assert made.passphrase.read_bytes() == passphrase


def test_the_passphrase_of_a_keystore_that_was_moved_away_is_not_replaced(made: WalletFiles) -> None:
    passphrase = made.passphrase.read_bytes()
    aside = made.keystore.rename(made.keystore.with_name("aside.json"))
    made.phrase.rename(made.phrase.with_name("aside-phrase.json"))
    second = open_or_make_wallet(made)
    assert made.passphrase.read_bytes() == passphrase
    first = read_keystore(aside)
    assert first is not None
    assert key_address(first.decrypt(passphrase)) == first.address != second.address


def test_a_first_start_cut_off_after_the_phrase_makes_the_same_wallet_again(made: WalletFiles) -> None:
    address = opened(made).address
    made.keystore.unlink()
    assert open_or_make_wallet(made).address == address
    assert opened(made).origin == "phrase"


def test_a_phrase_alone_of_an_imported_key_makes_no_other_wallet_in_its_place(files: WalletFiles) -> None:
    make_wallet(files, PassphraseFile(files.passphrase, draw=True), entropy=ENTROPY, secret=KEY)
    files.keystore.unlink()
    with pytest.raises(ChainError, match="restore that from your backup"):
        open_or_make_wallet(files)
    assert not files.keystore.exists()


def test_two_first_starts_at_once_end_with_one_wallet(files: WalletFiles) -> None:
    code = (
        "import sys; from pathlib import Path; from p2pnode.errors import ChainError\n"
        "from p2pnode.chain.wallet.wallet import open_or_make_wallet\n"
        "from tests.chain.wallet.test_wallet import files_in\n"
        "try: print(open_or_make_wallet(files_in(Path(sys.argv[1]))).account)\n"
        "except ChainError as error: print('refused', error)\n"
    )
    command = [sys.executable, "-c", code, str(files.keystore.parent)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=30)[0].strip() for process in both}
    wallet = opened(files)
    assert wallet.account in said
    assert {line for line in said if not line.startswith("refused")} == {wallet.account}
    assert key_address(wallet_secret(entropy_of(wallet.phrase()))) == wallet.address


def test_an_imported_key_keeps_its_address_and_gets_a_phrase_of_its_own(files: WalletFiles) -> None:
    source = PassphraseFile(files.passphrase, draw=True)
    wallet = make_wallet(files, source, entropy=ENTROPY, secret=KEY)
    assert wallet.account == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    again = opened(files)
    assert (again.origin, again.address) == ("imported", wallet.address)
    assert recover_address(DIGEST, again.unlock()(DIGEST)) == wallet.address
    assert again.phrase() == phrase_of(ENTROPY)


def test_a_keystore_without_a_phrase_still_signs_and_says_so(made: WalletFiles) -> None:
    made.phrase.unlink()
    wallet = opened(made)
    assert recover_address(DIGEST, wallet.unlock()(DIGEST)) == wallet.address
    with pytest.raises(ChainError, match="has no recovery phrase here"):
        wallet.phrase()


def test_an_export_is_a_plain_keystore_that_opens_with_either_passphrase(made: WalletFiles) -> None:
    wallet = opened(made)
    for body, passphrase in (
        (wallet.exported(), made.passphrase.read_bytes()),
        (wallet.exported(b"another one"), b"another one"),
    ):
        raw = json.loads(body)
        assert set(raw) == {"address", "crypto", "id", "version"}
        assert raw["address"] == wallet.address.hex()
        assert key_address(Keystore(Path("export"), raw).decrypt(passphrase)) == wallet.address


# ---- keystores of others

# The test vectors of the Web3 Secret Storage definition.
_SECRET = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
_SCRYPT = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "r": 1,
            "p": 8,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}


def test_the_published_keystore_opens() -> None:
    assert Keystore(Path("vector"), _SCRYPT).decrypt(b"testpassword").hex() == _SECRET


def test_a_keystore_of_another_program_is_opened_with_the_file_beside_it(files: WalletFiles) -> None:
    files.keystore.write_text(json.dumps(encrypt(KEY, b"testpassword")))
    files.passphrase.write_text("testpassword\n")
    wallet = opened(files)
    assert (wallet.origin, wallet.source.kind) == ("unknown", "file")
    assert recover_address(DIGEST, wallet.unlock()(DIGEST)) == wallet.address


def test_a_keystore_that_names_another_address_is_not_used(files: WalletFiles) -> None:
    files.keystore.write_text(json.dumps({**encrypt(KEY, b"x" * 8, drawn=True), "address": "11" * 20}))
    files.passphrase.write_text("x" * 8)
    with pytest.raises(ChainError, match="holds the key of another address"):
        opened(files).unlock()


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "7", '{"address": 7}', '{"address": "zz"}', '{"address": "abcd"}', '{"address": null}'],
)
def test_a_file_that_is_no_keystore_is_refused(files: WalletFiles, text: str) -> None:
    files.keystore.write_text(text)
    with pytest.raises(ChainError, match="is not a V3 keystore: restore it from your backup"):
        open_wallet(files)


def test_a_keystore_that_can_not_be_read_is_named(files: WalletFiles) -> None:
    files.keystore.mkdir()
    with pytest.raises(ConfigError, match=f"{files.keystore} is a folder, not a file"):
        open_wallet(files)


def _no_passphrase(files: WalletFiles) -> None:
    files.passphrase.unlink()


def _wrong_passphrase(files: WalletFiles) -> None:
    files.passphrase.write_text("x-wrong-x")


def _spoilt(**changes: object) -> Callable[[WalletFiles], None]:
    def spoil(files: WalletFiles) -> None:
        for path in (files.keystore, files.phrase):
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


@pytest.mark.parametrize(
    "harm", [_no_passphrase, _wrong_passphrase, _spoilt(version=9), _spoilt(crypto=7), _spoilt(crypto={})]
)
def test_a_missing_a_wrong_and_a_garbled_secret_are_told_without_the_passphrase(
    made: WalletFiles, harm: Callable[[WalletFiles], None]
) -> None:
    secrets = {made.passphrase.read_text(), "x-wrong-x"}
    harm(made)
    wallet = opened(made)
    for use in (wallet.unlock, wallet.phrase, wallet.exported):
        with pytest.raises(ChainError, match="restore both files from your backup") as caught:
            use()
        shown = str(caught.value) + repr(caught.value.__cause__)
        assert not any(secret in shown for secret in secrets)


def test_a_keystore_in_the_place_of_the_phrase_is_no_phrase(made: WalletFiles) -> None:
    made.phrase.write_bytes(made.keystore.read_bytes())
    with pytest.raises(ChainError, match="restore both files"):
        opened(made).phrase()


def test_no_secret_is_in_what_a_wallet_shows_of_itself(made: WalletFiles) -> None:
    wallet = opened(made)
    shown = repr(wallet) + repr(wallet.unlock()) + repr(wallet.source.fresh(wallet.account))
    for secret in (
        made.passphrase.read_text(),
        *wallet.phrase().split(),
        wallet_secret(entropy_of(wallet.phrase())).hex(),
    ):
        assert secret not in shown.split()
    assert made.passphrase.read_text() not in shown


# ---- keys


@pytest.mark.parametrize("text", [KEY.hex(), "0x" + KEY.hex(), f"  0X{KEY.hex().upper()}\n"])
def test_a_key_in_hex_is_read(text: str) -> None:
    assert parse_key(text) == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        KEY.hex()[:-1],
        KEY.hex() + "0",
        "0x0x" + KEY.hex()[:60],
        "g" + KEY.hex()[1:],
        "00" * 32,
        "ff" * 32,
        "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
    ],
)
def test_what_is_no_key_is_told_without_a_digit_of_it(text: str) -> None:
    with pytest.raises(ConfigError, match="check what was given") as caught:
        parse_key(text)
    assert not text or text.strip() not in str(caught.value)
