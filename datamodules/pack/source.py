"""What a source of samples is: a plan of drafts whose files are read later, by workers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datamodules.archive import MAX_MEMBER_BYTES


class PackError(ValueError):
    """The run cannot begin or go on; the message is one sentence for the user."""


class Refusal(NamedTuple):
    """Something that was not packed.

    Attributes:
        source: the sample's name in the source: a stem, `table.csv:3`, or `a.tar:key`.
        member: its extension or column; "" for all of it.
        reason: why.
    """

    source: str
    member: str
    reason: str


@dataclass(frozen=True, slots=True)
class File:
    """A file that is not read yet; size and time tell later whether it changed meanwhile."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> File:
        """Looks a file up.

        Raises:
            OSError: it is not there.
        """
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Draft:
    """A sample as planned.

    Attributes:
        source: as in `Refusal`.
        name: what its key is made of.
        members: extension -> the file, or its bytes where they are at hand already.
    """

    source: str
    name: str
    members: Mapping[str, File | bytes]

    def stamp(self) -> bytes:
        """Digest that changes when the sample would."""
        parts = [self.source, self.name]
        for extension, content in sorted(self.members.items()):
            if isinstance(content, File):
                parts.append(f"{extension} {content.size} {content.mtime_ns}")
            else:
                parts.append(f"{extension} {hashlib.sha256(content).hexdigest()}")
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()


class Plan(NamedTuple):
    """What a source holds.

    Attributes:
        num_drafts: how many drafts `items` gives.
        items: the samples in an order that depends on the source alone; what is refused at sight
            takes its place among them.
    """

    num_drafts: int
    items: Iterator[Draft | Refusal]


class Source(ABC):
    """Samples to be packed."""

    @abstractmethod
    def plan(self) -> Plan:
        """Looks at what there is, without reading the files.

        Raises:
            PackError: it is not there, or holds nothing that could be packed.
        """


def against_size(size: int) -> str:
    """Why a member of `size` bytes is refused; "" if it is not."""
    if size > MAX_MEMBER_BYTES:
        return f"the member has {size} bytes, more than the limit of {MAX_MEMBER_BYTES}"
    return ""
