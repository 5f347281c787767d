"""Encoders, projections and fusion blocks as one model that embeds any subset of modalities.

Shapes: B batch, N tokens, D width, M modalities.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput
from fusion.block import FusionBlock
from fusion.layers import masked_mean
from fusion.projection import Projection
from fusion.solver import SolverStats
from fusion.tokens import Tokens, concat, select, split

FUSED_TOGETHER = 256  # samples of one fusion pass

Batch = Mapping[str, Any]
"""Has `inputs` {modality: (B, L, ...)}, `masks` {modality: (B, L) bool, True = real} and
`positions` {modality: (B, L, 3)} for those modalities whose inputs are encoder tokens already."""


class Fused(NamedTuple):
    """A fused subset of modalities.

    Attributes:
        tokens: the refined tokens of all its modalities.
        context: (B, K, D) slots of the last block.
        stats: of every block, first to last.
    """

    tokens: Tokens
    context: Tensor
    stats: tuple[SolverStats, ...]


@final
class FusionModel(nn.Module):
    """Encodes modalities, projects them to one width and fuses any subset of them.

    Encoders run once per modality, fusion once per subset: an embedding of {image, audio} has
    never seen the text it is matched with.

    Args:
        encoders: name of each modality to its encoder.
        dim: D.
        block: makes a fusion block from D; its settings are given with it in a config file.
        num_blocks: fusion blocks, one after the other.
        hidden: width of the projections' residual MLPs.
        dropout: share of their hidden units dropped in training.

    Raises:
        ValueError: if there is no encoder or no block.
    """

    def __init__(
        self,
        encoders: dict[str, Encoder],
        dim: int = 256,
        block: Callable[[int], FusionBlock] = FusionBlock,
        num_blocks: int = 1,
        hidden: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not encoders or num_blocks < 1:
            raise ValueError(
                f"Got {len(encoders)} encoders and {num_blocks} blocks; give at least one of each."
            )
        self.dim = dim
        self.encoders = nn.ModuleDict(encoders)
        self.projections = nn.ModuleDict(
            {name: Projection(e.dim, dim, hidden, dropout) for name, e in encoders.items()}
        )
        self.blocks = nn.ModuleList(block(dim) for _ in range(num_blocks))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(self.encoders)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the modalities whose encoder is frozen."""
        return tuple(n for n, e in self.encoders.items() if cast(Encoder, e).frozen)

    @property
    def pretrained(self) -> tuple[str, ...]:
        """Names of the modalities whose encoder brings what it has learned, frozen or not."""
        return tuple(name for name in self.modalities if name not in self.newcomers)

    @property
    def newcomers(self) -> tuple[str, ...]:
        """Names of the modalities whose encoder starts from nothing."""
        encoders = ((name, cast(Encoder, e)) for name, e in self.encoders.items())
        return tuple(n for n, e in encoders if not (e.frozen or e.pretrained))

    def projection(self, modality: str) -> Projection:
        """The projection of a modality."""
        return cast(Projection, self.projections[modality])

    def encode(self, batch: Batch, modalities: Sequence[str]) -> dict[str, Tokens]:
        """Encodes and projects some modalities of a batch.

        Args:
            batch: see `Batch`.
            modalities: those to encode; all must be in the batch.

        Returns:
            Modality to tokens of width D.

        Raises:
            ValueError: if a modality is unknown or not in the batch.
        """
        return {name: self._encode_one(batch, name) for name in modalities}

    def _encode_one(self, batch: Batch, name: str) -> Tokens:
        if name not in self.encoders or name not in batch["inputs"]:
            raise ValueError(
                f"Got modality {name!r}; this model has {', '.join(self.modalities)} and this "
                f"batch {', '.join(batch['inputs']) or 'none'}."
            )
        values, mask = batch["inputs"][name], batch["masks"][name]
        position = batch["positions"].get(name)
        present = mask.any(dim=1)
        if present.all() or not present.any():
            return self._run(name, values, mask, position)
        # Samples without the modality cost nothing.
        given = None if position is None else position[present]
        part = self._run(name, values[present], mask[present], given)
        return part.per_sample(
            lambda column: column.new_zeros(len(mask), *column.shape[1:]).index_put(
                (present,), column
            )
        )

    def _run(self, name: str, values: Tensor, mask: Tensor, position: Tensor | None) -> Tokens:
        """Encoder, unless its tokens and their position are there already, and projection."""
        if position is None:
            encoded = cast(Encoder, self.encoders[name])(values, mask)
        else:
            encoded = EncoderOutput(values, mask, position)
        latents = self.projections[name](encoded.values, encoded.mask)
        index = torch.full(encoded.mask.shape[1:], self.modalities.index(name))
        return Tokens(latents, encoded.mask, encoded.position, index.to(mask.device))

    def fuse(self, tokens: Mapping[str, Tokens]) -> Fused:
        """Fuses encoded modalities; samples may lack any of them (all-False rows of its mask)."""
        joined = concat(list(tokens.values()))
        values, mask = joined.values, joined.mask
        stats, context = [], values.new_zeros(len(mask), 0, self.dim)
        for block in self.blocks:
            values, context, block_stats, _ = block(values, mask, joined.position, joined.modality)
            stats.append(block_stats)
        return Fused(joined._replace(values=values), context, tuple(stats))

    def pool(self, fused: Fused) -> Tensor:
        """Unit embeddings (B, D): each present modality has one vote, the unit mean of its tokens.

        A sample without any real token gets zeros.
        """
        votes = torch.zeros_like(fused.tokens.values[:, 0])
        for index in fused.tokens.modality.unique():
            real = fused.tokens.mask & (fused.tokens.modality == index)
            mean = masked_mean(fused.tokens.values, real)
            votes = votes + F.normalize(mean, dim=-1, eps=1e-6)
        return F.normalize(votes, dim=-1, eps=1e-6)

    def embed(self, batch: Batch, modalities: Sequence[str] | None = None) -> Tensor:
        """Unit embeddings (B, D) of a subset of modalities; None is all that the batch has."""
        if modalities is None:
            modalities = [name for name in self.modalities if name in batch["inputs"]]
        return self.embed_tokens(self.encode(batch, modalities))

    def embed_tokens(self, tokens: Mapping[str, Tokens]) -> Tensor:
        """Unit embeddings (B, D) of encoded modalities.

        Samples of like length are fused together, since padding costs as much as tokens.
        """
        if not tokens:
            raise ValueError("Got no modality to embed; give at least one.")
        lengths = torch.stack([part.mask.sum(dim=1) for part in tokens.values()]).sum(dim=0)
        order = lengths.argsort()
        parts = {name: split(select(part, order), FUSED_TOGETHER) for name, part in tokens.items()}
        rows = [
            self.pool(self.fuse(dict(zip(parts, some, strict=True))))
            for some in zip(*parts.values(), strict=True)
        ]
        return torch.cat(rows)[order.argsort()]
