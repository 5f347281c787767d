import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchaudio import pipelines

from encoders.base import bare
from encoders.wav2vec2 import Wav2Vec2

sys.path.append(str(Path(__file__).parent))
from media import TINY_HUBERT as TINY

HUB = "https://download.pytorch.org/torchaudio/models"
TINY_LARGE = {
    **TINY,
    "extractor_mode": "layer_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
}


@pytest.fixture
def small_bundles(monkeypatch):
    """The bundles themselves, at the size of a test; random weights stand in for the download."""
    for name, params in (("HUBERT_BASE", TINY), ("HUBERT_LARGE", TINY_LARGE)):
        bundle = getattr(pipelines, name)
        monkeypatch.setattr(bundle, "_params", params)
    return pipelines


@pytest.mark.parametrize("name", ["HUBERT_BASE", "HUBERT_LARGE"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tokens_are_the_features_of_the_bundles_model(
    name, suffix, small_bundles, tmp_path, monkeypatch
):
    from torchaudio.models import wav2vec2_model

    bundle, path = getattr(pipelines, name), tmp_path / f"weights{suffix}"
    state = wav2vec2_model(**bundle._params).state_dict()
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    monkeypatch.setattr(type(bundle), "_get_state_dict", lambda self, kwargs: state)
    model = bundle.get_model()  # with the bundle's own normalisation

    waveform = 0.3 * torch.randn(1, 24_000) + 0.1
    expected = model.extract_features(waveform)[0]
    for num_layers in (None, 2):
        encoder = Wav2Vec2(name, weights=str(path), num_layers=num_layers)
        inputs = encoder.transform((waveform, 16_000))[None]
        out = encoder(inputs, torch.ones_like(inputs, dtype=torch.bool))
        want = expected[-1 if num_layers is None else num_layers - 1]
        torch.testing.assert_close(out.values, want, atol=1e-5, rtol=0)
        torch.testing.assert_close(out.position[0, :, 0], torch.arange(want.shape[1]) * 0.02)


def test_a_bundles_normalisation_is_its_own(small_bundles):
    quiet, loud = (Wav2Vec2(name, train="scratch") for name in ("HUBERT_BASE", "HUBERT_LARGE"))
    assert not quiet.transform.normalize and loud.transform.normalize


def test_windows_keep_the_pace_over_the_seams():
    encoder = Wav2Vec2(TINY, train="scratch", window_seconds=0.5, max_seconds=60.0).eval()
    wave = torch.randn(1, 21_000)
    out = encoder(wave, torch.ones_like(wave, dtype=torch.bool))
    assert out.values.shape[1] == (21_000 - 400) // 320 + 1 and out.mask.all()
    torch.testing.assert_close(out.position[0, :, 0], torch.arange(out.mask.shape[1]) * 0.02)
    for start in (0, 1, 2):
        window = wave[:, start * 8_000 : (start + 1) * 8_000 + 80]
        expected = encoder.net.extract_features(window)[0][-1]
        got = out.values[:, start * 25 : start * 25 + expected.shape[1]]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_models_hear_padding_so_none_is_given():
    """The control: run together under padding, the model itself gives other features."""
    encoder = Wav2Vec2(TINY, train="scratch").eval()
    wave, lengths = torch.randn(2, 8_000), torch.tensor([8_000, 4_000])
    alone = encoder.net.extract_features(wave[1:, :4_000])[0][-1][0]
    padded = encoder.net.extract_features(wave.index_fill(0, lengths[1:] * 0, 0), lengths)
    assert (padded[0][-1][1, : len(alone)] - alone).abs().max() > 1e-2
    out = encoder(wave, torch.arange(8_000) < lengths[:, None])
    torch.testing.assert_close(out.values[1][out.mask[1]], alone, atol=1e-5, rtol=0)


def test_every_layer_is_used_in_training():
    encoder = Wav2Vec2(TINY_LARGE, num_layers=2, train="scratch")
    wave = torch.randn(2, 4_000)
    encoder(wave, torch.ones_like(wave, dtype=torch.bool)).values.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert len(encoder.net.encoder.transformer.layers) == 2


def test_pooling_averages_neighbours():
    encoder = Wav2Vec2(TINY, train="scratch", pool=4).eval()
    wave = torch.randn(1, 8_000)
    pooled = encoder(wave, torch.ones_like(wave, dtype=torch.bool)).values
    encoder.pool = 1
    fine = encoder(wave, torch.ones_like(wave, dtype=torch.bool)).values
    torch.testing.assert_close(pooled[:, 0], fine[:, :4].mean(dim=1))
    assert pooled.shape[1] == -(-fine.shape[1] // 4)


def test_offline_the_error_says_how_to_give_a_file(small_bundles, monkeypatch, tmp_path):
    from urllib.error import URLError

    def refuse(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    with pytest.raises(ConnectionError, match="no route to host.*copy their file here"):
        Wav2Vec2("HUBERT_BASE", weights="HUBERT_BASE")
    with pytest.raises(ValueError, match="give weights: one of HUBERT_BASE, or a local"):
        Wav2Vec2("HUBERT_BASE")
    with pytest.raises(ValueError, match="give weights: a local"):
        Wav2Vec2(TINY)
    with bare():
        Wav2Vec2("HUBERT_BASE")


def test_fetched_weights_are_those_of_the_bundle(small_bundles, monkeypatch):
    from torchaudio.models import wav2vec2_model

    state, asked = wav2vec2_model(**TINY).state_dict(), []

    def fetch(url: str, map_location: str, weights_only: bool):
        asked.append((url, weights_only))
        return {**state, "aux.weight": torch.zeros(1)}

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    encoder = Wav2Vec2("HUBERT_BASE", weights="HUBERT_BASE")
    name = "encoder.transformer.layers.0.attention.k_proj.weight"
    assert torch.equal(encoder.net.state_dict()[name], state[name])
    assert asked == [(f"{HUB}/hubert_fairseq_base_ls960.pth", True)]


def test_what_does_not_fit_is_refused(small_bundles, tmp_path):
    with pytest.raises(ValueError, match="no speech model 'HUBERT_TINY'"):
        Wav2Vec2("HUBERT_TINY")
    with pytest.raises(ValueError, match="1 to 3 layers"):
        Wav2Vec2(TINY, num_layers=4, train="scratch")
    path = tmp_path / "weights.pth"
    torch.save({"feature_extractor.conv": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="name the bundle that they belong to"):
        Wav2Vec2("HUBERT_BASE", weights=str(path))


def test_normalisation_is_over_the_recording(small_bundles):
    wave = 0.2 * torch.randn(1, 9_000) + 0.5
    encoder = Wav2Vec2("HUBERT_LARGE", train="scratch", num_layers=1)
    torch.testing.assert_close(
        encoder.transform((wave, 16_000))[None], F.layer_norm(wave, wave.shape)
    )


def test_a_batch_without_sound_gives_each_weight_a_gradient_of_zero():
    encoder = Wav2Vec2(TINY, train="scratch")
    out = encoder(torch.randn(2, 4_000), torch.zeros(2, 4_000, dtype=torch.bool))
    out.values.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_wavlm():
    from torchaudio.models import wavlm_model

    config = {**TINY, "encoder_num_buckets": 32, "encoder_max_distance": 80}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.WAVLM_BASE, "_params", config)
        encoder = Wav2Vec2("WAVLM_BASE", train="scratch").eval()
    model = wavlm_model(**config).eval()
    model.load_state_dict(encoder.net.state_dict(), strict=False)
    wave = torch.randn(1, 8_000)
    expected = model.extract_features(wave)[0][-1]
    out = encoder(wave, torch.ones_like(wave, dtype=torch.bool))
    torch.testing.assert_close(out.values, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="past any adapter"):
        Wav2Vec2("WAVLM_BASE", train="lora")
