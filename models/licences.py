"""Which licences of models are free, and what is said of others before a download.

Names are SPDX identifiers (https://spdx.org/licenses/), or what a maker calls its own. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

from p2pnode.errors import ConfigError

if TYPE_CHECKING:
    from p2pnode.models.catalogue_entry import CatalogueEntry

FREE: Final = frozenset({
    "0BSD", "AFL-3.0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC-BY-SA-4.0",
    "CC0-1.0", "CDLA-Permissive-2.0", "ECL-2.0", "ISC", "MIT", "MPL-2.0", "OpenMDW-1.0", "Unlicense", "Zlib",
})  # fmt: skip
"""Free for any use: nobody is asked. Those that exclude uses, users or commerce are not on it."""
UNKNOWN: Final = "unknown"
"""What is accepted where nothing is said of a licence."""
_FREE: Final = frozenset(name.lower() for name in FREE)


class LicenceError(ConfigError):
    """A model's licence was not accepted, and nothing was fetched. ``licence`` is what to accept."""

    def __init__(self, name: str, licence: str, url: str = "") -> None:
        self.licence = licence
        terms = (
            "nobody says under which licence it comes" if licence == UNKNOWN else f"its licence is {licence}"
        )
        where = f"at {url}" if url else "where the model comes from"
        super().__init__(
            f"model {name!r} was not downloaded: {terms}, and none is known that is free for any use. "
            f"Read it {where}, then accept it with `p2pnode models pull {name} --accept-licence {licence}`"
        )


def shown_licence(licence: str) -> str:
    """What is accepted of a model with this licence: its name in one word, ``unknown`` for none."""
    return "-".join(licence.split()) or UNKNOWN


def licence_words(fields: Mapping[str, object]) -> str:
    """What people read of a licence before a model is downloaded; ``fields`` are those of the event."""
    where = f", which is at {fields['url']}" if fields["url"] else ""
    return f"{fields['name']}: its licence is {fields['licence']}{where}"


def tell_licence(report: Callable[[str, dict[str, object]], None], entry: CatalogueEntry) -> None:
    """Report the licence of a model that is about to be downloaded."""
    licence = shown_licence(entry.licence)
    report("licence", {"name": entry.name, "licence": licence, "url": entry.licence_url})


def is_free(licence: str) -> bool:
    """Whether it is known to be free for any use."""
    return shown_licence(licence).lower() in _FREE


def require_licence(name: str, licence: str, accepted: Collection[str], url: str = "") -> None:
    """Raise ``LicenceError`` unless the licence of model ``name`` is free or accepted, whatever the case.

    ``url``: where its text is, "" where nobody says.
    """
    shown = shown_licence(licence)
    if not is_free(licence) and shown.lower() not in {each.lower() for each in accepted}:
        raise LicenceError(name, shown, url)
