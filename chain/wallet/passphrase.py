"""Where a wallet's passphrase comes from: a file, the system's keyring, or the person at the terminal.

Never from argv, never from the environment, and never into a message. This module knows nothing of keystores.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

from p2pnode.chain.wallet.files import one_at_a_time
from p2pnode.errors import ChainError, ConfigError
from p2pnode.files import read_secret_or_none, read_text_or_none, write_private
from p2pnode.terminals import hide, modes_of, own_terminal, set_modes

PASSPHRASE_MIN: Final = 8
"""Characters of one that a person chose."""
_TRIES: Final = 5
_ANSWER_MAX: Final = 4096
SourceKind: TypeAlias = Literal["file", "keyring", "prompt"]
_SERVICE: Final = "p2pnode wallet"


@dataclass(frozen=True, slots=True)
class Fresh:
    """The passphrase of a wallet that is about to be made. ``drawn``: it is random, so its key derivation
    may be fast."""

    passphrase: bytes
    drawn: bool

    def __repr__(self) -> str:
        return f"Fresh(drawn={self.drawn})"


class PassphraseSource(Protocol):
    """Gives the passphrase of the wallet with a (checksummed) address. May wait for a person."""

    @property
    def kind(self) -> SourceKind:
        """The source's name in the keystore."""

    @property
    def words(self) -> str:
        """Where the passphrase is, for people."""

    def fresh(self, account: str) -> Fresh:
        """The passphrase for a wallet that is about to be made."""

    def existing(self, account: str) -> bytes:
        """The passphrase of an existing wallet. Raises ``ChainError`` or ``ConfigError``."""


@dataclass(frozen=True, slots=True)
class PassphraseFile:
    """A passphrase in a file: the user's own, or (``draw``) a 0600 file made with a random passphrase."""

    path: Path
    draw: bool = False
    kind: Final = "file"

    @property
    def words(self) -> str:
        return f"the file {self.path}"

    def fresh(self, account: str) -> Fresh:
        if self.draw:
            with one_at_a_time(self.path.parent):
                if not self.path.exists():
                    drawn = _drawn()
                    write_private(self.path, drawn)
                    return Fresh(drawn, drawn=True)
        # An existing passphrase may belong to a keystore that was moved away: it is used, never replaced.
        return Fresh(self.existing(account), drawn=False)

    def existing(self, account: str) -> bytes:
        text = (read_secret_or_none if self.draw else read_text_or_none)(self.path)
        passphrase = "" if text is None else text.strip("\r\n")
        if not passphrase:
            what = "does not exist" if text is None else "is empty"
            msg = f"the passphrase file {self.path} {what}: put the passphrase of {account} into it"
            raise ChainError(msg)
        return passphrase.encode()


@dataclass(frozen=True, slots=True)
class PassphraseKeyring:
    """A random passphrase in the keyring of the desktop or the system."""

    kind: Final = "keyring"

    @property
    def words(self) -> str:
        return f"the system's keyring (service {_SERVICE!r})"

    def fresh(self, account: str) -> Fresh:
        import keyring
        from keyring.errors import KeyringError

        try:
            held = keyring.get_password(_SERVICE, account)
            if held is not None:  # it was made before, for the same wallet: used, never replaced
                return Fresh(held.encode(), drawn=False)
            drawn = _drawn()
            keyring.set_password(_SERVICE, account, drawn.decode())
        except (KeyringError, RuntimeError, OSError) as error:
            raise _no_keyring(error) from error
        return Fresh(drawn, drawn=True)

    def existing(self, account: str) -> bytes:
        import keyring
        from keyring.errors import KeyringError

        try:
            held = keyring.get_password(_SERVICE, account)
        except (KeyringError, RuntimeError, OSError) as error:
            raise _no_keyring(error) from error
        if held is None:
            msg = (
                f"the keyring of this user has no passphrase for {account}: log in as the user who made the "
                "wallet, or make it anew from its phrase with `p2pnode wallet restore`"
            )
            raise ChainError(msg)
        return held.encode()


@dataclass(frozen=True, slots=True)
class PassphrasePrompt:
    """A passphrase that the person at the terminal types."""

    ask: Callable[[str], str] = field(default_factory=lambda: ask_hidden)
    is_terminal: Callable[[], bool] = lambda: sys.stdin.isatty()  # noqa: PLW0108 - stdin as it is then
    kind: Final = "prompt"

    @property
    def words(self) -> str:
        return "asked for at the terminal"

    def fresh(self, account: str) -> Fresh:
        question = (
            f"The wallet is locked with a passphrase of {PASSPHRASE_MIN} characters or more, which is asked "
            "for whenever it signs. (--random keeps one in a file instead.)\n"
            f"New passphrase for the wallet {account}: "
        )
        first = self._asked(question)
        for _ in range(_TRIES):
            if len(first) >= PASSPHRASE_MIN:
                break
            first = self._asked(f"That is shorter than {PASSPHRASE_MIN} characters. A longer one: ")
        else:
            msg = f"a passphrase has at least {PASSPHRASE_MIN} characters: nothing was written, try again"
            raise ConfigError(msg)
        if self._asked("The same again: ") != first:
            msg = "the two passphrases differ: nothing was written, try again"
            raise ConfigError(msg)
        return Fresh(first.encode(), drawn=False)

    def existing(self, account: str) -> bytes:
        return self._asked(f"Passphrase of the wallet {account}: ").encode()

    def _asked(self, question: str) -> str:
        if not self.is_terminal():
            msg = (
                "there is no terminal to ask for the wallet's passphrase at: run this in one, or use a "
                "wallet with its passphrase in a file or the keyring (`p2pnode wallet new --help`)"
            )
            raise ConfigError(msg)
        try:
            return self.ask(question)
        except EOFError:
            raise ConfigError("no passphrase was given") from None


def ask_hidden(question: str, more: Callable[[str], str] = lambda _answer: "") -> str:
    """Ask at the terminal without echo; one line, and further ones for as long as ``more`` asks for them.

    ``more`` sees what was typed so far and gives the next question, or "". A Ctrl-C raises
    ``KeyboardInterrupt`` in the main thread, once the echo is on again; elsewhere it can't reach this: be in
    :func:`terminal_kept` there. Raises ``EOFError``.
    """
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with own_terminal() as handle, terminal_kept():
            hide(handle)
            answer = ""
            while question:
                os.write(handle, question.encode(errors="replace"))
                line = os.read(handle, _ANSWER_MAX)  # a terminal gives one line at a time
                os.write(handle, b"\n")
                if not line:
                    raise EOFError
                answer += line.decode(errors="surrogateescape")
                question = more(answer) if line.strip() else ""
            return answer.rstrip("\r\n")
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Restore the terminal at the end, also when a thread that reads hidden input from it is left behind."""
    before = None
    with suppress(OSError), own_terminal() as handle:
        before = modes_of(handle)
    try:
        yield
    finally:
        if before is not None:  # else it is no terminal: nothing is hidden
            with suppress(OSError), own_terminal() as handle:
                set_modes(handle, before)


def _drawn() -> bytes:
    return secrets.token_urlsafe(32).encode()


def _no_keyring(error: Exception) -> ConfigError:
    return ConfigError(
        f"the system's keyring can't be used ({type(error).__name__}): unlock it, install a backend for the "
        "package keyring, or keep the passphrase in a file with --passphrase-file"
    )
