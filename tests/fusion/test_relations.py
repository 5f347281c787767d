import dataclasses
import inspect
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fusion.relations
from fusion.relations import (
    And,
    Causal,
    CrossModality,
    Earlier,
    Edges,
    Everyone,
    Fixed,
    Not,
    Or,
    Rule,
    SameModality,
    Strided,
    TimeWindow,
    Window,
    block_mask,
    density,
    edge_list,
    longest_chain,
)
from fusion.tokens import Place

RULES: list[Rule] = [
    Everyone(),
    Causal(),
    Earlier(),
    Window(2),
    Strided(3),
    Fixed(3),
    Edges([(0, 3), (3, 1), (7, 7), (2, 40)]),
    SameModality(),
    CrossModality(),
    TimeWindow(1.5),
    Causal() & SameModality(),
    Earlier() | CrossModality(),
    ~Window(1),
    Not(~Fixed(2) | TimeWindow(0.5)),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def make_place(batch: int = 3, num_tokens: int = 10) -> tuple[Place, Tensor]:
    """Random places and masks; what is not real holds NaN and a modality of its own."""
    mask = torch.rand(batch, num_tokens) > 0.3
    mask[-1] = False
    position = 4 * torch.rand(batch, num_tokens, 3)
    modality = torch.randint(3, (batch, num_tokens))
    place = Place(
        torch.where(mask.unsqueeze(-1), position, math.nan), torch.where(mask, modality, 77)
    )
    return place, mask


def full(num_tokens: int) -> tuple[Place, Tensor]:
    mask = torch.ones(1, num_tokens, dtype=torch.bool)
    return Place(torch.zeros(1, num_tokens, 3), torch.zeros(1, num_tokens).long()), mask


def pairs_of(rule: Rule, num_tokens: int) -> set[tuple[int, int]]:
    return {(i, j) for _, i, j in edge_list(rule(*full(num_tokens))).tolist()}


def expected(num_tokens: int, condition) -> set[tuple[int, int]]:
    tokens = range(num_tokens)
    return {(i, j) for i in tokens for j in tokens if condition(i, j)}


def test_every_rule_is_exported_and_tested() -> None:
    def parts(rule: Rule) -> Iterator[type]:
        yield type(rule)
        for field in dataclasses.fields(rule):  # type: ignore[arg-type]
            if isinstance(inner := getattr(rule, field.name), Rule):
                yield from parts(inner)

    leaves = {leaf for leaf in Rule.__subclasses__() if not inspect.isabstract(leaf)}
    assert leaves == {leaf for rule in RULES for leaf in parts(rule)}
    assert {leaf.__name__ for leaf in leaves} <= set(fusion.relations.__all__)
    assert fusion.relations.__all__ == sorted(fusion.relations.__all__)
    assert Rule.__abstractmethods__ == {"holds"}


@each_rule
def test_tokens_that_are_not_real_neither_read_nor_are_read(rule: Rule) -> None:
    place, mask = make_place()
    relation = rule(place, mask)
    assert relation.shape == (3, 10, 10) and relation.dtype == torch.bool
    assert not relation[~mask].any() and not relation.mT[~mask].any()


@pytest.mark.parametrize("rule", [r for r in RULES if not isinstance(r, Edges)], ids=repr)
def test_padding_between_tokens_moves_nothing(rule: Rule) -> None:
    """All but `Edges`, which names columns, say the same of the real tokens alone."""
    place, mask = make_place()
    for index in range(2):
        real = mask[index].nonzero().flatten()
        short = Place(place.position[index, real][None], place.modality[index, real][None])
        dense = rule(short, torch.ones(1, len(real), dtype=torch.bool))[0]
        assert torch.equal(rule(place, mask)[index][real][:, real], dense)


@each_rule
def test_rules_without_an_order_follow_a_permutation(rule: Rule) -> None:
    place, mask = make_place()
    order = torch.randperm(mask.shape[1])
    moved = Place(place.position[:, order], place.modality[:, order])
    same = torch.equal(rule(moved, mask[:, order]), rule(place, mask)[:, order][:, :, order])
    assert same or rule.ordered


def test_ordered_rules_are_ordered() -> None:
    """Negative control for the permutation: these do not follow a reversal."""
    place, mask = full(7)
    for rule in (Causal(), Earlier(), Strided(3), Fixed(3), Edges([(0, 1)])):
        assert rule.ordered and not torch.equal(rule(place, mask).flip(1, 2), rule(place, mask))
    assert (Causal() & Everyone()).ordered and (~Causal() | Everyone()).ordered
    assert not (SameModality() & ~TimeWindow(1.0)).ordered


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_order_rules_are_their_formulas(stride: int) -> None:
    num, l = 13, stride
    assert pairs_of(Everyone(), num) == expected(num, lambda i, j: True)
    assert pairs_of(Causal(), num) == expected(num, lambda i, j: j <= i)
    assert pairs_of(Earlier(), num) == expected(num, lambda i, j: j < i)
    assert pairs_of(Window(l), num) == expected(num, lambda i, j: abs(i - j) <= l)
    assert pairs_of(Strided(l), num) == expected(
        num, lambda i, j: j <= i and (i - j < l or (i - j) % l == 0)
    )
    assert pairs_of(Fixed(l), num) == expected(
        num, lambda i, j: j <= i and (i // l == j // l or j % l == l - 1)
    )


def test_relations_of_12_tokens_have_the_known_sizes() -> None:
    sizes = [len(pairs_of(rule, 12)) for rule in (Causal(), Strided(4), Fixed(4))]
    assert sizes == [78, 54, 42]


def test_edges_take_lists_and_tensors_and_the_place_rules_read_the_place() -> None:
    pairs = [(0, 3), (2, 1)]
    assert Edges(torch.tensor(pairs)) == Edges(pairs) and pairs_of(Edges(pairs), 3) == {(2, 1)}
    assert hash(Edges([[0, 3], [2, 1]])) == hash(Edges(pairs)) and pairs_of(Edges([]), 3) == set()
    place, mask = full(4)
    place = Place(place.position, torch.tensor([[0, 0, 1, 1]]))
    place.position[0, :, 0] = torch.tensor([0.0, 1.0, 1.0, 2.5])
    same = SameModality()(place, mask)
    assert torch.equal(CrossModality()(place, mask), ~same) and int(same.sum()) == 8
    near = TimeWindow(1.0)(place, mask)[0]
    assert near.long().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


def test_composition_is_boolean_algebra() -> None:
    place, mask = make_place()
    a, b = Causal(), SameModality()
    assert (a & b, a | b, ~a) == (And(a, b), Or(a, b), Not(a))
    for left, right in (
        (~(a & b), ~a | ~b),
        (~(a | b), ~a & ~b),
        (~~a, a),
        (a & Earlier(), a & ~(~Earlier())),
    ):
        assert torch.equal(left(place, mask), right(place, mask))
    everything = (a | ~a)(place, mask)
    assert torch.equal(everything, Everyone()(place, mask))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(-1),
        lambda: Strided(0),
        lambda: Fixed(0),
        lambda: TimeWindow(-1.0),
        lambda: TimeWindow(math.nan),
        lambda: Edges([(0, -1)]),
        lambda: Edges([(0, 1, 2)]),
        lambda: Edges(torch.rand(2, 2)),
        lambda: block_mask(Causal()(*full(4)), 0),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:
    with pytest.raises(ValueError, match="[Gg]ot .*; give"):
        make()


def chain(relation: Tensor) -> list[int] | None:
    length = longest_chain(relation)
    return None if length is None else length.tolist()


def test_longest_chain_counts_steps_and_finds_circles() -> None:
    tokens = full(6)
    assert chain(Earlier()(*tokens)) == [5]
    assert chain((Earlier() & Window(1))(*tokens)) == [5]
    assert chain((Earlier() & ~Window(2))(*tokens)) == [1]
    assert chain(Edges([(0, 4), (4, 1), (1, 5), (0, 5)])(*tokens)) == [3]
    assert chain(Edges([])(*tokens)) == [0]
    for circle in (Causal(), Everyone(), Edges([(0, 1), (1, 2), (2, 0)]), Edges([(3, 3)])):
        assert chain(circle(*tokens)) is None
    both = torch.cat([Earlier()(*tokens), Edges([(2, 1)])(*tokens)])
    assert chain(both) == [5, 1]


@each_rule
def test_conversions_hold_the_same_pairs(rule: Rule) -> None:
    place, mask = make_place(num_tokens=11)
    relation = rule(place, mask)
    edges = edge_list(relation)
    back = torch.zeros_like(relation)
    back[tuple(edges.T)] = True
    assert torch.equal(back, relation) and edges.shape == (int(relation.sum()), 3)
    blocks = block_mask(relation, 4)
    assert blocks.shape == (3, 3, 3)
    wanted = torch.zeros_like(blocks)
    wanted[edges[:, 0], edges[:, 1] // 4, edges[:, 2] // 4] = True
    assert torch.equal(blocks, wanted)
    assert torch.equal(block_mask(relation, 1), relation)


def test_sparse_rules_leave_no_block_empty() -> None:
    """3 to 5 % of the pairs, yet 56 % of the blocks of 128: the same as all that is causal."""
    tokens = full(1024)
    causal = density(block_mask(Causal()(*tokens), 128)).item()
    assert causal == 36 / 64
    for rule in (Strided(32), Fixed(32)):
        relation = rule(*tokens)
        assert 0.03 < density(relation).item() < 0.05
        assert density(block_mask(relation, 128)).item() == causal
    near = (Causal() & Window(32))(*tokens)
    assert density(block_mask(near, 128)).item() < 0.25  # neighbours share blocks
