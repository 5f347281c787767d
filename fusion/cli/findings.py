"""What the quickstart found: summary.json, report.html and the scorecard."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, cast

import torch

from fusion.block import FusionBlock
from fusion.cider import CaptionScores, cider_d, distinct_share
from fusion.cli.gallery import Gallerist
from fusion.cli.stages import Results, Session
from fusion.diagnostics import Trajectory, ambiguity, order_parameter, trajectory
from fusion.metrics import CUTOFFS, RetrievalScores
from fusion.report import (
    About,
    CaptionExample,
    Captions,
    Curve,
    Iteration,
    ReportContent,
    Retrieval,
    Training,
    write_report,
)
from fusion.scorecard import caption_quality, make_scorecard, write_scorecard
from fusion.tokens import concat, select

VERSIONS = ("assim", "torch", "lightning", "open_clip_torch", "timm", "webdataset", "lancedb")
ITERATED = ("image", "audio")  # the pair with the most tokens
NUM_DRAWN = 12  # iterations that are drawn round by round
SHOWN_CURVES = ("image->text", "text->image", "audio->text")
LIMITS = (
    "950 stamps by one project and about 9,000 clip arts and emoji: small, clean, drawn or cut "
    "out on white. Photographs of cluttered scenes will do worse.",
    "The speech is French by one speaker, so speaker and language cannot be told apart; English "
    "speech is not understood.",
    "Captions are held out by exact wording; a clip art or emoji with other words for the same "
    "thing may be among the training pictures.",
    "The captioner has seen about 7,000 short texts and guesses on anything unusual.",
)


def write_findings(
    session: Session, results: Results, captions: Sequence[str], seconds: Mapping[str, float]
) -> None:
    """Writes summary.json, report.html and scorecard.json and .html into the run folder.

    Args:
        session: the trained session.
        results: its evaluation.
        captions: a generated caption for each held-out sample.
        seconds: stage to duration so far.
    """
    truths = [session.sentence(sample["caption"]) for sample in session.data.val_samples]
    references = session.references()
    scores = cider_d(captions, references)
    iteration = _iteration(session, results)
    summary = {
        "recall": {name: _plain(value) for name, value in results.trained.items()},
        "baselines": {"ridge": {name: _plain(value) for name, value in results.baseline.items()}},
        "shuffled": {name: _plain(value) for name, value in results.shuffled.items()},
        "chance": {name: _chance(value) for name, value in results.trained.items()},
        "pool": {name: value.pool for name, value in results.trained.items()},
        "seconds": dict(seconds),
        "iterations": {
            "mean": sum(iteration.num_iters) / len(iteration.num_iters),
            "max": max(iteration.num_iters),
        },
        "converged": iteration.share_converged,
        "q": iteration.q,
        "error_bound": iteration.error_bound,
        "captions": {"cider": scores.mean, "distinct": distinct_share(captions)},
        "seed": session.seed,
    }
    text = json.dumps(summary, indent=2, allow_nan=False)
    (session.run / "summary.json").write_text(text + "\n")
    content = ReportContent(
        about=_about(session, seconds),
        retrieval=Retrieval(results.trained, results.baseline, results.shuffled),
        galleries=Gallerist(session, results).galleries(),
        captions=_captions(session, captions, truths, references, scores),
        training=_training(session, results),
        iteration=iteration,
    )
    write_report(session.run / "report.html", content)
    quality = caption_quality(captions, references)
    held_out = session.data.val_dataloader()
    write_scorecard(session.run, make_scorecard(session.model, held_out, session.seed, quality))


def _plain(scores: RetrievalScores) -> dict[str, float]:
    recall = {f"R@{k}": value for k, value in zip(CUTOFFS, scores.recall, strict=True)}
    return {**recall, "median_rank": scores.median_rank, "queries": scores.num_queries}


def _chance(scores: RetrievalScores) -> dict[str, float]:
    return {f"R@{k}": value for k, value in zip(CUTOFFS, scores.chance, strict=True)}


def _iteration(session: Session, results: Results) -> Iteration:
    """The iterations over held-out samples: as they were, and recorded round by round."""
    embedded = results.embedded[ITERATED]
    rows, stats = embedded.present.nonzero().flatten(), embedded.stats
    recorded = [
        (found, index) for found in _recorded(session) for index in range(len(found.num_iters))
    ]
    random.Random(0).shuffle(recorded)
    drawn = [(f, i, int(f.num_iters[i]) + 1) for f, i in recorded[:NUM_DRAWN]]
    return Iteration(
        num_iters=stats.num_iters[rows].tolist(),
        residuals=[found.residual[: end - 1, i].tolist() for found, i, end in drawn],
        tol=session.tol,
        q=float(stats.q[rows].max()),
        error_bound=float(stats.error_bound[rows].max()),
        share_converged=float(stats.converged[rows].float().mean()),
        order=[order_parameter(found.context)[:end, i].tolist() for found, i, end in drawn],
        coherence=[found.coherence[:end, i].tolist() for found, i, end in drawn],
        ambiguity=[
            (float(ambiguity(found.weights, found.mask)[i].mean()), int(found.num_iters[i]))
            for found, i in recorded
        ],
    )


@torch.no_grad()
def _recorded(session: Session) -> list[Trajectory]:
    """The first block's iterations on the held-out samples that have both modalities."""
    model = session.model.eval()
    block, found = cast(FusionBlock, model.blocks[0]), []
    for batch in session.data.val_dataloader():
        if set(ITERATED) <= set(batch["inputs"]):
            encoded = model.encode(batch, ITERATED)
            present = torch.stack([part.mask.any(dim=1) for part in encoded.values()]).all(dim=0)
            if present.any():
                found.append(trajectory(block, *select(concat(list(encoded.values())), present)))
    return found


def _captions(
    session: Session,
    written: Sequence[str],
    truths: Sequence[str],
    references: Sequence[list[str]],
    scores: CaptionScores,
) -> Captions:
    drawn = sorted(random.Random(session.seed).sample(range(len(written)), k=min(20, len(written))))
    pictures = session.pictures()
    examples = [
        CaptionExample(
            pictures[session.data.val_samples[i]["key"]], written[i], truths[i], scores.each[i]
        )
        for i in drawn
    ]
    ceiling = cider_d(truths, references).mean
    return Captions(examples, len(written), scores.mean, ceiling, distinct_share(written))


def _training(session: Session, results: Results) -> Training:
    with open(session.run / "logs" / "contrastive" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    directions = [name for name in SHOWN_CURVES if name in results.trained]
    return Training(
        loss=_curve(rows, "loss/alignment"),
        chance_loss=math.log(session.align.batch_size),
        recall={f"{name} R@10": _curve(rows, f"val/{name}/R@10") for name in directions},
        recall_baseline={
            f"{name} R@10": results.baseline[name].recall_at_10
            for name in directions
            if name in results.baseline
        },
    )


def _curve(rows: Sequence[Mapping[str, Any]], column: str) -> Curve:
    points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
    return Curve([step for step, _ in points], [value for _, value in points])


def _about(session: Session, seconds: Mapping[str, float]) -> About:
    data = session.data
    present = [set(sample["inputs"]) for sample in data.train_samples]
    return About(
        title="Pictures, words and speech in one space",
        summary=(
            "A model trained just now on the sample shards: Tux Paint stamps with spoken French, "
            "clip art and emoji. Everything below is measured on stamps whose captions it has "
            "never seen."
        ),
        seed=session.seed,
        seconds=seconds,
        data={
            "training samples": len(present),
            "of them with speech": sum("audio" in names for names in present),
            "held-out samples": len(data.val_samples),
            "held-out captions": len({sample["group_id"] for sample in data.val_samples}),
            "rejected samples": len(data.ledger.rejected),
        },
        versions={name: version(name) for name in VERSIONS},
        limits=LIMITS,
    )
