"""What people are told of keeping: where it is, what is missing, what to do; in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.cli.client import HERE_ONLY, ReplicationNotices, conversation_text
from p2pnode.node.datadir import DataDir

KEPT: dict[str, object] = {
    "conversation": "0f12", "replicas": 0, "kept": True, "waiting": "", "weak": "",
    "cut": False, "gone": False, "refused": [],
}  # fmt: skip
WEAK = "only 1 of 2 places to keep it were found: name nodes that store (--store)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replicas": 3}, "conversation 0f12 is kept here and on 3 other nodes"),
        (
            {"replicas": 1, "weak": "this machine is counted"},
            "conversation 0f12 is kept here and on 1 other node",
        ),
        (
            {"kept": False, "waiting": WEAK, "weak": WEAK},
            f"conversation 0f12 is kept on this machine. {HERE_ONLY}",
        ),
        (
            {
                "kept": False,
                "weak": WEAK,
                "refused": ["12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"],
            },
            (
                "conversation 0f12 is kept on this machine; 12D3…c6iDEp refused to keep copies for you. "
                f"{HERE_ONLY}"
            ),
        ),
        (
            {"kept": False, "waiting": "full (1 node)"},
            "conversation 0f12 is kept on this machine; copies go out with a later command: full (1 node)",
        ),
        (
            {"gone": True, "kept": False, "waiting": WEAK, "weak": WEAK},
            "conversation 0f12 is deleted on this machine; a later command deletes it on its replicas",
        ),
        (
            {"cut": True, "replicas": 2},
            "what was said last in conversation 0f12 is not kept; the rest is, here and on 2 other nodes",
        ),
    ],
)
def test_keeping_is_told_in_one_line(changes: dict[str, object], words: str) -> None:
    assert conversation_text("conversation.kept", {**KEPT, **changes}) == f"[{words}]"


def test_where_conversations_are_kept_is_told_when_it_changes_and_not_after_each_command(
    tmp_path: Path,
) -> None:
    def is_news(**changes: object) -> bool:
        return ReplicationNotices(DataDir(tmp_path)).is_news({**KEPT, **changes})

    assert [is_news(kept=False, weak=WEAK), is_news(kept=False, weak=WEAK)] == [True, False]
    assert ReplicationNotices(DataDir(tmp_path)).here_only
    assert [is_news(weak=WEAK, refused=["a"]), is_news(weak=WEAK, refused=["a"])] == [True, False]
    assert ReplicationNotices(DataDir(tmp_path)).here_only
    assert [is_news(replicas=2), is_news(replicas=3)] == [True, False]
    assert not ReplicationNotices(DataDir(tmp_path)).here_only
    assert [is_news(cut=True), is_news(cut=True), is_news(gone=True)] == [True] * 3
    assert [is_news(kept=False, weak=WEAK), is_news(kept=False, waiting="full (1 node)")] == [True, True]
    (tmp_path / "told.json").write_text("{")
    assert is_news(kept=False, waiting="full (1 node)")


def test_in_a_data_dir_that_is_not_there_it_is_told_again(tmp_path: Path) -> None:
    told = ReplicationNotices(DataDir(tmp_path / "none"))
    assert [told.is_news(KEPT), told.is_news(KEPT)] == [True, True]
