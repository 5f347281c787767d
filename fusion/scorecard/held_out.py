"""The held-out samples of all ranks, embedded: what every measure of the scorecard reads.

Shapes: B batch, S samples, N tokens, D width.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch import distributed as dist

from fusion.evaluation import Embedded, absent, fuse_subsets, join_embedded
from fusion.losses.exchange.ranks import count_ranks, gather_rows, row_counts
from fusion.model import FusionModel
from fusion.tokens import Tokens

Subset = tuple[str, ...]


class Noise(NamedTuple):
    """Noise on one modality.

    Attributes:
        modality: whose tokens get it.
        level: its size over that of the token it is added to, both root mean square.
    """

    modality: str
    level: float


class HeldOut(NamedTuple):
    """Embeddings of a held-out set, in the order of its keys.

    Attributes:
        keys: S names.
        groups: (S,) equal ids are positives.
        captions: S captions; "" where there is none.
        embedded: subset of modalities to its embeddings.
        noisy: noise to the embeddings of the subsets that hold the noisy modality.
        not_finite: keys of samples with an embedding that is not finite. Its row is zero: as a
            query it finds nothing, and as a target nothing finds it.
    """

    keys: Sequence[str]
    groups: Tensor
    captions: Sequence[str]
    embedded: Mapping[Subset, Embedded]
    noisy: Mapping[Noise, Mapping[Subset, Embedded]]
    not_finite: Sequence[str]


@final
class Collector:
    """Embeds held-out batches one by one, and brings together those of all ranks.

    A batch is encoded once, whatever is measured on it, and is not kept.

    Args:
        model: the model.
        subsets: subsets of its modalities to embed.
        noises: for each, the subsets that hold its modality are embedded once more.
        seed: of the noise, which depends on nothing else but the sample's key.
    """

    def __init__(
        self,
        model: FusionModel,
        subsets: Sequence[Subset],
        noises: Sequence[Noise] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.seed = model, seed
        self._wanted: dict[Noise | None, list[Subset]] = {None: list(subsets)}
        for noise in noises:
            self._wanted[noise] = [subset for subset in subsets if noise.modality in subset]
        self._keys: list[str] = []
        self._captions: list[str] = []
        self._groups: list[Tensor] = []
        self._parts: list[dict[tuple[Noise | None, Subset], Embedded]] = []

    @torch.no_grad()
    def add(self, batch: Mapping[str, Any]) -> None:
        """Embeds a batch, in eval mode.

        Args:
            batch: see `fusion.model.Batch`, with `keys` and `group_id` (B,), and `captions` if
                there are any. Samples beyond the keys are padding and are not counted.
        """
        training, groups = self.model.training, batch["group_id"]
        keys = list(batch["keys"])
        self.model.eval()
        here = [name for name in self.model.modalities if name in batch["inputs"]]
        tokens = self.model.encode(batch, here)
        found = {}
        for noise, subsets in self._wanted.items():
            seen = tokens
            if noise is not None and noise.modality in tokens:
                clean = tokens[noise.modality]
                noisy = disturbed(clean, keys, noise.level, self.seed)
                seen = {**tokens, noise.modality: noisy}
            for subset, embedded in fuse_subsets(self.model, seen, subsets, groups).items():
                found[noise, subset] = _lean(embedded, len(keys))
        self.model.train(training)
        self._parts.append(found)
        self._groups.append(groups[: len(keys)])
        self._keys += keys
        self._captions += batch.get("captions", [""] * len(keys))

    def finish(self, repeated: bool = False) -> HeldOut:
        """All samples of all ranks, the same on each; every rank calls it.

        Ranks may have different numbers of samples and batches, or none.

        Args:
            repeated: the loader fills up ranks with samples that others have, so that a key with
                its group counts once.
        """
        device = next(self.model.parameters()).device
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        groups = torch.cat([nothing, *self._groups])
        counts = row_counts(groups)
        keys, captions = _strings_of_all(self._keys), _strings_of_all(self._captions)
        groups = gather_rows(groups, counts)
        order = _order(keys, groups.tolist(), repeated)
        index = torch.tensor(order, dtype=torch.int64, device=device)
        first = absent(nothing, self.model.dim)
        joined: dict[Noise | None, dict[Subset, Embedded]] = {n: {} for n in self._wanted}
        bad = torch.zeros(len(order), dtype=torch.bool, device=device)
        for noise, subsets in self._wanted.items():
            for subset in subsets:
                own = join_embedded([first, *(part[noise, subset] for part in self._parts)])
                everywhere, broken = _finite(_gathered(own, counts, index))
                joined[noise][subset], bad = everywhere, bad | broken
        names = [keys[row] for row in order]
        clean = joined.pop(None)
        return HeldOut(
            names,
            groups[index],
            [captions[row] for row in order],
            clean,
            {noise: found for noise, found in joined.items() if noise is not None},
            [names[row] for row in bad.nonzero().flatten().tolist()],
        )


def disturbed(tokens: Tokens, keys: Iterable[str], level: float, seed: int) -> Tokens:
    """Tokens with Gaussian noise, relative to the root mean square of each token.

    Args:
        tokens: of B samples.
        keys: B names; the noise of a sample follows from its name and the seed alone.
        level: size of the noise over that of the token.
        seed: of the noise.
    """
    noise = torch.zeros_like(tokens.values, device="cpu", dtype=torch.float32)
    for row, (key, real) in enumerate(zip(keys, tokens.mask.cpu(), strict=False)):
        digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        # Drawn for real tokens alone: else it would depend on how far a batch is padded.
        noise[row, real] = torch.randn(int(real.sum()), noise.shape[2], generator=generator)
    size = tokens.values.square().mean(dim=-1, keepdim=True).sqrt() * tokens.mask.unsqueeze(-1)
    return tokens._replace(values=tokens.values + level * size * noise.to(tokens.values))


def _lean(embedded: Embedded, num: int) -> Embedded:
    """The first samples, in float32, and of their residuals the last ones only."""
    stats = embedded.stats._replace(trace=embedded.stats.trace[-1:])
    stats = stats._make(column[..., :num] for column in stats)
    return Embedded(embedded.rows[:num].float(), embedded.present[:num], stats)


def _gathered(own: Embedded, counts: Sequence[int], index: Tensor) -> Embedded:
    """The rows of all ranks, in order."""

    def gather(column: Tensor) -> Tensor:
        sent = column.to(torch.uint8) if column.dtype == torch.bool else column
        return gather_rows(sent, counts).to(column.dtype)[index]

    stats = own.stats._replace(trace=own.stats.trace[0])
    stats = stats._make(gather(column) for column in stats)
    stats = stats._replace(trace=stats.trace.unsqueeze(0))
    return Embedded(gather(own.rows), gather(own.present), stats)


def _finite(embedded: Embedded) -> tuple[Embedded, Tensor]:
    """Zeros for the rows that are not finite, and which these are."""
    broken = ~embedded.rows.isfinite().all(dim=1)
    return embedded._replace(rows=embedded.rows.masked_fill(broken.unsqueeze(1), 0)), broken


def _strings_of_all(own: list[str]) -> list[str]:
    if count_ranks() == 1:
        return own
    parts: list[list[str]] = [[] for _ in range(count_ranks())]
    dist.all_gather_object(parts, own)
    return [text for part in parts for text in part]


def _order(keys: Sequence[str], groups: Sequence[int], repeated: bool) -> list[int]:
    """Rows by key, so that no measure depends on how samples were dealt to ranks."""
    order = sorted(range(len(keys)), key=lambda row: (keys[row], groups[row]))
    if not repeated:
        return order
    return list({(keys[row], groups[row]): row for row in order}.values())
