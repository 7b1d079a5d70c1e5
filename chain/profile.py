"""``ChainProfile``: which chain, how to reach it, and the seven addresses. Nothing important has a default.

``load_profile`` checks what a file says by itself; ``verify`` asks a node whether the chain agrees, once at
start, before anything is signed for it. Each mistake is a ``ConfigError`` that names the field and, where two
values differ, both: a profile of the wrong chain, an address without code, another token, or contracts that
are not connected to one another would cost money. The EIP-712 domains are read and checked by
``EvmLedger.connect``. This module knows of no transport.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from p2pnode.chain.abi import artifact
from p2pnode.chain.addresses import address_from, shown_address
from p2pnode.chain.deployment_plan import Addresses
from p2pnode.chain.ledger import UnavailableError
from p2pnode.errors import ChainError, ConfigError
from p2pnode.files import read_text_or_none, write_atomic

ADDRESS_FIELDS: Final = tuple(item.name for item in fields(Addresses))
CONFIRMATIONS_MAX: Final = 1_000
RPC_URLS_MAX: Final = 16
_CHAIN_ID_MAX: Final = 2**63 - 1
_HASH: Final = re.compile(r"(0x)?[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainProfile:
    """Addresses are 20 bytes. ``host_earnings`` may equal ``job_marketplace``. Caps are wei; None: no cap."""

    chain_id: int
    rpc_urls: tuple[str, ...]
    job_marketplace: bytes
    proof_system: bytes
    node_registry: bytes
    host_earnings: bytes
    model_registry: bytes
    usdc: bytes
    fab: bytes
    confirmations: int = 1
    name: str = ""
    gas_price_max_wei: int | None = None
    transaction_fee_max_wei: int | None = None
    genesis: bytes | None = None
    """The first block's hash, where the profile names it: a chain that was made anew has another."""
    path: Path | None = field(default=None, compare=False)
    """The file it was read from, for messages."""

    def __post_init__(self) -> None:
        """Check the fields. Raises ``ConfigError`` that names one."""
        _check_range("chain_id", self.chain_id, 1, _CHAIN_ID_MAX)
        _check_range("confirmations", self.confirmations, 1, CONFIRMATIONS_MAX)
        for name in ("gas_price_max_wei", "transaction_fee_max_wei"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 1, 2**128)
        if not 1 <= len(self.rpc_urls) <= RPC_URLS_MAX:
            msg = f"rpc_urls must list 1 to {RPC_URLS_MAX} URLs"
            raise ConfigError(msg)
        for number, url in enumerate(self.rpc_urls):
            _check_url(f"rpc_urls[{number}]", url)
        for name in ADDRESS_FIELDS:
            if not any(getattr(self, name)):
                raise ConfigError(f"{name} is the zero address: no contract is there")

    @property
    def addresses(self) -> Addresses:
        """All seven addresses."""
        return Addresses(**{name: getattr(self, name) for name in ADDRESS_FIELDS})

    @property
    def shown_name(self) -> str:
        """The name to show to people."""
        return self.name or f"chain {self.chain_id}"


def profile_of(
    addresses: Addresses,
    *,
    chain_id: int,
    rpc_urls: tuple[str, ...],
    name: str = "",
    genesis: bytes | None = None,
) -> ChainProfile:
    """The profile of a deployment."""
    listed = {each: getattr(addresses, each) for each in ADDRESS_FIELDS}
    return ChainProfile(chain_id=chain_id, rpc_urls=rpc_urls, name=name, genesis=genesis, **listed)


def load_profile(path: Path) -> ChainProfile:
    """Read and check a file. Raises ``ConfigError`` that names the file and the field."""
    text = read_text_or_none(path)
    if text is None:
        msg = f"{path} doesn't exist: write a chain profile (`p2pnode chain deploy`, `p2pnode chain dev`)"
        raise ConfigError(msg)
    try:
        return ChainProfile(path=path, **_parsed(text))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_profile(path: Path, profile: ChainProfile) -> None:
    """Write what ``load_profile`` gives back. Raises ``ConfigError`` when the path can't be written."""
    write_atomic(path, profile_text(profile).encode())


def profile_text(profile: ChainProfile) -> str:
    """A profile as TOML."""
    lines = [f"name = {_quoted(profile.name)}"] if profile.name else []
    lines += [
        f"chain_id = {profile.chain_id}",
        f"rpc_urls = [{', '.join(_quoted(url) for url in profile.rpc_urls)}]",
        f"confirmations = {profile.confirmations}",
    ]
    for name in ("gas_price_max_wei", "transaction_fee_max_wei"):
        if getattr(profile, name) is not None:
            lines.append(f"{name} = {getattr(profile, name)}")
    if profile.genesis is not None:
        lines.append(f'genesis = "0x{profile.genesis.hex()}"')
    lines += [f"{name} = {_quoted(shown_address(getattr(profile, name)))}" for name in ADDRESS_FIELDS]
    return "\n".join(lines) + "\n"


def _parsed(text: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"not valid TOML ({error}): fix that line"
        raise ConfigError(msg) from error
    known = {item.name: item for item in fields(ChainProfile) if item.name != "path"}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            msg = f"{key!r} is no field of a chain profile: {hint}"
            raise ConfigError(msg)
    missing = [name for name, item in known.items() if item.default is MISSING and name not in values]
    if missing:
        msg = f"{missing[0]} is missing (it has no default): add {', '.join(missing)}"
        raise ConfigError(msg)
    return {key: _typed(key, value) for key, value in values.items()}


def _typed(key: str, value: Any) -> Any:
    if key in ADDRESS_FIELDS:
        if not isinstance(value, str):
            raise ConfigError(f'{key} must be an address in quotes, "0x…"')
        try:
            return address_from(value)
        except ValueError as error:
            raise ConfigError(f"{key} = {value[:80]!r}: {error}") from error
    if key == "rpc_urls":
        if isinstance(value, list) and all(isinstance(url, str) for url in value):
            return tuple(value)
        raise ConfigError(f"{key} must be a list of URLs in quotes")
    if key == "genesis":
        if isinstance(value, str) and _HASH.fullmatch(value) is not None:
            return bytes.fromhex(value.removeprefix("0x"))
        raise ConfigError(f"{key} must be the hash of a block: 64 hex digits in quotes")
    if key == "name":
        if isinstance(value, str):
            return value
        raise ConfigError(f"{key} must be text in quotes")
    if type(value) is int:
        return value
    raise ConfigError(f"{key} must be a whole number")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be from {low} to {high}")


def _check_url(name: str, url: str) -> None:
    """The message doesn't show the URL, for many hold a key."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ConfigError(f"{name} must be an http:// or https:// URL with a host")


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# ---- the check against the chain

USDC_DECIMALS: Final = 6
_KIND_OF: Final = {
    "job_marketplace": "JobMarketplace", "host_earnings": "HostEarnings", "proof_system": "ProofSystem",
    "node_registry": "NodeRegistry", "model_registry": "ModelRegistry", "usdc": "USDC", "fab": "FAB",
}  # fmt: skip
_LINKS: Final = (
    ("job_marketplace", "usdc", "usdc"),
    ("host_earnings", "usdc", "usdc"),
    ("proof_system", "market", "job_marketplace"),
    ("node_registry", "fab", "fab"),
    ("node_registry", "market", "job_marketplace"),
    ("model_registry", "fab", "fab"),
)
"""A contract's field, the getter of what it was deployed with, and the field that must say the same."""


class RawRpc(Protocol):
    """Any way to ask a node."""

    async def request(self, method: str, params: Sequence[Any], /) -> Any:
        """The answer's ``result``. Raises ``UnavailableError``, and ``ChainError`` for an error."""


async def verify(profile: ChainProfile, rpc: RawRpc) -> None:
    """Ask a node whether the chain is what the profile says.

    Raises ``ConfigError`` for what differs, and ``UnavailableError`` when no node answers.
    """
    asked = _Asked(profile, rpc)
    chain_id = int(await rpc.request("eth_chainId", []), 16)
    if chain_id != profile.chain_id:
        raise asked.wrong("chain_id", f"the profile says {profile.chain_id}, the node is on {chain_id}")
    for name in ADDRESS_FIELDS:
        code = await rpc.request("eth_getCode", [asked.shown(name), "latest"])
        if not isinstance(code, str) or len(code) <= len("0x"):
            raise asked.wrong(name, f"{asked.shown(name)} has no code on chain {chain_id}")
    for name, getter, wanted in _LINKS:
        found = await asked.read(name, getter)
        if found != getattr(profile, wanted):
            has = f"the contract at {asked.shown(name)} has {getter} {shown_address(found)}"
            raise asked.wrong(name, f"{has}, but the profile's {wanted} is {asked.shown(wanted)}")
    decimals = await asked.read("usdc", "decimals")
    if decimals != USDC_DECIMALS:
        raise asked.wrong("usdc", f"the token at {asked.shown('usdc')} has {decimals} decimals, not 6")
    for getter in ("name", "version"):
        if not await asked.read("usdc", getter):
            raise asked.wrong("usdc", f"the token at {asked.shown('usdc')} has an empty {getter}()")


class _Asked:
    """Reads a profile's contracts, and makes the errors for what is wrong with them."""

    def __init__(self, profile: ChainProfile, rpc: RawRpc) -> None:
        self._profile, self._rpc = profile, rpc

    async def read(self, name: str, getter: str) -> Any:
        kind = _KIND_OF[name]
        function = artifact("JobMarketplace" if name == "host_earnings" else kind).function(getter, 0)
        call = {"to": self.shown(name), "data": "0x" + function.encode(()).hex()}
        try:
            answer = await self._rpc.request("eth_call", [call, "latest"])
            return function.decode(bytes.fromhex(answer.removeprefix("0x")))
        except UnavailableError:
            raise
        except (ChainError, ValueError, AttributeError) as error:
            said = f"the contract at {self.shown(name)} has no {getter}(): it is no {kind}"
            raise self.wrong(name, said) from error

    def shown(self, name: str) -> str:
        return shown_address(getattr(self._profile, name))

    def wrong(self, name: str, why: str) -> ConfigError:
        where = f"{self._profile.path}: " if self._profile.path else "chain profile: "
        return ConfigError(f"{where}{name}: {why}")
