"""What a file really is, by its first bytes: its name and extension prove nothing."""

from __future__ import annotations

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (  # (offset, bytes, name)
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "OGG"),
    (0, b"ID3", "MP3"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x1aE\xdf\xa3", "WebM"),
    (0, b"\x93NUMPY", "NPY"),
    (0, b"\xff\xfe", "UTF-16"),
    (0, b"\xfe\xff", "UTF-16"),
    # last, since what comes before their mark is free
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif", "HEIC"),
    (4, b"ftypM4A", "M4A"),
    (4, b"ftyp", "MP4"),
    (8, b"WEBP", "WEBP"),
    (8, b"WAVE", "WAV"),
)


def sniff(data: bytes) -> str:
    """Name the format of `data` by its first bytes: "JPEG", "WAV", ..., "text" or "unknown"."""
    for offset, magic, name in _SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            return name
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 in (0xE2, 0xE4, 0xE6):
        return "MP3"  # no ID3 tag: frame sync, then a valid layer
    try:
        head = data[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        head = data[: error.start].decode("utf-8") if error.start > 500 else "\0"
    return "unknown" if "\0" in head else "text"


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from a WEBP header (RFC 9649)."""

    def field(start: int, end: int) -> int:
        return int.from_bytes(data[start:end], "little")

    if data[12:16] == b"VP8X":
        return field(24, 27) + 1, field(27, 30) + 1
    if data[12:16] == b"VP8L":
        return (field(21, 25) & 0x3FFF) + 1, (field(21, 25) >> 14 & 0x3FFF) + 1
    return field(26, 28) & 0x3FFF, field(28, 30) & 0x3FFF
