"""The paid session of ``vectors.json``, checked as someone else's implementation would check itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols import typed_data
from p2pnode.protocols.crypto import abi_encode, keccak256, recover_address, sign_digest
from p2pnode.protocols.events import Command, Event, Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.channel import ChannelSender, ClientPayment, HostTerms
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes, ClientTurn, held_from_journal, held_left
from p2pnode.protocols.inference.commands import (
    Ask,
    Counted,
    End,
    Escrowed,
    GenDone,
    GenTokens,
    HostCommand,
    Start,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.host_open import PROBE_S
from p2pnode.protocols.inference.open_rules import HostPayment, check_open
from p2pnode.protocols.inference.open_session import LapsedSession
from p2pnode.protocols.inference.receipts import ids_hash
from p2pnode.protocols.inference.replay import Piece
from p2pnode.protocols.typed_data import Domain
from p2pnode.protocols.wire import decode_record
from tests.protocols.support import sent

ROOT = Path(__file__).resolve().parents[3] / "protocols" / "inference"


def opening(said: list[tuple[str, Any]]) -> tuple[m.Open, m.SessionTerms]:
    """How it was opened."""
    opened = next(message for _, message in said if isinstance(message, m.Open))
    assert opened.terms is not None
    return opened, opened.terms


def authorisation_of(opened: m.Open) -> bytes:
    assert opened.authorisation is not None
    return opened.authorisation


def told_domain(told: dict[str, Any]) -> Domain:
    return Domain(**{**told, "contract": bytes.fromhex(told["contract"])})


def paid() -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """What the file says, and who says what in its turn and its resume."""
    told = json.loads((ROOT / "vectors.json").read_text(encoding="utf-8"))["paid"]
    said = [(each["from"], each["hex"]) for each in (*told["turn"], *told["resume"])]
    return told, [(side, m.CODEC.decode(bytes.fromhex(data))) for side, data in said]


def test_the_type_strings_of_the_spec_are_those_that_are_signed() -> None:
    unbroken = (ROOT / "SPEC.md").read_text(encoding="utf-8").replace(",\n", ",")
    structs = re.findall(r"^\w+\((?:\w+ \w+,?)+\)$", unbroken, re.MULTILINE)
    typed = {each.partition("(")[0]: keccak256(each.encode()) for each in structs}
    assert len(typed) == 3
    told, said = paid()
    market, token = told_domain(told["market"]), told_domain(told["token"])
    opened, terms = opening(said)
    fields: list[int | bytes] = [
        terms.payer, terms.host, terms.voucher_key, terms.receipt_key, terms.model, terms.deposit,
        terms.price_in, terms.price_out, terms.session_fee, terms.tip, terms.expiry, terms.salt,
    ]  # fmt: skip
    session = market.digest(keccak256(abi_encode(typed["SessionTerms"], *fields)))
    assert session == typed_data.session_id(market, terms)
    voucher = next(message for _, message in said if isinstance(message, m.Voucher))
    fields = [
        session, voucher.seq, voucher.tokens_in, voucher.tokens_out, voucher.amount, voucher.root
    ]  # fmt: skip
    signed = market.digest(keccak256(abi_encode(typed["Voucher"], *fields)))
    assert signed == typed_data.voucher_digest(market, SessionId(session), voucher)
    fields = [terms.payer, market.contract, terms.deposit, 0, opened.valid_before, session]
    authorised = token.digest(keccak256(abi_encode(typed["ReceiveWithAuthorization"], *fields)))
    assert recover_address(authorised, authorisation_of(opened)) == terms.payer


def test_the_paid_sessions_digests_are_what_its_keys_signed() -> None:
    told, said = paid()
    market, token = told_domain(told["market"]), told_domain(told["token"])
    opened, terms = opening(said)
    assert typed_data.session_id(market, terms).hex() == told["session"]
    authorised = typed_data.authorisation_digest(
        token,
        payer=terms.payer,
        to=market.contract,
        amount=terms.deposit,
        valid_before=opened.valid_before,
        nonce=bytes.fromhex(told["session"]),
    )
    assert authorised.hex() == told["authorisation_digest"]
    assert recover_address(authorised, authorisation_of(opened)) == terms.payer
    session = SessionId(bytes.fromhex(told["session"]))
    vouchers = [message for _, message in said if isinstance(message, m.Voucher)]
    for voucher, digest in zip(vouchers, told["voucher_digests"], strict=False):
        assert typed_data.voucher_digest(market, session, voucher).hex() == digest
        assert recover_address(bytes.fromhex(digest), voucher.signature) == terms.voucher_key
        assert voucher.amount == typed_data.amount_due(terms, voucher.tokens_in, voucher.tokens_out)
    receipt = next(message for _, message in said if isinstance(message, m.Checkpoint))
    assert recover_address(bytes.fromhex(told["receipt_digest"]), receipt.signature) == terms.receipt_key
    resume = next(message for _, message in said if isinstance(message, m.Resume))
    assert resume.proof is not None
    assert recover_address(bytes.fromhex(told["resume_digest"]), resume.proof) == terms.voucher_key


def test_the_resume_digest_is_the_formula_of_the_spec() -> None:
    told, said = paid()
    accept = next(message for _, message in said if isinstance(message, m.Accept))
    words = [keccak256(b"p2pnode/resume/1"), accept.nonce, accept.session]
    words += [keccak256(told[peer].encode()) for peer in ("host_peer", "client_peer")]
    assert keccak256(b"".join(words)).hex() == told["resume_digest"]


def test_our_client_says_in_the_paid_session_exactly_what_the_file_says() -> None:
    told, said = paid()
    opened, terms = opening(said)
    voucher_key = bytes.fromhex(told["secrets"]["voucher_key"])
    payment = ClientPayment(
        market=told_domain(told["market"]),
        terms=terms,
        valid_before=opened.valid_before,
        authorisation=authorisation_of(opened),
        sign=lambda digest: sign_digest(voucher_key, digest),
    )
    host, salt = PeerId(told["host_peer"]), opened.salt
    client = ClientSession(
        host=host, stream=1, model=opened.model, salt=salt, holder=opened.holder, payment=payment
    )
    heard = play(client, host, [each for each in said if not isinstance(each[1], m.Resume)][:10])
    again = ClientSession(
        host=host,
        stream=2,
        model=opened.model,
        salt=salt,
        holder=opened.holder,
        resume=client.held,
        peer=PeerId(told["client_peer"]),
    )
    heard += play(again, host, said[10:])
    assert heard == [message for side, message in said if side == "client"]


def play(client: ClientSession, host: PeerId, said: list[tuple[str, Any]]) -> list[Any]:
    """What a client says when it hears the host's part of a script."""
    spoken = sent(client.handle(Command(Start()), 0.0))
    for side, message in said:
        event: Event = Received(host, 1, message)
        if side == "client":
            if isinstance(message, m.Prompt):
                event = Command(Ask(decode_record(m.PromptBody, message.body), input_max=100))
            elif isinstance(message, m.Close):
                event = Command(End())
            else:
                continue
        spoken += sent(client.handle(event, 0.0))
    return spoken


def test_our_host_takes_the_paid_session_of_the_file_and_says_its_part() -> None:
    told, said = paid()
    opened, terms = opening(said)
    payment = host_payment(told, terms)
    assert check_open(opened, payment, opened.valid_before - 300) is None
    granted, nonces = HostTerms(n_ctx=8192, payment=payment), iter([b"\x4e" * 32, b"\x4f" * 32])
    machines: list[HostSession] = []

    def connect() -> HostSession:
        kept = machines[-1].session if machines else None
        machine = HostSession(
            peer=PeerId(told["client_peer"]),
            stream=1,
            admit=lambda _open: granted,
            sign=lambda _digest: b"",
            epoch=7,
            draw=lambda _count: next(nonces),
            terms=granted,
            resume=lambda _resume: kept or m.Refuse(code="bad_request"),
        )
        machines.append(machine)
        return machine

    reports: dict[type, list[HostCommand]] = {
        m.Open: [Escrowed()],
        m.Prompt: [Counted(1, 5, prompt_hash=ids_hash((11, 12, 13, 14, 15)))],
        m.Voucher: [GenTokens(1, Piece(ids=(1, 2, 49_151), text="Hi!")), GenDone(1, "length")],
    }
    heard: list[Any] = []
    for side, message in said:
        if side == "client":
            opens = isinstance(message, m.Open | m.Resume)
            machine = connect() if opens else machines[-1]
            events: list[Event] = [Received(PeerId(told["client_peer"]), 1, message)]
            events += [Command(report) for report in reports.get(type(message), [])]
            for event in events:
                heard += sent(machine.handle(event, 0.0))
    assert heard == [message for side, message in said if side == "host"]


def script(told: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    """Who says what in a part of the file."""
    return [(each["from"], m.CODEC.decode(bytes.fromhex(each["hex"]))) for each in told[name]]


def recovery(told: dict[str, Any]) -> list[tuple[str, Any]]:
    """Who says what when the host had restarted."""
    return script(told, "recovery")


def test_our_client_answers_a_restarted_host_exactly_as_the_file_says() -> None:
    told, said = paid()
    opened, terms = opening(said)
    voucher_key, host = bytes.fromhex(told["secrets"]["voucher_key"]), PeerId(told["host_peer"])
    payment = ClientPayment(
        market=told_domain(told["market"]),
        terms=terms,
        valid_before=opened.valid_before,
        authorisation=authorisation_of(opened),
        sign=lambda digest: sign_digest(voucher_key, digest),
    )
    shown = recovery(told)[2][1]
    held = replace(held_from_journal(payment, shown.receipt, shown.voucher), received=6, asked=2)
    broken_off = Ask(m.PromptBody(messages=(), seed=bytes(16)), input_max=100)
    held.turns[2] = ClientTurn(2, broken_off, held, ClientTimes(), 10, is_new=False)
    client = ClientSession(
        host=host,
        stream=3,
        model=opened.model,
        salt=b"",
        holder=opened.holder,
        resume=held,
        peer=PeerId(told["client_peer"]),
    )
    heard = play(client, host, recovery(told))
    assert heard == [message for side, message in recovery(told) if side == "client"]
    assert client.held is not None
    assert (client.held.meter.tokens_in, client.held.meter.tokens_out) == (10, 5)
    digest = typed_data.voucher_digest(payment.market, payment.session, shown.voucher)
    assert digest.hex() == told["final_voucher_digest"]
    assert recover_address(bytes.fromhex(told["challenge_digest"]), shown.proof) == terms.voucher_key


def test_our_host_recovers_the_session_of_the_file_and_says_its_part() -> None:
    told, said = paid()
    opened, terms = opening(said)
    payment = host_payment(told, terms)
    granted, nonces = HostTerms(n_ctx=8192, payment=payment), iter([b"\x43" * 32, b"\x50" * 32])
    best = [message for _, message in said if isinstance(message, m.Voucher)][-1]
    lapsed = LapsedSession(
        model=terms.model,
        take=lambda _opened: None,
        session=SessionId(bytes.fromhex(told["session"])),
        terms=terms,
        salt=opened.salt,
        granted=granted,
        voucher=best,
        issued=lambda _epoch, _seq: None,
    )
    host = HostSession(
        peer=PeerId(told["client_peer"]),
        stream=3,
        admit=lambda _open: granted,
        sign=lambda _digest: b"",
        epoch=8,
        draw=lambda _count: next(nonces),
        terms=granted,
        resume=lambda _resume: lapsed,
    )
    heard: list[Any] = []
    for side, message in recovery(told):
        if side == "client":
            heard += sent(host.handle(Received(PeerId(told["client_peer"]), 3, message), 0.0))
    assert heard == [message for side, message in recovery(told) if side == "host"]


@pytest.mark.parametrize("name", ["resume_left", "resume_left_old"])
def test_our_client_resumes_what_it_left_exactly_as_the_file_says(name: str) -> None:
    told, said = paid()
    opened, terms = opening(said)
    voucher_key, host = bytes.fromhex(told["secrets"]["voucher_key"]), PeerId(told["host_peer"])
    payment = ClientPayment(
        market=told_domain(told["market"]),
        terms=terms,
        valid_before=opened.valid_before,
        authorisation=b"",
        sign=lambda digest: sign_digest(voucher_key, digest),
    )
    back = script(told, name)
    asked, shown, accept = back[0][1], back[2][1], back[3][1]
    client = ClientSession(
        host=host,
        stream=3,
        model=opened.model,
        salt=opened.salt,
        holder=asked.holder,
        resume=held_left(
            ChannelSender(payment),
            payment.session,
            model=opened.model,
            salt=opened.salt,
            receipt=shown.receipt,
            voucher=shown.voucher,
            generation=0,
        ),
        peer=PeerId(told["client_peer"]),
    )
    heard = play(client, host, back)
    assert heard == [message for side, message in back if side == "client"]
    assert client.held is not None
    assert (client.held.meter.tokens_in, client.held.meter.tokens_out, client.held.meter.seq) == (5, 3, 1)
    assert client.held.meter.root == accept.receipt.checkpoint.root
    assert recover_address(bytes.fromhex(told["challenge_digest"]), shown.proof) == terms.voucher_key


@pytest.mark.parametrize("name", ["resume_left", "resume_left_old"])
def test_our_host_gives_back_what_was_left_and_says_its_part(name: str) -> None:
    told, said = paid()
    opened, terms = opening(said)
    accept = script(told, name)[3][1]
    granted = HostTerms(
        n_ctx=8192, payment=host_payment(told, terms), keep_s=accept.keep_s, settle_above=accept.settle_above
    )
    nonces = iter([b"\x43" * 32, b"\x50" * 32])
    host = HostSession(
        peer=PeerId(told["client_peer"]),
        stream=3,
        admit=lambda _open: granted,
        sign=lambda _digest: b"",
        epoch=8,
        draw=lambda _count: next(nonces),
        terms=granted,
        resume=lambda _resume: LapsedSession(
            model=terms.model,
            take=lambda _opened: None,
            session=SessionId(bytes.fromhex(told["session"])),
            terms=terms,
            salt=opened.salt,
            granted=granted,
            voucher=[message for _, message in said if isinstance(message, m.Voucher)][-1],
            receipt=accept.receipt,
            generation=0,
            left=True,
            issued=lambda epoch, _seq: accept.receipt if epoch == accept.receipt.epoch else None,
        ),
    )
    heard: list[Any] = []
    for side, message in script(told, name):
        if side == "client":
            heard += sent(host.handle(Received(PeerId(told["client_peer"]), 3, message), 0.0))
    assert heard == [message for side, message in script(told, name) if side == "host"]


def host_payment(told: dict[str, Any], terms: m.SessionTerms) -> HostPayment:
    """What the host of the file asks."""
    receipts = bytes.fromhex(told["secrets"]["receipt_key"])
    return HostPayment(
        market=told_domain(told["market"]),
        token=told_domain(told["token"]),
        peer=PeerId(told["host_peer"]),
        wallet=terms.host,
        receipt_key=terms.receipt_key,
        sign=lambda digest: sign_digest(receipts, digest),
        price_in=terms.price_in,
        price_out=terms.price_out,
        session_fee=terms.session_fee,
    )


def test_the_timers_of_the_spec_are_those_of_the_machines() -> None:
    rows = re.findall(
        r"^\| (host|client) \| `(\w+)` \| ([^|]+) \|",
        (ROOT / "SPEC.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    told = {(side, key): {float(each) for each in re.findall(r"(\d+) s\b", when)} for side, key, when in rows}
    host, client = HostTerms(n_ctx=1), ClientTimes()
    assert told == {
        ("host", "open"): {host.open_s},
        ("host", "relay"): {host.relay_s},
        ("host", "probe"): {PROBE_S},
        ("host", "idle"): {host.idle_s},
        ("host", "prompt"): {host.stall_s},
        ("host", "read"): {host.read_stall_s},
        ("host", "stall"): {host.stall_s},
        ("client", "open"): {client.open_s, client.open_paid_s},
        ("client", "progress"): {client.first_token_s, client.stall_s},
        ("client", "silence"): {client.stall_s / 3},
    }
