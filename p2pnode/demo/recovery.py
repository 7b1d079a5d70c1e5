"""The demo's last part: a new machine that has twelve words and one address, and nothing else.

The conversations come from the nodes that store them, and so does what is still owed to the host that was
killed: the sealed list holds its final voucher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from p2pnode.demo.bills import Item
from p2pnode.demo.machine import Asked, Machine, kept_on
from p2pnode.errors import LocalError
from p2pnode.words import count_of

FOLLOW_UP: Final = "Say that again in one short sentence."
_SHOWN_CHARACTERS: Final = 64


async def resume_elsewhere(
    machine: Machine,
    words: Path,
    bootstrap: str,
    *,
    conversation: str,
    said: Sequence[tuple[str, str]],
    paid: Sequence[Item],
    owed: Item,
) -> Asked:
    """Restore the wallet, find everything, and ask on in ``conversation``, in which ``said`` was said.

    ``paid`` are all sessions so far, ``owed`` is that of the killed host. Raises ``LocalError``.
    """
    say, seed = machine.say, f"--bootstrap={bootstrap}"
    say("\n$ p2pnode wallet restore --phrase-file words   (on a new machine, that has nothing but the words)")
    await machine.run("wallet", "restore", "--random", f"--phrase-file={words}")
    say("$ p2pnode sessions list --recover --bootstrap …")
    found = await machine.run("sessions", "list", "--recover", "--no-mdns", seed, machine.chain)
    check_recovered(found, conversation, paid)
    for each in named(found, "conversation"):
        say(f"  {each['conversation'][:8]}  {_shown(each['title'])}")
    sessions = len({item.session for item in paid})
    say(f"  and {count_of(sessions, 'paid session')} that were left, with the last voucher of each")
    say(f'\n$ p2pnode sessions resume {conversation[:8]} --bootstrap … "{FOLLOW_UP}"')
    asked = await machine.answer("sessions", "resume", conversation, FOLLOW_UP, "--max-tokens=32", seed)
    if owed.session not in {item.session for item in asked.items}:  # the answer's own session is paid up
        check_delivered(asked.events.get("voucher", ()), owed)
    counts = f"{owed.tokens_in} tokens in, {owed.tokens_out} out"
    say(f"  the killed host got its final voucher from this machine: {counts}")
    kept = kept_on(asked, 1)
    say(f"\n$ p2pnode sessions show {conversation[:8]}   (on the new machine; kept on {kept} others again)")
    (shown,) = await machine.run("sessions", "show", conversation)
    check_history(shown["turns"], [*said, ("user", FOLLOW_UP), ("assistant", asked.text)])
    for turn in shown["turns"]:
        say(f"  {turn['role']:<9}  {_shown(turn['text'])}")
    return asked


def named(events: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The events of one name."""
    return [event for event in events if event["event"] == name]


def check_recovered(events: Sequence[Mapping[str, Any]], conversation: str, paid: Sequence[Item]) -> None:
    """The conversation was found and all paid sessions, and nothing is missing. Raises ``LocalError``."""
    if losses := named(events, "loss"):
        msg = f"something that was kept is missing: {losses[0]['detail']}"
        raise LocalError(msg)
    if conversation not in {each["conversation"] for each in named(events, "conversation")}:
        msg = "the conversation whose host was killed is not among those that were recovered"
        raise LocalError(msg)
    sessions = {each["session"] for each in named(events, "session")}
    known = {item.session for item in paid}
    if sessions != known:
        msg = f"{len(sessions)} paid sessions were recovered, not the {len(known)} that there were"
        raise LocalError(msg)


def check_delivered(vouchers: Sequence[Mapping[str, Any]], owed: Item) -> None:
    """The host that was killed took its final voucher. Raises ``LocalError``."""
    outcomes = [each for each in vouchers if each["session"] == owed.session]
    if not any(each["outcome"] == "delivered" for each in outcomes):
        why = "; ".join(f"{each['outcome']}, {each['detail']}" for each in outcomes) or "nothing was owed"
        msg = f"the killed host was not handed its final voucher: {why}"
        raise LocalError(msg)


def check_history(turns: Sequence[Mapping[str, Any]], said: Sequence[tuple[str, str]]) -> None:
    """All that was said is there, whole and in order. Raises ``LocalError``."""
    if [(turn["role"], turn["text"]) for turn in turns if turn["whole"]] != list(said):
        msg = f"{len(turns)} turns came to the new machine, not the {len(said)} that there were"
        raise LocalError(msg)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
