"""What a run remembers of the samples it has been through."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, NamedTuple

from datamodules.pack.judge import Judged, digest_of
from datamodules.pack.names import Keys
from datamodules.pack.source import Draft, Refusal
from datamodules.pack.stage import Mark

_BLOCK = 512


class Accepted(NamedTuple):
    """A sample to be written.

    Attributes:
        key: its own in the pack.
        members: extension -> bytes.
        index: number of its draft.
        before: where the run stood just before it.
    """

    key: str
    members: Mapping[str, bytes]
    index: int
    before: Mark

    @property
    def num_bytes(self) -> int:
        """Its size in a tar: a header and whole blocks for each member."""
        return sum(_BLOCK * (1 + -(-len(c) // _BLOCK)) for c in self.members.values())


class Tally:
    """Counts, keys and digests; also writes the list of what is rejected.

    Args:
        rejected: that list, open for appending bytes.
    """

    def __init__(self, rejected: IO[bytes]) -> None:
        self.num_read = self.num_drafts = 0
        self._rejected = rejected
        self._plan = hashlib.sha256()
        self._keys = Keys()
        self._seen: dict[bytes, str] = {}  # digest -> key

    def mark(self) -> Mark:
        """Where the run stands now."""
        self._rejected.flush()
        return Mark(self.num_read, self._plan.hexdigest(), self._rejected.tell())

    def skip(self, items: Iterable[Draft | Refusal]) -> None:
        """Passes items that an earlier run has been through."""
        for item in items:
            self._count(item)

    def recall(self, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
        """Remembers samples that an earlier run has written."""
        for key, members in samples:
            self._keys.reserve(key)
            self._seen[digest_of(members)] = key

    def accept(
        self, verdicts: Iterable[tuple[Draft | Refusal, Judged | Refusal]]
    ) -> Iterator[Accepted]:
        """Lets new samples through, each with a key; the rest goes to the list."""
        for item, verdict in verdicts:
            before, index = self.mark(), self.num_drafts
            self._count(item)
            if isinstance(item, Refusal):
                self._reject(item)
            elif isinstance(verdict, Refusal):
                self._reject(verdict)
            elif (twin := self._seen.get(verdict.digest)) is not None:
                self._reject(Refusal(item.source, "", f"the same bytes as the sample {twin}"))
            else:
                key = self._keys.take(item.name)
                self._seen[verdict.digest] = key
                yield Accepted(key, verdict.members, index, before)

    def _count(self, item: Draft | Refusal) -> None:
        self.num_read += 1
        self.num_drafts += isinstance(item, Draft)
        stamp = item.stamp() if isinstance(item, Draft) else "\0".join(item).encode()
        self._plan.update(hashlib.sha256(stamp).digest())

    def _reject(self, refusal: Refusal) -> None:
        self._rejected.write((json.dumps(refusal._asdict(), ensure_ascii=False) + "\n").encode())
