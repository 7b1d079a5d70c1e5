"""A whole chain in memory (eth-tester's py-evm backend): for tests, gas figures and development.

One transaction a block, mined at once. Synchronous and not thread-safe: callers hold one lock around it.
Every account is one whose secret was given; each starts with ether. Time moves only when told to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.chain.abi import Artifact, Event, artifact
from p2pnode.chain.deploy import Addresses, plan
from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import address_of

ETHER: Final = 10**18
GAS_MAX: Final = 8_000_000
_FEE_WEI: Final = 2 * 10**9


class RevertedError(ChainError):
    """The contract said no; ``reason`` is its text. ``gas_used`` was spent all the same."""

    def __init__(self, reason: str, gas_used: int) -> None:
        super().__init__(f"the contract refused: {reason}")
        self.reason = reason
        self.gas_used = gas_used


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction that succeeded."""

    gas_used: int
    contract: bytes
    logs: tuple[tuple[bytes, tuple[bytes, ...], bytes], ...]


def address_of_secret(secret: bytes) -> bytes:
    """The 20-byte account of a secret."""
    from coincurve import PrivateKey

    return address_of(PrivateKey(secret).public_key.format(compressed=False))


class EmbeddedChain:
    """See the module. ``secrets``: 32 bytes each, the accounts that may send."""

    def __init__(self, secrets: Iterable[bytes], *, timestamp: int = 1_800_000_000) -> None:
        from eth_keys.datatypes import PrivateKey
        from eth_tester import PyEVMBackend

        keys = tuple(PrivateKey(secret) for secret in secrets)
        state = {
            key.public_key.to_canonical_address(): {
                "balance": 10**6 * ETHER, "nonce": 0, "code": b"", "storage": {},
            }
            for key in keys
        }  # fmt: skip
        parameters = PyEVMBackend.generate_genesis_params({"timestamp": timestamp, "gas_limit": 60_000_000})
        self._backend = PyEVMBackend(genesis_parameters=parameters, genesis_state=state)
        self._backend.account_keys = keys
        self.accounts = tuple(state)

    @property
    def chain_id(self) -> int:
        """As in every EIP-712 domain."""
        return int(self._backend.chain.chain_id)

    @property
    def now(self) -> int:
        """The last block's timestamp: the next transaction's is a second later."""
        return int(self._backend.get_block_by_number("latest", False)["timestamp"])

    def travel(self, seconds: int) -> None:
        """Let time pass, at least two seconds, in one empty block."""
        self._backend.time_travel(self.now + seconds)

    def snapshot(self) -> bytes:
        """Where the chain stands."""
        return bytes(self._backend.take_snapshot())

    def revert(self, snapshot: bytes) -> None:
        """Go back there; later snapshots are void."""
        self._backend.revert_to_snapshot(snapshot)

    def nonce(self, account: bytes) -> int:
        """How many transactions an account has sent."""
        return int(self._backend.get_nonce(account))

    def ether(self, account: bytes) -> int:
        """Wei."""
        return int(self._backend.get_balance(account))

    def storage(self, contract: bytes, slot: int) -> bytes:
        """One word."""
        return int(self._backend.get_storage(contract, slot)).to_bytes(32, "big")

    def code(self, account: bytes) -> bytes:
        """Empty for a plain account."""
        return bytes(self._backend.get_code(account))

    def send(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX) -> Receipt:
        """Sign, mine, and return the receipt. ``to`` empty creates. Raises ``RevertedError``."""
        transaction = {
            "from": sender, "to": to, "data": data, "gas": gas,
            "max_fee_per_gas": _FEE_WEI, "max_priority_fee_per_gas": 1,
        }  # fmt: skip
        hash_ = self._backend.send_transaction(transaction)
        self._backend.mine_blocks()
        mined = self._backend.get_transaction_receipt(hash_)
        gas_used = int(mined["gas_used"])
        if mined["status"] != 1:
            raise RevertedError(self._why(transaction), gas_used)
        logs = tuple((log["address"], tuple(log["topics"]), log["data"]) for log in mined["logs"])
        return Receipt(gas_used, bytes(mined["contract_address"] or b""), logs)

    def call(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX) -> bytes:
        """What a transaction would return. Raises ``RevertedError``."""
        from eth_tester.exceptions import TransactionFailed

        try:
            return bytes(
                self._backend.call(
                    {"from": sender, "to": to, "data": data, "gas": gas, "gas_price": _FEE_WEI}
                )
            )
        except TransactionFailed as error:
            raise RevertedError(str(error), 0) from error

    def _why(self, transaction: dict[str, Any]) -> str:
        """Ask again, as a call, for the reason of a failure."""
        try:
            self.call(transaction["from"], transaction["to"], transaction["data"], gas=transaction["gas"])
        except RevertedError as error:
            return error.reason
        return "out of gas"


@dataclass(frozen=True, slots=True)
class Contract:
    """A deployed contract on an embedded chain, by the names of its functions."""

    chain: EmbeddedChain
    artifact: Artifact
    address: bytes

    def send(self, sender: bytes, name: str, *arguments: Any, gas: int = GAS_MAX) -> Receipt:
        """Transact. Raises ``RevertedError``."""
        data = self.artifact.function(name, len(arguments)).encode(arguments)
        return self.chain.send(sender, self.address, data, gas=gas)

    def read(self, name: str, *arguments: Any, sender: bytes | None = None) -> Any:
        """Call without a transaction."""
        function = self.artifact.function(name, len(arguments))
        caller = self.chain.accounts[0] if sender is None else sender
        return function.decode(self.chain.call(caller, self.address, function.encode(arguments)))

    def events(self, receipt: Receipt) -> tuple[Event, ...]:
        """This contract's events in a receipt."""
        found = (
            self.artifact.event(address, topics, data)
            for address, topics, data in receipt.logs
            if address == self.address
        )
        return tuple(event for event in found if event is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Everything deployed: the profile's addresses, and a handle for each contract."""

    addresses: Addresses
    market: Contract
    proofs: Contract
    nodes: Contract
    models: Contract
    usdc: Contract
    fab: Contract


def deploy(
    chain: EmbeddedChain,
    deployer: bytes,
    *,
    treasury: bytes,
    fab_holder: bytes,
    usdc: Contract | None = None,
) -> Deployment:
    """Deploy all; without ``usdc`` the double too, which ``deployer`` mints."""
    todo = plan(
        deployer=deployer,
        nonce=chain.nonce(deployer),
        treasury=treasury,
        fab_holder=fab_holder,
        usdc=None if usdc is None else usdc.address,
    )
    for step in todo.steps:
        made = chain.send(deployer, b"", step.initcode).contract
        if made != step.address:
            msg = f"{step.contract} landed at 0x{made.hex()}, not 0x{step.address.hex()}: start again"
            raise ChainError(msg)

    def at(name: str, address: bytes) -> Contract:
        return Contract(chain, artifact(name), address)

    found = todo.addresses
    return Deployment(
        addresses=found,
        market=at("JobMarketplace", found.job_marketplace),
        proofs=at("ProofSystem", found.proof_system),
        nodes=at("NodeRegistry", found.node_registry),
        models=at("ModelRegistry", found.model_registry),
        usdc=usdc or at("USDC", found.usdc),
        fab=at("FAB", found.fab),
    )
