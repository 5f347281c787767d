"""How the rows of a contrastive loss meet its columns: within one process and across ranks."""

from fusion.losses.exchange.alone import Alone
from fusion.losses.exchange.base import Exchange, Score, Tally, Total
from fusion.losses.exchange.chunked import Chunked
from fusion.losses.exchange.gathered import Gathered
from fusion.losses.exchange.ring import Ring

__all__ = ["Alone", "Chunked", "Exchange", "Gathered", "Ring", "Score", "Tally", "Total"]
