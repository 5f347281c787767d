import pytest
import torch

from fusion.tokens import Tokens, concat


def make(num_tokens: int, modality: int, batch: int = 2, dim: int = 4) -> Tokens:
    return Tokens(
        values=torch.randn(batch, num_tokens, dim),
        mask=torch.rand(batch, num_tokens) > 0.5,
        position=torch.rand(batch, num_tokens, 3),
        modality=torch.full((num_tokens,), modality),
    )


def test_concat_keeps_order_and_every_field() -> None:
    image, text = make(3, 0), make(5, 1)
    both = concat([image, text])
    assert both.values.shape == (2, 8, 4)
    assert both.modality.tolist() == [0] * 3 + [1] * 5
    for name in ("values", "mask", "position"):
        assert torch.equal(getattr(both, name)[:, :3], getattr(image, name))
        assert torch.equal(getattr(both, name)[:, 3:], getattr(text, name))


def test_concat_of_one_is_the_same() -> None:
    only = make(3, 2)
    for got, want in zip(concat([only]), only, strict=True):
        assert torch.equal(got, want)


def test_concat_expands_modality_when_one_part_has_it_per_sample() -> None:
    per_sample = make(2, 0)._replace(modality=torch.tensor([[0, 1], [2, 3]]))
    joined = concat([per_sample, make(1, 7)])
    assert joined.modality.tolist() == [[0, 1, 7], [2, 3, 7]]


def test_concat_refuses_nothing_and_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one modality"):
        concat([])
    for other in (make(3, 1, dim=5), make(3, 1, batch=3)):
        with pytest.raises(ValueError, match="one batch size and one width"):
            concat([make(3, 0), other])
