"""What an iteration does to its tokens, in numbers: rounds, energy, order, rank, clusters."""

from fusion.diagnostics.measures import (
    CLUSTER_DEGREES,
    ambiguity,
    effective_rank,
    num_clusters,
    order_parameter,
    phase_coherence,
    slot_shares,
    slot_weights,
    strongest_channel,
)
from fusion.diagnostics.trajectory import Trajectory, trajectory

__all__ = [
    "CLUSTER_DEGREES",
    "Trajectory",
    "ambiguity",
    "effective_rank",
    "num_clusters",
    "order_parameter",
    "phase_coherence",
    "slot_shares",
    "slot_weights",
    "strongest_channel",
    "trajectory",
]
