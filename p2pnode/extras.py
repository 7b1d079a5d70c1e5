"""The optional packages: which extra of ``pyproject.toml`` brings them, and the error for a missing one.

A plain ``pip install p2pnode`` is a client that asks free questions. What needs more packages calls
:func:`need` before it makes or asks anything, so that nobody sees an ``ImportError``. This module imports
none of the packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Final, Literal, TypeAlias

from p2pnode.errors import LocalError

Extra: TypeAlias = Literal["pay", "host", "s5", "gateway", "metrics", "dev-chain", "sim", "cluster"]
_PAY: Final = ("eth_abi", "eth_account", "eth_keyfile", "keyring", "tokenizers", "web3")
_SIM: Final = ("joblib", "pandas", "pyarrow", "tomli_w")
MODULES: Final[Mapping[Extra, tuple[str, ...]]] = {
    "pay": _PAY,
    "host": (*_PAY, "h11", "xllamacpp"),
    "s5": ("hypercorn", "python_multipart", "starlette"),
    "gateway": ("hypercorn", "starlette"),
    "metrics": ("hypercorn", "prometheus_client"),
    "dev-chain": (*_PAY, "eth", "eth_keys", "eth_tester", "hypercorn"),
    "sim": _SIM,
    "cluster": (*_SIM, "dask", "distributed"),
}
"""The modules that an extra brings beyond the plain installation. A host has a wallet, and so has a chain; a
cluster runs simulations."""


class MissingExtraError(LocalError):
    """Packages are not installed that what was asked for needs; the message says how to install them."""


def need(what: str, *extras: Extra) -> None:
    """Return when these extras are installed. ``what`` needs them, and begins the message.

    Raises ``MissingExtraError``.
    """
    if reason := why_missing(what, *extras):
        raise MissingExtraError(reason)


def why_missing(what: str, *extras: Extra) -> str:
    """What :func:`need` would say; "" when these extras are installed."""
    lacking = [extra for extra in extras if not all(map(_is_here, MODULES[extra]))]
    if not lacking:
        return ""
    missing = sorted({module for extra in lacking for module in MODULES[extra] if not _is_here(module)})
    named = ",".join(lacking)
    return (
        f"{what} needs packages that are not installed ({', '.join(missing)}): "
        f"`pip install 'p2pnode[{named}]'` installs them"
    )


@cache  # each question that may be paid for asks, and to search the disk takes 0.1 ms a module
def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
