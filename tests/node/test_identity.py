"""A host's identity: made once, kept, private, and bound anew only when the binding runs out."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from p2pnode.chain.wallet import wallet as wallet_module
from p2pnode.errors import ChainError, ConfigError
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import HostIdentity, load_or_create_identity
from p2pnode.node.keys import PeerKey, load_or_create_seed
from p2pnode.protocols.adverts.signatures import BINDING_TTL_MAX_S, binding_holds


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    made = DataDir(tmp_path_factory.mktemp("identity"))
    load_or_create_identity(made, time.time)
    return made


def _load(data: DataDir, at: float) -> HostIdentity:
    return load_or_create_identity(data, lambda: at)


def test_it_is_the_same_at_each_start_and_opens_no_wallet(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    first = _load(data, now)
    monkeypatch.setattr(wallet_module.Wallet, "unlock", None)
    again = _load(data, now + 60)
    assert again.key.peer_id == first.key.peer_id
    assert again.binding == first.binding
    assert binding_holds(again.key.peer_id, again.binding, now)


def test_the_binding_is_renewed_before_it_runs_out_with_a_higher_number(data: DataDir) -> None:
    now = time.time()
    first = _load(data, now)
    later = now + BINDING_TTL_MAX_S - 3600
    renewed = _load(data, later)
    assert renewed.binding.seq > first.binding.seq
    assert renewed.binding.wallet == first.binding.wallet
    assert binding_holds(renewed.key.peer_id, renewed.binding, later)


def test_a_binding_that_is_made_after_the_clock_was_set_back_has_a_higher_number_too(tmp_path: Path) -> None:
    fresh, now = DataDir(tmp_path), time.time()
    ahead = _load(fresh, now + 40 * 86_400)
    right = _load(fresh, now)
    assert right.binding.seq > ahead.binding.seq
    assert binding_holds(right.key.peer_id, right.binding, now)
    assert _load(fresh, now + 60).binding == right.binding


def test_a_renewal_without_the_passphrase_says_what_to_restore(data: DataDir) -> None:
    aside = data.wallet_passphrase.rename(data.root / "aside")
    try:
        with pytest.raises(ChainError, match="restore both files from your backup"):
            _load(data, time.time() + 3 * BINDING_TTL_MAX_S)
    finally:
        aside.rename(data.wallet_passphrase)


def test_secrets_are_private_and_never_shown(data: DataDir) -> None:
    identity = _load(data, time.time())
    for path in (data.peer_key, data.receipt_key, data.wallet, data.wallet_passphrase):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = repr(identity) + repr(identity.key)
    assert identity.key.seed.hex() not in shown
    assert identity.receipt_secret.hex() not in shown
    assert identity.key.peer_id in shown


@pytest.mark.parametrize("content", ["", "zz", "00" * 31, "00" * 33])
def test_a_damaged_seed_is_neither_used_nor_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "peer.key"
    path.write_text(content)
    with pytest.raises(ConfigError, match="does not hold a key: restore it from your backup"):
        load_or_create_seed(path)
    assert path.read_text() == content


def test_a_generated_key_is_new_each_time_and_signs_for_its_id() -> None:
    one, other = PeerKey.generate(), PeerKey.generate()
    assert one.peer_id != other.peer_id
    assert one.sign(b"x") != other.sign(b"x")
