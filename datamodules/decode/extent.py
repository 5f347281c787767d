"""How long a video file says it is: FFmpeg reads a cut off one without an error."""

from __future__ import annotations

_SEGMENT = b"\x18\x53\x80\x67"


def mp4_extent(data: bytes) -> int:
    """End of the last top-level box of an MP4 file, as the boxes' sizes say (ISO 14496-12)."""
    start = 0
    while start + 8 <= len(data):
        size, header = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:  # a 64-bit size follows the name
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        if size == 0:  # to the end of the file
            return len(data)
        start += max(size, header)
    return start


def webm_extent(data: bytes) -> int:
    """End of the segment of a WebM file, as its header says (RFC 8794)."""
    size, start = _vint(data, 4)
    name, start = data[start + size : start + size + 4], start + size + 4
    if name != _SEGMENT:
        return start
    size, body = _vint(data, start)
    unknown = size == (1 << 7 * (body - start)) - 1  # written as a stream
    return len(data) if unknown else body + size


def _vint(data: bytes, start: int) -> tuple[int, int]:
    """A variable-length integer, and where it ends."""
    first = data[start] if start < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[start : start + length], "big")
    return value & ((1 << 7 * length) - 1), start + length
