"""What a task measures on held-out samples: a few scores while it trains, all when it is tested."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DistributedSampler

from fusion.evaluation import needed_subsets, score_directions
from fusion.metrics import RetrievalScores
from fusion.model import FusionModel
from fusion.scorecard import (
    Collector,
    HeldOut,
    full_collector,
    print_scorecard,
    score,
    tradeoff,
    write_scorecard,
)
from fusion.scorecard.geometry import gaps, spreads
from fusion.subsets import Direction, all_directions
from fusion.tasks.sharding import is_sharded, level


@final
class HeldOutScores(Callback):
    """Scores the held-out samples of all ranks together, from before the first step on.

    Validation logs, the same on every rank, `val/DIRECTION/R@1` and `R@10` of the directions that
    are trained and of all between single modalities and pairs; `val/gap/A-B`,
    `val/effective_rank/A` and `val/uniformity/A`; `val/num_iters` and `val/converged` of the
    samples of the first modality. It warns when recall of one direction fell and that of another
    rose since the last validation.

    A test writes `scorecard.json` and `scorecard.html` into the run's folder and prints a table.

    Args:
        directions: those that are trained.
        seed: of what a test draws.
    """

    def __init__(self, directions: Sequence[Direction], seed: int = 0) -> None:
        self.directions, self.seed = list(directions), seed
        self._collector: Collector | None = None
        self._before: dict[str, RetrievalScores] = {}
        self._tested = False

    def add(self, batch: Mapping[str, Any]) -> None:
        """Embeds a held-out batch; the task calls it in its validation and test steps."""
        collector = cast(Collector, self._collector)
        collector.add(level(batch) if is_sharded(collector.model) else batch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validates once before the first step, unless a run is resumed."""
        if trainer.global_step or not trainer.enable_validation:
            return
        connector = trainer._logger_connector
        first = connector._first_loop_iter
        trainer.validating = True  # as the training loop does it
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        connector._first_loop_iter = first

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the samples of the last validation."""
        model = _model_of(pl_module)
        self._collector = Collector(model, needed_subsets(self._scored(model)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs; warns."""
        held_out = self._finish(trainer.val_dataloaders)
        model = _model_of(pl_module)
        found = score_directions(held_out.embedded, held_out.groups, self._scored(model))
        for name, value in _figures(found, held_out, model.modalities):
            pl_module.log(f"val/{name}", value, batch_size=1, sync_dist=True)
        if trainer.sanity_checking:
            return
        if held_out.not_finite:
            rank_zero_warn(
                f"{len(held_out.not_finite)} held-out samples have embeddings that are not finite, "
                f"and count as not found; the first is {held_out.not_finite[0]}."
            )
        if warning := tradeoff(self._before, found):
            rank_zero_warn(f"Step {trainer.global_step}: {warning}")
        self._before = found

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a scorecard."""
        self._collector, self._tested = full_collector(_model_of(pl_module), self.seed), True

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes and prints the scorecard."""
        held_out = self._finish(trainer.test_dataloaders)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all ranks ask together
        if trainer.is_global_zero:
            card = score(held_out, _model_of(pl_module).modalities, self.seed)
            print_scorecard(card)
            print(f"\nScorecard: {write_scorecard(folder, card)}")
        trainer.strategy.barrier()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning runs a test without any batch in silence; says so.

        Raises:
            ValueError: if there was no batch to test on.
        """
        if stage == "test" and not self._tested:
            raise ValueError(
                "There is no held-out sample to test on; give the data module `val` shards or "
                "`held_out`."
            )

    def _finish(self, loaders: Any) -> HeldOut:
        collector, self._collector = cast(Collector, self._collector), None
        return collector.finish(repeated=_fills_up(loaders))

    def _scored(self, model: FusionModel) -> list[Direction]:
        return list(dict.fromkeys([*all_directions(model.modalities), *self.directions]))

    def state_dict(self) -> dict[str, Any]:
        """The last scores, so that a resumed run compares with them."""
        return {"before": {name: list(scores) for name, scores in self._before.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on comparing."""
        before = state_dict["before"]
        self._before = {name: RetrievalScores(*scores) for name, scores in before.items()}


def _model_of(module: LightningModule) -> FusionModel:
    return cast(FusionModel, module.model)


def _figures(
    recall: Mapping[str, RetrievalScores], held_out: HeldOut, modalities: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Names under which figures are logged, without what this set cannot tell."""
    for name, scores in recall.items():
        yield f"{name}/R@1", scores.recall_at_1
        yield f"{name}/R@10", scores.recall_at_10
    for gap in gaps(held_out, modalities):
        yield f"gap/{gap.first}-{gap.second}", gap.centroid_distance
    for spread in spreads(held_out, modalities):
        yield f"effective_rank/{spread.modality}", spread.effective_rank
        if spread.uniformity is not None:
            yield f"uniformity/{spread.modality}", spread.uniformity
    first = held_out.embedded[modalities[0],]
    if first.present.any():
        yield "num_iters", float(first.stats.num_iters[first.present].double().mean())
        yield "converged", float(first.stats.converged[first.present].double().mean())


def _fills_up(loaders: Any) -> bool:
    """Whether Lightning deals samples to ranks, some of them twice to make ranks even."""
    listed = loaders if isinstance(loaders, list | tuple) else [loaders]
    return any(isinstance(getattr(each, "sampler", None), DistributedSampler) for each in listed)
