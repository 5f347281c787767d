"""HTML that is escaped by construction: whatever is not `Html` is text, and text is escaped."""

import base64
import html
from collections.abc import Mapping

_VOID = frozenset({"img", "br", "meta"})
# The leading bytes of the media that a browser plays or shows, and what they are.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"<svg", "image/svg+xml"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}


class Html(str):
    """A string that is HTML already; only this module makes one."""

    __slots__ = ()


def element(tag: str, attributes: Mapping[str, str], *children: str) -> Html:
    """An HTML element; children and attribute values are escaped unless they are `Html`.

    Args:
        tag: name of the element.
        attributes: names and values; the value "" stands for a bare attribute.
        children: text (escaped) or `Html` (kept).
    """
    head = "".join(
        f" {name}" if value == "" and name != "alt" else f' {name}="{html.escape(value)}"'
        for name, value in attributes.items()
    )
    if tag in _VOID:
        return Html(f"<{tag}{head}>")
    return Html(f"<{tag}{head}>{join(*children)}</{tag}>")


def join(*children: str) -> Html:
    """Text and HTML one after the other, text escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def data_uri(data: bytes) -> str:
    """A file as a `data:` address, its media type read from its first bytes.

    Raises:
        ValueError: if it is not a PNG, JPEG, GIF, WebP, SVG, WAV, Ogg, FLAC or MP3 file.
    """
    media_type = _RIFF.get(data[8:12]) if data[:4] == b"RIFF" else None
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            media_type = name
    if media_type is None:
        raise ValueError(
            f"a report shows PNG, JPEG, GIF, WebP, SVG, WAV, Ogg, FLAC and MP3 files, got "
            f"{len(data)} bytes that start with {data[:8]!r}: convert it first"
        )
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
