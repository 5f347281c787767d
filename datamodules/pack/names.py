"""Names from strangers: which are refused, and how a sample's key is made from one."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

from datamodules.archive import MAX_NAME

_MAX_KEY = 72  # bytes; leaves room for a suffix and ".speech_fr.opus" in the 100 of a ustar name
_UNSAFE = re.compile(r"[^\w-]+")


def against_name(name: str) -> str:
    """Why a file's name, relative to its source, is refused; "" if it is safe."""
    parts = name.split("/")
    if len(name) > MAX_NAME:
        return f"its name has {len(name)} characters, more than the limit of {MAX_NAME}"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "its name is an absolute path"
    if ".." in parts:
        return "its name holds '..'"
    if "\\" in name or not name.isprintable():  # surrogates are not printable either
        return "its name holds control characters, a backslash or bytes that are not UTF-8"
    return ""


def within(path: Path, root: Path) -> bool:
    """Whether a file lies in `root` once links are followed."""
    return path.resolve().is_relative_to(root.resolve())


class Keys:
    """Gives every sample a key of its own.

    A key is made of a name: everything but letters, digits, `-` and `_` becomes `_`; long names
    are cut and end in a hash. A key that is taken gets the first free of `_2`, `_3`, ...
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}  # every smaller suffix of the key is taken

    def take(self, name: str) -> str:
        """Gives a free key for `name`; it is taken from now on."""
        base = _key_of(name)
        key, count = base, self._next.get(base, 2)
        while key in self._taken:
            key = f"{base}_{count}"
            count += 1
        self._next[base] = count
        self.reserve(key)
        return key

    def reserve(self, key: str) -> None:
        """Marks a key as taken."""
        self._taken.add(key)


def _key_of(name: str) -> str:
    plain = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).strip("_") or "sample"
    encoded = plain.encode()
    if len(encoded) <= _MAX_KEY:
        return plain
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: _MAX_KEY - 13].decode('utf-8', 'ignore')}_{digest}"
