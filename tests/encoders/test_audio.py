import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from encoders.audio import LogMel, LogMelEncoder

TRANSFORM = LogMel(num_mels=64, max_seconds=2.0)


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(rate * seconds)) / rate)[None]


def test_frames_are_20_ms_apart_and_normalised():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as mel bands that no frequency reaches
        frames = LogMel(num_mels=64, max_seconds=2.0)((tone(16_000), 16_000))
    assert frames.shape == (51, 64) and frames.dtype == torch.float32
    torch.testing.assert_close(frames.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(), torch.tensor(1.0))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 44_101])
def test_rate_and_channels_and_loudness_do_not_matter(rate: int):
    reference = TRANSFORM((tone(16_000), 16_000))
    frames = TRANSFORM((0.01 * tone(rate).repeat(2, 1), rate))
    assert abs(len(frames) - len(reference)) <= 1
    assert frames[25].argmax() == reference[25].argmax()


def test_long_clips_are_cut_before_any_work():
    assert len(TRANSFORM((torch.randn(1, 3_000_000), 16_000))) == 101


@settings(deadline=None, max_examples=40)
@given(
    num_samples=st.integers(1, 3_000),
    rate=st.sampled_from([1_000, 8_000, 11_025, 16_000, 44_100, 96_000, 399_999]),
    scale=st.sampled_from([0.0, 1e-40, 1e-6, 1.0, 3e38]),
)
def test_any_finite_clip_gives_finite_frames(num_samples: int, rate: int, scale: float):
    draw = torch.Generator().manual_seed(num_samples)
    waveform = (2 * torch.rand(2, num_samples, generator=draw) - 1) * scale
    frames = TRANSFORM((waveform, rate))
    assert frames.isfinite().all() and len(frames) >= 1
    encoder = LogMelEncoder(dim=16, max_seconds=2.0).eval()
    out = encoder(frames[None], torch.ones(1, len(frames), dtype=torch.bool))
    assert out.values.isfinite().all()


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (torch.zeros(1, 0), 16_000, "no samples"),
        (torch.zeros(0, 10), 16_000, "no samples"),
        (torch.tensor([[0.0, math.nan]]), 16_000, "NaN or infinite"),
        (torch.tensor([[0.0, math.inf]]), 16_000, "NaN or infinite"),
        (torch.zeros(10), 16_000, "channels, samples"),
        (torch.zeros(1, 10, dtype=torch.int16), 16_000, "channels, samples"),
        (torch.zeros(1, 10), 0, "sample rate of 0"),
        (torch.zeros(1, 10), 10**9, "sample rate of 1000000000"),
    ],
)
def test_bad_waveforms_are_refused(waveform: Tensor, rate: int, message: str):
    with pytest.raises(ValueError, match=message):
        TRANSFORM((waveform, rate))


@pytest.mark.parametrize("num_frames", [1, 7, 8, 9, 100])
def test_one_token_for_160_ms(num_frames: int):
    encoder = LogMelEncoder(dim=16).eval()
    out = encoder(torch.randn(1, num_frames, 64), torch.ones(1, num_frames, dtype=torch.bool))
    num_tokens = -(-num_frames // 8)
    assert out.mask.shape == (1, num_tokens) and out.mask.all()
    torch.testing.assert_close(out.position[0, :, 0], torch.arange(num_tokens) * 0.16)


def test_masked_bands_in_training_only():
    encoder = LogMelEncoder(dim=16, dropout=0.0)
    inputs, mask = torch.randn(2, 100, 64), torch.ones(2, 100, dtype=torch.bool)
    assert not torch.equal(encoder(inputs, mask).values, encoder(inputs, mask).values)
    encoder.eval()
    assert torch.equal(encoder(inputs, mask).values, encoder(inputs, mask).values)


def test_it_learns_to_tell_sounds_apart():
    """Clips of eight tones, at random phase and in noise, are told apart within 30 steps."""
    torch.manual_seed(0)
    encoder, head = LogMelEncoder(dim=32, num_blocks=1), torch.nn.Linear(32, 8)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)

    def clips(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(8, (count,))
        waves = [tone(16_000, 0.3, 200.0 * 1.4**label) for label in labels.tolist()]
        frames = [TRANSFORM((wave + 0.3 * torch.randn_like(wave), 16_000)) for wave in waves]
        return torch.stack(frames), labels

    def scores(frames: Tensor) -> Tensor:
        return head(encoder(frames, torch.ones(frames.shape[:2], dtype=torch.bool)).values.mean(1))

    for _ in range(30):
        frames, labels = clips(16)
        optimizer.zero_grad()
        F.cross_entropy(scores(frames), labels).backward()
        optimizer.step()
    encoder.eval()
    frames, labels = clips(64)
    assert (scores(frames).argmax(dim=1) == labels).float().mean() > 0.8
