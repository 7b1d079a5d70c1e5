"""The host that counts: one prompt, one answer, and nothing a stranger sends costs more than that."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.count.counter import TURN, WAIT_S, Answered, CountHost
from p2pnode.protocols.count.messages import Count, Counted
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.inference import commands
from p2pnode.protocols.inference.messages import (
    ChatMessage,
    Ping,
    Prompt,
    PromptBody,
    Refuse,
    prompt_bytes_max,
)
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.wire import encode

PEER, MODEL, N_CTX = PeerId("12D3KooWClient"), ModelId(b"\x05" * 32), 128
BODY = PromptBody(messages=(ChatMessage.of("user", "hello"),), seed=bytes(16))
RAW = encode(BODY)
ASKED = Count(model=MODEL, total=len(RAW))


def admit(model: ModelId) -> int | Refuse:
    return N_CTX if model == MODEL else Refuse(code="model_not_available", detail="not here")


def begun() -> CountHost:
    host = CountHost(peer=PEER, stream=0, admit=admit)
    assert host.start(0.0) == [SetTimer("wait", WAIT_S)]
    return host


def said(host: CountHost, *messages: object) -> list[Effect]:
    return [effect for each in messages for effect in host.handle(Received(PEER, 0, each), 1.0)]


def sent(effects: Sequence[Effect]) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def answered(effects: Sequence[Effect]) -> Answered:
    (found,) = [e.value for e in effects if isinstance(e, Emit) and isinstance(e.value, Answered)]
    return found


def test_a_prompt_is_counted_once_and_answered() -> None:
    host = begun()
    effects = said(host, ASKED, *prompt_parts(TURN, RAW))
    assert Emit(commands.Count(TURN, BODY)) in effects
    assert host.state == "counting"
    assert host.handle(HalfClosed(PEER, 0), 1.0) == []  # it may still read
    effects = list(host.handle(Command(commands.Counted(TURN, 17)), 2.0))
    assert sent(effects) == [Counted(tokens_in=17, n_ctx=N_CTX)]
    assert answered(effects) == Answered("counted")
    assert host.handle(Command(commands.Counted(TURN, 18)), 3.0) == []


def test_what_does_not_fit_is_refused_with_the_reason_of_whoever_counted() -> None:
    host = begun()
    said(host, ASKED, *prompt_parts(TURN, RAW))
    effects = list(host.handle(Command(commands.CountFailed(TURN, "context_overflow", "too long")), 2.0))
    assert sent(effects) == [Refuse(code="context_overflow", detail="too long")]
    assert not answered(effects).fault


def test_a_prompt_larger_than_any_that_fits_is_refused_before_it_is_read() -> None:
    effects = said(begun(), Count(model=MODEL, total=prompt_bytes_max(N_CTX) + 1))
    (refusal,) = sent(effects)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "context_overflow"
    assert not answered(effects).fault


def test_a_model_that_is_not_served_is_refused() -> None:
    effects = said(begun(), Count(model=ModelId(bytes(32)), total=5))
    assert sent(effects) == [Refuse(code="model_not_available", detail="not here")]


PART = Prompt(turn=TURN, part=0, last=True, total=len(RAW), body=RAW)


@pytest.mark.parametrize(
    "messages",
    [
        (PART,),
        (ASKED, ASKED),
        (Ping(nonce=1),),
        (ASKED, Prompt(turn=2, part=0, last=True, total=len(RAW), body=RAW)),
        (ASKED, Prompt(turn=TURN, part=1, last=True, total=len(RAW), body=RAW)),
        (ASKED, Prompt(turn=TURN, part=0, last=True, total=len(RAW), body=RAW + b"x")),
        (ASKED, Prompt(turn=TURN, part=0, last=True, total=len(RAW), body=b"x" * len(RAW))),
        (ASKED, PART, PART),
    ],
)
def test_what_is_out_of_place_is_a_fault(messages: tuple[object, ...]) -> None:
    effects = said(begun(), *messages)
    (refusal,) = sent(effects)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "bad_request"
    assert answered(effects).fault


def test_whoever_trickles_a_prompt_is_refused_at_a_time_that_was_set_once() -> None:
    host = begun()
    effects = said(host, ASKED)
    (timer,) = [effect for effect in effects if isinstance(effect, SetTimer)]
    assert WAIT_S + 1.0 <= timer.at < WAIT_S + 2.0
    part = Prompt(turn=TURN, part=0, last=False, total=len(RAW), body=RAW[:1])
    assert not any(isinstance(effect, SetTimer) for effect in said(host, part))
    effects = list(host.handle(TimerFired("wait"), timer.at))
    assert [each.code for each in sent(effects) if isinstance(each, Refuse)] == ["stalled"]


@pytest.mark.parametrize("event", [HalfClosed(PEER, 0), Closed(PEER, 0, "lost")])
def test_whoever_leaves_is_no_fault(event: Event) -> None:
    host = begun()
    said(host, ASKED)
    effects = list(host.handle(event, 2.0))
    assert not answered(effects).fault
    assert sent(effects) == []
