"""Tiny weights of real architectures in files, for the tests of the towers that read them."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 64, "image_size": 32, "patch_size": 8},
    "text_cfg": {"layers": 2, "width": 32, "heads": 2, "context_length": 20},
}


@cache
def folder() -> Path:
    return Path(_holder().name)


@cache
def _holder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="towers-")


def shaken(net: nn.Module) -> nn.Module:
    """The network in eval mode, with normalisation statistics that are not those of a new one."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return net.eval()


def saved(net: nn.Module, name: str) -> str:
    """Path of a file with the weights of a network."""
    path = folder() / f"{name}.safetensors"
    save_file({n: v.contiguous() for n, v in net.state_dict().items()}, path)
    return str(path)


@cache
def clip_model(name: str = "", **vision: Any) -> tuple[nn.Module, dict[str, Any], str]:
    """An open_clip model, its config, and the file of its weights."""
    import open_clip

    torch.manual_seed(0)
    config = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], **vision}}
    net = shaken(open_clip.CustomTextCLIP(**config))
    return net, config, saved(net, f"clip{name}")


@cache
def timm_model(name: str) -> tuple[nn.Module, str]:
    """A timm model and the file of its weights."""
    import timm

    torch.manual_seed(0)
    net = shaken(timm.create_model(name, pretrained=False))
    return net, saved(net, name)


@cache
def torchvision_model(name: str) -> tuple[nn.Module, str]:
    """A torchvision model and the file of its weights."""
    from torchvision import models

    torch.manual_seed(0)
    net = shaken(models.get_model(name, weights=None))
    return net, saved(net, name)


@cache
def text_folder(kind: str = "bert") -> str:
    """A folder with a tiny text encoder of transformers and its tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(0)
    path = folder() / kind
    words = ("a", "red", "apple", "two", "dogs", "run", "after", "yellow", "ball", "on", "cat")
    vocab = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.save_pretrained(path)
    sizes = {
        "vocab_size": 32,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    config = transformers.AutoConfig.for_model(kind, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(path)
    return str(path)
