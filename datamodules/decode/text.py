"""Text files and captions."""

from __future__ import annotations

from datamodules.decode.error import DecodeError
from datamodules.reasons import Reason
from datamodules.sniff import sniff

MAX_CHARS = 10_000


def decode_text(data: bytes, *, max_chars: int = MAX_CHARS) -> str:
    """Decode UTF-8 text (a byte order mark and surrounding white space are removed).

    Raises:
        DecodeError: not UTF-8, empty, longer than `max_chars`, or with a NUL character.
    """
    if len(data) > 4 * max_chars + 3:
        raise DecodeError(
            f"this text has {len(data)} bytes; the limit is {max_chars} characters",
            Reason.TOO_LARGE,
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = sniff(data)
        known = kind not in ("unknown", "text")
        raise DecodeError(
            f"this file is {f'{kind} data' if known else f'not UTF-8 at {error.start}'}; "
            "wanted UTF-8 text",
            Reason.WRONG_FORMAT if known and kind != "UTF-16" else Reason.NOT_UTF8,
        ) from error
    return check_text(text, max_chars=max_chars)


def check_text(text: str, *, max_chars: int = MAX_CHARS) -> str:
    """Strip a text of surrounding white space; refuse what `decode_text` refuses.

    Raises:
        DecodeError: empty, longer than `max_chars`, or with a NUL or an unpaired surrogate.
    """
    if len(text) > 4 * max_chars + 3 or len(text := text.strip()) > max_chars:
        raise DecodeError(
            f"this text has {len(text)} characters; the limit is {max_chars}", Reason.TOO_LARGE
        )
    if not text:
        raise DecodeError("this text is empty", Reason.EMPTY)
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DecodeError(
            "this text is not text: it holds NUL or half a character", Reason.NOT_UTF8
        )
    return text
