"""Fetches one remote file, whole and checked, within a bounded time."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.urls import FetchError, filesystem, shown

if TYPE_CHECKING:
    from fsspec.callbacks import Callback

PAUSES = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each attempt; there are as many attempts."""
MIN_RATE = 2**16
"""Bytes a second that a transfer must reach on average, once it has run for the timeout."""
MAX_BYTES = 64 * 2**30
"""Largest file that is fetched."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (401, 403)
_PASSING = (408, 429)  # of the 4xx, those that may be gone at the next attempt


class MissingError(FetchError):
    """There is no such file, or it may not be read: a server need not tell these apart."""


class _Failed(Exception):
    """An attempt that may go well the next time; the message is a clause."""


def fetch(
    url: str,
    path: Path,
    timeout: float,
    num_bytes: int | None = None,
    sha256: str | None = None,
    limit: int = MAX_BYTES,
) -> None:
    """Fetches a file of http, https, s3 or gs and forces it to the disk.

    Failures that may pass are tried again after `PAUSES`; a file of n bytes takes at most
    `len(PAUSES) * (2 * timeout + n / MIN_RATE) + sum(PAUSES)` seconds, slow redirects aside.

    Args:
        url: the file.
        path: where it is written; nothing is left there after an error.
        timeout: seconds that the server may be silent.
        num_bytes: its size; None takes the length that the server states, if it does.
        sha256: its digest in hex; None does not check it.
        limit: a longer file is refused as soon as that shows.

    Raises:
        MissingError: it is not there, or access is denied.
        FetchError: it could not be had, or is not what was wanted.
        ModuleNotFoundError: the client of its scheme is not installed.
    """
    client = filesystem(url, timeout)
    limit = limit if num_bytes is None else min(limit, num_bytes)
    whole = False
    try:
        for attempt, pause in enumerate(PAUSES, 1):
            time.sleep(pause)
            meter = _meter(limit, timeout)
            try:
                client.get_file(url, str(path), callback=meter)  # type: ignore[arg-type]
                _check(path, meter.size if num_bytes is None else num_bytes, sha256)
                whole = True
                return
            except Exception as error:  # whatever a client raises; its text may hold a signature
                reason = _passing(error, url, path, timeout)
            if attempt == len(PAUSES):
                raise FetchError(
                    f"{shown(url)} could not be fetched in {attempt} attempts ({reason}); check "
                    "the URL, the network and the server"
                )
    finally:
        if not whole:
            path.unlink(missing_ok=True)


def full_disk(folder: Path) -> FetchError:
    """The error for a folder whose disk is full."""
    return FetchError(
        f"the disk of {folder} is full; free some space or give the cache fewer bytes"
    )


def against(path: Path, num_bytes: int | None, sha256: str | None) -> str:
    """How a file differs from the size and digest that it should have; "" if it does not."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if num_bytes is not None and size != num_bytes:
            return f"it has {size} bytes, not {num_bytes}"
        if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return "it has another SHA-256 than its manifest says"
    return ""


def _check(path: Path, num_bytes: int | None, sha256: str | None) -> None:
    if reason := against(path, num_bytes, sha256):
        raise _Failed(reason)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _meter(limit: int, timeout: float) -> Callback:
    """Ends a transfer that is too long or too slow, from within."""
    from fsspec.callbacks import Callback

    began = time.monotonic()

    class Meter(Callback):
        def set_size(self, size: int | None) -> None:
            super().set_size(size)
            if size is not None and size > limit:
                raise _Failed(f"the server has {size} bytes, more than the {limit} expected")

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > limit:
                raise _Failed(f"the server sends more than the {limit} bytes expected")
            if time.monotonic() - began > timeout + self.value / MIN_RATE:
                raise _Failed(f"it comes at less than {MIN_RATE // 1024} kB/s")

    return Meter()


def _passing(error: Exception, url: str, path: Path, timeout: float) -> str:
    """The reason of a failure that may pass; raises for those that will not."""
    status = getattr(error, "status", None)
    if getattr(error, "errno", None) in FULL_DISK:
        raise full_disk(path.parent) from None
    if isinstance(error, OSError) and error.filename == str(path):
        raise error  # of this machine, such as a folder that may not be written to
    if isinstance(error, FileNotFoundError):
        raise MissingError(f"{shown(url)} is not there; check the URL") from None
    if isinstance(error, PermissionError) or status in _DENIED:
        raise MissingError(
            f"access to {shown(url)} is denied; check the URL and the credentials"
        ) from None
    if isinstance(error, _Failed):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"the server was silent for {timeout:g} s"
    if isinstance(status, int) and status >= 400:
        if status < 500 and status not in _PASSING:
            raise FetchError(f"{shown(url)} was answered with HTTP {status}; check the URL")
        return f"HTTP {status}"
    return type(error).__name__
