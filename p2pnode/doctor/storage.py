"""Checks of storage: the store on this disk, the key of conversations, and what no other node has."""

from __future__ import annotations

import secrets
from typing import Final

import trio

from p2pnode.chain.wallet.files import opened_entropy, read_keystore
from p2pnode.chain.wallet.wallet import open_wallet
from p2pnode.config import NodeConfig
from p2pnode.doctor.finding import Finding, ok, problem, warning
from p2pnode.errors import ChainError, ConfigError, StorageError
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.storage.conversations.replication_state import ReplicationState
from p2pnode.storage.key_file import load_storage_keys
from p2pnode.storage.keys import INDEX_SID, StorageKeys
from p2pnode.storage.node_store import open_store
from p2pnode.words import count_of

NEARLY_FULL: Final = 0.9
"""Of a quota."""


class StorageChecks:
    """Checks that need no other node. They make no store where there is none."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._data = DataDir(config.data_dir)

    async def store(self) -> Finding:
        """Whether the store opens and has room."""
        if not self._data.store.exists():
            return ok("store", "nothing is stored here yet")
        try:
            async with open_store(self._config) as store:
                totals, owners = await store.statistics(), await store.owners()
        except StorageError as error:
            remedy = "the message says what to change; what reached other nodes is recovered from there"
            return problem("store", "store_damaged", str(error), remedy)
        used, most = totals.charged, self._config.store_bytes_max
        if used >= NEARLY_FULL * most:
            remedy = "sweep it with `p2pnode storage gc`, or raise store_bytes_max"
            return warning("store", "store_full", _used("blobs", used, most), remedy)
        keys = self._keys()
        used = sum(each.charged for each in owners if keys is not None and each.owner == keys.owner)
        most = self._config.store_owner_bytes_max
        if used >= NEARLY_FULL * most:
            remedy = "forget some with `p2pnode sessions forget`, or raise store_owner_bytes_max"
            return warning("store", "store_full", _used("your conversations", used, most), remedy)
        return ok("store", f"{count_of(totals.blobs, 'blob')}, {totals.charged / 1e6:.1f} MB counted")

    async def key(self) -> Finding:
        """Whether conversations are kept, and whether the recovery phrase would bring them back."""
        try:
            keys = load_storage_keys(self._data)
        except ConfigError as error:
            return problem("keeping", "storage_key_damaged", str(error), "the message says what to change")
        if keys is None:
            how = "`p2pnode wallet new` makes the words for it"
            if self._data.phrase.exists():
                how = "`p2pnode wallet show --phrase` makes the key from your words"
            detail = f"conversations are not kept: {how}"
            return Finding(check="keeping", verdict="ok", code="storage_key_missing", detail=detail)
        if not self._config.save:
            return ok("keeping", "conversations are not kept: save is off")
        phrase = await trio.to_thread.run_sync(self._keys_of_phrase)
        if phrase is not None and phrase.root != keys.root:
            detail = f"{self._data.storage_key.name} is not of the recovery phrase in this data dir"
            remedy = "keep the words that it came from too: these ones don't bring your conversations back"
            return warning("keeping", "storage_key_other", detail, remedy)
        return ok("keeping", "conversations are kept" + (", and the words fit" if phrase is not None else ""))

    async def replicas(self) -> Finding:
        """Whether every conversation has reached enough other nodes."""
        path = self._data.store / "outbox.sqlite"
        if not path.exists():
            return ok("kept", "no conversation yet")
        try:
            state = ReplicationState(path, secrets.token_bytes)
            try:
                rows, lagging = await state.heads(), await state.lagging()
            finally:
                state.close()
        except StorageError as error:
            remedy = "move it away; what reached other nodes is recovered from there"
            return problem("kept", "store_damaged", str(error), remedy)
        count = sum(row.sid != INDEX_SID for row in (lagging or rows))
        if lagging:
            what = count_of(count, "conversation has", "conversations have")
            what = what if count else "the list of conversations has"
            remedy = "run any command while the network is there, or name more nodes that store with --store"
            return warning("kept", "unkept", f"{what} not reached enough other nodes yet", remedy)
        return ok("kept", f"{count_of(count, 'conversation')}, all on other nodes too")

    def _keys(self) -> StorageKeys | None:
        try:
            return load_storage_keys(self._data)
        except ConfigError:
            return None  # another check says so

    def _keys_of_phrase(self) -> StorageKeys | None:
        """Of the phrase in this data dir, where its passphrase lies beside it: nobody is asked for one."""
        try:
            wallet, phrase = open_wallet(wallet_files(self._data)), read_keystore(self._data.phrase)
            if wallet is None or phrase is None or wallet.source.kind != "file":
                return None
            return StorageKeys.from_entropy(opened_entropy(phrase, wallet.passphrase()))
        except (ChainError, ConfigError, ValueError):
            return None  # the check of keys says what is wrong with it


def _used(what: str, used: int, most: int) -> str:
    return f"{what} take {used / 1e6:.0f} of {most / 1e6:.0f} MB"
