"""Recordings."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.decode.error import DecodeError, expect, one_line
from datamodules.reasons import Reason

if TYPE_CHECKING:
    from soundfile import SoundFile

Audio = tuple[Tensor, int]

MAX_AMPLITUDE = 1e6  # full scale is 1; beyond this a power spectrum in float32 overflows
MIN_SECONDS = 0.01  # less is shorter than one window of any spectrum
RATES = (1_000, 384_000)  # Hz

_FORMATS = ("WAV", "FLAC", "OGG", "MP3")
_STREAMED = 0x7FFF_0000  # WAV writers that cannot seek leave a size from here up
_UNKNOWN = 2**63 - 1  # what libsndfile says where a FLAC header does not say how many samples
_BLOCK = 2**16  # samples decoded at once


def decode_audio(data: bytes, *, max_seconds: float = 600.0, max_bytes: int = 256 * 2**20) -> Audio:
    """Decode a WAV, FLAC, OGG (Vorbis, Opus) or MP3 recording of at least 10 ms.

    A truncated WAV or FLAC is refused; OGG and MP3 do not say how long they are, so of a
    truncated one the part that is there is returned.

    Args:
        data: the whole file.
        max_seconds: longest recording that is decoded.
        max_bytes: most bytes of float32 samples that are decoded. Both limits are checked in the
            header; no more is decoded than that claims, block by block.

    Returns:
        (waveform float32 (channels, samples), rate in Hz); full scale is 1.

    Raises:
        DecodeError: not a recording, too long or too short, an absurd rate, truncated or damaged,
            or samples that are not finite.
    """
    kind = expect(data, _FORMATS, "a recording")
    claimed_bytes = 8 + int.from_bytes(data[4:8], "little")
    if kind == "WAV" and len(data) + 1 < claimed_bytes < _STREAMED:
        raise DecodeError(
            f"this WAV recording is truncated: {len(data)} of {claimed_bytes} bytes", Reason.DAMAGED
        )
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            _check_claims(file, max_seconds, max_bytes)
            waveform = _read(file)
    except DecodeError:
        raise
    except Exception as error:  # libsndfile, ctypes and numpy each have their own classes
        raise DecodeError(
            f"this {kind} recording is damaged ({one_line(error)})", Reason.DAMAGED
        ) from error
    _check_length(waveform.shape[1], rate)
    if not waveform.abs().max() <= MAX_AMPLITUDE:  # also true of NaN
        raise DecodeError(
            f"this {kind} recording holds NaN, infinite or absurdly large samples; full scale is 1",
            Reason.NOT_FINITE,
        )
    return waveform, rate


def _check_claims(file: SoundFile, max_seconds: float, max_bytes: int) -> None:
    rate, claimed = file.samplerate, file.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise DecodeError(
            f"this recording has {rate} samples a second, not {RATES[0]}-{RATES[1]}",
            Reason.ABSURD_RATE,
        )
    if claimed == _UNKNOWN:
        raise DecodeError(
            "this recording does not say how many samples it holds; encode it again, to a file",
            Reason.DAMAGED,
        )
    _check_length(claimed, rate)
    if claimed > max_seconds * rate:
        raise DecodeError(
            f"this recording claims {claimed / rate:.0f} s, more than the limit of {max_seconds:g}",
            Reason.TOO_LONG,
        )
    if claimed * file.channels * 4 > max_bytes:
        raise DecodeError(
            f"this recording claims {claimed} samples in {file.channels} channels, more than the "
            f"limit of {max_bytes} bytes once decoded",
            Reason.TOO_LARGE,
        )


def _check_length(num_samples: int, rate: int) -> None:
    if num_samples <= 0:
        raise DecodeError("this recording holds no sample", Reason.EMPTY)
    if num_samples < MIN_SECONDS * rate:
        raise DecodeError(
            f"this recording has {num_samples} samples, less than {MIN_SECONDS:g} s",
            Reason.TOO_SHORT,
        )


def _read(file: SoundFile) -> Tensor:
    """The samples that are there, of those that are claimed: (channels, samples)."""
    # Memory that is claimed but never written costs nothing.
    waveform, start = torch.empty(file.channels, file.frames), 0
    while start < file.frames:
        block = file.read(min(_BLOCK, file.frames - start), dtype="float32", always_2d=True)
        if not len(block):
            return waveform[:, :start].clone()
        waveform[:, start : start + len(block)] = torch.from_numpy(block).T
        start += len(block)
    return waveform
