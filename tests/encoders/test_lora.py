import sys

import pytest
import torch
from torch import Tensor, nn

from encoders import EfficientNetLite, Encoder, EncoderOutput, MiniLM
from encoders.base import bare
from encoders.lora import merged
from encoders.picture import FitPicture


class Attending(Encoder):
    """A toy with an attention layer whose projections are no layers of their own."""

    def __init__(self, train: str = "lora") -> None:
        super().__init__("toy", 8, FitPicture((1, 1)))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 8)
        self.set_train_mode(train)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        mixed, _ = self.attention(inputs, inputs, inputs, need_weights=False)
        return EncoderOutput(self.linear(mixed), mask, torch.zeros(*mask.shape, 3))


INPUTS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 5, dtype=torch.bool)


def trained() -> Attending:
    """A few steps of training, so that the adapters do something."""
    torch.manual_seed(0)
    encoder = Attending()
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        encoder(INPUTS, MASK).values.square().mean().backward()
        optimizer.step()
    return encoder


def test_only_adapters_learn_and_the_weights_stay():
    torch.manual_seed(0)
    before = Attending(train="full").state_dict()
    encoder = trained()
    after = {name.replace("base_layer.", ""): v for name, v in encoder.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    learned = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert learned and all("lora_" in name for name in learned)
    assert any("attention" in name for name in learned) and any("linear" in n for n in learned)


def test_the_same_input_gives_the_same_bits_again():
    encoder = trained().eval()
    first = encoder(INPUTS, MASK).values
    assert all(torch.equal(encoder(INPUTS, MASK).values, first) for _ in range(5))


def test_merged_tower_gives_the_same_tokens_in_a_plain_tower():
    encoder = trained().eval()
    expected = encoder(INPUTS, MASK).values
    plain = merged(encoder, INPUTS, MASK)
    assert plain.frozen and not any("lora" in name for name in plain.state_dict())
    torch.testing.assert_close(plain(INPUTS, MASK).values, expected, atol=1e-5, rtol=0)
    assert torch.equal(encoder(INPUTS, MASK).values, expected)  # the original is as it was
    frozen = Attending(train="frozen")
    frozen.load_state_dict(plain.state_dict())
    assert torch.equal(frozen(INPUTS, MASK).values, plain(INPUTS, MASK).values)
    start = Attending(train="frozen")
    start.load_state_dict(
        {
            n.replace("base_layer.", ""): v
            for n, v in encoder.state_dict().items()
            if "lora" not in n
        }
    )
    assert (start(INPUTS, MASK).values - expected).abs().max() > 1e-2  # the adapters matter


def test_a_merge_that_changes_the_tokens_is_refused(monkeypatch):
    import peft

    def other_sign(self, adapter):
        return -original(self, adapter)

    original = peft.tuners.lora.Linear.get_delta_weight
    encoder = trained()
    monkeypatch.setattr(peft.tuners.lora.Linear, "get_delta_weight", other_sign)
    with pytest.raises(ValueError, match="Merged adapters change the tokens of Attending by"):
        merged(encoder, INPUTS, MASK)
    wrong = merged(encoder, INPUTS, MASK, tol=float("inf"))  # the control: with the guard off
    assert (wrong(INPUTS, MASK).values - encoder.eval()(INPUTS, MASK).values).abs().max() > 1e-3


def test_a_tower_without_adapters_has_nothing_to_merge():
    with pytest.raises(ValueError, match="no adapters to merge"):
        merged(Attending(train="frozen"), INPUTS, MASK)


def test_under_two_per_cent_of_minilm_learns():
    with bare():
        encoder = MiniLM(train="lora")
    learning = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert 0 < learning < 0.02 * sum(p.numel() for p in encoder.parameters())


def test_a_tower_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match=r"EfficientNetLite has no .* choose train: full"):
        EfficientNetLite(train="lora")


def test_a_missing_peft_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"peft.*'assim\[lora\]'"):
        Attending()
