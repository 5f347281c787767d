"""The scorecard: every measure of a model on a held-out set."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, final

import torch

from fusion.cider import cider_d, distinct_share
from fusion.model import FusionModel
from fusion.scorecard.calibration import Calibration, calibrate
from fusion.scorecard.geometry import Gap, Spread, gaps, spreads
from fusion.scorecard.held_out import Collector, HeldOut, Noise
from fusion.scorecard.iterations import Iterations, iterations
from fusion.scorecard.recall import (
    Cell,
    disjoint_directions,
    flagged,
    mixed_pools,
    proper_subsets,
    recall_matrix,
)
from fusion.scorecard.robustness import (
    LEVELS,
    MissingPoint,
    NoisePoint,
    missing_curve,
    noise_curve,
)
from fusion.scorecard.zero_shot import ZeroShot, classify
from fusion.subsets import all_directions

MAX_NAMED = 8  # samples in a warning


class CaptionQuality(NamedTuple):
    """How good written captions are.

    Attributes:
        cider: CIDEr-D against the true captions.
        distinct: share of captions that differ from all others.
        num: of captions.
    """

    cider: float
    distinct: float
    num: int


@final
@dataclass(frozen=True)
class Scorecard:
    """What a model is worth on a held-out set.

    Attributes:
        num_samples: in the set.
        num_groups: of samples that are each other's positives.
        recall: every direction between disjoint subsets.
        mixed: searches of each modality among all others in one pool.
        missing: recall when inputs of queries are absent.
        noisy: recall when one modality of queries is noisy.
        spreads: of each modality's embeddings.
        gaps: between modalities.
        zero_shot: classification into the held-out captions.
        calibration: of a match probability.
        iterations: rounds against difficulty.
        captions: of the run's captioner; None if it has none.
        warnings: what makes the figures above doubtful, in sentences.
    """

    num_samples: int
    num_groups: int
    recall: tuple[Cell, ...]
    mixed: tuple[Cell, ...]
    missing: tuple[MissingPoint, ...]
    noisy: tuple[NoisePoint, ...]
    spreads: tuple[Spread, ...]
    gaps: tuple[Gap, ...]
    zero_shot: tuple[ZeroShot, ...]
    calibration: tuple[Calibration, ...]
    iterations: tuple[Iterations, ...]
    captions: CaptionQuality | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The card as JSON: objects with the names of the attributes; null for what is not."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def full_collector(model: FusionModel, seed: int = 0) -> Collector:
    """What gathers all that a scorecard needs."""
    noises = [Noise(name, level) for name in model.modalities for level in LEVELS]
    return Collector(model, proper_subsets(model.modalities), noises, seed)


def make_scorecard(
    model: FusionModel,
    batches: Iterable[Mapping[str, Any]],
    seed: int = 0,
    captions: CaptionQuality | None = None,
) -> Scorecard:
    """The scorecard of a model.

    Args:
        model: the model.
        batches: held-out batches; see `fusion.model.Batch`, with `keys` and `group_id` (B,).
        seed: of all that is drawn: the same card again for the same seed.
        captions: of the run's captioner.

    Raises:
        ValueError: if there is no sample.
    """
    collector = full_collector(model, seed)
    for batch in batches:
        collector.add(batch)
    return score(collector.finish(), model.modalities, seed, captions)


def score(
    held_out: HeldOut,
    modalities: Sequence[str],
    seed: int = 0,
    captions: CaptionQuality | None = None,
) -> Scorecard:
    """The scorecard of a held-out set that is embedded already, by a `full_collector`.

    Raises:
        ValueError: if there is no sample.
    """
    if not len(held_out.groups):
        raise ValueError(
            "There is no held-out sample to score; give the data module `val` shards or `held_out`."
        )
    generator = torch.Generator().manual_seed(seed)
    directions, few = disjoint_directions(modalities), all_directions(modalities)
    recall = recall_matrix(held_out, directions, generator)
    mixed = mixed_pools(held_out, modalities, generator)
    spread = spreads(held_out, modalities)
    return Scorecard(
        len(held_out.groups),
        len(held_out.groups.unique()),
        recall,
        mixed,
        missing_curve(held_out, directions, generator),
        noise_curve(held_out, few),
        spread,
        gaps(held_out, modalities),
        classify(held_out, proper_subsets(modalities)),
        calibrate(held_out, few, generator),
        iterations(held_out, few),
        captions,
        (*_not_finite(held_out), *_collapsed(spread), *flagged([*recall, *mixed])),
    )


def caption_quality(written: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionQuality:
    """Scores written captions.

    Args:
        written: one caption for each sample.
        references: the true ones of each sample, at least one.
    """
    return CaptionQuality(cider_d(written, references).mean, distinct_share(written), len(written))


def _not_finite(held_out: HeldOut) -> list[str]:
    keys = held_out.not_finite
    if not keys:
        return []
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return [
        f"{len(keys)} samples have embeddings that are not finite, and count as not found: "
        f"{', '.join(keys[:MAX_NAMED])}{more}."
    ]


def _collapsed(found: Iterable[Spread]) -> list[str]:
    return [
        f"The embeddings of {spread.modality} have collapsed to an effective rank of "
        f"{spread.effective_rank:.2f}."
        for spread in found
        if spread.num > 2 and spread.effective_rank < 2
    ]


def _plain(value: Any) -> Any:
    names = getattr(value, "_fields", None)
    if names is not None:
        return {name: _plain(item) for name, item in zip(names, value, strict=True)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
