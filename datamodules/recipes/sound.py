"""Sounds: any file libsndfile reads to 16 kHz mono Opus, the same bytes every time."""

import io
import math
from pathlib import Path

SAMPLE_RATE = 16_000
_MIN_SECONDS = 0.01
_MIN_PEAK = 1e-4
_COMPRESSION = 0.95  # about 24 kbit/s for 16 kHz mono


def to_opus(path: Path) -> bytes:
    """Reads a sound file and encodes it as 16 kHz mono Ogg Opus.

    Raises:
        ValueError: When the sound is silent or shorter than a hundredth of a second.
        RuntimeError: When libsndfile cannot read the file.
    """
    import numpy as np
    import soundfile
    from scipy.signal import resample_poly

    frames, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave = frames.mean(axis=1)
    if len(wave) < _MIN_SECONDS * rate or np.abs(wave).max() < _MIN_PEAK:
        raise ValueError("silent or too short a sound")
    if rate != SAMPLE_RATE:
        common = math.gcd(rate, SAMPLE_RATE)
        wave = resample_poly(wave, SAMPLE_RATE // common, rate // common)
    out = io.BytesIO()
    soundfile.write(
        out,
        np.clip(wave, -1.0, 1.0),
        SAMPLE_RATE,
        format="OGG",
        subtype="OPUS",
        compression_level=_COMPRESSION,
    )
    return fixed_serial(out.getvalue())


def fixed_serial(ogg: bytes) -> bytes:
    """Sets the serial number of an Ogg stream to 0.

    libsndfile draws it at random, so that two encodings of one sound differ; nothing reads it in
    a file of one stream. Page layout and checksum: RFC 3533, section 6.

    Raises:
        ValueError: When the bytes are not a whole number of Ogg pages.
    """
    pages = bytearray(ogg)
    start = 0
    while start < len(pages):
        num_segments = pages[start + 26] if start + 27 <= len(pages) else 0
        body = start + 27 + num_segments
        end = body + sum(pages[start + 27 : body])
        if pages[start : start + 4] != b"OggS" or end > len(pages):
            raise ValueError(f"Not an Ogg stream at byte {start}: expected a whole OggS page.")
        pages[start + 14 : start + 18] = bytes(4)  # serial number
        pages[start + 22 : start + 26] = bytes(4)  # checksum, taken over a page that holds 0
        pages[start + 22 : start + 26] = _checksum(pages[start:end]).to_bytes(4, "little")
        start = end
    return bytes(pages)


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _checksum_table()


def _checksum(page: bytes | bytearray) -> int:
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _TABLE[(value >> 24) ^ byte]
    return value
