"""Sound through wav2vec 2.0, HuBERT or WavLM, as torchaudio has them.

Letters: B batch, T samples at 16 kHz, P windows, N tokens, D width.
"""

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput, TrainMode, reads_weights
from encoders.pretrained import fetching, find_weights, read_state
from encoders.waveform import SAMPLE_RATE, Waveform
from encoders.windows import cut_windows, join_windows, timed_output

_HUB = "https://download.pytorch.org/torchaudio/models/"


@final
class Wav2Vec2(Encoder):
    """Hidden states of a wav2vec 2.0, HuBERT or WavLM model, a token for each 20 ms.

    Recordings are cut into windows in such a way that tokens keep their pace over the seams.
    Windows of equal length run together and none is padded: these models hear padding.

    Args:
        bundle: Name of a bundle of torchaudio.pipelines, such as "HUBERT_BASE", or the arguments
            of torchaudio.models.wav2vec2_model as a dict, whose recordings are not normalised.
        weights: The bundle's state dict as a .safetensors or .pth file, or the bundle's name once
            more, to have torch.hub fetch it.
        num_layers: Layers to run; the last one's output are the tokens. None is all.
        window_seconds: Longest stretch that attends to itself.
        max_seconds: Seconds kept of a recording.
        pool: Neighbouring tokens averaged into one.
        train: How the weights take part in training; WavLM takes no "lora".

    Raises:
        ValueError: If a setting is out of range, or the weights are missing or do not fit.
        FileNotFoundError: If there is no such file.
        ConnectionError: If the weights cannot be fetched.
    """

    def __init__(
        self,
        bundle: str | dict[str, Any] = "HUBERT_BASE",
        weights: str | None = None,
        num_layers: int | None = None,
        window_seconds: float = 20.0,
        max_seconds: float = 20.0,
        pool: int = 1,
        train: TrainMode = "frozen",
    ) -> None:
        kind, config, file, normalize = _recipe(bundle)
        if kind == "wavlm_model" and train == "lora":
            raise ValueError(
                f"{bundle} reads the weights of its attention past any adapter; choose train: full "
                "or frozen, or a bundle of wav2vec 2.0 or HuBERT."
            )
        steps = [(kernel, step) for _, kernel, step in config["extractor_conv_layer_config"]]
        reach, stride = _receptive_field(steps)
        super().__init__(
            "audio", config["encoder_embed_dim"], Waveform(max_seconds, reach, normalize)
        )
        available = config["encoder_num_layers"]
        self.num_layers = available if num_layers is None else num_layers
        self.stride = stride
        self.overlap = reach - stride
        self.window = round(window_seconds * SAMPLE_RATE / stride) * stride
        self.pool = pool
        if not 1 <= self.num_layers <= available or self.window < stride or pool < 1:
            raise ValueError(
                f"Got num_layers={num_layers}, window_seconds={window_seconds} and pool={pool}; "
                f"choose 1 to {available} layers, windows of some seconds and a pool of at least 1."
            )
        self.net = _build_net(kind, config)
        if reads_weights(train):
            _load(self.net, weights, bundle if isinstance(bundle, str) else None, file)
        transformer = self.net.encoder.transformer
        del transformer.layers[self.num_layers :]
        if not transformer.layer_norm_first:  # else it comes after all layers: not in their output
            transformer.layer_norm = nn.Identity()
        self.set_train_mode(train)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode samples (B, T) into a token for each 20 ms; real samples come first in a row."""
        reach = self.overlap + self.stride
        windows = cut_windows(inputs, mask, self.window, self.overlap, shortest=reach)
        tokens = self._encode(windows.values, windows.lengths)
        token_mask = mask[:, reach - 1 :: self.stride]  # a token is real if its last sample is
        values = join_windows(tokens, windows.place, token_mask)
        return timed_output(values, token_mask, self.stride / SAMPLE_RATE, self.pool)

    def _encode(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Windows (P, samples) of different lengths into tokens (P, N, D), zero past the end."""
        num_windows, num_tokens = len(values), self.window // self.stride
        if not num_windows:  # a silent one that counts for nothing, so that each weight has a grad
            values = values.new_zeros(1, values.shape[1])
            lengths = lengths.new_tensor([self.overlap + self.stride])
        values = values.to(next(self.net.parameters()).dtype)
        pieces = []
        for length in lengths.unique().tolist():
            alike = values[lengths == length, :length]
            hidden = self.net.extract_features(alike)[0][-1]
            pieces.append(F.pad(hidden, (0, 0, 0, num_tokens - hidden.shape[1])))
        order = lengths.argsort(stable=True)
        return torch.cat(pieces)[order.argsort()][:num_windows]

    def extra_repr(self) -> str:
        """The settings."""
        return f"num_layers={self.num_layers}, window={self.window}, pool={self.pool}"


def _recipe(bundle: str | dict[str, Any]) -> tuple[str, dict[str, Any], str, bool]:
    """Model class, its arguments, file on the hub, and whether recordings are normalised."""
    if isinstance(bundle, dict):
        return "wav2vec2_model", {**bundle, "aux_num_out": None}, "", False
    from torchaudio import pipelines

    found: Any = getattr(pipelines, bundle, None)
    if not hasattr(found, "_params") or found.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"torchaudio.pipelines has no speech model {bundle!r}; choose one such as HUBERT_BASE, "
            "WAV2VEC2_BASE or WAVLM_BASE."
        )
    kind = "wavlm_model" if found._model_type == "WavLM" else "wav2vec2_model"
    config = {**found._params, "aux_num_out": None}  # the head of recognition is not a token
    return kind, config, found._path, found._normalize_waveform


def _receptive_field(steps: list[tuple[int, int]]) -> tuple[int, int]:
    """Samples that one token hears, and samples from one token to the next."""
    reach, stride = 1, 1
    for kernel, step in steps:
        reach += (kernel - 1) * stride
        stride *= step
    return reach, stride


def _build_net(kind: str, config: dict[str, Any]) -> Any:
    from torchaudio import models

    return getattr(models, kind)(**config)


def _load(net: nn.Module, weights: str | None, bundle: str | None, file: str) -> None:
    source = find_weights(weights, [bundle] if bundle else [], f"The model {bundle or 'given'}")
    if isinstance(source, Path):
        state = read_state(source)
    else:
        url = file if file.startswith("https:") else _HUB + file
        with fetching(source):
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    try:
        net.load_state_dict({n: value for n, value in state.items() if not n.startswith("aux.")})
    except RuntimeError as error:
        raise ValueError(
            f"The weights {weights} are not of this model; name the bundle that they belong to."
        ) from error
