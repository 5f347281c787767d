import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.audio_transformer import AudioTransformer


def encode(encoder: AudioTransformer, inputs: Tensor):
    return encoder(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5, 100])
def test_one_token_for_80_ms(num_frames: int):
    out = encode(AudioTransformer(dim=16, depth=1).eval(), torch.randn(1, num_frames, 64))
    num_tokens = -(-num_frames // 4)
    assert out.mask.shape == (1, num_tokens) and out.mask.all()
    torch.testing.assert_close(out.position[0, :, 0], torch.arange(num_tokens) * 0.08)


def test_long_clips_go_window_by_window():
    encoder = AudioTransformer(dim=16, depth=2, window_seconds=2.0).eval()
    frames = torch.randn(1, 250, 64)
    out = encode(encoder, frames)
    for start in (0, 100, 200):
        alone = encode(encoder, frames[:, start : start + 100]).values
        got = out.values[:, start // 4 : start // 4 + alone.shape[1]]
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


def test_masked_bands_in_training_only():
    encoder, inputs = AudioTransformer(dim=16, depth=1, dropout=0.0), torch.randn(2, 100, 64)
    assert not torch.equal(encode(encoder, inputs).values, encode(encoder, inputs).values)
    encoder.eval()
    assert torch.equal(encode(encoder, inputs).values, encode(encoder, inputs).values)


def test_a_batch_without_sound_gives_each_weight_a_gradient_of_zero():
    encoder = AudioTransformer(dim=16, depth=1)
    out = encoder(torch.randn(2, 9, 64), torch.zeros(2, 9, dtype=torch.bool))
    out.values.sum().backward()
    trained = [p for name, p in encoder.named_parameters() if "stages" not in name]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_it_learns_the_order_of_sounds():
    """A tone that rises is told from one that falls within 60 steps; both have the same halves."""
    torch.manual_seed(0)
    encoder, head = AudioTransformer(dim=32, depth=1, dropout=0.0), torch.nn.Linear(32, 2)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)

    def scores(count: int) -> tuple[Tensor, Tensor]:
        labels, time = torch.randint(2, (count,)), torch.arange(9_600) / 16_000
        frames = []
        for label in labels.tolist():
            high = (time > 0.3) == bool(label)
            wave = torch.sin(2 * math.pi * torch.where(high, 900.0, 300.0) * time)
            frames.append(encoder.transform(((wave + 0.1 * torch.randn(9_600))[None], 16_000)))
        return head(encode(encoder, torch.stack(frames)).values.mean(1)), labels

    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(*scores(16)).backward()
        optimizer.step()
    encoder.eval()
    guessed, labels = scores(64)
    assert (guessed.argmax(dim=1) == labels).float().mean() > 0.9


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"0\.08 s"):
        AudioTransformer(window_seconds=0.01)
    with pytest.raises(ValueError, match="divisor"):
        AudioTransformer(dim=32, num_heads=5)
