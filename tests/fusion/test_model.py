"""Above all that no embedding has seen what it is compared with."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fusion.model
from encoders.base import Encoder, EncoderOutput
from fusion.alignment import align_model, paired_means, ridge_regression
from fusion.block import FusionBlock
from fusion.evaluation import embed_subsets
from fusion.model import FusionModel
from fusion.projection import unit_means
from fusion.subsets import all_directions

NAMES = ("image", "text", "audio")
DIRECTIONS = all_directions(NAMES)


class Toy(Encoder):
    """One linear layer per token; remembers how many samples it was given."""

    def __init__(self, modality: str, dim: int = 8) -> None:
        super().__init__(modality, dim, torch.as_tensor)
        self.linear = nn.Linear(5, dim)
        self.seen: list[int] = []

    def forward(self, inputs, mask):
        self.seen.append(len(inputs))
        position = torch.arange(inputs.shape[1]).float()[:, None].expand(*inputs.shape[:2], 3)
        return EncoderOutput(self.linear(inputs) * mask.unsqueeze(-1), mask, position / 10)


def make_model(trained: bool = True, **options) -> FusionModel:
    """A model in eval mode; `trained` moves every weight off its start, the zero ones too."""
    model = FusionModel(
        {name: Toy(name) for name in NAMES},
        dim=8,
        block=lambda dim: FusionBlock(dim, num_heads=2, num_slots=3),
        hidden=16,
        **options,
    )
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_batch(num: int = 6, lengths: int = 4) -> dict:
    """Every sample has every modality, of 1 to `lengths` inputs."""
    inputs = {name: torch.randn(num, lengths, 5) for name in NAMES}
    counts = {name: torch.randint(1, lengths + 1, (num, 1)) for name in NAMES}
    masks = {name: torch.arange(lengths) < counts[name] for name in NAMES}
    return {"inputs": inputs, "masks": masks, "positions": {}, "group_id": torch.arange(num)}


def rows_of(batch: dict, rows) -> dict:
    inputs = {name: values[rows] for name, values in batch["inputs"].items()}
    masks = {name: mask[rows] for name, mask in batch["masks"].items()}
    return {**batch, "inputs": inputs, "masks": masks, "group_id": batch["group_id"][rows]}


def with_noise(batch: dict, names) -> dict:
    """The batch with other values, lengths and presence of some modalities."""
    inputs, masks = dict(batch["inputs"]), dict(batch["masks"])
    for name in names:
        inputs[name] = 100 * torch.randn_like(inputs[name])
        masks[name] = torch.rand(masks[name].shape) > 0.5
    return {**batch, "inputs": inputs, "masks": masks}


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_a_query_does_not_know_its_target(direction):
    model, batch = make_model(num_blocks=2), make_batch()
    other = with_noise(batch, direction.target)
    assert model.embed(batch, direction.query).equal(model.embed(other, direction.query))
    # As training does it: all modalities encoded together, each side fused by itself.
    tokens, changed = (model.encode(b, NAMES) for b in (batch, other))
    query, after = (
        model.embed_tokens({n: t[n] for n in direction.query}) for t in (tokens, changed)
    )
    assert query.equal(after)
    # As validation does it.
    before, after = (embed_subsets(model, [b], list(direction))[0] for b in (batch, other))
    assert before[direction.query].rows.equal(after[direction.query].rows)
    assert not before[direction.target].rows.equal(after[direction.target].rows)  # control


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_no_gradient_leads_from_a_query_to_its_target(direction):
    model, batch = make_model(), make_batch()
    for name in NAMES:
        batch["inputs"][name].requires_grad_()
    tokens = model.encode(batch, NAMES)
    row = model.embed_tokens({name: tokens[name] for name in direction.query})
    (row * torch.randn_like(row)).sum().backward()
    for name in NAMES:
        grad = batch["inputs"][name].grad
        if name in direction.query:
            assert grad.abs().sum() > 0
        else:
            assert grad is None or not grad.any()


def test_a_query_that_holds_its_target_is_noticed():
    model, batch = make_model(), make_batch()
    leaky = model.embed(batch, ("image", "text"))
    assert not leaky.equal(model.embed(with_noise(batch, ("text",)), ("image", "text")))


@pytest.mark.parametrize("together", [256, 3])
@pytest.mark.parametrize("names", [("text",), ("image", "audio"), NAMES])
def test_a_sample_does_not_depend_on_its_batch(names, together, monkeypatch):
    monkeypatch.setattr(fusion.model, "FUSED_TOGETHER", together)
    model, batch = make_model(), make_batch(10)
    batch["masks"]["audio"][::3] = False
    rows = model.embed(batch, names)
    alone = torch.cat([model.embed(rows_of(batch, [i]), names) for i in range(10)])
    torch.testing.assert_close(rows, alone, atol=1e-6, rtol=0)
    order = torch.randperm(10)
    turned = model.embed(rows_of(batch, order), names)
    torch.testing.assert_close(rows[order], turned, atol=1e-6, rtol=0)
    assert (rows @ rows.T).triu(1).max() < 0.9999  # samples do differ


def test_rows_are_unit_and_zero_without_any_token():
    model, batch = make_model(), make_batch()
    batch["masks"]["audio"][:2] = False
    norms = model.embed(batch, ("audio",)).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([0.0, 0, 1, 1, 1, 1]), atol=1e-6, rtol=0)
    batch["masks"]["audio"][:] = False
    assert not model.embed(batch, ("audio",)).any()
    torch.testing.assert_close(model.embed(batch).norm(dim=1), torch.ones(6), atol=1e-6, rtol=0)


def test_an_absent_modality_is_as_if_never_asked_for():
    model, batch = make_model(), make_batch()
    batch["masks"]["audio"][:3] = False
    pair, image = model.embed(batch, ("image", "audio")), model.embed(batch, ("image",))
    torch.testing.assert_close(pair[:3], image[:3], atol=1e-6, rtol=0)
    assert not torch.isclose(pair[3:], image[3:], atol=1e-3).all(dim=1).any()


def test_absent_samples_cost_nothing():
    model, batch = make_model(), make_batch()
    batch["masks"]["audio"][[0, 2, 3, 5]] = False
    model.embed(batch)
    assert [model.encoders[name].seen for name in NAMES] == [[6], [6], [2]]
    tokens = model.encode(batch, ("audio",))["audio"]
    assert tokens.mask.any(1).tolist() == [False, True, False, False, True, False]
    assert not tokens.values[~tokens.mask].any()


def test_none_is_all_that_the_batch_has():
    model, batch = make_model(), make_batch()
    del batch["inputs"]["text"]
    assert model.embed(batch).equal(model.embed(batch, ("image", "audio")))
    assert model.modalities == NAMES


def test_cached_tokens_are_not_encoded_again():
    model, batch = make_model(), make_batch()
    expected = model.embed(batch, ("image",))
    out = model.encoders["image"](batch["inputs"]["image"], batch["masks"]["image"])
    ready = {"inputs": {"image": out.values}, "masks": {"image": out.mask}}
    model.encoders["image"].seen.clear()
    rows = model.embed({**ready, "positions": {"image": out.position}})
    assert rows.equal(expected) and not model.encoders["image"].seen


@pytest.mark.parametrize("name", ["video", "text"])
def test_an_unknown_modality(name):
    batch = make_batch()
    del batch["inputs"]["text"]
    with pytest.raises(ValueError, match=f"'{name}'; this model has image, text, audio and this"):
        make_model().embed(batch, (name,))


@pytest.mark.parametrize("options", [{"encoders": {}}, {"num_blocks": 0}])
def test_a_model_of_nothing(options):
    with pytest.raises(ValueError, match="at least one of each"):
        FusionModel(**{"encoders": {"text": Toy("text")}, "dim": 8} | options)


def test_a_new_aligned_model_is_the_closed_form_map():
    model, parts = make_model(trained=False), []
    for encoder in model.encoders.values():
        encoder.freeze()
    for _ in range(3):
        batch = make_batch(20)
        with torch.no_grad():
            outs = {n: model.encoders[n](batch["inputs"][n], batch["masks"][n]) for n in NAMES}
        tokens = {name: out.values for name, out in outs.items()}
        places = {name: out.position for name, out in outs.items()}
        parts.append({**batch, "inputs": tokens, "positions": places, "weight": torch.ones(20)})
    align_model(model, parts, "text", strength=0.3)
    fitted = ridge_regression(*paired_means(parts, "image", "text")[:3], strength=0.3)
    held = parts[-1]
    means = {name: unit_means(held["inputs"][name], held["masks"][name]) for name in NAMES}
    image = F.normalize(fitted(means["image"]), dim=-1)
    text = F.normalize(means["text"] - fitted.target_mean, dim=-1)
    torch.testing.assert_close(model.embed(held, ("image",)), image, atol=2e-6, rtol=0)
    torch.testing.assert_close(model.embed(held, ("text",)), text, atol=2e-6, rtol=0)
    both = F.normalize(image + text, dim=-1)
    torch.testing.assert_close(model.embed(held, ("image", "text")), both, atol=2e-6, rtol=0)
