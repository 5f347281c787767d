import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from encoders.base import bare
from encoders.video_tower import TorchvisionVideo, VideoFrames

SIZES = {"r3d_18": 32, "mc3_18": 32, "r2plus1d_18": 32, "s3d": 64, "swin3d_t": 64}


def raw_video(num_frames: int, height: int = 60, width: int = 90) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(num_frames)
    shape = (num_frames, 3, height, width)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    return frames, torch.arange(num_frames) / 8


def encode(encoder: TorchvisionVideo, raw):
    inputs = encoder.transform(raw)[None]
    return encoder(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool))


def trained(name: str) -> nn.Module:
    """torchvision's own model, its norms no longer at their start."""
    net = models.get_model(name, weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
    return net


@torch.no_grad()
def feature_map(net: nn.Module, clips: Tensor) -> Tensor:
    """(P, time, row, column, D): what the model itself computes before it pools."""
    seen: list[Tensor] = []
    name = "norm" if hasattr(net, "norm") else "avgpool"
    hook = net.get_submodule(name)
    if name == "norm":
        handle = hook.register_forward_hook(lambda module, args, out: seen.append(out))
    else:
        handle = hook.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        net(clips)
    except RuntimeError:  # S3D's pooling wants more pixels than a test has; the map is there
        assert seen
    handle.remove()
    return seen[0] if name == "norm" else seen[0].movedim(1, -1)


@pytest.mark.parametrize("name", SIZES)
def test_tokens_are_the_towers_feature_map(name: str, tmp_path):
    net, path = trained(name), tmp_path / "weights.safetensors"
    save_file(net.state_dict(), path)
    encoder = TorchvisionVideo(name, weights=str(path), size=SIZES[name])
    out = encode(encoder, raw_video(16))
    recipe = models.get_model_weights(name).DEFAULT.transforms(
        crop_size=(encoder.size, encoder.size), resize_size=encoder.transform.scaled
    )
    expected = feature_map(net, recipe(raw_video(16)[0])[None])
    assert out.values.shape == (1, expected[0, ..., 0].numel(), encoder.dim) and out.mask.all()
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        out.values[0] / scale, expected.flatten(1, 3)[0] / scale, atol=1e-5, rtol=0
    )
    places = out.position.view(*expected.shape[1:4], 3)
    step = 16 // expected.shape[1]
    assert torch.equal(places[:, 0, 0, 0], torch.arange(0, 16, step) / 8)
    assert places[0, :, 0, 1].diff().gt(0).all() and places[0, 0, :, 2].diff().gt(0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_mvit(name: str, tmp_path):
    net, path = trained(name), tmp_path / "weights.pth"
    torch.save(net.state_dict(), path)
    encoder = TorchvisionVideo(name, weights=str(path))
    out = encode(encoder, raw_video(16))
    recipe = models.get_model_weights(name).DEFAULT.transforms()
    expected = feature_map(net, recipe(raw_video(16)[0])[None])[:, 1:]  # the class comes first
    torch.testing.assert_close(out.values, expected, atol=1e-5, rtol=0)
    assert len(out.position.unique(dim=1)[0]) == 8 * 7 * 7


def test_long_videos_go_clip_by_clip_and_the_last_repeats_its_last_frame():
    encoder = TorchvisionVideo("s3d", size=32, train="scratch", clip_frames=8).eval()
    frames, times = raw_video(19, 40, 40)
    out = encode(encoder, (frames, times))
    assert out.values.shape[1] == 3 and out.position[0, :, 0].tolist() == [0.0, 1.0, 2.0]
    for start in (0, 8, 16):
        alone = encode(encoder, (frames[start : start + 8], torch.arange(8)[: 19 - start] / 8))
        torch.testing.assert_close(out.values[:, start // 8], alone.values[:, 0])
    filled = torch.cat([frames, frames[-1:].expand(5, -1, -1, -1)])
    padded = encode(encoder, (filled, torch.arange(24) / 8))
    torch.testing.assert_close(padded.values, out.values)


def test_from_scratch_neighbours_are_not_seen_in_training_either():
    encoder = TorchvisionVideo("s3d", size=32, train="scratch", clip_frames=8)
    inputs = torch.stack([encoder.transform(raw_video(8 + i))[:8] for i in range(3)])
    mask = torch.ones(3, 8, dtype=torch.bool)
    together, alone = encoder(inputs, mask).values, encoder(inputs[:1], mask[:1]).values
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    control = models.get_model("s3d", weights=None).features.train()  # with batch norm they are
    clips = torch.randn(3, 3, 8, 32, 32)
    assert (control(clips)[:2] - control(clips[:2])).abs().max() > 1e-2


@pytest.mark.parametrize(("height", "width"), [(1, 400), (300, 20), (1080, 1920)])
def test_any_shape_of_frame_is_taken(height: int, width: int):
    for scaled in ((40,), (40, 50)):
        transform = VideoFrames(8.0, 10.0, scaled, 32)
        assert transform(raw_video(2, height, width)).shape == (2, 3 * 32 * 32 + 4)


def test_training_draws_time_and_place_once_for_all_frames():
    transform = VideoFrames(8.0, 1.0, (40, 40), 32, random=True)
    frame = raw_video(1, 64, 64)[0]
    still = frame.expand(80, -1, -1, -1), torch.arange(80) / 8
    first, second = transform(still), transform(still)
    assert (first[:, :-4] == first[:1, :-4]).all() and not torch.equal(first, second)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no video model 'r4d'"):
        TorchvisionVideo("r4d")
    with pytest.raises(ValueError, match="a multiple of 8"):
        TorchvisionVideo("s3d", clip_frames=12, train="scratch")
    with pytest.raises(ValueError, match="16 of 224 pixels"):
        TorchvisionVideo("mvit_v2_s", size=112, train="scratch")
    for name, message in (("swin3d_t", "past any adapter"), ("s3d", "no attention or MLP")):
        with bare(), pytest.raises(ValueError, match=message):
            TorchvisionVideo(name, train="lora")
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not of s3d.*lacking"):
        TorchvisionVideo("s3d", weights=str(tmp_path / "other.safetensors"))


def test_offline_the_error_says_how_to_give_a_file(monkeypatch):
    from urllib.error import URLError

    def refuse(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ConnectionError, match="no route to host.*copy their file here"):
        TorchvisionVideo("s3d", weights="KINETICS400_V1")
    with pytest.raises(ValueError, match="give weights: one of KINETICS400_V1"):
        TorchvisionVideo("s3d")
    with bare():
        TorchvisionVideo("s3d")
