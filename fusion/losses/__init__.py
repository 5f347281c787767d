"""Contrastive losses over pairs of embeddings, exact on one process and on many."""

from fusion.losses.base import ContrastiveLoss
from fusion.losses.exchange import Alone, Chunked, Exchange, Gathered, Ring
from fusion.losses.functional import contrastive_loss, sigmoid_loss
from fusion.losses.info_nce import InfoNCE
from fusion.losses.rows import Block, Rows
from fusion.losses.sigmoid import SigmoidLoss

__all__ = [
    "Alone",
    "Block",
    "Chunked",
    "ContrastiveLoss",
    "Exchange",
    "Gathered",
    "InfoNCE",
    "Ring",
    "Rows",
    "SigmoidLoss",
    "contrastive_loss",
    "sigmoid_loss",
]
