"""Checkpoint files that are whole or not there at all, whatever moment a run is killed at."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, final

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO

from fusion.checkpoint import read_plain

LAST, BEFORE = "last", "-before"
_SUFFIX = ".saving"


@final
class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints in one step, and reads none that is damaged or holds a pickle.

    A checkpoint is streamed into a temporary file in the folder of the target, forced to the disk,
    and renamed; Lightning's own copies it from $TMPDIR onto the final name wherever these are
    different file systems. A write that fails, as on a full disk, leaves the old file and nothing
    else. Temporary files of processes that were killed go with the next write to the folder.

    `last*.ckpt`, Lightning's name for what a run is resumed from, stays as `last*-before.ckpt` when
    it is replaced, for the day on which the newer one is damaged; a damaged one does not stay.

    Remote paths (s3:// and such) are left to Lightning: a store shows an object once it is whole.
    """

    def __init__(self) -> None:
        self._stock = TorchCheckpointIO()
        self._whole: set[Path] = set()  # written or read by this process

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: what Lightning made.
            path: of the file.
            storage_options: for remote paths.

        Raises:
            OSError: the file cannot be written.
        """
        if is_remote(path):
            return self._stock.save_checkpoint(checkpoint, path, storage_options)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        with _temporary(target) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch says that it cannot write; the file says why
                raise error.__context__ or error from None
            file.flush()
            os.fsync(file.fileno())
            self._keep(target)
            os.replace(file.name, target)
        _sync(target.parent)
        self._whole.add(target)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Reads a checkpoint, to the CPU; never a pickle, whatever `weights_only` says.

        Raises:
            ValueError: it is damaged, or holds more than tensors and plain values.
        """
        if is_remote(path):
            return self._stock.load_checkpoint(path, map_location, weights_only=True)
        content = read_plain(Path(path))
        self._whole.add(Path(path))
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, if it is there."""
        self._stock.remove_checkpoint(path)

    def _keep(self, target: Path) -> None:
        """Keeps the file that is about to be replaced, under its second name."""
        if not target.stem.startswith(LAST) or not target.is_file() or target.is_symlink():
            return
        if target not in self._whole:
            try:
                read_plain(target, mmap=True)
            except (ValueError, OSError):
                return
        before = target.with_stem(target.stem + BEFORE)
        link = _scratch_name(before)
        try:
            os.link(target, link)
        except OSError:  # no hard links here: for a moment there is only the second name
            os.replace(target, before)
            return
        try:
            os.replace(link, before)
        finally:  # it stays if it is the file of that name already
            link.unlink(missing_ok=True)


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL, such as s3://bucket/last.ckpt."""
    return "://" in str(path)


def sweep(folder: Path) -> None:
    """Removes temporary files in a folder whose writers are gone.

    A writer holds the kernel's lock on its file, which goes with the process; so this is right
    for other hosts and containers too.
    """
    for path in folder.glob(f".*{_SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def _temporary(target: Path) -> Iterator[BinaryIO]:
    """A new file beside the target, gone at the end unless it was renamed."""
    name = _scratch_name(target)
    try:
        with _created(name) as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(target)
        raise
    finally:
        name.unlink(missing_ok=True)


def _created(name: Path) -> BinaryIO:
    """A new file that `sweep` leaves alone."""
    while True:
        file = name.open("xb")
        with suppress(OSError):  # a file system without locks: what is left there stays
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process swept it just before it was locked


def _scratch_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{_SUFFIX}")


def _sync(folder: Path) -> None:
    """Forces the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
