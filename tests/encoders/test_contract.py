"""What every encoder must keep. A new encoder needs one entry in CASES and nothing else."""

import copy
import importlib
import math
import pickle
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import encoders
from encoders import (
    EfficientNetLite,
    Encoder,
    EncoderOutput,
    LogMelEncoder,
    MiniLM,
    OpenClipImage,
    OpenClipText,
)

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 64, "image_size": 32, "patch_size": 8},
    "text_cfg": {"layers": 2, "width": 32, "heads": 2, "context_length": 20},
}


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
    bare: Callable[[], Encoder]  # the same architecture, to be filled by a state dict
    other: Callable[[], Encoder]  # the same weights with another setting
    raws: list[Any]


CASES: dict[type[Encoder], Case] = {
    EfficientNetLite: Case(
        lambda: EfficientNetLite(size=64, grid=2),
        lambda: EfficientNetLite(size=64, grid=2, pretrained=False),
        lambda: EfficientNetLite(size=96, grid=2),
        PICTURES,
    ),
    MiniLM: Case(
        MiniLM,
        lambda: MiniLM(pretrained=False),
        lambda: MiniLM(max_tokens=8),
        TEXTS,
    ),
    LogMelEncoder: Case(
        lambda: LogMelEncoder(dim=32),
        lambda: LogMelEncoder(dim=32),
        lambda: LogMelEncoder(dim=32, max_seconds=2),
        SOUNDS,
    ),
    OpenClipImage: Case(
        lambda: OpenClipImage(TINY_CLIP),
        lambda: OpenClipImage(TINY_CLIP),
        lambda: OpenClipImage({**TINY_CLIP, "quick_gelu": True}),
        PICTURES,
    ),
    OpenClipText: Case(
        lambda: OpenClipText(TINY_CLIP),
        lambda: OpenClipText(TINY_CLIP),
        lambda: OpenClipText(TINY_CLIP, max_chars=5),
        TEXTS,
    ),
}

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
    """Each parameter learns, or, when frozen, none does and eval mode stays on."""
    encoder = copy.deepcopy(encoder).train()
    inputs, mask = batch(encoder, raws)
    mask[1] = False  # an absent sample must not poison the gradients
    out = encoder(inputs, mask)
    if encoder.frozen:
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        assert not out.values.requires_grad
    else:
        assert all(module.training for module in encoder.modules())
        (out.values * torch.randn_like(out.values)).sum().backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert any((parameter.grad != 0).any() for parameter in encoder.parameters())


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
    encoder, copied = built(cls), CASES[cls].bare().eval()
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
        assert torch.equal(travelled(raw), transform(raw))


@ALL
def test_runs_under_bfloat16_autocast(cls: type[Encoder]):
    encoder = built(cls)
    inputs, mask = batch(encoder, CASES[cls].raws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = encoder(inputs, mask).values.float()
    full = encoder(inputs, mask).values
    assert (low - full).norm() < 0.1 * full.norm()


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
