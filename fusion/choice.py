"""What is chosen from an input before the iteration, and the map that is then iterated.

Shapes: B batch, N tokens, H heads, K slots, d width of a head, M rows of the state.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from fusion.accom import Mixing
from fusion.assim import Update


@final
@dataclass(frozen=True)
class Choice:
    """A map with constant parameters: Assim and Accom in turn.

    Its state is all that the next round depends on: the context alone (M = K) if the update has no
    memory and the weights are frozen, as by default; latents and context, one after the other
    (M = N + K), if not.

    Attributes:
        anchors: (B, H, N, d) projected tokens, rotated by position; 0 where not real.
        mask: (B, N) bool, True = real token.
        position: (B, N, 3) by which the anchors were rotated; None if they were not.
        update: the chosen Assim.
        mixing: the chosen Accom.
    """

    anchors: Tensor
    mask: Tensor
    position: Tensor | None
    update: Update
    mixing: Mixing

    @property
    def memoryless(self) -> bool:
        """The context alone decides the next round."""
        return self.mixing.frozen and not self.update.memory

    @property
    def q(self) -> Tensor:
        """(B,) contraction factor of a round in the norm max over heads and rows of the state of
        the Euclidean norm; inf where none is declared.

        A move of the context reaches the next one through `read` and `gather`: gain * stretch. A
        state with latents moves by memory + gain, and its context by `stretch` times that.
        """
        stretch = torch.as_tensor(self.mixing.stretch).to(self.update.gain)
        if self.memoryless:
            factor = self.update.gain * stretch
        else:
            factor = (self.update.memory + self.update.gain) * stretch.clamp(min=1)
        return factor.nan_to_num(nan=torch.inf, posinf=torch.inf)

    @property
    def depth(self) -> Tensor | None:
        """(B,) rounds after which the state is exact; None where that is not certain.

        Tokens that read earlier ones only are right once those are, for any gain.
        """
        return self.mixing.depth if self.memoryless else None

    def start(self, context: Tensor | None = None) -> Tensor:
        """The first state (B, H, M, d): the anchors and their context.

        Args:
            context: (B, H, K, d) one from elsewhere: the solution for a similar input. A sample
                for which it is not finite starts from its anchors.

        Raises:
            ValueError: if `context` has another shape.
        """
        own = self.mixing.first(self.anchors)
        if context is None:
            context = own
        elif context.shape == own.shape:
            known = context.isfinite().flatten(1).all(dim=1)[:, None, None, None]
            context = torch.where(known, context, own)
        else:
            raise ValueError(
                f"Got slots of shape {tuple(context.shape)} to start from; give "
                f"{tuple(own.shape)}, as an earlier output of this block has them."
            )
        return context if self.memoryless else torch.cat([self.anchors, context], dim=2)

    def real(self, state: Tensor) -> Tensor:
        """(B, M) bool: the rows of a state that count."""
        num_slots = state.shape[2] - (0 if self.memoryless else self.mask.shape[1])
        slots = self.mask.any(dim=1, keepdim=True).expand(-1, num_slots)
        return slots if self.memoryless else torch.cat([self.mask, slots], dim=1)

    def step(self, state: Tensor) -> Tensor:
        """One round of Assim and Accom, state to state."""
        latents, context = self._round(*self._parts(state))
        return context if self.memoryless else torch.cat([latents, context], dim=2)

    def read_out(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The latents (B, H, N, d) and the context (B, H, K, d) that belong to a state."""
        parts = self._parts(state)
        return self._round(*parts) if self.memoryless else parts

    def seen(self, latents: Tensor, context: Tensor) -> Tensor:
        """What each token reads (B, H, N, d) of the context (B, H, K, d) beside its latents."""
        return self.mixing.weigh(latents, context).read(context)

    def to(self, dtype: torch.dtype) -> "Choice":
        """The same choice with all its numbers in another floating dtype."""
        return _cast(self, dtype)

    def energy(self, state: Tensor) -> Tensor | None:
        """A quantity (B,) that no round raises; None if none is known for this pair."""
        return self.update.energy(*self.read_out(state), self.mixing)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.memoryless:
            return self.anchors, state
        num_tokens = self.mask.shape[1]
        return state[:, :, :num_tokens], state[:, :, num_tokens:]

    def _round(self, latents: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.mixing.weigh(latents, context)
        latents = self.update(latents, context, weights.read)
        return latents, weights.gather(latents)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _cast(getattr(value, f.name), dtype) for f in fields(value)}
        )
    return value
