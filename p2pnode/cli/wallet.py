"""``p2pnode wallet new|restore|import|show|export``: the account a node pays from and is paid at.

Secrets come from a terminal or a file, and go to a terminal or a 0600 file: never through argv, the
environment, a pipe or ``--json``. Nothing is ever overwritten. With ``--json``::

    new, restore, import   wallet.made{address, keystore, passphrase, origin, owner, phrase_file?}
    show                   wallet{address, keystore, passphrase, origin, owner, phrase, phrase_file?}
    export                 wallet.exported{address, path, passphrase}
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from p2pnode.cli.options import (
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    blaming,
    configure,
    data_of,
)
from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from p2pnode.chain.wallet.files import WalletFiles
    from p2pnode.chain.wallet.passphrase import PassphraseSource
    from p2pnode.chain.wallet.wallet import Wallet

wallet_app = Commands(
    help="The wallet: twelve words, an address to be paid at and to pay from.", no_args_is_help=True
)
PassphraseFileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Take the passphrase from this file, now and at each start."),
]
KeyringOption: TypeAlias = Annotated[
    bool, typer.Option("--keyring", help="Keep a random passphrase in the system's keyring.")
]
RandomOption: TypeAlias = Annotated[
    bool,
    typer.Option("--random", help="Keep a random passphrase in a 0600 file beside the wallet, as join does."),
]
ShowToOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--show-phrase-to", help="Write the twelve words to this new 0600 file, not the terminal."),
]
_SECRET_MAX: Final = 1 << 16
PHRASE_ADVICE: Final = (
    "Write these words down, in order, on paper. Whoever has them has the money; without them nobody can "
    "bring it back. `p2pnode wallet show --phrase` shows them again."
)


_CAPS = (
    "spending limits are counted in each data dir by itself: where this wallet is used in another one, too, "
    "the limits of a day and of a host hold in each of them"
)


@wallet_app.command("new")
def new_wallet(
    passphrase_file: PassphraseFileOption = None,
    keyring: KeyringOption = False,
    random: RandomOption = False,
    show_phrase_to: ShowToOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Make a wallet from twelve new words, and show the words once."""
    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    def work() -> None:
        from p2pnode.chain.wallet.phrase import new_entropy

        files = _empty_place(data_dir)
        source = _source(files, passphrase_file, keyring=keyring, random=random)
        _make(output, data_dir, files, source, new_entropy(), None, show_phrase_to)

    _run(output, work)


@wallet_app.command("restore")
def restore_wallet(
    phrase_file: Annotated[
        Path | None, typer.Option("--phrase-file", help="Read the words from this file; - is standard input.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    keyring: KeyringOption = False,
    random: RandomOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Make the wallet of twelve words that were written down."""
    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    def work() -> None:
        from p2pnode.chain.wallet.phrase import WORDS, entropy_of, words_in

        def more(answer: str) -> str:
            """A pasted grid has several lines, and so has what is typed word by word."""
            count = len(words_in(answer))
            return f"{count} of {WORDS}, go on: " if count < WORDS else ""

        files = _empty_place(data_dir)
        source = _source(files, passphrase_file, keyring=keyring, random=random)
        question = "The twelve words (they are not shown): "
        entropy = entropy_of(_secret(phrase_file, question, "--phrase-file", more))
        _made(output, data_dir, write_wallet(data_dir, files, source, entropy, None))
        output.note(_CAPS)

    _run(output, work)


@wallet_app.command("import")
def import_wallet(
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Read the hex key from this file; - is standard input.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    keyring: KeyringOption = False,
    random: RandomOption = False,
    show_phrase_to: ShowToOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Take over a private key. Its twelve words, shown once, restore what is stored, not this key."""
    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    def work() -> None:
        from p2pnode.chain.wallet.phrase import new_entropy
        from p2pnode.chain.wallet.wallet import parse_key

        files = _empty_place(data_dir)
        source = _source(files, passphrase_file, keyring=keyring, random=random)
        key = parse_key(_secret(key_file, "The private key in hex (it is not shown): ", "--key-file"))
        _make(output, data_dir, files, source, new_entropy(), key, show_phrase_to)

    _run(output, work)


@wallet_app.command("show")
def show_wallet(
    phrase: Annotated[
        bool, typer.Option("--phrase", help="Show the twelve words too; asks for the passphrase again.")
    ] = False,
    show_phrase_to: ShowToOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show the wallet's address, where its parts are, and the owner key that others store for."""
    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    def work() -> None:
        from p2pnode.storage.key_file import save_storage_key_of_words

        wallet = _open(data_dir)
        fields = {**_fields(data_dir, wallet), "phrase": wallet.files.phrase.exists()}
        if not (phrase or show_phrase_to is not None):
            _print(output, "wallet", fields)
            return
        _check_display(output, show_phrase_to)
        words = wallet.phrase()
        save_storage_key_of_words(data_of(data_dir), words)  # where it went missing
        if show_phrase_to is not None:
            _write_words(show_phrase_to, words)
            fields["phrase_file"] = str(show_phrase_to)
        _print(output, "wallet", fields)
        if show_phrase_to is None:
            _display(output, words, wallet.origin)

    _run(output, work)


@wallet_app.command("export")
def export_wallet(
    path: Annotated[Path, typer.Argument(help="The new file: a V3 keystore that any Ethereum tool opens.")],
    new_passphrase: Annotated[
        bool, typer.Option("--new-passphrase", help="Encrypt it under another passphrase, asked for.")
    ] = False,
    new_passphrase_file: Annotated[
        Path | None, typer.Option("--new-passphrase-file", help="Encrypt it under the one in this file.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Write the key as a keystore to a file of its own."""
    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    def work() -> None:
        from p2pnode.chain.wallet.passphrase import PassphraseFile, PassphrasePrompt
        from p2pnode.files import refuse_taken, write_new

        wallet = _open(data_dir)
        refuse_taken(path, force=None)
        source: PassphraseSource | None = PassphrasePrompt() if new_passphrase else None
        if new_passphrase_file is not None:
            source = PassphraseFile(new_passphrase_file)
        held = wallet.passphrase()
        fresh = None if source is None else source.fresh(wallet.account)
        write_new(path, wallet.exported(None if fresh is None else fresh.passphrase, held), mode=0o600)
        opens = wallet.source.words if source is None else source.words
        text = f"{path}: the key of {wallet.account}. Its passphrase: {opens}"
        fields = {"address": wallet.account, "path": str(path), "passphrase": opens}
        output.event("wallet.exported", fields, text=text)

    _run(output, work)


# ---- parts


def _run(output: Output, work: Callable[[], None]) -> None:
    """Run ``work`` outside an event loop: there a Ctrl-C at a question would wait for the Enter key."""
    from p2pnode.cli.runner import run_async

    failure: BaseException | None = None
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - run_async knows the exit code of each
        failure = error

    async def end() -> None:
        if failure is not None:
            raise failure

    run_async(end, on_error=output.failed)


def _files(data_dir: Path | None, *, make: bool) -> WalletFiles:
    from p2pnode.node.identity import wallet_files

    data = data_of(data_dir)
    if make:
        data.prepare()
    return wallet_files(data)


def _empty_place(data_dir: Path | None) -> WalletFiles:
    from p2pnode.chain.wallet.files import refuse_existing
    from p2pnode.extras import need

    need("a wallet", "pay")  # before a person is asked for words or a passphrase
    files = _files(data_dir, make=True)
    refuse_existing(files.keystore, files.phrase, data_of(data_dir).storage_key)
    return files


def _open(data_dir: Path | None) -> Wallet:
    from p2pnode.chain.wallet.wallet import open_wallet
    from p2pnode.errors import ConfigError

    files = _files(data_dir, make=False)
    wallet = open_wallet(files)
    if wallet is None:
        msg = (
            f"there is no wallet in {files.keystore.parent}: make one with `p2pnode wallet new`, or bring "
            "one with `wallet restore` or `wallet import`"
        )
        raise ConfigError(msg)
    return wallet


def _source(
    files: WalletFiles, passphrase_file: Path | None, *, keyring: bool, random: bool
) -> PassphraseSource:
    from p2pnode.chain.wallet.passphrase import PassphraseFile, PassphraseKeyring, PassphrasePrompt
    from p2pnode.errors import UsageError
    from p2pnode.files import user_path

    if (passphrase_file is not None) + keyring + random > 1:
        msg = "--passphrase-file, --keyring and --random exclude one another: give one of them"
        raise UsageError(msg)
    if passphrase_file is not None:
        source = PassphraseFile(user_path(passphrase_file))
        source.existing("the wallet")  # before any question is asked
        return source
    if keyring:
        return PassphraseKeyring()
    if random:
        return PassphraseFile(files.passphrase, draw=True)
    if not sys.stdin.isatty():
        msg = "no terminal to ask for a passphrase at: give --passphrase-file, --keyring or --random"
        raise UsageError(msg)
    return PassphrasePrompt()


def _secret(
    path: Path | None, question: str, flag: str, more: Callable[[str], str] = lambda _answer: ""
) -> str:
    from p2pnode.chain.wallet.passphrase import ask_hidden
    from p2pnode.chain.wallet.phrase import text_of
    from p2pnode.errors import UsageError
    from p2pnode.files import user_path

    if path is None:
        if not sys.stdin.isatty():
            msg = f"no terminal to ask at: give {flag} FILE (- is standard input)"
            raise UsageError(msg)
        return ask_hidden(question, more)
    with blaming(flag):
        if str(path) == "-":
            return text_of(sys.stdin.buffer.read(_SECRET_MAX))
        try:
            with user_path(path).open("rb") as file:
                return text_of(file.read(_SECRET_MAX))
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist") from None
        except OSError as error:
            raise UsageError(f"{path} can't be read ({error.strerror})") from error


def _make(
    output: Output,
    data_dir: Path | None,
    files: WalletFiles,
    source: PassphraseSource,
    entropy: bytes,
    key: bytes | None,
    show_phrase_to: Path | None,
) -> None:
    from p2pnode.chain.wallet.phrase import phrase_of

    _check_display(output, show_phrase_to)
    words = phrase_of(entropy)
    if show_phrase_to is not None:
        _write_words(show_phrase_to, words)
    try:
        wallet = write_wallet(data_dir, files, source, entropy, key)
    except BaseException:
        if show_phrase_to is not None:
            show_phrase_to.unlink(missing_ok=True)  # the words of nothing
        raise
    extra = {} if show_phrase_to is None else {"phrase_file": str(show_phrase_to)}
    _made(output, data_dir, wallet, extra)
    if key is not None:  # imported: it may be in use elsewhere
        output.note(_CAPS)
    if show_phrase_to is None:
        _display(output, words, wallet.origin)


def write_wallet(
    data_dir: Path | None, files: WalletFiles, source: PassphraseSource, entropy: bytes, key: bytes | None
) -> Wallet:
    """The wallet, and beside it the key that conversations are kept with."""
    from p2pnode.chain.wallet.wallet import make_wallet
    from p2pnode.storage.key_file import save_storage_key

    wallet = make_wallet(files, source, entropy=entropy, secret=key)
    save_storage_key(data_of(data_dir), entropy)
    return wallet


def _made(output: Output, data_dir: Path | None, wallet: Wallet, extra: dict[str, Any] | None = None) -> None:
    _print(output, "wallet.made", {**_fields(data_dir, wallet), **(extra or {})})


def _fields(data_dir: Path | None, wallet: Wallet) -> dict[str, Any]:
    """``owner`` is None where the data dir keeps no conversations."""
    from p2pnode.storage.key_file import load_storage_keys

    keys = load_storage_keys(data_of(data_dir))
    return {
        "address": wallet.account,
        "keystore": str(wallet.files.keystore),
        "passphrase": wallet.source.words,
        "origin": wallet.origin,
        "owner": keys.owner.hex() if keys is not None else None,
    }


def _print(output: Output, event: str, fields: dict[str, Any]) -> None:
    if output.as_json:
        output.event(event, fields)
        return
    made = {
        "phrase": "from twelve words",
        "imported": "imported; its words restore what is stored, not the key",
        "unknown": "by another program",
    }
    output.result(f"address     {fields['address']}")
    output.result(f"keystore    {fields['keystore']}")
    output.result(f"passphrase  {fields['passphrase']}")
    output.result(f"made        {made[fields['origin']]}")
    if fields["owner"] is not None:
        output.result(f"owner       {fields['owner']}")
    if "phrase_file" in fields:
        output.result(f"words       in {fields['phrase_file']}: write them down, then delete that file")


def _check_display(output: Output, show_phrase_to: Path | None) -> None:
    """Raise before anything is made where the words can be shown nowhere."""
    from p2pnode.errors import UsageError
    from p2pnode.files import refuse_taken

    if show_phrase_to is not None:
        refuse_taken(show_phrase_to, force=None)
    elif output.as_json or not sys.stdout.isatty():
        msg = (
            "the twelve words are shown on a terminal only, never through a pipe or --json, where they would "
            "be kept: run this in a terminal, or give --show-phrase-to FILE (made with mode 0600)"
        )
        raise UsageError(msg)


def _write_words(path: Path, words: str) -> None:
    from p2pnode.files import write_new

    write_new(path, (words + "\n").encode(), mode=0o600)


def phrase_lines(words: str) -> list[str]:
    """A phrase with its words numbered, four in a line."""
    numbered = [f"{place:2} {word:<9}" for place, word in enumerate(words.split(), 1)]
    return ["   ".join(numbered[start : start + 4]).rstrip() for start in range(0, len(numbered), 4)]


def _display(output: Output, words: str, origin: str) -> None:
    output.result("")
    for line in phrase_lines(words):
        output.result(line)
    output.result("")
    output.result(output.with_data_dir(PHRASE_ADVICE))
    if origin == "imported":
        output.result("They do not hold the imported key: keep that, or an export of it, too.")
    if sys.stdin.isatty():
        sys.stdout.flush()
        with suppress(EOFError):
            input("Press Enter when they are written down. ")
