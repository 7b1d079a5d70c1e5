"""``RpcChain``: a development node behind JSON-RPC, used like the embedded chain, for figures on another
implementation.

Synchronous, for one thread. Transactions are signed here, and accounts get ether by the node's own method
(anvil's). Only for nodes that mine at once and let time be moved. ``running_anvil`` starts one as a child
process.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from p2pnode.chain.dev.embedded import ETHER, GAS_MAX, Receipt
from p2pnode.chain.evm.fees import Fees
from p2pnode.chain.evm.order_book import sign_transaction
from p2pnode.chain.evm.rpc_answers import RpcError, revert_reason
from p2pnode.chain.ledger import NO_REASON, RevertedError
from p2pnode.errors import ChainError, ConfigError
from p2pnode.protocols.crypto import key_address, sign_digest

WEALTH: Final = 1_000 * ETHER
START_DEADLINE_S: Final = 20.0
REQUEST_DEADLINE_S: Final = 30.0
MINED_DEADLINE_S: Final = 10.0
_FEES: Final = Fees(most=2 * 10**9, tip=1)
_POLL_S: Final = 0.05

Fund: TypeAlias = Callable[["RpcChain", bytes], None]


def fund_by_anvil(chain: RpcChain, account: bytes) -> None:
    """Give an account ether."""
    chain.ask("anvil_setBalance", "0x" + account.hex(), hex(WEALTH))


class RpcChain:
    """See the module. The methods are ``EmbeddedChain``'s. ``secrets``: of the accounts that may send."""

    def __init__(self, url: str, secrets: Iterable[bytes], fund: Fund = fund_by_anvil) -> None:
        self._url = url
        # Requests to loopback must not go through a proxy that the environment names.
        self._opener = build_opener(ProxyHandler({}))
        self._secrets = {key_address(secret): secret for secret in secrets}
        self.accounts = tuple(self._secrets)
        self.chain_id = int(self.ask("eth_chainId"), 16)
        for account in self.accounts:
            fund(self, account)

    @property
    def now(self) -> int:
        """The last block's timestamp."""
        return int(self.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def nonce(self, account: bytes) -> int:
        """How many transactions an account has sent."""
        return int(self.ask("eth_getTransactionCount", "0x" + account.hex(), "latest"), 16)

    def travel(self, seconds: int) -> None:
        """Move time ahead, in one empty block."""
        self.ask("evm_increaseTime", seconds)
        self.ask("evm_mine")

    def send(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX) -> Receipt:
        """Sign a transaction, send it, and return the receipt. An empty ``to`` creates a contract. Raises
        ``RevertedError``."""
        secret = self._secrets[sender]
        signed = sign_transaction(
            chain_id=self.chain_id, account=sender, sign=lambda digest: sign_digest(secret, digest),
            nonce=self.nonce(sender), to=to, data=data, gas=gas, fees=_FEES,
        )  # fmt: skip
        self.ask("eth_sendRawTransaction", "0x" + signed.raw.hex())
        mined = self._receipt("0x" + signed.hash.hex())
        gas_used = int(mined["gasUsed"], 16)
        if int(mined["status"], 16) != 1:
            raise RevertedError(NO_REASON, gas_used)
        logs = tuple(
            (_bytes(log["address"]), tuple(map(_bytes, log["topics"])), _bytes(log["data"]))
            for log in mined["logs"]
        )
        return Receipt(gas_used, _bytes(mined["contractAddress"] or "0x"), logs)

    def _receipt(self, transaction: str) -> Any:
        until = time.monotonic() + MINED_DEADLINE_S
        while (mined := self.ask("eth_getTransactionReceipt", transaction)) is None:
            if time.monotonic() > until:
                msg = "the node did not mine a transaction at once: is it a development node?"
                raise ChainError(msg)
            time.sleep(_POLL_S / 10)
        return mined

    def call(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX) -> bytes:
        """What a transaction would return. Raises ``RevertedError``."""
        call = {"from": "0x" + sender.hex(), "to": "0x" + to.hex(), "data": "0x" + data.hex()}
        try:
            return _bytes(self.ask("eth_call", call | {"gas": hex(gas)}, "latest"))
        except RpcError as error:
            reason = revert_reason(error)
            if reason is None:
                raise
            raise RevertedError(reason) from error

    def ask(self, method: str, *params: Any) -> Any:
        """Send one request. Raises ``RpcError`` for an error, and ``ChainError`` when there is no answer."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = Request(self._url, body, {"content-type": "application/json"})  # noqa: S310 - loopback
        try:
            with self._opener.open(request, timeout=REQUEST_DEADLINE_S) as response:
                answer = json.load(response)
        except (URLError, OSError, ValueError) as error:
            msg = f"the node at {self._url} does not answer {method}: {error}"
            raise ChainError(msg) from error
        failed = answer.get("error")
        if failed is not None:
            raise RpcError(int(failed["code"]), str(failed["message"]), failed.get("data"))
        return answer["result"]


@contextmanager
def running_anvil(program: Path, *arguments: str) -> Iterator[str]:
    """Run anvil in this block; gives its URL. Raises ``ConfigError`` if it doesn't start.

    Its output is thrown away: anvil prints every call, and stops when a pipe is full.
    """
    port = _free_port()
    try:
        process = subprocess.Popen(  # noqa: S603 - the program that the user named
            [str(program), "--port", str(port), "--silent", *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        msg = f"{program} can't be run ({error.strerror}): name the anvil program with --anvil"
        raise ConfigError(msg) from error
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(url, process, program)
        yield url
    finally:
        process.kill()
        process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes], program: Path) -> None:
    until = time.monotonic() + START_DEADLINE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            RpcChain(url, ())
        except ChainError:
            time.sleep(_POLL_S)
        else:
            return
    msg = f"{program} did not start as anvil does: name the anvil program with --anvil"
    raise ConfigError(msg)


def _free_port() -> int:
    """A port that nobody listens on now. It is random, so that two starts at one time seldom get the same."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))
