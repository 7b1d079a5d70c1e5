"""The client that commands ask with: made from flags, it reports what it does while it works.

Each report is an event for scripts, and a line for people where they should know. What is signed is told
before it is signed; all else waits for the end of a line.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pnode.cli.options import blaming, build_config, check_target
from p2pnode.cli.output import Output, price_of, shorten
from p2pnode.words import count_of, one_line

if TYPE_CHECKING:
    from p2pnode.client import interface
    from p2pnode.client.client import Client
    from p2pnode.node.datadir import DataDir

HERE_ONLY: Final = (
    "No other node keeps copies for you yet, so they are lost if this machine is. To have copies, run "
    "`p2pnode join --client-only --store-for OWNER` on another machine (`p2pnode wallet show` here prints "
    "your owner key), and give that node's invite here with --store"
)
"""For who has no replicas: no failure, but something to know once."""
_FLAGS: Final = {
    "spend_session_max": "--max-spend", "stores": "--store", "closes": "--close", "version": "version",
}  # fmt: skip
"""Flags that aren't named as their settings."""
SHORT: Final = 8
"""Digits of an id that people are shown; any beginning that only one conversation has is taken."""


def make_client(
    output: Output,
    data_dir: Path | None,
    bootstrap: list[str] | None,
    *,
    mdns: bool | None,
    discovery: bool,
    closes: bool = False,
    wait_s: float = 0.0,
    **flags: Any,
) -> Client:
    """A client of these flags that reports to ``output``. Raises ``UsageError`` that names the flag."""
    from p2pnode.client.client import Client
    from p2pnode.node.datadir import DataDir
    from p2pnode.node.invite import read_bootstrap

    config = build_config(data_dir, mdns=mdns, **flags)
    with blaming("--store"):
        for each in flags.get("stores") or ():
            read_bootstrap(each)
    with blaming("--bootstrap"):
        first = [one for each in bootstrap or () for one in read_bootstrap(each)]
    reporter = ClientReporter(output, DataDir(config.data_dir))
    return Client(
        config, bootstrap=first, discovery=discovery, closes=closes, wait_s=wait_s, on_event=reporter
    )


@asynccontextmanager
async def open_client(
    output: Output,
    data_dir: Path | None,
    bootstrap: list[str] | None,
    *,
    model: str | None,
    peer: str | None = None,
    no_discovery: bool = False,
    mdns: bool | None,
    closes: bool = False,
    wait_s: float = 0.0,
    **flags: Any,
) -> AsyncIterator[interface.Client]:
    """The client to ask with: the gateway of the data dir where one runs that has these flags, else our own.

    Raises ``UsageError`` that names the flag.
    """
    from p2pnode.client.chosen import chosen_client, wanted_form
    from p2pnode.errors import UsageError
    from p2pnode.node.datadir import DataDir

    check_target(None, peer, data_dir, no_discovery=no_discovery)
    config = build_config(data_dir, mdns=mdns, **flags)
    given = {"mdns": mdns, **flags}
    wanted = {name: wanted_form(name, getattr(config, name)) for name in given if given[name] is not None}
    if bootstrap:
        wanted["bootstrap"] = tuple(bootstrap)
    if closes:
        wanted["closes"] = True  # the gateway's sessions are not ours to end
    by_gateway = True

    def make() -> Client:
        nonlocal by_gateway
        by_gateway = False
        check_target(model, peer, data_dir)
        return make_client(
            output, data_dir, bootstrap, mdns=mdns, discovery=not no_discovery and peer is None,
            closes=closes, wait_s=wait_s, **flags,
        )  # fmt: skip

    def tell_own(differs: tuple[str, ...]) -> None:
        names = " and ".join(_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in differs)
        output.note(f"[the gateway that runs here was started with another {names}: not asking through it]")

    reporter = ClientReporter(output, DataDir(config.data_dir))
    try:
        async with chosen_client(config.data_dir, wanted, make, on_event=reporter, on_own=tell_own) as client:
            yield client
    except UsageError:
        if by_gateway:
            # It knows no flags. Looked for here only now: to read the catalogue takes as long as to ask.
            check_target(model, peer, data_dir)
        raise


class ClientReporter:
    """Called with each event of a client."""

    def __init__(self, output: Output, data: DataDir) -> None:
        self._output, self._notices = output, ReplicationNotices(data)

    def __call__(self, name: str, fields: dict[str, object]) -> None:
        self._output.report(name, fields, text=self._text(name, fields), later=name != "signing")

    def _text(self, name: str, fields: dict[str, Any]) -> str:
        match name:
            case "host.failed" if fields["retrying"]:
                why = one_line(str(fields["reason"]))
                return f"[{shorten(str(fields['peer']))} failed: {why}; looking for another host]"
            case "slept":
                slept = f"this machine slept for {fields['seconds']:.0f} s in the middle of the answer"
                return f"[{slept}: going on]"
            case "host.slow":
                then = "going on with another" if fields["leaving"] else "there is no other to go on with"
                return f"[{shorten(str(fields['peer']))} gives {fields['tokens_per_s']:.2f} tokens/s: {then}]"
            case "stranger":
                return f"[no host that you trust is there: asking {shorten(str(fields['peer']))}, a stranger]"
            case "context.dropped":
                gone = count_of(fields["messages"], "message")
                return f"[too long for every host: asking without the oldest {gone}]"
            case "failover" | "engine.restarted" | "hedge":
                return _went_on_text(name, fields)
            case "signing":
                return self._signing(fields)
            case "chain.waiting":
                return f"[waiting for the chain {one_line(str(fields['chain']))}: it has not answered yet]"
            case "deposit.waiting":
                return (
                    f"[waiting for {shorten(str(fields['peer']))} to bring the deposit to the chain: "
                    f"{fields['waited_s']:.0f} s of {fields['most_s']:.0f} s at most]"
                )
            case "session.left" | "session.gone" | "session.in_use" | "session.elsewhere":
                return _left_text(name, shorten(str(fields["peer"])), paid=bool(fields.get("paid")))
            case "voucher" if fields["outcome"] == "delivered":
                session = str(fields["session"])[:8]
                return f"[a host that had vanished got its last voucher, for session {session}]"
            case "conversation.kept":
                told = self._output.as_json or self._notices.is_news(fields)
                return conversation_text(name, fields) if told else ""
            case "conversation.moved" | "conversation.not_kept":
                return self._output.with_data_dir(conversation_text(name, fields))
            case _:
                return ""

    def _signing(self, fields: Mapping[str, object]) -> str:
        """What a deposit is for, in a line; JSON has it in full, ``sessions show`` has the terms."""
        from p2pnode.money import usdc_text

        units = {name: value for name, value in fields.items() if isinstance(value, int)}
        most, host = usdc_text(units["deposit"]), shorten(str(fields["host"]))
        terms = self._output.command(f"sessions show {str(fields['session'])[:8]}")
        return f"[paying {host} at most {most}, the rest comes back: {price_of(units)}; terms: {terms}]"


def _went_on_text(name: str, fields: Mapping[str, Any]) -> str:
    """How an answer went on after a failure or a delay, as a line for people."""
    if name == "hedge":
        late, other = shorten(str(fields["from"])), shorten(str(fields["to"]))
        return f"[{late} is later than usual: asking {other}, too]"
    if name == "failover":
        return f"[{shorten(str(fields['to']))} went on after {fields['held']} tokens]"
    peer, held = shorten(str(fields["peer"])), count_of(fields["held"], "token")
    return f"[the engine of {peer} died after {held}, and went on there: that counts against it]"


def _left_text(name: str, host: str, *, paid: bool) -> str:
    """What became of a session that was left with a host, as a line for people."""
    if name == "session.left":
        return f"[asking {host}, with which a session was left]"
    if name == "session.elsewhere":
        return f"[another machine or command of yours uses the session with {host}: opening another one]"
    if name == "session.in_use":
        return f"[another of your commands uses the session with {host}: waiting]"
    if not paid:
        return f"[{host} has that session no more: opening another one]"
    return f"[{host} closed the session that was left with it before its time: the next one has a fee]"


def conversation_text(name: str, fields: Mapping[str, Any]) -> str:
    """An event about keeping a conversation, as a line for people."""
    if name == "conversation.not_kept":
        return f"[not kept: {one_line(str(fields['reason']))}]"
    short = str(fields["conversation"])[:SHORT]
    if name == "conversation.moved":
        text = f"conversation {short} went on elsewhere meanwhile: this goes on from there"
        if fields["branched"]:
            text += f"; what was said here is kept as a branch (`p2pnode sessions show {short} --branch 1`)"
        return f"[{text}]"
    count, waiting, weak = fields["replicas"], fields["waiting"], fields["weak"]
    where = f"here and on {count_of(count, 'other node')}" if count else "on this machine"
    text = f"conversation {short} is {'deleted' if fields['gone'] else 'kept'} {where}"
    if fields["cut"]:
        text = f"what was said last in conversation {short} is not kept; the rest is, {where}"
    if waiting and waiting != weak:
        text += f"; copies go out with a later command: {waiting}"
    elif fields["gone"] and waiting:
        text += "; a later command deletes it on its replicas"
    elif not count:
        text += f"{_refusal(fields['refused'])}. {HERE_ONLY}"
    return f"[{text}]"


def _refusal(peers: Sequence[str]) -> str:
    return f"; {' and '.join(map(shorten, peers))} refused to keep copies for you" if peers else ""


class ReplicationNotices:
    """What this data dir's user was told last of where conversations are kept: the same again is no news."""

    def __init__(self, data: DataDir) -> None:
        self._path = data.hints

    def is_news(self, fields: Mapping[str, Any]) -> bool:
        """Whether ``conversation.kept`` is to be told to people; then it is noted as told."""
        from p2pnode.errors import ConfigError
        from p2pnode.files import write_atomic

        if fields["cut"] or fields["gone"]:
            return True
        waits = fields["waiting"] and fields["waiting"] != fields["weak"]
        state = "waiting" if waits else "elsewhere" if fields["replicas"] else "here"
        refused = sorted(fields["refused"]) if state == "here" else []
        if (state, refused) == self._last():
            return False
        with suppress(ConfigError):  # then it is said once more
            write_atomic(self._path, json.dumps({"keeping": state, "refused": refused}).encode())
        return True

    @property
    def here_only(self) -> bool:
        """Whether no other node had a copy when that was looked at last."""
        return self._last()[0] == "here"

    def _last(self) -> tuple[str, list[str]]:
        try:
            told = json.loads(self._path.read_bytes())
            return str(told["keeping"]), list(told.get("refused", ()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "", []
