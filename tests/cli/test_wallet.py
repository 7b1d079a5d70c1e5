"""``p2pnode wallet``: secrets come from a terminal or a file and go to one, and nothing is overwritten."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backend
import keyring.errors
import pytest

from p2pnode.chain.wallet import files as keystores
from p2pnode.chain.wallet.files import Keystore
from p2pnode.chain.wallet.phrase import entropy_of, wallet_secret
from p2pnode.chain.wallet.wallet import Wallet, open_wallet
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import load_or_create_identity, wallet_files
from p2pnode.protocols.crypto import key_address
from p2pnode.storage.keys import StorageKeys
from tests.cli.support import LISTEN, Ran, run
from tests.cli.terminal import Terminal

JUNK = "test test test test test test test test test test test junk"
JUNK_ADDRESS = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
KEY = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
PASSPHRASE = "correct horse staple"
_WORD = re.compile(r"^\s*(?:\d+ [a-z]+\s+){3}\d+ [a-z]+\s*$", re.MULTILINE)


def wallet(*arguments: object, data_dir: Path, stdin: str = "") -> Ran:
    return run("wallet", *arguments, "--data-dir", data_dir, stdin=stdin)


def opened(data_dir: Path) -> Wallet:
    found = open_wallet(wallet_files(DataDir(data_dir)))
    assert found is not None
    return found


def words_on(screen: str) -> str:
    """The twelve words as they were shown."""
    found = [word for line in _WORD.findall(screen) for word in re.findall(r"\d+ ([a-z]+)", line)]
    assert len(found) == 12, screen
    return " ".join(found)


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    return tmp_path / "words"


def make_random(data_dir: Path, words_file: Path) -> Ran:
    ran = wallet("new", "--random", "--show-phrase-to", words_file, "--json", data_dir=data_dir)
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process a passphrase costs nothing; commands at a terminal are processes of their own."""
    monkeypatch.setattr(keystores, "WORK", 1 << 12)


# ---- at a terminal


def test_a_new_wallet_shows_its_words_once_and_its_passphrase_never(data_dir: Path) -> None:
    with Terminal(["wallet", "new", "--data-dir", data_dir]) as terminal:
        terminal.expect("New passphrase for the wallet 0x")
        terminal.expect(": ")
        assert not terminal.echoes()
        terminal.type(PASSPHRASE + "\n")
        terminal.answer("The same again: ", PASSPHRASE)
        terminal.expect("Press Enter when they are written down.")
        screen = terminal.seen
        terminal.type("\n")
        assert terminal.end() == 0
    made = opened(data_dir)
    assert made.account in screen
    assert "Write these words down" in screen
    assert PASSPHRASE not in screen + terminal.seen
    words = words_on(screen)
    assert key_address(wallet_secret(entropy_of(words))) == made.address
    for name in ("wallet.json", "phrase.json"):
        assert json.loads((data_dir / name).read_text())["crypto"]["kdfparams"]["n"] >= 1 << 17

    with Terminal(["wallet", "show", "--phrase", "--data-dir", data_dir]) as terminal:
        terminal.answer(f"Passphrase of the wallet {made.account}: ", PASSPHRASE)
        terminal.expect("Press Enter")
        terminal.type("\n")
        assert terminal.end() == 0
    assert words_on(terminal.seen) == words


def test_a_short_passphrase_is_asked_again(data_dir: Path, words_file: Path) -> None:
    with Terminal(["wallet", "new", "--show-phrase-to", words_file, "--data-dir", data_dir]) as terminal:
        terminal.expect("a passphrase of 8 characters or more")
        terminal.answer("New passphrase for the wallet", "short")
        terminal.answer("That is shorter than 8 characters. A longer one: ", PASSPHRASE)
        terminal.answer("The same again: ", PASSPHRASE)
        assert terminal.end() == 0
    assert opened(data_dir).phrase(PASSPHRASE.encode()) == words_file.read_text().strip()


def test_the_grid_that_was_printed_is_pasted_back_hidden(data_dir: Path) -> None:
    """Its later lines go to the same question, not to the next one."""
    numbered = [f"{place:2} {word:<9}" for place, word in enumerate(JUNK.split(), 1)]
    grid = "\n".join("   ".join(numbered[start : start + 4]).rstrip() for start in (0, 4, 8))
    with Terminal(["wallet", "restore", "--random", "--data-dir", data_dir]) as terminal:
        terminal.answer("The twelve words (they are not shown): ", grid)
        assert terminal.end() == 0
    assert JUNK_ADDRESS in terminal.seen
    assert "test" not in terminal.seen.replace(str(data_dir), "")


@pytest.mark.parametrize("stdin", [JUNK.replace(" ", "\n"), "\ufeff" + JUNK.upper()])
def test_words_on_standard_input_may_have_several_lines(data_dir: Path, stdin: str) -> None:
    ran = wallet("restore", "--random", "--phrase-file", "-", data_dir=data_dir, stdin=stdin)
    assert (ran.code, JUNK_ADDRESS in ran.out) == (0, True), ran


def test_a_file_in_utf_16_restores(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "words").write_text(JUNK, encoding="utf-16")
    ran = wallet("restore", "--random", "--phrase-file", tmp_path / "words", data_dir=data_dir)
    assert (ran.code, JUNK_ADDRESS in ran.out) == (0, True), ran


def test_a_join_after_a_new_wallet_says_what_it_makes(data_dir: Path, words_file: Path) -> None:
    unreachable = ("--listen", "/ip4/192.0.2.1/tcp/4001", "--model", "scripted", "--no-mdns")
    make_random(data_dir, words_file)
    ran = run("join", *unreachable, "--data-dir", data_dir)
    assert "first start: making an identity in" in ran.err
    fresh = run("join", *unreachable, "--data-dir", data_dir.with_name("fresh"))
    assert "first start: making an identity and a wallet in" in fresh.err


@pytest.mark.long
def test_a_ctrl_c_at_the_passphrase_of_a_join_leaves_and_gives_the_terminal_back(
    data_dir: Path, words_file: Path
) -> None:
    with Terminal(["wallet", "new", "--show-phrase-to", words_file, "--data-dir", data_dir]) as terminal:
        terminal.answer("New passphrase for the wallet", PASSPHRASE)
        terminal.answer("The same again: ", PASSPHRASE)
        assert terminal.end() == 0
    flags = ("--model", "scripted", "--no-mdns", "--listen", LISTEN, "--data-dir", data_dir)
    with Terminal(["join", *flags]) as terminal:
        terminal.expect("Passphrase of the wallet")
        terminal.expect(": ")
        assert not terminal.echoes()
        terminal.type("\x03")
        assert terminal.end() == 0
        assert terminal.echoes()
    assert "Traceback" not in terminal.seen


def test_two_different_passphrases_make_nothing(data_dir: Path, words_file: Path) -> None:
    with Terminal(["wallet", "new", "--show-phrase-to", words_file, "--data-dir", data_dir]) as terminal:
        terminal.answer("New passphrase for the wallet", PASSPHRASE)
        terminal.answer("The same again: ", PASSPHRASE + "r")
        assert terminal.end() == 1
    assert "the two passphrases differ: nothing was written" in terminal.seen
    assert not words_file.exists()
    assert not (data_dir / "wallet.json").exists()
    assert not (data_dir / "phrase.json").exists()


def test_a_ctrl_c_at_a_question_ends_at_once_and_gives_the_terminal_back(data_dir: Path) -> None:
    with Terminal(["wallet", "new", "--data-dir", data_dir]) as terminal:
        terminal.expect("New passphrase for the wallet")
        terminal.expect(": ")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert terminal.echoes()
    assert "Traceback" not in terminal.seen
    assert not (data_dir / "wallet.json").exists()


def test_words_and_keys_are_not_echoed(tmp_path: Path) -> None:
    for command, question, secret in (
        ("restore", "The twelve words (they are not shown): ", JUNK),
        ("import", "The private key in hex (it is not shown): ", KEY),
    ):
        folder = tmp_path / command
        flags = ["--random", "--data-dir", folder]
        if command == "import":
            flags += ["--show-phrase-to", tmp_path / "words"]
        with Terminal(["wallet", command, *flags]) as terminal:
            terminal.expect(question)
            assert not terminal.echoes()
            terminal.type(secret + "\n")
            assert terminal.end() == 0
        assert JUNK_ADDRESS in terminal.seen
        assert secret not in terminal.seen


# ---- without one


def test_words_never_go_through_a_pipe(data_dir: Path) -> None:
    for flags in ([], ["--json"]):
        ran = wallet("new", "--random", *flags, data_dir=data_dir)
        assert ran.code == 2
        assert "shown on a terminal only" in ran.out + ran.err
        assert not (data_dir / "wallet.json").exists()


def test_words_go_to_a_private_new_file_when_asked(data_dir: Path, words_file: Path) -> None:
    ran = make_random(data_dir, words_file)
    (event,) = ran.named("wallet.made")
    words = words_file.read_text().strip()
    assert stat.S_IMODE(words_file.stat().st_mode) == 0o600
    assert event["address"] == opened(data_dir).account
    assert (event["origin"], event["phrase_file"]) == ("phrase", str(words_file))
    assert key_address(wallet_secret(entropy_of(words))) == opened(data_dir).address
    assert words not in ran.out + ran.err


def test_an_existing_file_is_not_overwritten_with_words(data_dir: Path, words_file: Path) -> None:
    words_file.write_text("something else")
    ran = wallet("new", "--random", "--show-phrase-to", words_file, data_dir=data_dir)
    assert ran.code == 2
    assert "exists: name another file" in ran.err
    assert words_file.read_text() == "something else"
    assert not (data_dir / "wallet.json").exists()


@pytest.mark.parametrize("command", ["new", "restore", "import"])
def test_a_wallet_is_never_overwritten(data_dir: Path, words_file: Path, command: str) -> None:
    make_random(data_dir, words_file)
    before = {path.name: path.read_bytes() for path in data_dir.iterdir() if path.is_file()}
    ran = wallet(command, "--random", data_dir=data_dir, stdin=JUNK)
    assert ran.code == 1
    assert "wallet.json exists: move it away first" in ran.err
    assert {path.name: path.read_bytes() for path in data_dir.iterdir() if path.is_file()} == before


def test_a_wallet_is_restored_from_words_in_a_file_or_on_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "junk"
    file.write_text(JUNK.upper() + "\n")
    for name, given, stdin in (("file", file, ""), ("stdin", "-", JUNK + "\n")):
        ran = wallet(
            "restore", "--phrase-file", given, "--random", "--json", data_dir=tmp_path / name, stdin=stdin
        )
        assert ran.code == 0, ran.out
        assert ran.named("wallet.made")[0]["address"] == JUNK_ADDRESS
        assert opened(tmp_path / name).phrase() == JUNK


def test_who_restores_a_wallet_is_told_that_caps_are_counted_in_each_data_dir(tmp_path: Path) -> None:
    ran = wallet("restore", "--phrase-file", "-", "--random", data_dir=tmp_path / "again", stdin=JUNK + "\n")
    assert "spending limits are counted in each data dir by itself" in ran.err
    made = wallet("new", "--random", "--show-phrase-to", tmp_path / "words", data_dir=tmp_path / "new")
    assert "spending limits" not in made.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (JUNK.replace("junk", "jnuk"), "word 12 is not in the list"),
        (JUNK.replace("junk", "test"), "two have changed places"),
        ("test junk", "has 12 words, this has 2"),
    ],
)
def test_wrong_words_are_told_and_make_nothing(data_dir: Path, words: str, why: str) -> None:
    ran = wallet("restore", "--phrase-file", "-", "--random", data_dir=data_dir, stdin=words)
    assert ran.code == 1
    assert why in ran.err
    assert "jnuk" not in ran.err
    assert not (data_dir / "wallet.json").exists()


def test_an_imported_key_gets_words_that_are_not_its_own(
    data_dir: Path, words_file: Path, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(f"0x{KEY}\n")
    flags = ("--key-file", key_file, "--random", "--show-phrase-to", words_file, "--json")
    ran = wallet("import", *flags, data_dir=data_dir)
    assert ran.code == 0, ran.out
    (event,) = ran.named("wallet.made")
    assert (event["address"], event["origin"]) == (JUNK_ADDRESS, "imported")
    words = words_file.read_text().strip()
    assert key_address(wallet_secret(entropy_of(words))) != opened(data_dir).address
    assert opened(data_dir).phrase() == words
    assert KEY not in ran.out + ran.err


def test_what_is_no_key_is_told_without_it(data_dir: Path, words_file: Path) -> None:
    flags = ("--key-file", "-", "--random", "--show-phrase-to", words_file)
    ran = wallet("import", *flags, data_dir=data_dir, stdin=KEY[:-1])
    assert ran.code == 1
    assert "64 hex digits" in ran.err
    assert KEY[:-1] not in ran.err
    assert not words_file.exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["new"], "no terminal to ask for a passphrase at"),
        (["new", "--random", "--keyring"], "exclude one another"),
        (["restore", "--random"], "no terminal to ask at: give --phrase-file"),
        (["import", "--random"], "no terminal to ask at: give --key-file"),
        (["restore", "--random", "--phrase-file", "/nowhere/at/all"], "does not exist"),
    ],
)
def test_what_can_not_work_is_a_usage_error(data_dir: Path, arguments: list[str], why: str) -> None:
    ran = wallet(*arguments, data_dir=data_dir)
    assert ran.code == 2
    assert why in ran.err
    assert not (data_dir / "wallet.json").exists()


@pytest.mark.parametrize("option", ["--passphrase", "--key", "--phrase-words", "--private-key"])
def test_no_option_takes_a_secret(data_dir: Path, option: str) -> None:
    ran = wallet("new", option, "secret", data_dir=data_dir)
    assert ran.code == 2


def test_a_secret_in_the_environment_is_not_read(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("P2PNODE_PASSPHRASE", "P2PNODE_WALLET_PASSPHRASE", "PASSPHRASE", "P2PNODE_PASSPHRASE_FILE"):
        monkeypatch.setenv(name, PASSPHRASE)
    assert wallet("new", data_dir=data_dir).code == 2


# ---- passphrases


def test_a_passphrase_from_a_file_opens_the_wallet_at_each_start(data_dir: Path, tmp_path: Path) -> None:
    secret, words = tmp_path / "secret", tmp_path / "words"
    secret.write_text(PASSPHRASE + "\n")
    flags = ("--passphrase-file", secret, "--show-phrase-to", words)
    ran = wallet("new", *flags, data_dir=data_dir)
    assert ran.code == 0
    assert f"the file {secret}" in ran.out
    made = opened(data_dir)
    assert made.phrase() == made.phrase(PASSPHRASE.encode()) == words.read_text().strip()
    assert not (data_dir / "wallet.pass").exists()
    load_or_create_identity(DataDir(data_dir), lambda: 1_800_000_000.0)
    secret.write_text("")
    ran = wallet("show", "--show-phrase-to", tmp_path / "again", data_dir=data_dir)
    assert ran.code == 1
    assert "restore both files" in ran.err


class Ring(keyring.backend.KeyringBackend):
    """A keyring in memory."""

    priority = 1.0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise keyring.errors.KeyringLocked("locked")
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


@pytest.fixture
def ring() -> Iterator[Ring]:
    before, made = keyring.get_keyring(), Ring()
    keyring.set_keyring(made)
    yield made
    keyring.set_keyring(before)


def test_a_passphrase_in_the_keyring_is_random_and_found_again(
    data_dir: Path, words_file: Path, ring: Ring
) -> None:
    assert wallet("new", "--keyring", "--show-phrase-to", words_file, data_dir=data_dir).code == 0
    made = opened(data_dir)
    ((place, passphrase),) = ring.held.items()
    assert place == ("p2pnode wallet", made.account)
    assert len(passphrase) > 40
    assert made.phrase() == words_file.read_text().strip()
    assert all(passphrase not in path.read_text() for path in data_dir.glob("*.json"))
    ring.locked = True
    ran = wallet("export", words_file.with_name("out"), data_dir=data_dir)
    assert ran.code == 1
    assert "the system's keyring can't be used (KeyringLocked)" in ran.err
    ring.locked = False
    ring.held.clear()
    ran = wallet("export", words_file.with_name("out"), data_dir=data_dir)
    assert ran.code == 1
    assert "has no passphrase for" in ran.err


def test_a_system_without_a_keyring_is_told(data_dir: Path, words_file: Path) -> None:
    import keyring.backends.fail

    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())  # type: ignore[no-untyped-call]
    try:
        ran = wallet("new", "--keyring", "--show-phrase-to", words_file, data_dir=data_dir)
    finally:
        keyring.set_keyring(before)
    assert ran.code == 1
    assert "the system's keyring can't be used (NoKeyringError)" in ran.err
    assert not words_file.exists()
    assert not (data_dir / "wallet.json").exists()


# ---- show and export


def test_the_wallet_that_join_makes_can_be_shown_with_its_words(data_dir: Path, words_file: Path) -> None:
    data = DataDir(data_dir)
    data.prepare()
    identity = load_or_create_identity(data, lambda: 1_800_000_000.0)
    ran = wallet("show", "--json", data_dir=data_dir)
    (event,) = ran.named("wallet")
    assert event["address"] == opened(data_dir).account
    assert (event["origin"], event["phrase"]) == ("phrase", True)
    assert wallet("show", "--show-phrase-to", words_file, data_dir=data_dir).code == 0
    words = words_file.read_text().strip()
    assert key_address(wallet_secret(entropy_of(words))) == identity.binding.wallet


def test_the_owner_key_that_others_store_for_is_shown_and_comes_back_with_the_words(
    data_dir: Path, words_file: Path, tmp_path: Path
) -> None:
    (made,) = make_random(data_dir, words_file).named("wallet.made")
    owner = StorageKeys.from_entropy(entropy_of(words_file.read_text().strip())).owner.hex()
    assert made["owner"] == owner
    assert f"owner       {owner}" in wallet("show", data_dir=data_dir).out
    ran = wallet(
        "restore", "--phrase-file", words_file, "--random", "--json", data_dir=tmp_path / "new machine"
    )
    assert ran.named("wallet.made")[0]["owner"] == owner
    DataDir(data_dir).storage_key.unlink()
    assert wallet("show", "--json", data_dir=data_dir).named("wallet")[0]["owner"] is None
    assert "\nowner " not in wallet("show", data_dir=data_dir).out


def test_no_wallet_is_told(data_dir: Path) -> None:
    for command in (["show"], ["export", data_dir / "out"]):
        ran = wallet(*command, data_dir=data_dir)
        assert ran.code == 1
        assert "make one with `p2pnode wallet new --data-dir" in ran.err
    assert not data_dir.exists()


def test_a_wallet_is_shown_for_people(data_dir: Path, words_file: Path) -> None:
    make_random(data_dir, words_file)
    ran = wallet("show", data_dir=data_dir)
    assert ran.code == 0
    assert opened(data_dir).account in ran.out
    assert "wallet.pass" in ran.out
    labels = {"address", "file", "owner", "twelve"}  # words of the list that always stand there
    assert not (set(words_file.read_text().split()) - labels) & set(ran.out.split())


def test_an_export_opens_under_the_passphrase_that_was_asked_for(
    data_dir: Path, words_file: Path, tmp_path: Path
) -> None:
    make_random(data_dir, words_file)
    out, secret = tmp_path / "export.json", tmp_path / "secret"
    secret.write_text(PASSPHRASE)
    ran = wallet("export", out, "--new-passphrase-file", secret, "--json", data_dir=data_dir)
    assert ran.code == 0, ran.out
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    body = json.loads(out.read_text())
    assert set(body) == {"address", "crypto", "id", "version"}
    assert key_address(Keystore(out, body).decrypt(PASSPHRASE.encode())) == opened(data_dir).address
    before = out.read_bytes()
    ran = wallet("export", out, data_dir=data_dir)
    assert ran.code == 2
    assert "exists: name another file" in ran.err
    assert out.read_bytes() == before


def test_help_and_the_module_of_wallets_import_nothing_heavy() -> None:
    code = (
        "import sys, p2pnode.cli.app, p2pnode.chain.wallet.wallet\n"
        "print([name for name in ('web3', 'eth_account', 'eth_keyfile', 'keyring', 'eth_abi', 'trio') "
        "if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.strip() == "[]"
