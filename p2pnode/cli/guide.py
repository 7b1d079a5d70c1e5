"""The questions of a host's first start: what it serves, who pays it, what it asks, how others reach it.

They are asked of a person at a terminal only, each with an answer that Enter takes. An answer is checked at
once, and asked for again with the reason. Nothing is written before the last one: then the wallet, where
there is none, and ``config.toml``. What is suggested is decided in ``p2pnode/host/first_settings.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from p2pnode.cli.output import Output
from p2pnode.cli.user_input import UserInput
from p2pnode.words import count_of

if TYPE_CHECKING:
    from p2pnode.config import NodeConfig
    from p2pnode.host.first_settings import FirstSettings
    from p2pnode.models.recommendation import Recommendation
    from p2pnode.node.datadir import DataDir
    from p2pnode.protocols.adverts.messages import Advert

T = TypeVar("T")


class Guide:
    """Asks once, from top to bottom. ``adverts_seen`` gives what is known of the network, and ``unasked`` has
    it ask nothing."""

    def __init__(
        self,
        output: Output,
        data_dir: Path | None,
        adverts_seen: Callable[[NodeConfig], Awaitable[list[Advert]]],
        *,
        unasked: bool,
    ) -> None:
        self._output, self._data_dir = output, data_dir
        self._adverts_seen = adverts_seen
        self._unasked = unasked
        self._lines: UserInput | None = None
        self.asks = False
        """Whether a question is open: then nothing is written yet."""

    async def asked(self, config: NodeConfig, *, answered: bool) -> bool:
        """Ask a person who is there at the first start, and write the answers. False where nothing is asked.

        ``answered``: flags say what would be asked. Raises ``LocalError`` where the owner changes their mind.
        """
        from p2pnode.host.first_settings import may_ask
        from p2pnode.node.datadir import DataDir

        data = DataDir(config.data_dir)
        self.asks = may_ask(
            # A script has one of the three.
            terminal=sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty(),
            is_new=not (data.config.exists() or data.peer_key.exists()),
            answered=answered,
            as_json=self._output.as_json,
            unasked=self._unasked,
        )
        if not self.asks:
            return False
        settings, entropy = await self._answers(config)
        self.asks = False
        self._write(data, settings, entropy)
        return True

    def interrupted(self) -> bool:
        """Say what a Ctrl-C leaves. False, because nothing here has to end by itself."""
        self._output.note("nothing was written")
        return False

    async def _answers(self, config: NodeConfig) -> tuple[FirstSettings, bytes | None]:
        """The settings, and what a wallet is to be made of where there is none."""
        say = self._output.note
        say(
            f"This is the first start on {config.data_dir}. A few questions: Enter takes the answer in "
            "[brackets], Ctrl-C leaves all as it was, --no-guide asks nothing."
        )
        with UserInput(sys.stdin, quiet=False) as self._lines:
            shown = await self._machine(config)
            models = await self._models(config, shown)
            settings, entropy = await self._money(config, models, shown)
            settings = await self._reach(config, settings)
            say(f"\nconfig.toml\n{settings.toml()}")
            await self._agreed()
        return settings, entropy

    async def _machine(self, config: NodeConfig) -> tuple[Recommendation, ...]:
        from p2pnode.cli.recommendation import look
        from p2pnode.host.first_settings import fitting
        from p2pnode.models.context import gigabytes
        from p2pnode.models.recommendation import recommend
        from p2pnode.node.datadir import DataDir

        say = self._output.note
        machine, options = await look(DataDir(config.data_dir), memory=config.memory)
        say(f"\nhere       {machine.words}")
        shown = fitting(recommend(options, machine))
        if not shown:
            say("models     none of the catalogue fits: name a smaller one, as the path of a GGUF file")
        for number, each in enumerate(shown, 1):
            size = "here" if each.option.is_here else f"{gigabytes(each.option.size_bytes)} to fetch"
            say(f"{number:>2}         {each.option.name}, {size}: {each.why}")
        return shown

    async def _models(self, config: NodeConfig, shown: Sequence[Recommendation]) -> tuple[str, ...]:
        from p2pnode.host.first_settings import read_models, suggested_model
        from p2pnode.models.catalogue import Catalogue
        from p2pnode.models.manifest import SCRIPTED
        from p2pnode.node.datadir import DataDir

        catalogue = Catalogue.of(DataDir(config.data_dir).models)

        def check(name: str) -> None:
            if name != SCRIPTED:
                catalogue.find(name)

        return await self._asked(
            "\nWhich to serve, by number or name? Several with commas.",
            suggested_model(shown),
            lambda text: read_models(text, shown, check),
        )

    async def _money(
        self, config: NodeConfig, models: tuple[str, ...], shown: Sequence[Recommendation]
    ) -> tuple[FirstSettings, bytes | None]:
        """The settings so far, and what the wallet is to be made of, where there is none."""
        from p2pnode.host.first_settings import NONE, FirstSettings, read_price, suggested_price
        from p2pnode.money import usdc_number
        from p2pnode.payments.books import profile_path

        say = self._output.note
        found = profile_path(config)
        chain = await self._asked(
            "\nOn which chain are you paid? The path of its profile, as its makers give it out, or none: "
            "then you serve for free, and can change that later.",
            str(found) if found is not None else NONE,
            self._chain,
        )
        if not chain:
            return FirstSettings(models=models), None
        say("looking at what others ask, for 15 s at most")
        adverts = await self._adverts_seen(config)
        say(f"seen       {count_of(len(adverts), 'host')}")
        wanted = [each.option.model for each in shown if each.option.name in models]
        price = suggested_price(wanted, adverts)
        say(f"price      {price.why}")
        asked_in = await self._asked(
            "USDC per million input tokens? 0 is free.",
            usdc_number(price.price_in),
            read_price,
        )
        asked_out = await self._asked(
            "USDC per million output tokens?",
            usdc_number(price.price_out),
            lambda text: read_price(text, output=True),
        )
        entropy = await self._wallet(config)
        settings = FirstSettings(models=models, chain=chain, price_in=asked_in, price_out=asked_out)
        return settings, entropy

    @staticmethod
    def _chain(text: str) -> str:
        """The absolute path of a profile that can be read; "" for none. Raises ``ConfigError``."""
        from p2pnode.chain.profile import load_profile
        from p2pnode.files import user_path
        from p2pnode.host.first_settings import NONE

        if text.lower() == NONE:
            return ""
        path = user_path(text)
        load_profile(path)
        return str(path)

    async def _wallet(self, config: NodeConfig) -> bytes | None:
        """Show how it is paid; returns what a new wallet is made of."""
        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.wallet.phrase import new_entropy, phrase_of, wallet_secret
        from p2pnode.chain.wallet.wallet import open_wallet
        from p2pnode.cli.wallet import PHRASE_ADVICE, phrase_lines
        from p2pnode.node.datadir import DataDir
        from p2pnode.node.identity import wallet_files
        from p2pnode.protocols.crypto import key_address

        say, files = self._output.note, wallet_files(DataDir(config.data_dir))
        wallet = open_wallet(files)
        if wallet is not None:
            say(f"\nwallet     {wallet.account}, which is here already: what you earn goes there")
            return None
        if files.phrase.exists():  # a start that was cut off: `join` goes on with that phrase
            return None
        entropy = new_entropy()
        account = shown_address(key_address(wallet_secret(entropy)))
        say(f"\nwallet     {account}: what you earn goes there; a little ether there pays for gas")
        say("           it is made of these twelve words when all questions are answered\n")
        say("\n".join(phrase_lines(phrase_of(entropy))))
        say(f"\n{self._output.with_data_dir(PHRASE_ADVICE)}")
        await self._asked("Enter when they are written down.", "", lambda _text: None)
        return entropy

    async def _reach(self, config: NodeConfig, settings: FirstSettings) -> FirstSettings:
        from dataclasses import replace

        from p2pnode.host.first_settings import NONE, read_announced
        from p2pnode.host.join import LISTEN_DEFAULT
        from p2pnode.net.address_policy import interface_addresses
        from p2pnode.net.multiaddrs import endpoint, parse
        from p2pnode.node.reachability import reach_code, reachability

        if config.listen or config.announce:  # whoever chose where it listens knows who reaches it there
            return settings
        port = endpoint(parse(LISTEN_DEFAULT[0]))[1]
        own = [each.partition("/")[0] for each in interface_addresses()]
        addresses = [f"/ip{6 if ':' in each else 4}/{each}/tcp/{port}" for each in own]
        code = reach_code(addresses, addresses, listens_on_all=True)
        found = reachability(code, addresses)
        self._output.note(f"\nreach      {found.detail}")
        if code == "global":
            return settings
        announce = await self._asked(
            f"Does your router forward TCP port {port} to this machine, or has it a name? Then the public "
            f"address or the name, as 203.0.113.7; none: who is in your network can still ask it.",
            NONE,
            lambda text: read_announced(text, port),
        )
        return replace(settings, announce=announce)

    async def _agreed(self) -> None:
        from p2pnode.errors import LocalError
        from p2pnode.host.first_settings import read_yes

        if not await self._asked("Write this and start?", "yes", read_yes):
            raise LocalError("nothing was written, since the answer was no")

    async def _asked(self, question: str, default: str, read: Callable[[str], T]) -> T:
        """The answer, once it can be read. Raises ``LocalError`` at the end of input."""
        from p2pnode.errors import ConfigError, LocalError

        self._output.note(f"{question} [{default}]" if default else question)
        while True:
            line = await self._lines.next() if self._lines is not None else None
            if line is None:
                raise LocalError("nothing was written, since the input ended before the last question")
            try:
                return read(line.strip() or default)
            except ConfigError as error:
                self._output.note(f"{self._output.with_data_dir(str(error))}\nOnce more:")

    def _write(self, data: DataDir, settings: FirstSettings, entropy: bytes | None) -> None:
        """Blocks for a second, so that nothing ends it half-way. Raises ``ConfigError``, ``ChainError``."""
        from p2pnode.chain.wallet.passphrase import PassphraseFile
        from p2pnode.cli.wallet import write_wallet
        from p2pnode.files import write_new
        from p2pnode.node.identity import wallet_files

        data.prepare()
        # The file is written last: while it is missing, the next start asks again and finds the wallet.
        if entropy is not None:
            files = wallet_files(data)
            source = PassphraseFile(files.passphrase, draw=True)
            write_wallet(self._data_dir, files, source, entropy, None)
        write_new(data.config, settings.toml().encode())
        self._output.note(f"wrote      {data.config}: change it there, or by flags of `p2pnode join`")
