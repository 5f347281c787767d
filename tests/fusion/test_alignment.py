import pytest
import torch
from torch import nn

from encoders.base import Encoder, EncoderOutput
from fusion.alignment import Alignment, align_model, paired_means, ridge_regression
from fusion.model import FusionModel
from fusion.projection import unit_means


class Toy(Encoder):
    def __init__(self, modality: str, dim: int, frozen: bool) -> None:
        super().__init__(modality, dim, torch.as_tensor)
        self.linear = nn.Linear(dim, dim)
        if frozen:
            self.freeze()

    def forward(self, inputs, mask):
        return EncoderOutput(self.linear(inputs), mask, torch.zeros(*mask.shape, 3))


def make_data(num: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = torch.randint(1, 4, (num,)).double()
    return torch.randn(num, 5).double() + 2, torch.randn(num, 3).double() - 1, weight


def test_ridge_is_least_squares_on_augmented_data():
    x, y, weight = make_data()
    fitted = ridge_regression(x, y, weight, strength=0.7)
    share = (weight / weight.sum()).unsqueeze(1)
    x_mean, y_mean = (share * x).sum(0), (share * y).sum(0)
    root = weight.sqrt().unsqueeze(1)
    left = torch.cat([root * (x - x_mean), 0.7**0.5 * torch.eye(5).double()])
    right = torch.cat([root * (y - y_mean), torch.zeros(5, 3).double()])
    torch.testing.assert_close(fitted.weight, torch.linalg.lstsq(left, right).solution.T)
    torch.testing.assert_close(fitted.source_mean, x_mean)
    torch.testing.assert_close(fitted.target_mean, y_mean)
    torch.testing.assert_close(fitted(x), (x - x_mean) @ fitted.weight.T)


def test_ridge_is_a_minimum():
    x, y, weight = make_data()
    fitted = ridge_regression(x, y, weight)
    free = fitted.weight.clone().requires_grad_()
    error = (fitted._replace(weight=free)(x) - (y - fitted.target_mean)).square().sum(1)
    ((weight * error).sum() + free.square().sum()).backward()
    assert free.grad.abs().max() < 1e-10


def test_weights_are_repeated_rows():
    x, y, weight = make_data()
    times = weight.long()
    repeated = (x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    one = ridge_regression(*repeated, torch.ones(int(times.sum())))
    for got, expected in zip(ridge_regression(x, y, weight), one, strict=True):
        torch.testing.assert_close(got, expected)
    assert not torch.allclose(one.weight, ridge_regression(x, y, torch.ones(40)).weight)


def test_ridge_keeps_the_dtype():
    x, y, weight = make_data()
    assert {t.dtype for t in ridge_regression(x.float(), y, weight)} == {torch.float32}


def test_ridge_errors():
    x, y, weight = make_data()
    for wrong in [(x[1:], y, weight), (x, y, weight[1:]), (x[:0], y[:0], weight[:0])]:
        with pytest.raises(ValueError, match="one of each per sample"):
            ridge_regression(*wrong)
    with pytest.raises(ValueError, match="positive strength"):
        ridge_regression(x, y, weight, strength=0)
    with pytest.raises(ValueError, match="finite"):
        ridge_regression(x, y * torch.inf, weight)


def make_batch(num: int = 12) -> dict:
    masks = {"image": torch.rand(num, 3) > 0.3, "text": torch.rand(num, 4) > 0.5}
    masks["image"][0] = masks["text"][1] = False
    masks["image"][2:, 0] = masks["text"][2:, 0] = True
    inputs = {"image": torch.randn(num, 3, 6), "text": torch.randn(num, 4, 8)}
    inputs = {name: values * masks[name].unsqueeze(-1) for name, values in inputs.items()}
    weight, group_id = torch.rand(num) + 0.1, torch.randperm(10**6)[:num]
    return {"inputs": inputs, "masks": masks, "weight": weight, "group_id": group_id}


def test_paired_means_leaves_out_samples_that_lack_either():
    batches = [make_batch(), make_batch()]
    source, target, weight, group_id = paired_means(batches, "image", "text")
    assert group_id.equal(torch.cat([batch["group_id"][2:] for batch in batches]))
    assert source.shape == (20, 6) and target.shape == (20, 8)
    assert weight.equal(torch.cat([batch["weight"][2:] for batch in batches]))
    expected = unit_means(batches[1]["inputs"]["text"], batches[1]["masks"]["text"])
    torch.testing.assert_close(target[10:], expected[2:])


def make_model(image_frozen: bool = True, text_frozen: bool = True) -> FusionModel:
    encoders = {"image": Toy("image", 6, image_frozen), "text": Toy("text", 8, text_frozen)}
    return FusionModel(encoders, dim=8, hidden=8)


def test_align_model():
    model, batches = make_model(), [make_batch(), make_batch()]
    align_model(model, batches, "text", strength=0.5)
    source, target, weight, _ = paired_means(batches, "image", "text")
    fitted = ridge_regression(source, target, weight / weight.max(), 0.5)
    torch.testing.assert_close(model.projection("image").linear.weight, fitted.weight)
    torch.testing.assert_close(model.projection("image").center, fitted.source_mean)
    assert model.projection("text").linear.weight.equal(torch.eye(8))
    torch.testing.assert_close(model.projection("text").center, fitted.target_mean)


def test_an_aligned_model_is_the_regression_until_it_trains():
    model, batch = make_model(), make_batch()
    batch["positions"] = {name: torch.zeros(*m.shape, 3) for name, m in batch["masks"].items()}

    def distance() -> torch.Tensor:
        tokens = model.encode(batch, ["image"])["image"]
        return (model.fuse({"image": tokens}).tokens.values - tokens.values).abs().max()

    assert distance() > 0.1  # a new block moves tokens
    align_model(model, [batch], "text")
    assert distance() == 0


def test_encoders_that_train_are_left_alone():
    model = make_model(image_frozen=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    align_model(model, [make_batch()], "text")
    for name, value in model.projection("image").state_dict().items():
        assert value.equal(before[f"projections.image.{name}"])


@pytest.mark.parametrize("reference", ["image", "audio"])
def test_a_reference_must_have_the_width_of_the_model(reference):
    with pytest.raises(ValueError, match=f"Cannot align to '{reference}'"):
        align_model(make_model(), [make_batch()], reference)


def test_a_reference_must_be_pretrained():
    with pytest.raises(ValueError, match="Cannot align to 'text'"):
        align_model(make_model(text_frozen=False), [make_batch()], "text")


def test_alignment_starts_at_the_closed_form_and_lowers_the_loss_from_there():
    torch.manual_seed(0)
    model, batches, scale = make_model(), [make_batch(60)], torch.tensor(1.0, requires_grad=True)
    expected = make_model()
    align_model(expected, batches, "text", strength=0.3)
    align = Alignment("text", num_steps=60, batch_size=40, lr=1e-2)
    losses = torch.stack(list(align.fit(model, batches, scale)))
    assert losses[-10:].mean() < losses[:10].mean() - 0.1
    for name in ("image", "text"):
        projection = model.projection(name)
        assert projection.linear.weight.equal(expected.projection(name).linear.weight)
        assert projection.mlp[1].shrink.weight.any()
        assert not any(p.requires_grad for p in projection.mlp.parameters())
        assert not projection.mlp.training


def test_without_steps_alignment_is_the_closed_form():
    model = make_model()
    assert not list(Alignment("text", num_steps=0).fit(model, [make_batch()], torch.tensor(1.0)))
    assert not model.projection("image").mlp[1].shrink.weight.any()


def test_a_pretrained_tower_that_trains_is_aligned_by_its_own_tokens_and_goes_on_training():
    model, batches = make_model(image_frozen=False), [make_batch(), make_batch(70)]
    encoder = model.encoders["image"]
    encoder.pretrained = True
    encoded = []
    for batch in batches:
        mask = batch["masks"]["image"]
        values = encoder(batch["inputs"]["image"], mask).values.detach()
        encoded.append({**batch, "inputs": {**batch["inputs"], "image": values}})
    source, target, weight, _ = paired_means(encoded, "image", "text")
    fitted = ridge_regression(source, target, weight / weight.max(), 0.3)
    list(Alignment("text", num_steps=2).fit(model, batches, torch.tensor(1.0, requires_grad=True)))
    torch.testing.assert_close(model.projection("image").linear.weight, fitted.weight)
    assert encoder.training and all(p.requires_grad for p in encoder.parameters())
    assert all(p.requires_grad for p in model.projection("image").mlp.parameters())
    assert not any(p.requires_grad for p in model.projection("text").mlp.parameters())


def test_alignment_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="batch_size >= 2"):
        Alignment("text", batch_size=1)
