"""What people are told of keeping: where it is, what is missing, what to do; in one line."""

from __future__ import annotations

import pytest

from p2pnode.cli.conversation_words import words_of

WEAK = "only 1 of 2 places to keep it were found: name nodes that store (--store)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replicas": 3}, "conversation 0f12 is kept here and on 3 other nodes"),
        (
            {"replicas": 1, "weak": "this machine is counted"},
            "conversation 0f12 is kept here and on 1 other node; --store NODE keeps it elsewhere too",
        ),
        (
            {"kept": False, "waiting": WEAK, "weak": WEAK},
            "conversation 0f12 is kept on this machine only; --store NODE keeps it elsewhere too",
        ),
        (
            {"kept": False, "waiting": "full (1 node)"},
            "conversation 0f12 is kept on this machine only; it goes out with a later command: full (1 node)",
        ),
        (
            {"gone": True, "kept": False, "waiting": WEAK, "weak": WEAK},
            "conversation 0f12 is deleted on this machine only; a later command deletes it on its replicas",
        ),
        (
            {"cut": True, "replicas": 2},
            "what was said last in conversation 0f12 is not kept; the rest is, here and on 2 other nodes",
        ),
    ],
)
def test_keeping_is_told_in_one_line(changes: dict[str, object], words: str) -> None:
    fields = {
        "conversation": "0f12", "replicas": 0, "kept": True, "waiting": "", "weak": "",
        "cut": False, "gone": False,
    }  # fmt: skip
    assert words_of("conversation.kept", {**fields, **changes}) == f"[{words}]"
