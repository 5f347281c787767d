"""Recordings as 16 kHz mono samples.

Letters: T samples.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.nn import functional as F

SAMPLE_RATE = 16_000  # Hz, of all that leaves this file
_OVERSHOOT = 2.0
_RATE_STEP = 25  # Hz; a resampling kernel grows with rate / gcd, and known rates are multiples


@final
@dataclass(frozen=True)
class Waveform:
    """Turns a recording of any rate and channel count into 16 kHz mono.

    A recording whose peak is beyond twice full scale (1), no mere overshoot, is scaled down to it.

    Args:
        max_seconds: Seconds kept of a recording, from its start.
        min_samples: Shorter recordings are padded with silence to this many samples.
        normalize: Scale each recording to zero mean and unit variance.
    """

    max_seconds: float
    min_samples: int = 1
    normalize: bool = False

    def __call__(self, raw: tuple[Tensor, int]) -> Tensor:
        """Turn `(waveform (channels, samples) float, rate in Hz)` into (T,) float32 samples.

        Raises:
            ValueError: If the waveform is empty, not finite, or not of this form.
        """
        waveform, rate = cut_waveform(raw, self.max_seconds)
        peak = float(waveform.abs().amax())
        mono = to_mono(waveform / peak if peak > _OVERSHOOT else waveform, rate)
        mono = F.pad(mono, (0, max(0, self.min_samples - len(mono))))
        return F.layer_norm(mono, mono.shape) if self.normalize else mono


def cut_waveform(raw: tuple[Tensor, int], max_seconds: float) -> tuple[Tensor, int]:
    """The first seconds of a recording: float32 (channels, samples), and its rate in Hz.

    Raises:
        ValueError: If it is empty, not finite, or not of the form of a recording.
    """
    waveform, rate = raw
    if waveform.ndim != 2 or not waveform.is_floating_point():
        raise ValueError(
            f"A waveform must be float of shape (channels, samples), got {waveform.dtype} "
            f"{tuple(waveform.shape)}; decode it to float32 first."
        )
    if waveform.numel() == 0:
        raise ValueError("The waveform holds no samples; drop the clip.")
    if not 1_000 <= rate <= 400_000:
        raise ValueError(f"A sample rate of {rate} Hz is not between 1,000 and 400,000; check it.")
    waveform = waveform[:, : max(1, round(max_seconds * rate))].float()
    if not waveform.isfinite().all():
        raise ValueError("The waveform holds NaN or infinite samples; repair or drop the clip.")
    return waveform, rate


def to_mono(waveform: Tensor, rate: int) -> Tensor:
    """(channels, samples) at any rate to (T,) at 16 kHz."""
    from torchaudio.functional import resample

    rate = max(1, round(rate / _RATE_STEP)) * _RATE_STEP
    return resample(waveform.mean(dim=0), rate, SAMPLE_RATE)
