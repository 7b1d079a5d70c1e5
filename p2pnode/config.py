"""The one configuration object: built from flags and ``config.toml``, validated once, passed down.

Nothing else reads the environment. Keys of the file are the fields' names; an unknown key is an
error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import platformdirs

from p2pnode.contract_rules import SESSION_FEE_MAX
from p2pnode.errors import ConfigError, UsageError
from p2pnode.files import read_text_or_none
from p2pnode.ids import host_name
from p2pnode.money import USDC, usdc_number, usdc_text, usdc_units

DEFAULT_MODEL = "smollm2-135m-instruct"
_AMOUNT_MAX: Final = 10_000 * USDC
"""The most that a price or a spending limit may be: more than that was most likely meant in token units."""
_PRICES: Final = ("price_in", "price_out")
_SPENDING: Final = ("spend_session_max", "spend_day_max", "spend_host_max", "spend_locked_max")
_GAS: Final = ("ether_usd", "gas_day_max")
MONEY: Final = (*_PRICES, "session_fee", *_SPENDING, *_GAS)
"""Settings that people write in USDC and that are token units in :class:`NodeConfig`."""
_VERIFIED: Final = ("always", "paid", "never")
HEDGES: Final = ("free", "always", "never")
_STORE_MAX: Final = 1 << 50
N_CTX_MIN: Final = 256
N_CTX_MAX: Final = 1 << 20
_OWNER: Final = re.compile("[0-9a-fA-F]{64}")
_MEMORY_MAX: Final = 1 << 50
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_UNLOAD_MAX: Final = 10_080
_KINDS: Final = {tuple: "a list of strings", bool: "true or false", int: "a whole number", str: "a string"}


def default_data_dir() -> Path:
    """The folder of a node's identity by default. Raises ``UsageError`` for a user without a home folder."""
    try:
        return Path(platformdirs.user_data_dir("p2pnode", appauthor=False))
    except RuntimeError as error:
        msg = "--data-dir: this user has no home folder: name a folder to keep everything in"
        raise UsageError(msg) from error


ENGINES: Final = ("auto", "llamacpp", "exllama")
"""What models are loaded with; "auto" goes by the model's format."""
KV_CACHES: Final = ("FP16", "Q8", "Q6", "Q4")
"""How exllama keeps keys and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What a user can set for one of the models that a host serves. ``None``: as for all of them.

    Prices are token units (1e-6 USDC) per million tokens, the fee token units. One that is ``pinned`` stays
    in memory.
    """

    price_in: int | None = None
    price_out: int | None = None
    session_fee: int | None = None
    n_ctx: int | None = None
    slots: int | None = None
    pinned: bool | None = None

    def over(self, other: ModelSettings) -> ModelSettings:
        """These where they are set, else the other's."""
        mine = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(other, **{name: value for name, value in mine.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a user can set. Prices are token units (1e-6 USDC) per million tokens, other money token units; in
    the file and in flags they are written in USDC.

    ``announce`` are the multiaddrs at which others reach this node (a forwarded port, a name), told to them
    first. ``chain`` is the path of a chain profile; empty means ``chain.toml`` in the data dir, where there
    is one.
    ``spend_locked_max`` bounds the deposits that are locked in sessions (0: as ``spend_day_max``).
    ``keep_hours`` is for how long a host keeps a session that its client left, and for how long a client asks
    for it; 0 for not at all.
    ``ether_usd`` is the price of an ether, which a host's gas is held against (0: it is not known), and
    ``gas_day_max`` what opens may cost it a day.
    ``trust`` names hosts by peer id or wallet: they go first, and what was said to one reaches no others.
    ``verified``: whether hosts are asked only that can show which weights they run: ``always``, ``never``, or
    where the answer is ``paid``.
    ``hedge``: whether a second host is asked for an answer whose first token is late: a ``free`` one,
    ``always`` (the input is then paid twice where it costs money), or ``never``.
    ``save`` keeps conversations where the data dir has a storage key; ``stores`` are multiaddrs or
    invites of nodes that keep replicas, ``s5_url`` an S5 node that does. ``store_for`` says for whom this
    node stores: owner keys (64 hex digits), ``sessions`` (clients with an open session) or ``anyone``;
    ``share_models`` gives the files of served models to peers that pull them.
    ``s5_listen`` (host:port) serves S5's HTTP API, to programs and, with ``s5_accounts``, to whoever
    registers an account; ``s5_origins`` are the web pages that may use it (``https://app.example``).
    ``when_idle``: a host serves only while nobody has used its machine for so many minutes (0: always);
    ``prompt_filter`` is a program that may refuse prompts; ``self_probe`` has a host ask its own models.
    ``metrics`` (host:port) is where Prometheus reads this node's figures.
    ``upstream`` is the address of an OpenAI-compatible server on which a host serves, by the name that it
    has there (``upstream_model``, "" for its first); ``upstream_tokenizer`` names a model with the same
    tokenizer, and ``upstream_key_file`` a file with the server's key.
    ``n_ctx`` is the context of one request in tokens, 0 for what the model and the memory at hand allow.
    ``models`` are those that a host serves; in the file they may be tables (``[models.NAME]``) with settings
    of their own, which are ``per_model``. ``memory`` is what they may take together when they are loaded, in
    bytes (0: what is free at the start); one without work for ``unload_minutes`` is unloaded (0: only for
    another one). With ``embeddings`` those of llama.cpp embed texts, too, in a process of their own.
    """

    data_dir: Path = field(default_factory=default_data_dir)
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    mdns: bool = True
    client_only: bool = False
    models: tuple[str, ...] = ()
    per_model: Mapping[str, ModelSettings] = field(default_factory=dict)
    memory: int = 0
    unload_minutes: int = 0
    price_in: int = 0
    price_out: int = 0
    session_fee: int = 0
    chain: str = ""
    ether_usd: int = 0
    gas_day_max: int = 5_000_000
    spend_session_max: int = 1_000_000
    spend_day_max: int = 5_000_000
    spend_host_max: int = 2_000_000
    trust: tuple[str, ...] = ()
    verified: Literal["always", "paid", "never"] = "paid"
    hedge: Literal["free", "always", "never"] = "free"
    spend_locked_max: int = 0
    keep_hours: int = 24
    save: bool = True
    stores: tuple[str, ...] = ()
    store_for: tuple[str, ...] = ("sessions",)
    share_models: bool = False
    store_bytes_max: int = 10 << 30
    store_owner_bytes_max: int = 256 << 20
    s5_listen: str = ""
    s5_accounts: bool = False
    s5_origins: tuple[str, ...] = ()
    s5_url: str = ""
    metrics: str = ""
    when_idle: int = 0
    prompt_filter: str = ""
    self_probe: bool = True
    upstream: str = ""
    upstream_model: str = ""
    upstream_tokenizer: str = ""
    upstream_key_file: str = ""
    n_ctx: int = 0
    slots: int = 4
    threads: int = 0
    engine: str = "auto"
    kv_cache: str = "FP16"
    speculation: bool = False
    embeddings: bool = True
    tensor_parallel: bool = False

    def __post_init__(self) -> None:
        most = _AMOUNT_MAX // USDC
        for name in _PRICES:
            if not 0 <= getattr(self, name) <= _AMOUNT_MAX:
                raise ConfigError(f"{name} must be from 0 to {most} USDC per million tokens")
        for name in (*_SPENDING, *_GAS):
            if not 0 <= getattr(self, name) <= _AMOUNT_MAX:
                raise ConfigError(f"{name} must be from 0 to {most} USDC")
        if not 0 <= self.session_fee <= SESSION_FEE_MAX:
            highest = usdc_text(SESSION_FEE_MAX)
            raise ConfigError(f"session_fee must be from 0 to {highest}: the contract allows no more")
        for name in ("store_bytes_max", "store_owner_bytes_max"):
            if not 0 <= getattr(self, name) <= _STORE_MAX:
                msg = f"{name} must be from 0 to {_STORE_MAX} bytes"
                raise ConfigError(msg)
        self._check_choices()
        self._check_trust()
        self._check_models()
        for rule in self.store_for:
            if rule not in ("sessions", "anyone") and _OWNER.fullmatch(rule) is None:
                msg = f"store_for must name owner keys (64 hex digits), sessions or anyone, not {rule[:80]!r}"
                raise ConfigError(msg)
        if self.n_ctx and not N_CTX_MIN <= self.n_ctx <= N_CTX_MAX:
            msg = f"n_ctx must be from {N_CTX_MIN} to {N_CTX_MAX}, or 0 for what the model and memory allow"
            raise ConfigError(msg)
        for name, low, high in (
            ("slots", 1, 64),
            ("threads", 0, 1024),
            ("keep_hours", 0, 120),
            ("unload_minutes", 0, _UNLOAD_MAX),
            ("when_idle", 0, _UNLOAD_MAX),
        ):
            if not low <= getattr(self, name) <= high:
                msg = f"{name} must be from {low} to {high}"
                raise ConfigError(msg)

    def of_model(self, name: str) -> ModelSettings:
        """The settings of a model of this host: its own, and for what it has none those of all."""
        of_all = ModelSettings(
            price_in=self.price_in,
            price_out=self.price_out,
            session_fee=self.session_fee,
            n_ctx=self.n_ctx,
            slots=self.slots,
            pinned=False,
        )
        return self.per_model.get(name, ModelSettings()).over(of_all)

    @property
    def served(self) -> tuple[str, ...]:
        """The names of the models that a host loads by itself."""
        default = () if self.upstream else (DEFAULT_MODEL,)
        return () if self.client_only else self.models or default

    @property
    def asks_money(self) -> bool:
        """Whether any of its models costs anything."""
        others = bool(self.upstream and not self.client_only and (self.price_in or self.price_out))
        return others or any(one.price_in or one.price_out for one in map(self.of_model, self.served))

    def _check_models(self) -> None:
        """Raise ``ConfigError`` for a model that is named twice, and for settings out of bounds."""
        if not 0 <= self.memory <= _MEMORY_MAX:
            raise ConfigError(f"memory must be from 0 to {_MEMORY_MAX} bytes, or as 8GB")
        for name in self.models:
            if self.models.count(name) > 1:
                raise ConfigError(f"model {name} is named twice: name it once")
        for name, each in self.per_model.items():
            given = {item.name: getattr(each, item.name) for item in fields(each)}
            plain = {key: value for key, value in given.items() if value is not None and key != "pinned"}
            try:
                NodeConfig(data_dir=self.data_dir, **plain)
            except ConfigError as error:
                raise ConfigError(f"models.{name}: {error}") from error

    def _check_choices(self) -> None:
        choices = (("engine", ENGINES), ("kv_cache", KV_CACHES), ("verified", _VERIFIED), ("hedge", HEDGES))
        for name, known in choices:
            if getattr(self, name) not in known:
                msg = f"{name} must be {' or '.join(known)}, not {getattr(self, name)[:80]!r}"
                raise ConfigError(msg)

    def _check_trust(self) -> None:
        for name in self.trust:
            try:
                host_name(name)
            except ValueError as error:
                raise ConfigError(f"trust: {error}") from error


def load_config(path: Path, overrides: Mapping[str, Any]) -> NodeConfig:
    """A file's settings under the flags' (``None`` in ``overrides`` means not given).

    Money is USDC in both, as text or as a number. ``per_model`` in ``overrides`` goes over the tables of the
    file; a flag for all models must not differ from what the file says of one.

    Raises ``ConfigError`` for the file and ``UsageError`` for a flag.
    """
    try:
        # Only without a given folder, because the default raises for a user without a home folder.
        place = {"data_dir": overrides["data_dir"]} if overrides.get("data_dir") is not None else {}
        from_file = NodeConfig(**place, **_read(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        given = {key: value for key, value in overrides.items() if value is not None}
        typed = {key: _amount(key, value) for key, value in given.items()}
        own: Mapping[str, ModelSettings] = typed.pop("per_model", {})
        config = replace(from_file, **typed)
        _check_conflicts(typed, own, config)
        merged = dict(from_file.per_model)
        for name, each in own.items():
            merged[name] = each.over(merged.get(name, ModelSettings()))
        return replace(config, per_model=merged)
    except ConfigError as error:
        field_name, _, rest = str(error).partition(" ")
        raise UsageError(f"--{field_name.replace('_', '-')} {rest}") from error


def _check_conflicts(flags: Mapping[str, Any], own: Mapping[str, ModelSettings], config: NodeConfig) -> None:
    """Raise ``UsageError`` where flags name a model that isn't served, or say of all what the file says
    otherwise of one."""
    for name in own:
        if name not in config.served:
            served = ", ".join(config.served) or "none"
            raise UsageError(f"model {name} is given a setting, and is not served: the models are {served}")
    for name in config.served:
        each = config.per_model.get(name)
        if each is None:
            continue
        for item in fields(each):
            said = getattr(each, item.name)
            by_flag = getattr(own.get(name), item.name, None)
            if item.name in flags and said is not None and by_flag is None and flags[item.name] != said:
                flag = f"--{item.name.replace('_', '-')}"
                msg = (
                    f"{flag} is for all models, and the file says {_shown(item.name, said)} for {name}: name "
                    f"the model ({flag} {name}={_shown(item.name, flags[item.name])}), or change the file"
                )
                raise UsageError(msg)


def _shown(key: str, value: int) -> str:
    return usdc_number(value) if key in MONEY else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(read_text_or_none(path) or "", parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        msg = f"not valid TOML ({error}): fix that line"
        raise ConfigError(msg) from error
    known = [item.name for item in fields(NodeConfig) if item.name not in ("data_dir", "per_model")]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            msg = f"{key!r} is no setting: {hint}"
            raise ConfigError(msg)
    tables = values.pop("models", None)
    if not isinstance(tables, dict):
        tables, values = {}, values if tables is None else {**values, "models": tables}
    read = {key: _typed(key, value) for key, value in values.items()}
    if tables:
        own = {key: _table(key, each) for key, each in tables.items()}
        read |= {"models": tuple(tables), "per_model": own}
    return read


def _table(name: str, table: Any) -> ModelSettings:
    """One ``[models.NAME]`` of the file."""
    known = [item.name for item in fields(ModelSettings)]
    if not isinstance(table, dict):
        raise ConfigError(f"models.{name} must be a table of {', '.join(known)}")
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"models.{name}: {key!r} is no setting of a model: {hint}")
    try:
        return ModelSettings(
            **{
                key: _boolean(value) if key == "pinned" else _typed(key, value)
                for key, value in table.items()
            }
        )
    except ConfigError as error:
        raise ConfigError(f"models.{name}: {error}") from error


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError("pinned must be true or false")
    return value


def size_bytes(text: str) -> int:
    """A size as people write it, in bytes: 8GB, 512 MB, 1.5GiB. Raises ``ConfigError``."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no size: write it as 8GB or 512MB")
    number, unit, binary = found.groups()
    power = " kmgt".index(unit.lower() or " ")
    return int(Decimal(number) * (1024 if binary else 1000) ** power)


def _amount(key: str, value: Any) -> Any:
    """A setting's value, with an amount of USDC turned into token units."""
    if key == "memory" and isinstance(value, str):
        try:
            return size_bytes(value)
        except ConfigError as error:
            raise ConfigError(f"{key} {error}") from error
    if key not in MONEY:
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise ConfigError(f"{key} must be an amount of USDC, such as 0.5")
    try:
        return usdc_units(value)
    except ValueError as error:
        raise ConfigError(f"{key} must be an amount of USDC: {error}") from error


def _typed(key: str, value: Any) -> Any:
    if key in MONEY or (key == "memory" and isinstance(value, str)):
        return _amount(key, value)
    kind = type(getattr(NodeConfig(data_dir=Path()), key))
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind is not tuple and type(value) is kind:
        return value
    raise ConfigError(f"{key} must be {_KINDS[kind]}")
