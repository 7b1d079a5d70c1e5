"""A model from hosts in processes of their own: shared with a flag, pulled by its id alone."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2pnode.models.local_models import LocalModel, describe_at
from p2pnode.models.manifest import model_id_text
from tests.cli.support import join, run, start
from tests.models.conftest import smollm

__all__ = ["smollm"]


def another(smollm: LocalModel, folder: Path) -> Path:
    """The same weights under another name, which is another model."""
    data = smollm.path.read_bytes()
    at = data.index(b"general.name") + len(b"general.name") + 12
    path = folder / "other.gguf"
    path.write_bytes(data[:at] + b"X" + data[at + 1 :])
    return path


@pytest.mark.long
def test_a_model_of_98_mb_comes_from_three_hosts_of_whom_one_is_killed(
    smollm: LocalModel, tmp_path: Path
) -> None:
    path = another(smollm, tmp_path)
    made = describe_at("other", path)
    text = model_id_text(made.model_id)
    flags = ("--slots", 1, "--threads", 1, "--n-ctx", 512)
    with ExitStack() as stack:
        first = stack.enter_context(join(tmp_path, "a", *flags, "--share-models", model=str(path)))
        seed = ("--bootstrap", first.multiaddr)
        more = [
            stack.enter_context(join(tmp_path, name, *flags, *seed, "--share-models", model=str(path)))
            for name in "bc"
        ]
        data = tmp_path / "mine"
        arguments = ["models", "pull", text, "--from-peers", *seed, "--data-dir", data, "--no-mdns"]
        arguments += ["--accept-licence", "unknown"]
        pulling = start(tmp_path, "pull", arguments)
        pulling.wait_until(lambda: any(event.get("done", 0) > 20e6 for event in pulling.events), "20 MB")
        more[0].kill()
        assert pulling.wait(120) == 0, pulling.err
        (event,) = [event for event in pulling.events if event["event"] == "model"]
        assert event["id"] == text
        got = Path(event["path"])
        assert hashlib.sha256(got.read_bytes()).hexdigest() == made.manifest.files[0].sha256
        again = run(*arguments)
        assert again.code == 0  # it is here


def test_who_shares_nothing_gives_nothing_and_says_so(tmp_path: Path) -> None:
    text = "m1" + "a" * 52
    ran = run("models", "pull", text, "--from-peers", "--data-dir", tmp_path / "mine", "--no-mdns")
    assert ran.code == 1
    assert "give a peer's address with --bootstrap" in ran.err
    unknown = run("models", "pull", "no-such-model", "--from-peers", "--data-dir", tmp_path / "mine")
    assert unknown.code == 1
    assert "unknown model" in unknown.err
