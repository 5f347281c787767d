"""The scorecard in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.metrics import CUTOFFS, RetrievalScores
from fusion.scorecard.card import Scorecard

if TYPE_CHECKING:
    from rich.console import Console

_CLEAR = 0.02  # recall below chance plus this is shown dim


def print_scorecard(card: Scorecard, console: Console | None = None) -> None:
    """Prints recall of every direction and, in a line each, what else matters.

    Args:
        card: what to print.
        console: where to; None is the standard output.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    title = f"{card.num_samples:,} held-out samples, {card.num_groups:,} groups"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("direction")
    for name in (*(f"R@{k} %" for k in CUTOFFS), "chance@10", "median", "pool"):
        table.add_column(name, justify="right")
    for cell in (*card.recall, *card.mixed):
        scores = cell.scores
        known = scores.recall_at_10 > scores.chance_at_10 + _CLEAR
        table.add_row(Text(cell.direction), *_figures(scores), style="" if known else "dim")
    console.print(table)
    for line in _lines(card):
        console.print(Text(line))
    for warning in card.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _figures(scores: RetrievalScores) -> list[str]:
    recall = [f"{100 * share:.1f}" for share in scores.recall]
    return [
        *recall,
        f"{100 * scores.chance_at_10:.1f}",
        f"{scores.median_rank:g}",
        f"{scores.pool}",
    ]


def _lines(card: Scorecard) -> list[str]:
    ranks = ", ".join(f"{s.modality} {s.effective_rank:.1f}" for s in card.spreads)
    lines = [f"effective rank: {ranks}"] if ranks else []
    gaps = ", ".join(f"{g.first}-{g.second} {g.centroid_distance:.2f}" for g in card.gaps)
    lines += [f"gap: {gaps}"] if gaps else []
    half = [point for point in card.missing if point.absent == 0.5]
    lines += [
        f"{p.direction} without {100 * p.absent:.0f} % of inputs: R@10 "
        f"{100 * p.scores.recall_at_10:.1f} %"
        for p in half
    ]
    errors = [c.error for c in card.calibration]
    if errors:
        lines.append(f"calibration error: {min(errors):.3f} to {max(errors):.3f}")
    if card.captions:
        distinct = 100 * card.captions.distinct
        lines.append(f"captions: CIDEr-D {card.captions.cider:.2f}, {distinct:.0f} % distinct")
    return lines
