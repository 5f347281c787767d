"""What every contrastive loss and every exchange promises on one process."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.losses import Alone, Chunked, Exchange, Gathered, InfoNCE, Ring, Rows
from fusion.losses.base import MAX_LOGIT_SCALE, ContrastiveLoss
from fusion.losses.sigmoid import SigmoidLoss

LOSSES = [InfoNCE, SigmoidLoss]
EXCHANGES = [Alone, lambda: Chunked(3), Gathered, lambda: Gathered(Chunked(4)), Ring]


def unit_rows(num: int = 7, dim: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(num, dim).double(), dim=1).requires_grad_()


def pair(num: int = 7, **columns) -> tuple[Rows, Rows]:
    return tuple(Rows(unit_rows(num), torch.arange(num), **columns) for _ in range(2))


def gradients(loss: ContrastiveLoss, value: torch.Tensor, *rows: Rows) -> list[torch.Tensor]:
    inputs = [*loss.parameters(), *(side.values for side in rows)]
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def assert_same(got: list[torch.Tensor], wanted: list[torch.Tensor], **bounds) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, **(bounds or {"rtol": 1e-12, "atol": 1e-12}))


def test_every_loss_and_exchange_is_tested():
    assert set(ContrastiveLoss.__subclasses__()) == set(LOSSES)
    ours = {c for c in Exchange.__subclasses__() if c.__module__.startswith("fusion")}
    assert ours == {type(make()) for make in EXCHANGES}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_equal_to_open_clip(exchange):
    query, target = pair()
    for loss, peer in (
        (InfoNCE(20.0, exchange=exchange()).double(), ClipLoss()),
        (SigmoidLoss(10.0, -10.0, exchange=exchange()).double(), SigLipLoss()),
    ):
        own = [parameter[0] for parameter in loss.parameters()]
        theirs = peer(query.values, target.values, own[0].exp(), *own[1:])
        sides = query, target
        assert_same(gradients(loss, loss(*sides), *sides), gradients(loss, theirs, *sides))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_exchange_gives_what_alone_gives(kind, exchange):
    query = Rows(
        unit_rows(9),
        torch.randint(0, 4, (9,)),
        torch.rand(9) < 0.8,
        torch.randint(0, 2, (9,)),
    )
    target = Rows(unit_rows(8), torch.randint(0, 4, (8,)), None, torch.randint(0, 2, (8,)))
    extra = unit_rows(2)
    target = target.with_negatives(extra, torch.tensor([0, 1]))
    found = []
    for one in (Alone(), exchange()):
        loss = kind(5.0, widths=(2, 6), exchange=one).double()
        value = loss(query, target)
        found.append([*gradients(loss, value, query), value])
        with torch.no_grad():
            assert loss(query, target).allclose(value)
    assert_same(found[1], found[0])


def test_label_smoothing_is_that_of_cross_entropy():
    query, target = pair()
    loss = InfoNCE(7.0, label_smoothing=0.2).double()
    logits = loss.logit_scale() * query.values @ target.values.T
    wanted = [F.cross_entropy(x, torch.arange(7), label_smoothing=0.2) for x in (logits, logits.T)]
    sides = query, target
    assert_same(gradients(loss, loss(*sides), *sides), gradients(loss, sum(wanted) / 2, *sides))


@pytest.mark.parametrize("kind", LOSSES)
def test_widths_are_the_mean_over_unit_prefixes(kind):
    query, target = pair()
    losses = [kind(7.0).double()(*sides) for sides in [(query, target)]]
    for width in (2, 4):
        cut = [s._replace(values=F.normalize(s.values[:, :width], dim=1)) for s in (query, target)]
        losses.append(kind(7.0).double()(*cut))
    loss = kind(7.0, widths=(2, 4, 6)).double()
    torch.testing.assert_close(loss(query, target), torch.stack(losses).mean())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_rows_that_are_absent_might_as_well_not_be(kind, exchange):
    present = torch.tensor([True, False, True, True, False, True, True])
    query, target = pair()
    loss = kind(5.0, exchange=exchange()).double()
    kept = [Rows(s.values[present], s.group_id[present]) for s in (query, target)]
    wanted = gradients(loss, loss(*kept), query, target)
    spoilt = [
        s._replace(values=s.values.masked_fill(~present[:, None], torch.nan), present=present)
        for s in (query, target)
    ]
    got = gradients(loss, loss(*spoilt), query, target)
    assert_same(got, wanted)
    assert all((slope[~present] == 0).all() for slope in got[-2:])


@pytest.mark.parametrize("kind", LOSSES)
def test_without_presence_masks_absent_rows_are_negatives(kind):
    present = torch.tensor([True, False, True, True, False, True, True])
    query, target = pair()
    loss = kind(5.0).double()
    query, masked = (s._replace(present=present) for s in (query, target))
    assert not loss(query, masked).allclose(loss(query, target), rtol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("empty", ["no rows", "none present", "no positive", "no queries"])
def test_a_direction_without_positives_is_zero_with_gradients_of_zero(kind, exchange, empty):
    query, target = pair(0 if empty == "no rows" else 5)
    if empty == "none present":
        query = query._replace(present=torch.zeros(5, dtype=torch.bool))
    if empty == "no positive":
        query = query._replace(group_id=query.group_id + 10)
    if empty == "no queries":
        query = Rows(unit_rows(0), torch.arange(0))
    loss = kind(5.0, exchange=exchange()).double()
    assert all((x == 0).all() for x in gradients(loss, loss(query, target), query, target))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_one_row_has_nothing_to_learn_from_info_nce(exchange):
    query, target = pair(1)
    loss = InfoNCE(5.0, exchange=exchange()).double()
    assert all(x.abs().max() < 1e-14 for x in gradients(loss, loss(query, target), query, target))


def test_info_nce_of_independent_embeddings_is_at_least_the_logarithm_of_the_batch():
    loss = InfoNCE(10.0).double()
    for num in (4, 32):
        values = torch.stack([loss(*pair(num)).detach() for _ in range(300)])
        error = values.std() / math.sqrt(len(values))
        assert values.mean() > math.log(num) + 3 * error
        row = unit_rows(1).detach().expand(num, 6)
        know_nothing = loss(*(Rows(row, torch.arange(num)) for _ in range(2)))
        assert know_nothing.item() == pytest.approx(math.log(num))


def test_presence_patterns_teach_nothing_within_themselves():
    """Embeddings that say only what is absent beat ln B, unless patterns are told."""
    pattern = torch.arange(8) % 2
    values = torch.eye(2).double()[pattern]
    plain = Rows(values, torch.arange(8))
    loss = InfoNCE(20.0).double()
    assert loss(plain, plain).item() == pytest.approx(math.log(4), abs=1e-6)
    assert loss(plain, plain) < math.log(8) - 0.6
    told = plain._replace(pattern=pattern)
    slopes = gradients(loss, loss(told, told))
    assert slopes[0].item() == pytest.approx(math.log(4)) and slopes[1].abs().max() < 1e-12


@pytest.mark.parametrize("kind", LOSSES)
def test_hard_negatives_are_pushed_away_within_their_pattern(kind):
    query, target = pair(4, pattern=torch.tensor([0, 0, 1, 1]))
    extra = unit_rows(2)
    loss = kind(5.0).double()
    more = target.with_negatives(extra, torch.tensor([0, 7]))
    assert loss(query, more) > loss(query, target)
    (towards,) = torch.autograd.grad(loss(query, more), extra)
    # A step down the gradient takes the first away from its queries; nobody meets the second.
    step = extra[0] - 0.1 * towards[0]
    assert (query.values[:2] @ step).mean() < (query.values[:2] @ extra[0]).mean()
    assert (towards[1] == 0).all()
    same_id = Rows(query.values, torch.zeros(4, dtype=torch.long), None, query.pattern)
    hard = Rows(extra, torch.zeros(2).long(), None, torch.tensor([0, 0]), torch.ones(2).bool())
    assert loss(same_id, hard).item() == 0  # nobody's positive, whatever the id


@pytest.mark.parametrize("kind", LOSSES)
def test_every_direction_has_its_own_temperature(kind):
    query, target = pair()
    loss = kind(5.0, num_temperatures=3).double()
    slopes = torch.autograd.grad(loss(query, target, 1), list(loss.parameters()))
    assert all((slope != 0).tolist() == [False, True, False] for slope in slopes)
    assert loss(query, target, 1) == kind(5.0).double()(query, target, 1)
    with pytest.raises(ValueError, match="num_temperatures=1 or one for each"):
        loss(query, target, 3)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_temperature_stops_at_100_and_comes_back(kind):
    query, target = pair()
    loss = kind(90.0).double()
    optimizer = torch.optim.SGD([loss.log_logit_scale], lr=1.0)
    loss.log_logit_scale.grad = torch.tensor([-5.0]).double()
    optimizer.step()
    assert loss.eval().logit_scale() == MAX_LOGIT_SCALE
    # The control: clamped in the graph it gets no gradient, and would never come back.
    assert torch.autograd.grad(loss(query, target), loss.log_logit_scale)[0] == 0
    value = loss.train()(query, target)
    assert loss.logit_scale().item() == pytest.approx(MAX_LOGIT_SCALE)
    value.backward()  # random rows: a smaller scale costs less
    assert loss.log_logit_scale.grad is not None and loss.log_logit_scale.grad > 0
    torch.optim.SGD([loss.log_logit_scale], lr=1e-2).step()
    assert loss.logit_scale() < MAX_LOGIT_SCALE


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_half_precision_is_computed_in_float32(kind, dtype, exchange):
    rows = [F.normalize(torch.randn(64, 32), dim=1).to(dtype).requires_grad_() for _ in range(2)]
    loss = kind(90.0, exchange=exchange())
    sides = [Rows(values, torch.arange(64)) for values in rows]
    exact = [Rows(values.float(), torch.arange(64)) for values in rows]
    with torch.autocast("cpu", dtype):
        got = loss(*sides)
    assert got.dtype == torch.float32 and got.equal(loss(*exact))
    slopes = torch.autograd.grad(got, rows), torch.autograd.grad(loss(*exact), rows)
    for one, other in zip(*slopes, strict=True):
        assert one.dtype == dtype and one.equal(other)


def test_in_half_precision_the_loss_would_be_another():
    rows = [F.normalize(torch.randn(64, 32), dim=1).bfloat16() for _ in range(2)]
    wanted = InfoNCE(90.0)(*(Rows(values, torch.arange(64)) for values in rows))
    logits = 90 * rows[0] @ rows[1].T
    naive = (
        F.cross_entropy(logits, torch.arange(64)) + F.cross_entropy(logits.T, torch.arange(64))
    ) / 2
    assert (naive.float() - wanted).abs() > 1e-3


@pytest.mark.parametrize(
    ("exchange", "chunks"), [(Alone, False), (lambda: Chunked(8), True), (Ring, False)]
)
@pytest.mark.parametrize("kind", LOSSES)
def test_chunks_never_hold_the_whole_matrix(kind, exchange, chunks):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = out if isinstance(out, tuple | list) else [out]
            sizes = [x.numel() for x in tensors if isinstance(x, torch.Tensor)]
            self.numel = max(self.numel, *sizes, 0)
            return out

    sides = pair(128)
    loss = kind(5.0, exchange=exchange()).double()
    with Largest() as largest:
        loss(*sides).backward()
    assert largest.numel == (128 * 8 if chunks else 128 * 128)


def test_errors():
    query, target = pair()
    for wrong, message in [
        (query._replace(values=query.values[0]), "rows of one width"),
        (query._replace(values=query.values[:, :3]), "rows of one width"),
        (query._replace(group_id=query.group_id[:3]), "group_id of shape .3,. for 7 rows"),
        (query._replace(present=torch.ones(2).bool()), "present of shape .2,. for 7 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            InfoNCE()(wrong, target)
    with pytest.raises(ValueError, match=r"give rows \(R, D\)"):
        query._replace(values=query.values[0]).block()
    with pytest.raises(ValueError, match="both or neither"):
        query.with_negatives(query.values, torch.zeros(7))
    with pytest.raises(ValueError, match="patterns for one side only"):
        InfoNCE()(query, target._replace(pattern=torch.zeros(7)))
    with pytest.raises(ValueError, match="give none above it"):
        InfoNCE(widths=(9,))(query, target)
    for make in (
        lambda: InfoNCE(0.0),
        lambda: InfoNCE(101.0),
        lambda: InfoNCE(label_smoothing=1.0),
        lambda: SigmoidLoss(num_temperatures=0),
        lambda: SigmoidLoss(widths=(4, 0)),
        lambda: Chunked(0),
    ):
        with pytest.raises(ValueError, match="Got .*; give"):
            make()
