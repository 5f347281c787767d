"""The account of a run: everything read was delivered or rejected, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, final

from datamodules.samples import Rejected


class Place(NamedTuple):
    """Where in a run something was found: in which step of which epoch."""

    epoch: int
    step: int


SETUP = Place(-1, 0)
"""Before the first epoch, when the shards were looked through."""


class LedgerError(ValueError):
    """Too much was rejected; the message is one sentence."""


@final
class Ledger:
    """Counts what is read, delivered and rejected, and writes down each rejected sample once.

    The file has one JSON object a line: shard, key, member, code, reason, epoch, step. `begin`
    starts it anew; a run that resumes calls `rewind` instead, which keeps the lines from before its
    checkpoint, as the others will be found again. Until then nothing is written.

    Args:
        path: of the file; None keeps the account in memory.
        max_rejected: share of the samples that may be rejected before the run is stopped.

    Attributes:
        num_read, num_delivered, num_rejected: samples since the run started or was resumed.
        num_repeated: batches that stood in for one of which nothing was left.
    """

    def __init__(self, path: str | Path | None = None, max_rejected: float = 0.05) -> None:
        if not 0 <= max_rejected <= 1:
            raise ValueError(f"got max_rejected={max_rejected}; wanted a share from 0 to 1")
        self.path = Path(path) if path is not None else None
        self.max_rejected = max_rejected
        self.num_read = self.num_delivered = self.num_rejected = self.num_repeated = 0
        self._found: dict[tuple[str, str, str], tuple[Rejected, Place]] = {}
        self._begun = False

    @property
    def rejected(self) -> list[Rejected]:
        """Everything rejected so far, each once."""
        return [item for item, _ in self._found.values()]

    def record(
        self, place: Place, num_delivered: int, rejected: Sequence[Rejected], num_samples: int
    ) -> None:
        """Enters what one step read.

        Args:
            place: the step.
            num_delivered: samples in the batch.
            rejected: samples that are not.
            num_samples: of the whole set, which `max_rejected` is a share of.

        Raises:
            LedgerError: more than `max_rejected` of the samples have been rejected.
            OSError: the file cannot be written.
        """
        self.num_read += num_delivered + len(rejected)
        self.num_delivered += num_delivered
        self.num_rejected += len(rejected)
        new = []
        for item in rejected:
            name = (item.shard, item.key, item.member)
            if name not in self._found:
                self._found[name] = (item, place)
                new.append((item, place))
        if new and self._begun and self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(new))
        if len(self._found) > self.max_rejected * num_samples:
            raise LedgerError(self._too_many(num_samples))

    def begin(self) -> None:
        """Starts the file with what was found so far, unless this ledger writes it already.

        Raises:
            OSError: the file cannot be written.
        """
        if self._begun:
            return
        self._begun = True
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text(_lines(self._found.values()), "utf-8")
            partial.replace(self.path)

    def rewind(self, place: Place) -> None:
        """Takes up the account of an earlier run, as it was when `place` was about to be read.

        Raises:
            OSError: the file cannot be read or written.
        """
        self.num_read = self.num_delivered = self.num_rejected = self.num_repeated = 0
        earlier = [] if self.path is None or self._begun else list(_read(self.path))
        lines = [*earlier, *self._found.values()]
        self._found = {
            (item.shard, item.key, item.member): (item, at) for item, at in lines if at < place
        }
        self._begun = False
        self.begin()

    def _too_many(self, num_samples: int) -> str:
        (code, count), *_ = Counter(str(item.code) for item in self.rejected).most_common(1)
        where = f"; {self.path} lists them" if self.path else ""
        return (
            f"{len(self._found)} of {num_samples} samples were rejected, more than max_rejected="
            f"{self.max_rejected:g} allows, most of them ({count}) as {code}{where}"
        )

    def __str__(self) -> str:
        """One line for people."""
        codes = Counter(str(item.code) for item in self.rejected).most_common()
        why = f" ({', '.join(f'{count} {code}' for code, count in codes)})" if codes else ""
        return (
            f"read {self.num_read} = delivered {self.num_delivered} + rejected "
            f"{self.num_rejected}{why}"
        )


def _lines(found: Iterable[tuple[Rejected, Place]]) -> str:
    return "".join(
        json.dumps({**item._asdict(), **place._asdict()}, ensure_ascii=True) + "\n"
        for item, place in found
    )


def _read(path: Path) -> Iterator[tuple[Rejected, Place]]:
    """The lines of a ledger; a last line that was cut off by a kill is dropped."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8").splitlines():
        try:
            value = json.loads(line)
            item = Rejected(*(value[field] for field in Rejected._fields))
            yield item, Place(value["epoch"], value["step"])
        except (ValueError, KeyError, TypeError):
            continue
