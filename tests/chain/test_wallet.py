"""The wallet of a host: made once, opened when it must sign, and never overwritten."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from p2pnode.chain.wallet import create_wallet, open_wallet
from p2pnode.errors import ChainError, ConfigError
from p2pnode.protocols.crypto import keccak256, recover_address


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A keystore costs a second to make: one for all."""
    folder = tmp_path_factory.mktemp("wallet")
    create_wallet(folder / "wallet.json", folder / "wallet.pass")
    return folder / "wallet.json", folder / "wallet.pass"


def test_a_new_wallet_is_private_and_holds_no_secret_in_the_clear(made: tuple[Path, Path]) -> None:
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    body = json.loads(made[0].read_text())
    assert body["version"] == 3
    assert "secret" not in json.dumps(body).lower()


def test_an_opened_wallet_signs_for_its_address(made: tuple[Path, Path]) -> None:
    wallet = open_wallet(*made)
    assert wallet is not None
    digest = keccak256(b"anything")
    assert recover_address(digest, wallet.unlock()(digest)) == wallet.address


def test_no_wallet_is_none_and_a_second_one_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    assert open_wallet(tmp_path / "wallet.json", tmp_path / "wallet.pass") is None
    before = made[0].read_bytes()
    with pytest.raises(ChainError, match="exists: move it away first"):
        create_wallet(*made)
    assert made[0].read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "7", '{"address": 7}', '{"address": "zz"}', '{"address": "abcd"}', '{"address": null}'],
)
def test_a_file_that_is_no_keystore_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wallet.json"
    path.write_text(text)
    with pytest.raises(ChainError, match="is not a V3 keystore: restore it from your backup"):
        open_wallet(path, tmp_path / "wallet.pass")


def test_a_keystore_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "wallet.json").mkdir()
    with pytest.raises(ConfigError, match="can't be read"):
        open_wallet(tmp_path / "wallet.json", tmp_path / "wallet.pass")


def _cannot_unlock(keystore: Path, passphrase: Path) -> None:
    wallet = open_wallet(keystore, passphrase)
    assert wallet is not None
    with pytest.raises(ChainError, match="restore both files from your backup") as caught:
        wallet.unlock()
    assert "x-wrong-x" not in str(caught.value)


def test_a_missing_a_wrong_and_a_garbled_secret_are_told_without_the_passphrase(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    _cannot_unlock(made[0], tmp_path / "none.pass")
    wrong = tmp_path / "wrong.pass"
    wrong.write_text("x-wrong-x")
    _cannot_unlock(made[0], wrong)
    garbled = tmp_path / "wallet.json"
    whole = json.loads(made[0].read_text())
    for body in (
        {"address": whole["address"]},
        {**whole, "version": 9},
        {**whole, "crypto": 7},
        {**whole, "crypto": {}},
    ):
        garbled.write_text(json.dumps(body))
        _cannot_unlock(garbled, made[1])
