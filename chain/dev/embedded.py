"""``EmbeddedChain``: a whole chain in memory (eth-tester's py-evm backend), for tests, gas figures and
development.

Each transaction is mined at once, in a block of its own. Synchronous and not thread-safe: callers hold one
lock around it. Every account is one whose secret was given, and starts with ether. Without a clock each block
is a second later than the one before. With a clock, blocks of one second share a timestamp, and don't run
ahead of the clock.

``Contract`` and ``Deployment`` are handles of what is deployed on it, or on another ``DirectChain``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from p2pnode.chain.abi import Artifact, Event, artifact
from p2pnode.chain.deployment_plan import Addresses, create_address, plan_deployment
from p2pnode.chain.dev.saved_state import SavedState
from p2pnode.chain.ledger import RevertedError
from p2pnode.errors import ChainError

ETHER: Final = 10**18
GAS_MAX: Final = 8_000_000
BLOCK_GAS: Final = 60_000_000
_FEE_WEI: Final = 2 * 10**9
_ERROR_SELECTOR: Final = bytes.fromhex("08c379a0")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction that succeeded."""

    gas_used: int
    contract: bytes
    logs: tuple[tuple[bytes, tuple[bytes, ...], bytes], ...]


class EmbeddedChain:
    """See the module. ``secrets``: the 32-byte secrets of the accounts that may send."""

    def __init__(
        self,
        secrets: Iterable[bytes],
        *,
        timestamp: int = 1_800_000_000,
        clock: Callable[[], int] | None = None,
        first_nonce: int = 0,
        state: SavedState | None = None,
    ) -> None:
        """``first_nonce`` is the first account's nonce in the first block: its contracts' addresses follow
        from it. ``state`` holds the chain and is saved after each block; a chain that it holds already
        goes on."""
        from eth_keys.datatypes import PrivateKey
        from eth_tester import PyEVMBackend

        keys = (PrivateKey(secret) for secret in secrets)
        self._keys = {key.public_key.to_canonical_address(): key for key in keys}
        self._clock = clock
        accounts = {
            account: {"balance": 10**6 * ETHER, "nonce": 0, "code": b"", "storage": {}}
            for account in self._keys
        }
        accounts[next(iter(accounts))]["nonce"] = first_nonce
        first = timestamp if clock is None else clock()
        genesis = PyEVMBackend.generate_genesis_params({"timestamp": first, "gas_limit": BLOCK_GAS})
        self._backend = PyEVMBackend(
            genesis_parameters=genesis,
            genesis_state=accounts,
            vm_configuration=None if clock is None else ((0, _shared_timestamps()),),
        )
        self._state = state
        if state is not None:
            # The backend makes its chain in memory only: put the same kind of chain in its place, on the
            # same kind of database.
            kind, base = type(self.evm), type(self.evm.chaindb.db)(state)
            self._backend.chain = kind(base) if state else kind.from_genesis(base, genesis, accounts)
        self.accounts = tuple(self._keys)

    @property
    def evm(self) -> Any:
        """py-evm's chain. Its head is the block that is still to be mined; a revert makes a new object."""
        return self._backend.chain

    @property
    def chain_id(self) -> int:
        """The chain's id, as in every EIP-712 domain."""
        return int(self.evm.chain_id)

    @property
    def genesis(self) -> bytes:
        """The first block's hash. Chains made at different times have different ones."""
        return bytes(self.evm.get_canonical_block_header_by_number(0).hash)

    @property
    def height(self) -> int:
        """The last block's number."""
        return int(self.evm.header.block_number) - 1

    @property
    def now(self) -> int:
        """The last block's timestamp. Without a clock, the next transaction's is a second later."""
        return int(self.evm.get_canonical_block_header_by_number(self.height).timestamp)

    @property
    def base_fee(self) -> int:
        """Wei per gas in the next block."""
        return int(self.evm.header.base_fee_per_gas)

    @property
    def next_timestamp(self) -> int:
        """The next block's timestamp."""
        return self.now + 1 if self._clock is None else max(self.now, self._clock())

    def mine(self) -> None:
        """Mine one block, with what was applied to it."""
        self._begin()
        self._mine()

    def travel(self, seconds: int) -> None:
        """Move time ahead by at least two seconds, in one empty block. For a chain without a clock."""
        self._backend.time_travel(self.now + seconds)
        self._save()

    def snapshot(self) -> bytes:
        """A name for the chain's present state."""
        return bytes(self._backend.take_snapshot())

    def revert(self, snapshot: bytes) -> None:
        """Go back to a snapshot; later snapshots become invalid."""
        self._backend.revert_to_snapshot(snapshot)
        self._save()

    def nonce(self, account: bytes) -> int:
        """How many transactions an account has sent."""
        return int(self._backend.get_nonce(account))

    def ether(self, account: bytes) -> int:
        """An account's ether, in wei."""
        return int(self._backend.get_balance(account))

    def storage(self, contract: bytes, slot: int) -> bytes:
        """One word of a contract's storage."""
        return int(self._backend.get_storage(contract, slot)).to_bytes(32, "big")

    def code(self, account: bytes) -> bytes:
        """A contract's code; empty for a plain account."""
        return bytes(self._backend.get_code(account))

    def creation(self, number: int) -> bytes:
        """The data of the only transaction of a block: what a contract was created with."""
        block = self.evm.get_canonical_block_by_number(number)
        return b"".join(bytes(each.data) for each in block.transactions)

    def send(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX, value: int = 0) -> Receipt:
        """Sign a transaction, mine it, and return the receipt. An empty ``to`` creates a contract. Raises
        ``RevertedError``."""
        unsigned = self.evm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id, nonce=self.nonce(sender), max_priority_fee_per_gas=1,
            max_fee_per_gas=_FEE_WEI, gas=gas, to=to, value=value, data=data, access_list=(),
        )  # fmt: skip
        mined, computation = self.apply(unsigned.as_signed_transaction(self._keys[sender]))
        if computation.is_error:
            raise RevertedError(failure_of(computation), int(mined.gas_used))
        logs = tuple((log.address, _words(log.topics), log.data) for log in mined.logs)
        made = b"" if to else create_address(sender, unsigned.nonce)
        return Receipt(int(mined.gas_used), made, logs)

    def apply(self, transaction: Any) -> tuple[Any, Any]:
        """Mine one signed transaction; returns py-evm's receipt and computation. Raises py-evm's errors if
        it can't stand in a block; nothing is mined then."""
        self._begin()
        _, receipt, computation = self.evm.apply_transaction(transaction)
        self._mine()
        return receipt, computation

    def call(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX) -> bytes:
        """What a transaction would return. Raises ``RevertedError``."""
        _, computation = self.execute(sender, to, data, gas=gas)
        if computation.is_error:
            raise RevertedError(failure_of(computation))
        return bytes(computation.output)

    def execute(
        self,
        sender: bytes,
        to: bytes,
        data: bytes,
        *,
        gas: int = GAS_MAX,
        value: int = 0,
        header: Any = None,
        storage: Mapping[tuple[bytes, int], int] | None = None,
    ) -> tuple[int, Any]:
        """Run a call in the next block (or in ``header``'s) and undo it. Returns the gas used, and the
        computation. ``storage``: as if these words stood at these slots of these contracts.

        It costs no ether: the base fee is zero here, so that an account without ether may ask.
        """
        from eth_tester.backends.pyevm.main import EVMSpoofTransaction

        if header is None:
            header = self.evm.header.copy(timestamp=self.next_timestamp)
        vm = self.evm.get_vm(at_header=header.copy(base_fee_per_gas=0))
        unsigned = self.evm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id, nonce=vm.state.get_nonce(sender), max_priority_fee_per_gas=0,
            max_fee_per_gas=0, gas=gas, to=to, value=value, data=data, access_list=(),
        )  # fmt: skip
        for (contract, slot), word in (storage or {}).items():
            vm.state.set_storage(contract, slot, word)
        vm.state.lock_changes()  # what a transaction begins with: else a refund would be given for them
        if gas < unsigned.intrinsic_gas:
            msg = f"intrinsic gas too low: gas {gas}, minimum needed {unsigned.intrinsic_gas}"
            raise ChainError(msg)
        computation = vm.state.apply_transaction(EVMSpoofTransaction(unsigned, from_=sender))
        return int(vm.finalize_gas_used(unsigned, computation)), computation

    def _mine(self) -> None:
        self._backend.mine_blocks()
        self._save()

    def _save(self) -> None:
        if self._state is not None:
            self._state.save()

    def _begin(self) -> None:
        if self._clock is not None:
            self.evm.set_header_timestamp(self.next_timestamp)


def failure_of(computation: Any) -> str:
    """Why a computation failed: the contract's reason, where it gives one."""
    reason = revert_reason(bytes(computation.output))
    if reason is not None:
        return reason
    name = type(computation.error).__name__
    return {"Revert": "", "OutOfGas": "out of gas"}.get(name, name)


def revert_reason(data: bytes) -> str | None:
    """The text of ``Error(string)``; None for anything else."""
    length = int.from_bytes(data[36:68], "big")
    if data[:4] != _ERROR_SELECTOR or len(data) < 68 + length:
        return None
    return data[68 : 68 + length].decode(errors="replace")


def _words(numbers: Iterable[int]) -> tuple[bytes, ...]:
    return tuple(int(number).to_bytes(32, "big") for number in numbers)


def _shared_timestamps() -> Any:
    """The latest rules, but a block may have its parent's timestamp, as on several L2s: ten transactions a
    second must not move the chain's time ahead of the wall clock's."""
    from eth_tester.backends.pyevm.main import PragueVM

    class SharedTimestamps(PragueVM):  # type: ignore[misc]
        @classmethod
        def validate_header(cls, header: Any, parent_header: Any) -> None:
            if header.timestamp == parent_header.timestamp:
                parent_header = parent_header.copy(timestamp=header.timestamp - 1)
            super().validate_header(header, parent_header)

    return SharedTimestamps


class DirectChain(Protocol):
    """The chain that contracts are used through: an embedded one, or another implementation."""

    accounts: tuple[bytes, ...]

    @property
    def chain_id(self) -> int:
        """The chain's id, as in every EIP-712 domain."""

    @property
    def now(self) -> int:
        """The last block's timestamp."""

    def nonce(self, account: bytes) -> int:
        """How many transactions an account has sent."""

    def travel(self, seconds: int) -> None:
        """Move time ahead, in one empty block."""

    def send(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX) -> Receipt:
        """Send a transaction. Raises ``RevertedError``."""

    def call(self, sender: bytes, to: bytes, data: bytes, *, gas: int = GAS_MAX) -> bytes:
        """What a transaction would return. Raises ``RevertedError``."""


@dataclass(frozen=True, slots=True)
class Contract:
    """A deployed contract on a chain, used by the names of its functions."""

    chain: DirectChain
    artifact: Artifact
    address: bytes

    def send(self, sender: bytes, name: str, *arguments: Any, gas: int = GAS_MAX) -> Receipt:
        """Send a transaction. Raises ``RevertedError``."""
        data = self.artifact.function(name, len(arguments)).encode(arguments)
        return self.chain.send(sender, self.address, data, gas=gas)

    def read(self, name: str, *arguments: Any, sender: bytes | None = None) -> Any:
        """Call a function without a transaction."""
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
    """Everything that is deployed: the profile's addresses, and a handle for each contract."""

    addresses: Addresses
    market: Contract
    proofs: Contract
    nodes: Contract
    models: Contract
    usdc: Contract
    fab: Contract


def deploy(
    chain: DirectChain,
    deployer: bytes,
    *,
    treasury: bytes,
    fab_holder: bytes,
    usdc: Contract | None = None,
) -> Deployment:
    """Deploy all contracts; without ``usdc`` also the development token, which ``deployer`` may mint."""
    todo = plan_deployment(
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

    return deployed(chain, todo.addresses, usdc)


def deployed(chain: DirectChain, found: Addresses, usdc: Contract | None = None) -> Deployment:
    """The handles of what stands on a chain at these addresses."""

    def at(name: str, address: bytes) -> Contract:
        return Contract(chain, artifact(name), address)

    return Deployment(
        addresses=found,
        market=at("JobMarketplace", found.job_marketplace),
        proofs=at("ProofSystem", found.proof_system),
        nodes=at("NodeRegistry", found.node_registry),
        models=at("ModelRegistry", found.model_registry),
        usdc=usdc or at("USDC", found.usdc),
        fab=at("FAB", found.fab),
    )
