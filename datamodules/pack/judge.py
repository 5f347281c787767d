"""Reads and decodes drafts, in several processes, and gives the verdicts in order."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection

from datamodules.archive import MAX_MEMBER_BYTES
from datamodules.decode import DECODERS, DecodeError, decode_metadata
from datamodules.manifest import modality_of
from datamodules.pack.source import Draft, File, PackError, Refusal, against_size
from datamodules.samples import METADATA

_AHEAD = 4  # drafts in flight for each worker
_FILE_CHANGED = "the file changed while it was packed"


@dataclass(frozen=True, slots=True)
class Judged:
    """A sample that can be read.

    Attributes:
        members: extension -> bytes.
        digest: of all members; equal for samples with the same bytes.
    """

    members: Mapping[str, bytes]
    digest: bytes


def digest_of(members: Mapping[str, bytes]) -> bytes:
    """Digest of a sample's members; their order does not count."""
    total = hashlib.sha256()
    for extension, content in sorted(members.items()):
        total.update(f"{extension} {len(content)}\0".encode())
        total.update(content)
    return total.digest()


def judge(draft: Draft) -> Judged | Refusal:
    """Reads every member of a draft and decodes it once."""
    members: dict[str, bytes] = {}
    for extension, content in draft.members.items():
        data = _read(content) if isinstance(content, File) else content
        reason = data if isinstance(data, str) else against_size(len(data))
        if not isinstance(data, str) and not reason:
            reason = _against(extension, data)
            members[extension] = data
        if reason:
            return Refusal(draft.source, extension, reason)
    if not members.keys() - {METADATA}:
        return Refusal(draft.source, "", "it holds metadata only")
    return Judged(members, digest_of(members))


def _read(file: File) -> bytes | str:
    try:
        with file.path.open("rb") as stream:
            data = stream.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return data if len(data) == file.size else _FILE_CHANGED


def _against(extension: str, data: bytes) -> str:
    try:
        modality = modality_of(extension)
        if modality is None:
            decode_metadata(data)
        else:
            DECODERS[modality](data)
    except DecodeError as error:
        return str(error)
    return ""


def judge_all(
    items: Iterable[Draft | Refusal], num_workers: int
) -> Generator[tuple[Draft | Refusal, Judged | Refusal], None, None]:
    """Judges items in their order, a few ahead of what is asked for.

    Args:
        items: what is refused already passes through.
        num_workers: processes; 1 judges in this one.

    Raises:
        PackError: a worker died.
    """
    if num_workers == 1:
        for item in items:
            yield item, judge(item) if isinstance(item, Draft) else item
        return
    # Spawned, not forked: the progress bar runs a thread, and libraries hold locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin_worker)
    ahead: deque[tuple[Draft | Refusal, Future[Judged | Refusal] | Refusal]] = deque()
    try:
        for item in items:
            ahead.append((item, pool.submit(judge, item) if isinstance(item, Draft) else item))
            if len(ahead) > _AHEAD * num_workers:
                yield _result(*ahead.popleft())
        while ahead:
            yield _result(*ahead.popleft())
    except BrokenProcessPool as error:
        raise PackError(
            "a worker died, killed or out of memory; run the same command again with --workers 1: "
            "it goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _result(
    item: Draft | Refusal, verdict: Future[Judged | Refusal] | Refusal
) -> tuple[Draft | Refusal, Judged | Refusal]:
    return item, verdict.result() if isinstance(verdict, Future) else verdict


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work for ever, also when its parent was killed; so it watches it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
