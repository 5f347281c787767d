"""The folder in which a pack grows until it is whole, and its journal.

Everything is written to `OUT/.packing`; finished shards have a line each in the journal there. A
run that was killed verifies them, cuts off what came after, and goes on. Only at the end do the
files move to OUT, the manifest last: a folder with a manifest is a whole pack.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from datamodules import manifest
from datamodules.archive import split_member
from datamodules.manifest import ShardEntry, describe_shard, read_manifest, write_manifest
from datamodules.pack.source import PackError
from datamodules.writer import sync

REJECTED = "rejected.jsonl"
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP)
_FOLDER, _JOURNAL, _VERSION = ".packing", "journal.jsonl", 1


class OtherRun(PackError):
    """The unfinished pack that is there is of another source or of other settings."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a run is in its source.

    Attributes:
        num_read: items of the plan.
        plan: digest of those items, in hex.
        rejected_bytes: length of the list of what was rejected.
    """

    num_read: int
    plan: str
    rejected_bytes: int


class Stage:
    """The folder and journal of one run.

    Args:
        out: folder of the pack.
        cut: the rule by which shards are cut, as text; a journal of another cannot be gone on with.
    """

    def __init__(self, out: Path, cut: str) -> None:
        self.out, self.cut = out, cut
        self.folder = out / _FOLDER
        self.rejected = self.folder / REJECTED
        self._journal = self.folder / _JOURNAL

    def shard(self, number: int) -> Path:
        """Where the shard of this number is written."""
        return self.folder / f"shard-{number:06d}.tar"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder meanwhile; the lock goes with this process.

        A file system that cannot lock a folder, as some that are mounted, is not guarded.

        Raises:
            PackError: another run is writing there.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.out, os.O_RDONLY)
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def refuse_finished(self) -> None:
        """Refuses to replace what is in the folder.

        Raises:
            PackError: a pack is there, or shards that are none of this run's.
        """
        if (self.out / manifest.NAME).exists():
            raise PackError(f"{self.out} holds a finished pack; give --overwrite to replace it")
        ours = {entry.name for entry, _ in self._lines()}  # killed while they moved
        if others := sorted({path.name for path in self.out.glob("shard-*.tar")} - ours):
            raise PackError(
                f"{self.out} holds {others[0]} and no manifest; choose another folder, "
                "or give --overwrite"
            )

    def resume(self) -> tuple[list[ShardEntry], Mark | None]:
        """Keeps the shards that are whole, and cuts off what came after them.

        Returns:
            (their entries, how far the run was after the last of them; None at the start).

        Raises:
            OtherRun: it was begun with another `cut`.
        """
        whole: list[tuple[ShardEntry, Mark]] = []
        for entry, mark in self._lines():
            path = self.path_of(entry.name)
            if not path.is_file() or describe_shard(path) != (entry, []):
                break
            whole.append((entry, mark))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rejected.touch()
        os.truncate(self.rejected, whole[-1][1].rejected_bytes if whole else 0)
        # The same text is written back without what follows the last whole shard.
        fresh = self._journal.with_suffix(".partial")
        fresh.write_text("".join(map(_line, [self._head(), *map(_record, whole)])), "utf-8")
        fresh.replace(self._journal)
        return [entry for entry, _ in whole], whole[-1][1] if whole else None

    def path_of(self, name: str) -> Path:
        """Where a finished shard is: here, or in its place if the run was killed as it moved."""
        staged = self.folder / name
        return staged if staged.exists() else self.out / name

    def samples(self, entry: ShardEntry) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Reads a finished shard back: key and members of each sample."""
        with tarfile.open(self.path_of(entry.name), "r:") as tar:
            for key, infos in groupby(tar, lambda info: split_member(info.name)[0] or ""):
                yield key, {split_member(i.name)[1] or "": _content(tar, i) for i in infos}

    def finish_shard(self, entry: ShardEntry, mark: Mark) -> None:
        """Adds a shard, which is on the disk, to the journal once the list of rejections is too."""
        sync(self.rejected)
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(_line(_record((entry, mark))))
        sync(self._journal)

    def publish(self, shards: list[ShardEntry]) -> None:
        """Moves the pack to its place, the manifest last; a killed call can be made again."""
        staged = self.folder / manifest.NAME
        write_manifest(shards, staged)
        sync(staged)
        for name in self._replaced() - {shard.name for shard in shards}:
            (self.out / name).unlink(missing_ok=True)
        (self.out / manifest.NAME).unlink(missing_ok=True)
        for name in [*(shard.name for shard in shards), REJECTED, manifest.NAME]:
            if (self.folder / name).exists():
                (self.folder / name).replace(self.out / name)
        sync(self.out)
        self.clear()

    def clear(self) -> None:
        """Forgets the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PackError(
                f"another run is packing into {self.out}; wait until it ends, or choose another "
                "folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def _replaced(self) -> set[str]:
        """Shards of the pack that is replaced."""
        try:
            return {shard.name for shard in read_manifest(self.out)}
        except ValueError:
            return set()

    def _head(self) -> dict[str, Any]:
        return {"version": _VERSION, "cut": self.cut}

    def _lines(self) -> list[tuple[ShardEntry, Mark]]:
        """The journal up to its first line that is not whole."""
        if not self._journal.is_file():
            return []
        head, *lines = self._journal.read_text("utf-8", "replace").splitlines() or [""]
        if lines and _parsed(head) != self._head():
            raise OtherRun(
                f"{self.out} holds an unfinished pack with shards of another size; finish that, or "
                "give --overwrite to start over"
            )
        records = []
        for value in map(_parsed, lines):
            try:
                records.append((ShardEntry.parse(value["shard"]), Mark(**value["mark"])))
            except (ValueError, TypeError, KeyError):
                break
        return records


def _record(shard: tuple[ShardEntry, Mark]) -> dict[str, Any]:
    return {"shard": asdict(shard[0]), "mark": asdict(shard[1])}


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    return file.read() if file else b""
