"""What a trained model is worth on held-out samples: one card of measures that do not flatter.

card = make_scorecard(model, batches); write_scorecard(run, card)
"""

from fusion.scorecard.card import (
    CaptionQuality,
    Scorecard,
    caption_quality,
    full_collector,
    make_scorecard,
    score,
)
from fusion.scorecard.changes import tradeoff
from fusion.scorecard.held_out import Collector, HeldOut, Noise
from fusion.scorecard.table import print_scorecard
from fusion.scorecard.writer import write_scorecard

__all__ = [
    "CaptionQuality",
    "Collector",
    "HeldOut",
    "Noise",
    "Scorecard",
    "caption_quality",
    "full_collector",
    "make_scorecard",
    "print_scorecard",
    "score",
    "tradeoff",
    "write_scorecard",
]
