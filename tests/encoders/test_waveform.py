import math

import pytest
import torch
from torch import Tensor

from encoders.waveform import Waveform


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(rate * seconds)) / rate)[None]


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 44_101])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_give_16_khz_mono(rate: int, channels: int):
    got = Waveform(max_seconds=5.0)((0.5 * tone(rate).repeat(channels, 1), rate))
    assert got.dtype == torch.float32 and abs(len(got) - 16_000) <= 1
    inside = slice(1_000, 15_000)  # resampling rings at the ends
    error = (got[inside] - 0.5 * tone(16_000)[0][inside]).abs().max()
    assert error < (0.02 if rate != 44_101 else 0.05)  # odd rates are rounded to 25 Hz


def test_settings_are_kept():
    raw = (0.5 + 0.1 * tone(16_000), 16_000)
    assert len(Waveform(max_seconds=0.25)(raw)) == 4_000
    short = Waveform(5.0, min_samples=400)((torch.ones(1, 7), 16_000))
    assert short.tolist() == [1.0] * 7 + [0.0] * 393
    normal = Waveform(5.0, normalize=True)(raw)
    torch.testing.assert_close(normal.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_loud_recordings_are_scaled_to_full_scale_and_others_kept():
    for peak, expected in ((3e38, 1.0), (40.0, 1.0), (1.2, 1.2), (0.3, 0.3)):
        got = Waveform(5.0)((peak * tone(16_000), 16_000)).abs().max()
        torch.testing.assert_close(got, torch.tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("raw", [(torch.zeros(1, 0), 16_000), (torch.zeros(9), 16_000)])
def test_what_is_no_waveform_is_refused(raw: tuple[Tensor, int]):
    with pytest.raises(ValueError, match="waveform"):
        Waveform(5.0)(raw)
