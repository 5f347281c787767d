"""The cases of the parity table: ways to train, batches, the system trained and the definition of
its loss, with nothing of the code under test but its parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from fusion.accumulation import embed_in_parts
from fusion.losses import (
    Alone,
    Chunked,
    ContrastiveLoss,
    Exchange,
    Gathered,
    InfoNCE,
    Ring,
    Rows,
    SigmoidLoss,
)
from fusion.losses.exchange.base import Total
from fusion.losses.exchange.ranks import gather_rows, row_counts

MODALITIES = ("image", "text", "audio")
DIRECTIONS = (("image", "text"), ("image", "audio"))
SIZES = {
    "equal": ((3, 3), (3, 3), (3, 3)),
    "unequal": ((4, 3), (2, 1), (5, 3)),
    "rank without audio": ((4, 2), (3, 2), (3, 3)),
    "rank without samples": ((4, 2), (0, 0), (3, 3)),
    "partial presence": ((4, 3), (5, 3), (2, 2)),
}
Part = dict[str, Tensor]


class WithoutGradient(Exchange):
    """What open_clip's local loss without `gather_with_grad` does."""

    def total(self, score, rows, columns, parameters):
        counts = row_counts(columns.values)
        columns = type(columns)(*(gather_rows(column, counts) for column in columns))
        total = Alone().total(score, rows, columns, parameters)
        dist.all_reduce(total.num_rows)
        return Total(*total[:2], num_ranks=len(counts))


EXCHANGES: dict[str, Callable[[], Exchange]] = {
    "plain": Alone,
    "chunked": lambda: Chunked(3),
    "gathered": Gathered,
    "gathered, chunked": lambda: Gathered(Chunked(3)),
    "ring": Ring,
    "accumulated": Alone,
    "accumulated, gathered": Gathered,
    "accumulated, ring": Ring,
    # What is wrong:
    "each rank its own batch": Alone,
    "gathered without gradient": WithoutGradient,
    "no replay of dropout": Alone,
    "temperature in every part": Alone,
    "each part its own batch": Alone,
    "absent columns kept": Alone,
}
RIGHT = {
    1: ("plain", "chunked", "gathered", "ring", "accumulated"),
    2: ("gathered", "gathered, chunked", "ring", "accumulated, gathered", "accumulated, ring"),
}
RIGHT[3] = RIGHT[2]
WRONG = {
    1: (
        "no replay of dropout",
        "temperature in every part",
        "each part its own batch",
        "absent columns kept",
    ),
    2: ("each rank its own batch", "gathered without gradient"),
}
WRONG[3] = WRONG[2]


class Case(NamedTuple):
    loss: str
    method: str
    ranks: int
    layout: str
    temperatures: int

    def __str__(self) -> str:
        return " | ".join(str(field) for field in self)


def cases(ranks: int) -> Iterator[Case]:
    for loss, temperatures in product(("InfoNCE", "SigmoidLoss"), (1, len(DIRECTIONS))):
        for layout in SIZES:
            if not (layout == "rank without samples" and ranks == 1):
                for method in RIGHT[ranks]:
                    yield Case(loss, method, ranks, layout, temperatures)
        for method in WRONG[ranks]:
            yield Case(loss, method, ranks, "partial presence", temperatures)


def make_parts(case: Case) -> list[list[Part]]:
    """The parts of every rank's batch; ids repeat across parts and ranks."""
    torch.manual_seed(len(case.layout))
    made = []
    for rank, sizes in enumerate(SIZES[case.layout][: case.ranks]):
        parts = []
        for size in sizes:
            part = {name: torch.randn(size, 6).double() for name in (*MODALITIES, "hard")}
            part["group_id"] = torch.randint(0, 6, (size,))
            part["present"] = torch.ones(size, 3, dtype=torch.bool)
            if case.layout == "rank without audio" and rank == case.ranks - 1:
                part["present"][:, 2] = False
            if case.layout == "partial presence":
                part["present"] = torch.rand(size, 3) < 0.75
            parts.append(part)
        made.append(parts)
    return made


class System(nn.Module):
    """Three towers and a loss, whose forward pass is a training step as in Lightning."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.case = case
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 5))
                for name in MODALITIES
            }
        )
        self.loss = self._make_loss()
        self.double()
        with torch.no_grad():
            for parameter in self.loss.parameters():
                parameter += torch.arange(len(parameter))

    def _make_loss(self) -> ContrastiveLoss:
        widths = (2, 5) if self.partial else ()
        shared = (self.case.temperatures, widths, EXCHANGES[self.case.method]())
        if self.case.loss == "InfoNCE":
            return InfoNCE(5.0, 0.1 if self.partial else 0.0, *shared)
        return SigmoidLoss(5.0, -2.0, *shared)

    @property
    def partial(self) -> bool:
        return self.case.layout == "partial presence"

    def embed(self, part: Part) -> dict[str, Tensor]:
        made = {name: self.unit(name, part[name]) for name in MODALITIES}
        if self.partial:
            made["hard"] = self.unit("text", part["hard"])
        return made | {"group_id": part["group_id"], "present": part["present"]}

    def unit(self, name: str, features: Tensor) -> Tensor:
        return F.normalize(self.towers[name](features), dim=1)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        method = self.case.method
        if method.startswith(("accumulated", "no replay")):
            return self.total(embed_in_parts(self, self.embed, parts), self.rows_loss)
        made = [self.embed(part) for part in parts]
        if method == "each part its own batch":
            return sum(self.total(one, self.rows_loss) for one in made) / len(made)
        if method == "temperature in every part":  # open_clip with --accum-freq
            fixed = [{name: rows.detach() for name, rows in one.items()} for one in made]
            mixed = ([*fixed[:i], one, *fixed[i + 1 :]] for i, one in enumerate(made))
            losses = [self.total(join(each), self.rows_loss) for each in mixed]
            return sum(losses) - sum(losses[1:]).detach()
        return self.total(join(made), self.rows_loss)

    def total(self, made: dict[str, Tensor], compare: Callable[..., Tensor]) -> Tensor:
        """The sum over directions."""
        columns = {name: made["present"][:, i] for i, name in enumerate(MODALITIES)}
        pattern = None
        if self.partial:
            # Whether there is audio: those with it are not told apart by it.
            pattern = columns["audio"].long()
        losses = []
        for index, names in enumerate(DIRECTIONS):
            query, target = (
                Rows(
                    self.spoil(made[name], columns[name]), made["group_id"], columns[name], pattern
                )
                for name in names
            )
            if self.partial and names[1] == "text":
                target = target.with_negatives(made["hard"], pattern)
            if self.case.method == "absent columns kept" and compare == self.rows_loss:
                target = target._replace(values=target.values.nan_to_num(0.0), present=None)
            losses.append(compare(query, target, index))
        return torch.stack(losses).sum()

    def spoil(self, values: Tensor, present: Tensor) -> Tensor:
        return values.masked_fill(~present[:, None], torch.nan)

    def rows_loss(self, query: Rows, target: Rows, index: int) -> Tensor:
        return self.loss(query, target, index)

    def dense_loss(self, query: Rows, target: Rows, index: int) -> Tensor:
        """The definition, with nothing of the code under test but its parameters."""
        entry = index if self.case.temperatures > 1 else 0
        scale = self.loss.log_logit_scale[entry].exp()
        sides = []
        for side in (query, target):
            keep = torch.ones_like(side.group_id).bool() if side.present is None else side.present
            zeros = torch.zeros_like(side.group_id)
            labels = [zeros if x is None else x.long() for x in (side.pattern, side.hard)]
            sides.append([x[keep] for x in (side.values, side.group_id, *labels)])
        (q, q_id, q_pattern, _), (t, t_id, t_pattern, t_hard) = sides
        same = q_pattern[:, None] == t_pattern[None]
        positive = same & (q_id[:, None] == t_id[None]) & (t_hard == 0)[None]
        losses = []
        for width in self.loss.widths or (q.shape[1],):
            logits = scale * F.normalize(q[:, :width], dim=1) @ F.normalize(t[:, :width], dim=1).T
            if self.case.loss == "InfoNCE":
                smoothing = self.loss.label_smoothing
                forth = dense_info_nce(logits, positive, same, smoothing)
                losses.append((forth + dense_info_nce(logits.T, positive.T, same.T, smoothing)) / 2)
            else:
                sign = positive.double() * 2 - 1
                cost = F.softplus(-sign * (logits + self.loss.logit_bias[entry]))[same].sum()
                count = positive.any(1).sum()
                losses.append(cost / count if count else cost * 0)
        return torch.stack(losses).mean()


def dense_info_nce(logits: Tensor, positive: Tensor, same: Tensor, smoothing: float) -> Tensor:
    rows = [
        logits[i][same[i]].logsumexp(0)
        - (1 - smoothing) * logits[i][positive[i]].mean()
        - smoothing * logits[i][same[i]].mean()
        for i in range(len(logits))
        if positive[i].any()
    ]
    return torch.stack(rows).mean() if rows else logits.sum() * 0


def join(made: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in made]) for name in made[0]}
