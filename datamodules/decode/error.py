"""The one error of all decoders, and the first look that every decoder takes."""

from __future__ import annotations

import re

from datamodules.reasons import Reason
from datamodules.sniff import sniff


class DecodeError(ValueError):
    """The bytes are not what the modality wants.

    Attributes:
        reason: the code.

    Args:
        message: one sentence for the user.
        reason: its code.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)  # both, so that it can travel between processes
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


def expect(data: bytes, allowed: tuple[str, ...], wanted: str) -> str:
    """Name the format of `data` if it is an allowed one.

    Raises:
        DecodeError: it is empty or of another format.
    """
    kind = sniff(data)
    if kind in allowed:
        return kind
    got = "text" if kind == "text" else f"{kind} data" if kind != "unknown" else "an unknown format"
    raise DecodeError(
        f"this file is {got if data else 'empty'}, not {wanted} ({', '.join(allowed)} are read)",
        Reason.WRONG_FORMAT if data else Reason.EMPTY,
    )


def one_line(error: BaseException) -> str:
    """What a library says of a file, short and without addresses."""
    text = re.sub(r"<_io\.BytesIO[^>]*>", "the file", str(error))
    return " ".join(text.split())[:120].rstrip(".") or type(error).__name__
