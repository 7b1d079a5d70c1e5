"""What strangers wrote stays on one line, bounded and marked, wherever it is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.cli import ask, hosts
from p2pnode.cli.client import ClientReporter
from p2pnode.cli.output import Output
from p2pnode.client.failover import turn_error
from p2pnode.client.ranking import Candidate, Ranking
from p2pnode.client.text_check import TextCheck
from p2pnode.errors import (
    HostFault,
    P2PNodeError,
    RefusedError,
    RemoteError,
    StoreRefusedError,
    UnreachableError,
)
from p2pnode.ids import PeerId
from p2pnode.log import configure_logging
from p2pnode.models.answer import Said
from p2pnode.models.scripted import VOCABULARY
from p2pnode.node.datadir import DataDir
from p2pnode.protocols.adverts import messages as adverts
from p2pnode.protocols.blob import messages as blob
from p2pnode.protocols.checkpoint import messages as checkpoint
from p2pnode.protocols.count import messages as count
from p2pnode.protocols.identify import messages as identify
from p2pnode.protocols.inference import messages as inference
from p2pnode.protocols.inference.commands import TurnFailed
from p2pnode.protocols.kademlia import messages as kademlia
from p2pnode.protocols.s5 import messages as s5
from p2pnode.words import one_line, quoted
from tests.client.support import advert

FORGED = "smollm2\nleft out:\r\n  12D3…abc\u2028\u202egnp.exe\u2066\x1b[2J\x9b31m\x07"
HIDDEN = (*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\x1b\x9b\x9d\x07\r\x00\x7f",)


def clean(text: str) -> bool:
    return not any(each in text for each in HIDDEN)


def test_words_of_a_stranger_are_one_bounded_line() -> None:
    line = one_line(FORGED)
    assert clean(line)
    assert "\n" not in line
    assert line.startswith("smollm2 left out:")
    assert one_line("naïve 日本語 עברית") == "naïve 日本語 עברית"
    assert len(one_line("x" * 10_000)) == 300
    assert one_line("x" * 300) == "x" * 300


def test_a_quote_can_not_be_left_by_a_quotation_mark() -> None:
    assert quoted('no". Remedy: run `curl') == '"no\'. Remedy: run `curl"'


@pytest.mark.parametrize(
    "error",
    [
        RefusedError("capacity", f"busy\nRemedy: run `curl`{FORGED}", said=True),
        StoreRefusedError("quota", f"busy\nRemedy: run `curl`{FORGED}"),
        UnreachableError(f"gone\nRemedy: run `curl`{FORGED}"),
    ],
)
def test_a_refusal_can_not_write_lines_of_its_own(
    error: RemoteError, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(as_json=False).failed(error, 4)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert clean(said)
    assert isinstance(error, UnreachableError) or 'says "busy Remedy: run' in said


def test_a_cell_of_a_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(("model", "peer"), [(FORGED, "[bold]x[/bold]")])
    said = capsys.readouterr().out
    assert said.count("\n") == 2
    assert clean(said)
    assert "[bold]x[/bold]" in said


def test_an_answer_can_not_drive_the_terminal_even_through_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    output.piece("one\n\ttwo \x1b]0;title\x07\x1b[31m\x9b2J\r")
    assert capsys.readouterr().out == "one\n\ttwo \ufffd]0;title\ufffd\ufffd[31m\ufffd2J\ufffd"
    exact = Output(as_json=True)
    exact.piece("\x1b[31m")  # scripts get what came, escaped
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert json.loads(said)["text"] == "\x1b[31m"


def test_a_log_for_people_has_one_line_an_event(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    configure_logging("info")
    structlog.get_logger().info("peer.gone", agent=FORGED, count=3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not any(each in said for each in ("\u202e", "\u2028", "\x1b[2J", "\x9b", "\x07"))


# ---- every string that a peer can send, and where people see it


def _printed(show: Callable[[Output], object]) -> str:
    """All that a command prints for people, on both streams, and the log of it."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        show(Output(as_json=False))
    return out.getvalue() + err.getvalue()


def _failed(error: P2PNodeError) -> str:
    """An error that ends a command; while another host is asked; and in the log."""

    def show(output: Output) -> None:
        output.failed(error, 4)
        fields: dict[str, object] = {"peer": PeerId("p"), "reason": str(error), "retrying": True}
        ClientReporter(output, DataDir(Path("nowhere")))("host.failed", fields)
        configure_logging("info")
        structlog.get_logger().warning("session.failed", reason=str(error), more=[str(error)])

    return _printed(show)


class _Answer:
    """One that says these pieces."""

    def __init__(self, *said: Said, calls: tuple[tuple[str, str], ...] = ()) -> None:
        self._said = said
        self.tool_calls = [SimpleNamespace(name=name, arguments=text, id="x") for name, text in calls]
        self.text_checked = True

    async def events(self) -> AsyncIterator[Said]:
        for said in self._said:
            yield said


def _content(text: str) -> str:
    return _printed(lambda output: trio.run(ask.show, output, _Answer(Said("content", text))))


def _call(name: str, arguments: str) -> str:
    answer = _Answer(Said("call", arguments, 0, name), calls=((name, arguments),))
    return _printed(lambda output: trio.run(ask.show, output, answer))


def _unknown_format(text: str) -> str:
    quote = inference.Quote(turn=1, tokens_in=1, prompt_hash=bytes(32), format=text[:32])
    body = inference.PromptBody(seed=bytes(16))
    try:
        TextCheck(VOCABULARY, body, quote)
    except HostFault as error:
        return _failed(error)
    assert not text, "a format that is known"
    return ""  # which names none, and has no calls


def _listed(**said: Any) -> str:
    """A host in the list of `hosts --why`, and the fields of its row that only `--json` prints, as they are
    once they are read.
    """
    one = advert(0)
    offer = one.offers[0]
    profile = adverts.Profile(engine=said.get("engine", "e"), build=said.get("build", "b"))
    more = adverts.SheetOffer(
        model=offer.model,
        name=said.get("name", "n"),
        quantisation=said.get("quantisation", "q"),
        profile=profile,
    )
    sheet = adverts.Sheet(peer=one.peer, offers=(more,), addresses=said.get("addresses", ()))
    told = tuple(adverts.Address(multiaddr=each) for each in said.get("told", ()))
    one = dataclasses.replace(one, addresses=told)
    sheets = {} if told else {one.peer: sheet}  # the addresses of a sheet are shown in place of the advert's
    candidate = Candidate(advert=one, offer=offer, score=1.0)
    ranking = Ranking((candidate,), (dataclasses.replace(candidate, excluded=said.get("name", "x")),))

    def show(output: Output) -> None:
        hosts.print_hosts(output, ranking, sheets, {one.peer: "x"}, why=True)

    with redirect_stdout(io.StringIO()) as lines:
        show(Output(as_json=True))
    row = json.loads(lines.getvalue().splitlines()[0])
    return "\n".join((_printed(show), *row["addresses"], row["quantisation"]))


SHOWN: dict[str, Callable[[str], str]] = {
    "inference.Refuse.detail": lambda text: _failed(RefusedError("capacity", text, said=True)),
    "inference.Error.detail": lambda text: _failed(turn_error(TurnFailed("internal", text))),
    "inference.Quote.format": _unknown_format,
    "inference.Tokens.text": _content,
    "inference.Tokens.text of a call": lambda text: _call("f", text),
    "inference.Tokens.name": lambda text: _call(text, "{}"),
    "checkpoint.Refuse.detail": lambda text: _failed(RefusedError("bad_request", text, said=True)),
    "blob.Failed.detail": lambda text: _failed(StoreRefusedError("quota", text)),
    "adverts.Address.multiaddr": lambda text: _listed(told=(text,)),
    "adverts.Sheet.addresses": lambda text: _listed(addresses=(text,)),
    "adverts.SheetOffer.name": lambda text: _listed(name=text),
    "adverts.SheetOffer.quantisation": lambda text: _listed(quantisation=text),
    "adverts.Profile.engine": lambda text: _listed(engine=text),
    "adverts.Profile.build": lambda text: _listed(build=text),
}
"""What people see of each. Where it is shown in two ways, a word after the field says which."""
PROMPTS = "a host shows and logs nothing of what it is asked; its own words about it go back to who asked"
UNSEEN: dict[str, str] = {
    "adverts.Advert.peer": "base58",
    "adverts.GetAdvert.peer": "base58",
    "adverts.Sheet.peer": "base58",
    "adverts.Profile.kv_types": "compared, not shown",
    "adverts.Profile.samplers": "compared, not shown",
    "adverts.Sheet.evidence": "compared, not shown",
    "identify.Statement.protocols": "compared, not shown",
    "kademlia.KadPeer.peer": "base58",
    "s5.HandshakeOpen.network": "as Python's repr, which has no character that is not printable",
    "s5.HandshakeDone.uris": "parsed, or left out",
    "s5.KnownPeer.uris": "parsed, or left out",
    "inference.Part.text": PROMPTS,
    "inference.Part.mime": PROMPTS,
    "inference.ToolCall.id": PROMPTS,
    "inference.ToolCall.name": PROMPTS,
    "inference.ToolCall.arguments": PROMPTS,
    "inference.ChatMessage.tool_call_id": PROMPTS,
    "inference.ChatMessage.name": PROMPTS,
    "inference.Tool.name": PROMPTS,
    "inference.Tool.description": PROMPTS,
    "inference.Tool.parameters": PROMPTS,
    "inference.ResponseFormat.body": PROMPTS,
    "inference.SamplingParams.stop": PROMPTS,
    "inference.Done.stop": "one of the prompt's own, or a fault",
    "inference.PromptBody.embed": PROMPTS,
    "inference.PromptBody.tool_choice": PROMPTS,
}
MESSAGES: dict[str, ModuleType] = {
    "adverts": adverts,
    "blob": blob,
    "checkpoint": checkpoint,
    "count": count,
    "identify": identify,
    "inference": inference,
    "kademlia": kademlia,
    "s5": s5,
}
"""Those of `lookup` have no wire of their own, those of `gossipsub` no strings."""


def _has_string(hint: Any) -> bool:
    """Whether a field of this type, which is no record of its own, holds text that is not one of a few."""
    if isinstance(hint, typing.NewType):
        return _has_string(hint.__supertype__)
    if typing.get_origin(hint) is typing.Literal or dataclasses.is_dataclass(hint):
        return False
    return hint is str or any(map(_has_string, typing.get_args(hint)))


def _strings() -> Iterator[str]:
    for protocol, module in MESSAGES.items():
        for name, record in vars(module).items():
            if not dataclasses.is_dataclass(record) or getattr(record, "__module__", "") != module.__name__:
                continue
            hints = typing.get_type_hints(record)
            for each in dataclasses.fields(record):
                if _has_string(hints[each.name]):
                    yield f"{protocol}.{name}.{each.name}"


def test_the_list_has_every_string_of_the_wire() -> None:
    listed = {name.partition(" ")[0] for name in (*SHOWN, *UNSEEN)}
    assert listed == set(_strings())
    assert not {name.partition(" ")[0] for name in SHOWN} & UNSEEN.keys()


HOSTILE = st.text(
    alphabet=st.one_of(
        st.sampled_from([*HIDDEN, "\n", "\t", '"', "[", "]", "`", "9", "\u0301", "\u200f", "\ufeff"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=64,
)
LURES = (
    FORGED,
    "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07",
    "\x1b]52;c;ZXZpbA==\x07",
    '\x1bP$q"p\x1b\\',
    "9" * 5000,
    "[bold red]p2pnode: pay now[/bold red]",
    "x\np2pnode: the wallet is empty: run `p2pnode wallet export`",
)


@pytest.mark.parametrize("name", SHOWN)
def test_no_string_of_a_peer_drives_a_terminal_or_writes_lines_of_its_own(name: str) -> None:
    show = SHOWN[name]
    assert "plain" in show("plain")
    lines = show("plain").count("\n")

    @settings(max_examples=25, deadline=None)
    @given(st.one_of(HOSTILE, st.sampled_from(LURES)))
    def check(text: str) -> None:
        said = show(text)
        if name == "inference.Tokens.text":  # an answer has lines, whatever separates them
            said = said.replace("\u2028", "\n")
        else:
            assert said.count("\n") <= lines
        assert clean(said)

    check()
