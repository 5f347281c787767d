"""Names of shards: what may be opened, and what a pattern stands for.

A name is a local path or a URL of one of four schemes; nothing else is ever opened, least of all
the commands and chains (`pipe:`, `a::b`) that WebDataset and fsspec take.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

MAX_SHARDS = 100_000
REMOTE = ("http", "https", "s3", "gs")
_EXTRAS = {"s3": "s3", "gs": "gs"}  # scheme -> extra of this package that installs its client
_CONNECT = 15.0  # seconds
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


class FetchError(ValueError):
    """Something remote could not be had; the message is one sentence without secrets."""


def is_remote(url: str | Path) -> bool:
    """Whether a name is a URL of one of the schemes in `REMOTE`; any other name is a local path."""
    return str(url).lower().startswith(tuple(f"{scheme}://" for scheme in REMOTE))


def shown(url: str) -> str:
    """A URL as messages show it: without its query, which may hold a signature."""
    return re.sub(r"[?#].*", "", url, flags=re.DOTALL) if is_remote(url) else url


Names = Sequence[str | Path] | str | Path
"""Several names, or one."""


def expand_shards(urls: Names) -> list[str]:
    """Expands brace lists (`{000..012}`) and globs to the shards they name, each once, in order.

    A local file that exists stands for itself, whatever its name. On http a `*` cannot be
    expanded; on s3 and gs it is, by a listing. Remote shards are not looked up here.

    Raises:
        ValueError: no shard, too many, a pattern without a match, a folder, another scheme, a
            chain, or a password in a URL.
        FetchError: a remote folder could not be listed.
        ModuleNotFoundError: the client of s3 or gs is not installed.
    """
    shards: dict[str, None] = {}
    for url in _several(urls):
        pattern = str(url)
        if is_remote(pattern):
            _refuse_unsafe(pattern)
        elif _SCHEME.match(pattern):
            raise ValueError(
                f"got {pattern[:80]!r}; only local shards and URLs of {', '.join(REMOTE)} are "
                "read: give a path or such a URL"
            )
        expand = _remote if is_remote(pattern) else _local
        shards.update(dict.fromkeys(expand(pattern)))
        if len(shards) > MAX_SHARDS:
            raise ValueError(f"more than {MAX_SHARDS} shards are named; give fewer")
    if not shards:
        raise ValueError("no shard was named; give at least one .tar or .tar.gz")
    return list(shards)


def local_shards(urls: Names) -> list[Path]:
    """`expand_shards` where nothing is fetched.

    Raises:
        ValueError: as there, or a shard is remote.
    """
    for url in _several(urls):
        if is_remote(url):
            raise ValueError(f"got {shown(str(url))!r}; only local shards are read here: fetch it")
    return [Path(name) for name in expand_shards(urls)]


def _several(urls: Names) -> Sequence[str | Path]:
    return [urls] if isinstance(urls, str | Path) else urls


def filesystem(url: str, timeout: float) -> AbstractFileSystem:
    """The fsspec client of a remote URL.

    Credentials are the client's own: what s3fs and gcsfs find on the machine, and for http the
    `headers` that fsspec's configuration (a file, or FSSPEC_HTTP in the environment) has.

    Args:
        url: one of `REMOTE`.
        timeout: seconds that a server may be silent.

    Raises:
        ModuleNotFoundError: the client of s3 or gs is not installed.
    """
    import fsspec
    from aiohttp import ClientTimeout

    scheme, connect = urlsplit(url).scheme.lower(), min(timeout, _CONNECT)
    limits = ClientTimeout(total=None, sock_connect=connect, sock_read=timeout)
    # One attempt each: who asks counts the attempts.
    config = {"connect_timeout": connect, "read_timeout": timeout, "retries": {"max_attempts": 1}}
    # In the session's headers, since those of requests are the user's, such as a token.
    web = {"client_kwargs": {"timeout": limits, "headers": {"Accept-Encoding": "identity"}}}
    settings: dict[str, dict[str, Any]] = {
        "http": web,
        "https": web,
        "s3": {"config_kwargs": config},
        "gs": {"requests_timeout": timeout},
    }
    try:
        return fsspec.filesystem(scheme, **settings[scheme])
    except ImportError as error:
        extra = _EXTRAS.get(scheme, scheme)
        raise ModuleNotFoundError(
            f"{scheme}:// needs a package that is not installed; pip install 'assim[{extra}]'"
        ) from error


def _refuse_unsafe(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # brackets that do not match
        raise ValueError(f"got {shown(url)[:80]!r}, which is not a URL; mend it") from error
    if "@" in parts.netloc:
        raise ValueError(
            f"got a URL of {parts.scheme} with a user or password in it; leave it out, and set "
            "credentials as the client of that scheme reads them"
        )
    chained = "::" in url.replace(parts.netloc, "", 1)  # a host may be [::1]
    if chained or not parts.netloc or not url.isprintable():
        raise ValueError(f"got {shown(url)[:80]!r}; only plain URLs are read: give one, no chain")


def _local(pattern: str) -> Iterator[str]:
    if os.path.isfile(pattern):
        yield pattern
        return
    for name in _braces(pattern):
        magic = glob.has_magic(name) and not os.path.isfile(name)
        for path in (sorted(glob.glob(name)) if magic else []) or [name]:
            if os.path.isdir(path):
                raise ValueError(f"{path} is a folder; name its shards: {path}/*.tar")
            if not os.path.isfile(path):
                raise ValueError(f"no shard matches {name!r}; check the path")
            yield path


def _remote(pattern: str) -> Iterator[str]:
    if urlsplit(pattern).scheme.lower() not in ("s3", "gs"):
        if "*" in shown(pattern):
            raise ValueError(
                f"got {shown(pattern)!r}; http cannot list a folder: give a brace list such as "
                "{000..012}"
            )
        yield from _braces(pattern)
        return
    for name in _braces(pattern):
        yield from _listed(name) if glob.has_magic(name) else [name]


def _listed(pattern: str) -> list[str]:
    """What matches on s3 or gs."""
    scheme, _, path = pattern.partition("://")
    client = filesystem(pattern, _CONNECT)
    try:
        client.invalidate_cache()  # of listings
        found = sorted(str(name).lstrip("/") for name in client.glob(path))
    except Exception as error:  # whatever the client raises; its text may hold a signature
        raise FetchError(
            f"{pattern} could not be listed ({type(error).__name__}); check the URL, the network "
            "and the credentials"
        ) from None
    if not found:
        raise ValueError(f"no shard matches {pattern!r}; check the URL")
    return [f"{scheme}://{name}" for name in found]


def _braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    spans = [abs(int(last) - int(first)) for first, last in _RANGE.findall(pattern)]
    if max(spans, default=0) < MAX_SHARDS:  # a range is expanded at once, products are lazy
        try:
            names = list(itertools.islice(braceexpand(pattern), MAX_SHARDS + 1))
        except ValueError as error:
            raise ValueError(
                f"the braces of {shown(pattern)!r} do not match; wanted {{0..9}}"
            ) from error
        if len(names) <= MAX_SHARDS:
            return names
    raise ValueError(f"{shown(pattern)!r} names more than {MAX_SHARDS} shards; give fewer")
