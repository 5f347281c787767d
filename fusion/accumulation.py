"""Large batches in the memory of a small one: towers run in parts, the loss sees all at once.

The gradient cache of Gao et al. 2021 (arXiv:2101.06983), as one node of the graph. Splitting the
batch of a contrastive loss would change it, as each part would see its own negatives only. So the
parts are embedded without a graph, the loss of all embeddings is taken once, and when its gradients
come back every part is embedded again, with a graph and the same random draws, to carry them on.

A step embeds everything twice and holds the activations of one part at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn

Part = TypeVar("Part")
Embed = Callable[[Part], dict[str, Tensor]]


def embed_in_parts(
    module: nn.Module, embed: Embed[Part], parts: Sequence[Part]
) -> dict[str, Tensor]:
    """Embeds the parts of a batch one after the other, at the memory of one.

    The caller computes its loss of the result and calls `backward` once, as ever; what the loss
    itself learns, such as a temperature, gets its gradient once, and data-parallel training reduces
    every gradient once, with nothing to set.

    Args:
        module: holds all parameters that `embed` trains; whatever else it computes with gets no
            gradient.
        embed: makes named tensors from a part, rows first. Run twice: it must not draw from
            generators other than torch's, nor count what it does. Several directions share towers
            by one function that makes the embeddings of all of them.
        parts: of the batch. A name may be missing in some of them.

    Returns:
        Name to the rows of all parts, in their order. Integers and booleans carry no gradient.

    Raises:
        ValueError: if there is no part, or the parameters are split over ranks.
    """
    if not parts:
        raise ValueError("Got no part of a batch to embed; give at least one.")
    parameters = [p for p in module.parameters() if p.requires_grad]
    if any(hasattr(p, "device_mesh") for p in parameters):
        raise ValueError(
            "Got parameters that are split over ranks; keep them whole (ddp), or save memory by "
            "activation checkpoints instead of parts."
        )
    replay = _Replay(module, embed, parts)
    values = _Parts.apply(replay, *parameters)
    return dict(zip(replay.names, values, strict=True))


class _State(NamedTuple):
    """What a second run of the same code needs to do the same."""

    cpu: Tensor
    accelerators: dict[torch.device, Tensor]
    autocast: dict[str, tuple[bool, torch.dtype]]


@final
class _Replay:
    """Runs the parts, and any of them again as it ran."""

    def __init__(self, module: nn.Module, embed: Embed[Any], parts: Sequence[Any]) -> None:
        self.embed, self.parts = embed, parts
        self.devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
        self.states: list[_State] = []
        self.sizes: list[dict[str, int]] = []
        self.names: list[str] = []

    def first(self) -> list[Tensor]:
        """The rows of all parts, name by name."""
        made: list[dict[str, Tensor]] = []
        for part in self.parts:
            state = _State(
                torch.get_rng_state(),
                {device: torch.cuda.get_rng_state(device) for device in self.devices},
                {
                    kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                    for kind in {"cpu", *(device.type for device in self.devices)}
                },
            )
            self.states.append(state)
            made.append(self.embed(part))
        self.sizes = [{name: len(rows) for name, rows in one.items()} for one in made]
        self.names = list(dict.fromkeys(name for one in made for name in one))
        return [torch.cat([one[name] for one in made if name in one]) for name in self.names]

    def again(self, gradients: Sequence[Tensor | None]) -> Iterator[tuple[list[Tensor], ...]]:
        """The differentiable rows of one part after the other, and their gradients."""
        rest = {n: g for n, g in zip(self.names, gradients, strict=True) if g is not None}
        starts = dict.fromkeys(rest, 0)
        for part, state, sizes in zip(self.parts, self.states, self.sizes, strict=True):
            with _generators(state), _autocast(state):
                made = self.embed(part)
            rows, slopes = [], []
            for name in [name for name in made if name in rest]:
                end = starts[name] + sizes[name]
                if made[name].requires_grad:
                    rows.append(made[name])
                    slopes.append(rest[name][starts[name] : end])
                starts[name] = end
            yield rows, slopes


class _Parts(torch.autograd.Function):
    """Parameters to the rows of all parts; the graph is made when the gradients are there."""

    @staticmethod
    def forward(ctx: Any, replay: _Replay, *parameters: Tensor) -> tuple[Tensor, ...]:
        """The rows, name by name."""
        rows = replay.first()
        ctx.replay, ctx.parameters = replay, parameters
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(r for r in rows if not r.is_floating_point()))
        return tuple(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the parameters, summed over parts."""
        total: list[Tensor | None] = [None] * len(ctx.parameters)
        with torch.enable_grad():
            for rows, slopes in ctx.replay.again(gradients):
                if rows:
                    found = torch.autograd.grad(rows, ctx.parameters, slopes, allow_unused=True)
                    total = [_sum(*pair) for pair in zip(total, found, strict=True)]
        return None, *total


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other


@contextmanager
def _generators(state: _State) -> Iterator[None]:
    """Generators as they were; afterwards as they are now."""
    with torch.random.fork_rng([device.index for device in state.accelerators]):
        torch.set_rng_state(state.cpu)
        for device, numbers in state.accelerators.items():
            torch.cuda.set_rng_state(numbers, device)
        yield


@contextmanager
def _autocast(state: _State) -> Iterator[None]:
    """Automatic precision as it was."""
    with ExitStack() as stack:
        for kind, (enabled, dtype) in state.autocast.items():
            stack.enter_context(torch.autocast(kind, dtype, enabled))
        yield
