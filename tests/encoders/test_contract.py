"""What every encoder must keep. A new encoder needs one entry in CASES and nothing else."""

import copy
import importlib
import math
import pickle
import pkgutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import encoders
from encoders import (
    ActionEncoder,
    AudioTransformer,
    EfficientNetLite,
    Encoder,
    EncoderOutput,
    FrameEncoder,
    HuggingFaceText,
    LogMelEncoder,
    MiniLM,
    OpenClipImage,
    OpenClipText,
    SensorEncoder,
    TextTransformer,
    TimmImage,
    TorchvisionImage,
    TorchvisionVideo,
    ViT,
    Wav2Vec2,
    Whisper,
)
from encoders.base import TrainMode, bare
from encoders.lora import merged
from encoders.picture import FitPicture

sys.path.append(str(Path(__file__).parent))
from media import ACTIONS, SERIES, VIDEOS, tiny_hubert, tiny_video, tiny_whisper
from towers import clip_model, text_folder, timm_model, torchvision_model


def picture(seed: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw)


def sound(seconds: float, hertz: float, rate: int = 16_000) -> tuple[Tensor, int]:
    time = torch.arange(round(seconds * rate)) / rate
    return torch.sin(2 * math.pi * hertz * time)[None], rate


PICTURES = [picture(0, 40, 60), picture(1, 128, 128), picture(2, 7, 300)]
TEXTS = ["a red apple", "", "two dogs run after a yellow ball on the beach"]
SOUNDS = [sound(0.3, 300), sound(1.2, 440, rate=22_050), sound(0.01, 1000)]


class Case(NamedTuple):
    build: Callable[[], Encoder]
    other: Callable[[], Encoder]  # the same weights with another setting
    raws: list[Any]
    modes: dict[TrainMode, Callable[[], Encoder]] = {}  # of a tower with pretrained weights


def modes(build: Callable[..., Encoder], without: str = "") -> dict[TrainMode, Callable]:
    """The tower in each mode of training that it has."""
    return {m: partial(build, train=m) for m in get_args(TrainMode) if m != without}


CASES: dict[type[Encoder], Case] = {
    EfficientNetLite: Case(
        lambda: EfficientNetLite(size=64, grid=2),
        lambda: EfficientNetLite(size=96, grid=2),
        PICTURES,
        modes(partial(EfficientNetLite, size=64, grid=2), without="lora"),
    ),
    MiniLM: Case(
        MiniLM,
        lambda: MiniLM(max_tokens=8),
        TEXTS,
        modes(MiniLM),
    ),
    LogMelEncoder: Case(
        lambda: LogMelEncoder(dim=32),
        lambda: LogMelEncoder(dim=32, max_seconds=2),
        SOUNDS,
    ),
    OpenClipImage: Case(
        lambda: clip_image(),
        lambda: OpenClipImage({**clip_model()[1], "quick_gelu": True}, clip_model()[2]),
        PICTURES,
        modes(lambda train: clip_image(train=train)),
    ),
    OpenClipText: Case(
        lambda: clip_text(),
        lambda: clip_text(max_chars=5),
        TEXTS,
        modes(lambda train: clip_text(train=train)),
    ),
    TimmImage: Case(
        lambda: TimmImage("test_vit", timm_model("test_vit")[1]),
        lambda: squashed(TimmImage("test_vit", timm_model("test_vit")[1])),
        PICTURES,
        modes(lambda train: TimmImage("test_vit", timm_model("test_vit")[1], train)),
    ),
    TorchvisionImage: Case(
        lambda: shufflenet(),
        lambda: squashed(shufflenet()),
        PICTURES,
        modes(lambda train: shufflenet(train=train), without="lora"),
    ),
    ViT: Case(
        lambda: ViT(16, 2, 2, 32),
        lambda: ViT(16, 2, 4, 32),
        PICTURES,
    ),
    HuggingFaceText: Case(
        lambda: HuggingFaceText(text_folder(), 32, 30),
        lambda: HuggingFaceText(text_folder(), 32, 8),
        TEXTS,
        modes(lambda train: HuggingFaceText(text_folder(), 32, 30, train=train)),
    ),
    TextTransformer: Case(
        lambda: TextTransformer(16, 2, 2),
        lambda: TextTransformer(16, 2, 2, max_chars=5),
        TEXTS,
    ),
    Wav2Vec2: Case(
        partial(tiny_hubert, train="full"),
        partial(tiny_hubert, train="full", window_seconds=0.5),
        SOUNDS,
        modes(tiny_hubert),
    ),
    Whisper: Case(
        partial(tiny_whisper, train="full"),
        partial(tiny_whisper, train="full", pool=4),
        SOUNDS,
        modes(tiny_whisper),
    ),
    AudioTransformer: Case(
        lambda: AudioTransformer(dim=32, depth=2, window_seconds=0.5, dropout=0.0),
        lambda: AudioTransformer(dim=32, depth=2, window_seconds=1.0, dropout=0.0),
        SOUNDS,
    ),
    FrameEncoder: Case(
        lambda: FrameEncoder(ViT(16, 2, 2, 32), fps=8.0),
        lambda: FrameEncoder(ViT(16, 2, 2, 32), fps=2.0),
        VIDEOS,
    ),
    TorchvisionVideo: Case(
        partial(tiny_video, train="full"),
        partial(tiny_video, train="full", fps=2.0),
        VIDEOS,
        modes(tiny_video, without="lora"),
    ),
    SensorEncoder: Case(
        lambda: SensorEncoder(3, dim=32),
        lambda: SensorEncoder(3, dim=32, rate=10.0),
        SERIES,
    ),
    ActionEncoder: Case(
        lambda: ActionEncoder(2, (4,), dim=32),
        lambda: ActionEncoder(2, (4,), dim=32, max_steps=20),
        ACTIONS,
    ),
}


def squashed(encoder: Encoder) -> Encoder:
    """With the transform of other weights."""
    encoder.transform = FitPicture(encoder.transform.size)
    return encoder


def clip_image(train: TrainMode = "frozen") -> OpenClipImage:
    _, config, path = clip_model()
    return OpenClipImage(config, path, train)


def clip_text(max_chars: int = 500, train: TrainMode = "frozen") -> OpenClipText:
    _, config, path = clip_model()
    return OpenClipText(config, path, max_chars, train)


def shufflenet(train: TrainMode = "frozen") -> TorchvisionImage:
    name = "shufflenet_v2_x0_5"
    return TorchvisionImage(name, torchvision_model(name)[1], train)


ALL = pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)


@cache
def built(cls: type[Encoder]) -> Encoder:
    torch.manual_seed(0)
    return CASES[cls].build().eval()


def batch(encoder: Encoder, raws: list[Any], padding: int = 0) -> tuple[Tensor, Tensor]:
    samples = [encoder.transform(raw) for raw in raws]
    longest = max(len(sample) for sample in samples) + padding
    mask = torch.stack([torch.arange(longest) < len(sample) for sample in samples])
    samples.append(samples[0].new_zeros(longest, *samples[0].shape[1:]))
    return pad_sequence(samples, batch_first=True)[:-1], mask


def same_bits(got: Tensor, expected: Tensor) -> None:
    """Equal, where there is no value too."""
    torch.testing.assert_close(got, expected, atol=0, rtol=0, equal_nan=True)


def check_shapes(encoder: Encoder, raws: list[Any]) -> None:
    out = encoder(*batch(encoder, raws))
    num_tokens = out.mask.shape[1]
    assert out.values.shape == (len(raws), num_tokens, encoder.dim)
    assert out.position.shape == (len(raws), num_tokens, 3)
    assert out.mask.dtype == torch.bool and out.mask.any(dim=1).all()
    assert out.values.isfinite().all() and out.position.isfinite().all()
    assert (out.values[~out.mask] == 0).all()
    assert (out.position >= 0).all() and (out.position[..., 1:] <= 1).all()
    places = out.position[out.mask.sum(dim=1).argmax()]
    assert len(places.unique(dim=0)) == num_tokens


def check_absent(encoder: Encoder, raws: list[Any]) -> None:
    inputs, mask = batch(encoder, raws)
    mask[1] = False
    out = encoder(inputs, mask)
    assert not out.mask[1].any() and out.mask[0].any() and out.mask[2].any()
    assert (out.values[1] == 0).all() and out.values.isfinite().all()
    nothing = encoder(inputs, torch.zeros_like(mask))
    assert not nothing.mask.any() and (nothing.values == 0).all()
    assert nothing.values.shape == out.values.shape


def check_independence(encoder: Encoder, raws: list[Any]) -> None:
    """A sample alone gives the tokens it gives beside others under padding full of rubbish."""
    inputs, mask = batch(encoder, raws, padding=5)
    inputs[~mask] = 9
    together = encoder(inputs, mask)
    for index, raw in enumerate(raws):
        alone = encoder(*batch(encoder, [raw]))
        real, real_alone = together.mask[index], alone.mask[0]
        assert int(real.sum()) == int(real_alone.sum())
        torch.testing.assert_close(
            together.values[index][real], alone.values[0][real_alone], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            together.position[index][real], alone.position[0][real_alone], atol=0, rtol=0
        )


def check_gradients(encoder: Encoder, raws: list[Any]) -> None:
    """Each parameter that should learn does; a frozen encoder stays in eval mode."""
    encoder = copy.deepcopy(encoder).train()
    inputs, mask = batch(encoder, raws)
    mask[1] = False  # an absent sample must not poison the gradients
    held = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    adapters = any("lora_" in name for name, _ in encoder.named_parameters())
    if not encoder.frozen and not adapters:
        encoder.requires_grad_(True)  # what is held must be what no token depends on
    out = encoder(inputs, mask)
    if encoder.frozen:
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        assert not out.values.requires_grad
        return
    assert all(module.training for module in encoder.modules())
    (out.values * torch.randn_like(out.values)).sum().backward()
    for name, parameter in encoder.named_parameters():
        learns = parameter.grad is not None
        assert learns == (("lora_" in name) if adapters else (name not in held)), name
        assert not learns or parameter.grad.isfinite().all(), name
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert any((grad != 0).any() for grad in grads)


def test_every_encoder_has_a_case():
    for module in pkgutil.iter_modules(encoders.__path__):
        importlib.import_module(f"encoders.{module.name}")
    ours = {cls for cls in Encoder.__subclasses__() if cls.__module__.startswith("encoders.")}
    assert ours == set(CASES)
    assert not any(cls.__subclasses__() for cls in ours), "encoders are leaves"


@ALL
@pytest.mark.parametrize("check", [check_shapes, check_absent, check_independence, check_gradients])
def test_contract(cls: type[Encoder], check: Callable[[Encoder, list[Any]], None]):
    check(built(cls), CASES[cls].raws)


@ALL
def test_frozen_encoder_passes_the_gradient_check(cls: type[Encoder]):
    encoder = copy.deepcopy(built(cls))
    encoder.freeze()
    check_gradients(encoder, CASES[cls].raws)


MODES = [(cls, mode) for cls, case in CASES.items() for mode in case.modes]


@pytest.mark.parametrize(("cls", "mode"), MODES, ids=lambda p: getattr(p, "__name__", p))
def test_gradients_only_where_train_says(cls: type[Encoder], mode: TrainMode):
    encoder = CASES[cls].modes[mode]()
    assert encoder.frozen == (mode == "frozen")
    check_gradients(encoder, CASES[cls].raws)
    adapted = any("lora_" in name for name, _ in encoder.named_parameters())
    assert adapted == (mode == "lora")


@pytest.mark.parametrize(("cls", "mode"), MODES, ids=lambda p: getattr(p, "__name__", p))
def test_modes_start_at_the_same_tokens_but_scratch(cls: type[Encoder], mode: TrainMode):
    frozen, encoder = CASES[cls].modes["frozen"](), CASES[cls].modes[mode]().eval()
    inputs, mask = batch(frozen, CASES[cls].raws)
    expected, got = frozen(inputs, mask).values, encoder(inputs, mask).values
    same = torch.allclose(got, expected, atol=1e-5 * float(expected.abs().max()))
    assert same == (mode != "scratch")


@pytest.mark.parametrize(("cls", "mode"), MODES, ids=lambda p: getattr(p, "__name__", p))
def test_bare_towers_read_no_weights_and_are_filled(cls: type[Encoder], mode: TrainMode):
    encoder = CASES[cls].modes[mode]().eval()
    with bare():
        copied = CASES[cls].modes[mode]().eval()
    copied.load_state_dict(encoder.state_dict())
    assert copied.frozen == encoder.frozen
    assert copied.fingerprint() == encoder.fingerprint()
    inputs, mask = batch(copied, CASES[cls].raws)
    assert torch.equal(copied(inputs, mask).values, encoder(inputs, mask).values)


LORA = [cls for cls, mode in MODES if mode == "lora"]


@pytest.mark.parametrize("cls", LORA, ids=lambda cls: cls.__name__)
def test_adapters_merge_into_the_frozen_tower(cls: type[Encoder]):
    encoder = CASES[cls].modes["lora"]()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    inputs, mask = batch(encoder, CASES[cls].raws)
    with torch.no_grad():
        expected = encoder.eval()(inputs, mask).values
    plain = CASES[cls].modes["frozen"]()
    assert not torch.allclose(plain(inputs, mask).values, expected, atol=1e-3)
    plain.load_state_dict(merged(encoder, inputs, mask).state_dict())
    got, scale = plain(inputs, mask).values, float(expected.abs().max().clamp_min(1))
    torch.testing.assert_close(got, expected, atol=1e-5 * scale, rtol=0)


def kept_bytes(encoder: Encoder, raws: list[Any]) -> tuple[int, dict[str, Tensor]]:
    """Bytes that the forward pass keeps for the backward pass, and the gradients."""
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            storages[place] = tensor.untyped_storage().nbytes()
        return tensor

    inputs, mask = batch(encoder, raws)
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = encoder(inputs, mask).values.square().sum()
    loss.backward()
    grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return sum(storages.values()), grads


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("cls", [OpenClipImage, OpenClipText, TimmImage, MiniLM, HuggingFaceText])
def test_checkpointed_gradients_are_the_same_in_less_memory(cls: type[Encoder], mode: TrainMode):
    case = CASES[cls]
    plain = case.modes[mode]().train()
    recomputing = copy.deepcopy(plain)
    recomputing.checkpoint_gradients()
    size, expected = kept_bytes(plain, case.raws * 4)
    less, grads = kept_bytes(recomputing, case.raws * 4)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4)
    assert recomputing.fingerprint() == plain.fingerprint()
    assert less < 0.7 * size, (less, size)


def test_towers_without_layers_to_recompute_say_so():
    with pytest.raises(ValueError, match="LogMelEncoder cannot recompute"):
        LogMelEncoder(dim=32).checkpoint_gradients()


@pytest.mark.parametrize("cls", [c for c in CASES if CASES[c].modes], ids=lambda c: c.__name__)
def test_other_modes_are_refused(cls: type[Encoder]):
    build: Any = CASES[cls].modes["frozen"]
    with pytest.raises(ValueError, match="choose one of frozen, lora, full, scratch"):
        build(train="half")


def test_frozen_encoder_lets_no_gradient_through():
    encoder = copy.deepcopy(built(LogMelEncoder))
    inputs, mask = batch(encoder, SOUNDS)
    assert encoder(inputs.requires_grad_(), mask).values.requires_grad
    encoder.freeze()
    assert not encoder(inputs, mask).values.requires_grad


@ALL
def test_eval_mode_is_deterministic(cls: type[Encoder]):
    encoder = built(cls)
    inputs, mask = batch(encoder, CASES[cls].raws)
    first, second = encoder(inputs, mask), encoder(inputs, mask)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@ALL
def test_state_round_trip(cls: type[Encoder]):
    encoder = built(cls)
    with bare():
        copied = CASES[cls].build().eval()
    assert copied.fingerprint() != encoder.fingerprint()
    copied.load_state_dict(encoder.state_dict())
    assert copied.fingerprint() == encoder.fingerprint()
    inputs, mask = batch(copied, CASES[cls].raws)
    assert torch.equal(copied(inputs, mask).values, encoder(inputs, mask).values)


@ALL
def test_fingerprint_follows_settings_and_weights(cls: type[Encoder]):
    encoder, other = built(cls), CASES[cls].other().eval()
    other.load_state_dict(encoder.state_dict())
    assert other.fingerprint() != encoder.fingerprint()
    changed = copy.deepcopy(encoder)
    assert changed.fingerprint() == encoder.fingerprint()
    with torch.no_grad():
        next(changed.parameters())[0] += 1e-3
    assert changed.fingerprint() != encoder.fingerprint()


@ALL
def test_transform_travels_to_a_data_worker(cls: type[Encoder]):
    transform = built(cls).transform
    travelled = pickle.loads(pickle.dumps(transform))
    for raw in CASES[cls].raws:
        assert len(transform(raw)) >= 1
        same_bits(travelled(raw), transform(raw))


@ALL
def test_runs_under_bfloat16_autocast(cls: type[Encoder]):
    encoder = built(cls)
    inputs, mask = batch(encoder, CASES[cls].raws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = encoder(inputs, mask).values.float()
    full = encoder(inputs, mask).values
    assert (low - full).norm() < 0.1 * full.norm()


@ALL
def test_learns_under_bfloat16_autocast(cls: type[Encoder]):
    case = CASES[cls]
    encoder = case.modes["full"]() if case.modes else case.build()
    inputs, mask = batch(encoder, case.raws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = encoder.train()(inputs, mask).values.float().square().sum()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@ALL
def test_augment_fits_where_transform_does(cls: type[Encoder]):
    encoder = built(cls)
    travelled = pickle.loads(pickle.dumps(encoder.augment))
    for raw in CASES[cls].raws:
        torch.manual_seed(0)
        first = encoder.augment(raw)
        torch.manual_seed(0)
        same_bits(travelled(raw), first)  # the global generator decides
        plain = encoder.transform(raw)
        assert first.dtype == plain.dtype and first.shape[1:] == plain.shape[1:]


@ALL
def test_mask_of_another_shape_or_type_is_refused(cls: type[Encoder]):
    encoder = built(cls)
    inputs, mask = batch(encoder, CASES[cls].raws)
    with pytest.raises(ValueError, match="bool mask"):
        encoder(inputs, mask[:1])
    with pytest.raises(ValueError, match="bool mask"):
        encoder(inputs, mask.float())


class Faulty(Encoder):
    """Keeps the contract but for one fault: the control that the checks see it."""

    def __init__(self, fault: str) -> None:
        super().__init__("sound", 1, CASES[LogMelEncoder].build().transform)
        self.weight = nn.Parameter(torch.ones(1))
        self.fault = fault
        self.frozen = fault == "frozen in name only"

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        values = inputs.mean(dim=-1, keepdim=True) * self.weight
        if self.fault == "sees neighbours":
            values = values - values.mean(dim=0)
        if self.fault == "sees padding":
            values = values - values.mean(dim=1, keepdim=True)
        if self.fault == "detached":
            values = values.detach()
        if self.fault == "leaves padding":
            values = values + 1
        else:
            values = values.masked_fill(~mask.unsqueeze(-1), 0)
        if self.fault == "not finite without input":
            values = values / mask.sum(dim=1).view(-1, 1, 1)
        position = torch.zeros(*mask.shape, 3)
        position[..., 0] = torch.arange(mask.shape[1]) * 0.01
        return EncoderOutput(values, mask, position)


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (check_shapes, "leaves padding"),
        (check_absent, "not finite without input"),
        (check_independence, "sees neighbours"),
        (check_independence, "sees padding"),
        (check_gradients, "detached"),
        (check_gradients, "frozen in name only"),
    ],
)
def test_control_each_check_sees_its_fault(check: Callable, fault: str):
    check(Faulty("none"), SOUNDS)
    with pytest.raises((AssertionError, RuntimeError)):
        check(Faulty(fault), SOUNDS)


def test_fingerprint_refuses_a_transform_that_hides_its_settings():
    encoder = Faulty("none")
    encoder.transform = lambda raw: raw
    with pytest.raises(ValueError, match="make it a dataclass"):
        encoder.fingerprint()
