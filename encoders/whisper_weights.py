"""The encoder's weights out of any of the forms in which Whisper is passed on.

All come back under OpenAI's names, without the "encoder." in front. Nothing here runs a pickle.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from encoders.pretrained import read_state

_PREFIX = "encoder."
_FROM_HUGGING_FACE = (
    ("layers.", "blocks."),
    ("self_attn_layer_norm.", "attn_ln."),
    ("self_attn.q_proj.", "attn.query."),
    ("self_attn.k_proj.", "attn.key."),
    ("self_attn.v_proj.", "attn.value."),
    ("self_attn.out_proj.", "attn.out."),
    ("final_layer_norm.", "mlp_ln."),
    ("fc1.", "mlp.0."),
    ("fc2.", "mlp.2."),
    ("embed_positions.weight", "positional_embedding"),
)
_FROM_CTRANSLATE2 = (
    (r"^layer_norm/", "ln_post/"),
    (r"^layer_(\d+)/", r"blocks/\1/"),
    (r"self_attention/layer_norm/", "attn_ln/"),
    (r"self_attention/linear_0/", "attn/qkv/"),
    (r"self_attention/linear_1/", "attn/out/"),
    (r"ffn/layer_norm/", "mlp_ln/"),
    (r"ffn/linear_0/", "mlp/0/"),
    (r"ffn/linear_1/", "mlp/2/"),
    (r"/gamma$", "/weight"),
    (r"/beta$", "/bias"),
    (r"position_encodings/encodings", "positional_embedding"),
)
_CTRANSLATE2_SPEC = "WhisperSpec"
_CTRANSLATE2_FLOATS = {0: torch.float32, 4: torch.float16, 5: torch.bfloat16}


def read_whisper_encoder(path: str | Path) -> dict[str, Tensor]:
    """Reads the encoder of a Whisper model.

    Args:
        path: A Hugging Face folder or its .safetensors file; OpenAI's .pt file, or the same state
            dict as .safetensors; a CTranslate2 folder or its model.bin.

    Returns:
        OpenAI's name of each weight, such as "blocks.0.attn.query.weight", to its float32 value.

    Raises:
        ValueError: If the file is damaged, or holds no Whisper encoder, or a quantised one.
        FileNotFoundError: If there is no such file, or the folder holds none.
    """
    files = _weight_files(Path(path))
    if files[0].suffix == ".bin":
        state = _read_ctranslate2(files[0])
    elif files[0].suffix == ".safetensors":
        state = _from_torch({name: v for file in files for name, v in read_state(file).items()})
    else:
        state = _from_torch(_read_openai(files[0]))
    if "conv1.weight" not in state:
        raise ValueError(
            f"{path} holds no Whisper encoder; give a Hugging Face folder, OpenAI's .pt file or a "
            "CTranslate2 folder."
        )
    return {name: value.float() for name, value in state.items()}


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for pattern in ("model.safetensors", "model-*.safetensors", "model.bin"):
        if files := sorted(path.glob(pattern)):
            return files
    raise FileNotFoundError(
        f"There is no Whisper model at {path}; give a folder that holds model.safetensors or "
        "model.bin, or the file itself."
    )


def _read_openai(path: Path) -> dict[str, Tensor]:
    """OpenAI's own file, a state dict beside its sizes, or the state dict alone."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content.get("model_state_dict", content)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors; give OpenAI's own file, or the state "
            "dict alone."
        ) from error


def _from_torch(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, value in theirs.items():
        name = name.removeprefix("model.")
        if not name.startswith(_PREFIX):
            continue
        name = name.removeprefix(_PREFIX)
        for old, new in _FROM_HUGGING_FACE:
            name = name.replace(old, new)
        state[re.sub(r"^layer_norm\.", "ln_post.", name)] = value
    return state


def _read_ctranslate2(path: Path) -> dict[str, Tensor]:
    state = {}
    for full_name, value in _ctranslate2_variables(path):
        if not full_name.startswith("encoder/") or not value.ndim:
            continue
        name = full_name.removeprefix("encoder/")
        for old, new in _FROM_CTRANSLATE2:
            name = re.sub(old, new, name)
        name = name.replace("/", ".")
        if ".qkv." not in name:
            state[name] = value
            continue
        for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
            state[name.replace("qkv", part)] = chunk
            state.pop(name.replace("qkv.bias", "key.bias"), None)  # Whisper's keys have no bias
    return state


def _ctranslate2_variables(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each variable of a model.bin (binary version 6, little endian)."""
    content = memoryview(bytearray(path.read_bytes()))
    offset = 0

    def read(kind: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(f"<{kind}", content, offset)
        offset += struct.calcsize(f"<{kind}")
        return value

    def text() -> str:
        nonlocal offset
        size = read("H")
        offset += size
        return bytes(content[offset - size : offset]).rstrip(b"\0").decode()

    try:
        read("I")
        spec = text()
        if spec != _CTRANSLATE2_SPEC:
            raise ValueError(f"its model is a {spec[:40]!r}")
        read("I")
        for _ in range(read("I")):
            name = text()
            shape = [read("I") for _ in range(read("B"))]
            kind, size = read("B"), read("I")
            data = content[offset : offset + size]
            offset += size
            if name.startswith("encoder/") and shape:
                if kind not in _CTRANSLATE2_FLOATS:
                    raise ValueError("it is quantised")
                yield name, torch.frombuffer(data, dtype=_CTRANSLATE2_FLOATS[kind]).view(shape)
    except (struct.error, UnicodeDecodeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is no CTranslate2 file of a Whisper model in float32 or float16 ({error}); "
            "convert the model with another quantization, or copy it again."
        ) from error
