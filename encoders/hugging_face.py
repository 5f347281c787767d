"""Text through any encoder of transformers, from a local folder.

Letters: B batch, L word pieces, N tokens (= L).
"""

import json
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from encoders.base import Encoder, EncoderOutput, TrainMode, is_bare, reads_weights
from encoders.pretrained import require
from encoders.text import WordPieces, reading_positions, recompute_hidden, sentence_tokens

_FOREIGN = ("auto_map", "attn_implementation", "quantization_config")  # code and kernels of others


@final
class HuggingFaceText(Encoder):
    """A text encoder out of a folder that transformers' `save_pretrained` wrote.

    Tokens are the last hidden states, scaled per sample so that their masked mean is the unit
    sentence vector of mean pooling (Reimers and Gurevych 2019, arXiv:1908.10084). Config and
    tokenizer travel in the state dict, so that a checkpoint rebuilds the tower without the folder.

    Args:
        folder: Has config.json, tokenizer.json and model.safetensors.
        dim: Width of the model's hidden states, its config's `hidden_size`.
        max_tokens: Word pieces kept of a text.
        max_chars: Characters kept of a text, before it is cut into pieces.
        train: How the weights take part in training.

    Raises:
        ValueError: If the folder's model is no text encoder of this width and length.
        FileNotFoundError: If the folder lacks a file.
        ModuleNotFoundError: If transformers is not installed.
    """

    def __init__(
        self,
        folder: str,
        dim: int,
        max_tokens: int = 64,
        max_chars: int = 2000,
        train: TrainMode = "frozen",
    ) -> None:
        loads, bare = reads_weights(train), is_bare()
        definition = b"" if bare else _file(folder, "tokenizer.json").read_bytes()
        super().__init__("text", dim, WordPieces(definition, max_chars, max_tokens))
        self._max_tokens = max_tokens
        self._train_mode: TrainMode = train
        self._config = torch.zeros(0, dtype=torch.uint8)
        self.set_train_mode("frozen" if train == "frozen" else "full")
        if not bare:
            self._install(_file(folder, "config.json").read_bytes(), folder if loads else None)

    def _install(self, config: bytes, folder: str | None = None) -> None:
        """Build the network that a config describes, its weights from a folder or random."""
        net, settings = _build_net(config, folder)
        if settings.hidden_size != self.dim:
            raise ValueError(
                f"This text encoder has width {settings.hidden_size} and was given dim={self.dim}; "
                f"give dim: {settings.hidden_size}."
            )
        longest = _max_positions(net, settings)
        if not 2 <= self._max_tokens <= longest:
            raise ValueError(
                f"max_tokens={self._max_tokens} does not fit this text encoder; "
                f"choose 2 to {longest}."
            )
        self._config = torch.tensor(list(config), dtype=torch.uint8)
        self._padding = settings.pad_token_id or 0
        self.net = net.train(self.training)
        self.set_train_mode(self._train_mode)

    def get_extra_state(self) -> Tensor:
        """The config as bytes."""
        return self._config

    def set_extra_state(self, state: Tensor) -> None:
        """Take the config from a state dict, before its weights are taken."""
        if not torch.equal(state.cpu(), self._config):
            self._install(state.cpu().numpy().tobytes())

    def checkpoint_gradients(self) -> None:
        """Recompute hidden states in the backward pass instead of keeping them all."""
        recompute_hidden(self.net)

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        """Encode ids (B, L) int64 into L tokens; real ids come first in a row."""
        # Attention over nothing is not defined: an absent text attends to its padding instead.
        attended = mask | ~mask.any(dim=1, keepdim=True)
        ids = inputs.masked_fill(~mask, self._padding)
        hidden = self.net(input_ids=ids, attention_mask=attended.long()).last_hidden_state
        return EncoderOutput(sentence_tokens(hidden, mask), mask, reading_positions(mask))


def _file(folder: str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"The folder {folder} holds no {name}; save the model and its fast tokenizer to it "
            "with save_pretrained."
        )
    return path


def _build_net(config: bytes, folder: str | None) -> tuple[nn.Module, Any]:
    """The network and its settings; nothing but transformers' own classes is built."""
    transformers = require("transformers")
    given = json.loads(config)
    known = {k: v for k, v in given.items() if not k.startswith("_") and k not in _FOREIGN}
    try:
        settings = transformers.AutoConfig.for_model(**known)
        if settings.is_encoder_decoder:
            raise ValueError("it writes, too; only encoders are read")
        if folder is None:
            net = transformers.AutoModel.from_config(settings)
        else:
            net = _load_net(transformers.AutoModel, settings, folder)
    except Exception as error:  # configs of strangers fail in any way they like
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The text encoder {folder or 'of this checkpoint'} cannot be built ({reason}); give a "
            "folder with an encoder that this version of transformers saved."
        ) from error
    if getattr(net, "pooler", None) is not None:
        net._modules["pooler"] = None  # nothing here reads it
    return net, settings


def _load_net(auto: Any, settings: Any, folder: str) -> nn.Module:
    logging = require("transformers").utils.logging
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        net, info = auto.from_pretrained(
            _file(folder, "config.json").parent,
            config=settings,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    if missing or info["mismatched_keys"]:
        raise ValueError(f"weights are missing, {missing[0] if missing else 'of another shape'}")
    return net


def _max_positions(net: nn.Module, settings: Any) -> int:
    """Word pieces that a model can place; some start to count after the padding's index."""
    positions = getattr(settings, "max_position_embeddings", None) or 512
    first = getattr(getattr(net, "embeddings", None), "padding_idx", None)
    return positions if first is None else positions - first - 1
