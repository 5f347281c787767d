"""The page of `fusion explain`: which tokens share a slot, and how the iteration went.

write_explanation("explain.html", [Exhibit("a frog", parts, trajectories)])
"""

from fusion.explain.content import Exhibit, Part, Piece
from fusion.explain.writer import write_explanation

__all__ = ["Exhibit", "Part", "Piece", "write_explanation"]
