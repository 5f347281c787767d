"""An iteration in plain words and numbers."""

import math

from torch import Tensor

from fusion.diagnostics import (
    CLUSTER_DEGREES,
    Trajectory,
    ambiguity,
    effective_rank,
    num_clusters,
    order_parameter,
)
from fusion.explain.content import Part
from fusion.report.markup import Html, element
from fusion.report.parts import box

MODALITIES = {"image": "picture", "audio": "sound", "text": "words"}


def outcome(found: Trajectory) -> str:
    """How the iteration on one sample ended: "4 rounds; certain to within 0.0003."."""
    num = int(found.num_iters[0])
    rounds = f"{num} round{'' if num == 1 else 's'}"
    if not num:
        return "No round: there is no token."
    residual, bound = float(found.residual[-1, 0]), float(found.error_bound[-1, 0])
    if not math.isfinite(residual):
        return f"Failed in round {num}: the numbers were no longer finite."
    if not found.converged[0]:
        return (
            f"Not settled after {rounds}: the last change was {upward(residual)}, above the "
            f"tolerance {found.tol:g}."
        )
    if math.isfinite(bound):
        return f"{rounds}; certain to within {upward(bound)}."
    return f"{rounds}; nothing is certified, as this map declares no contraction."


def figures(found: Trajectory) -> dict[str, str]:
    """Name to value of the numbers of one sample."""
    bound, q = float(found.error_bound[-1, 0]), float(found.q[0])
    return {
        "rounds until the stop": str(int(found.num_iters[0])),
        "largest error of the result": upward(bound) if math.isfinite(bound) else "unknown",
        "contraction factor q": f"{q:.2f}" if math.isfinite(q) else "none",
        "ambiguity of the slots (0 to 1)": f"{sample_ambiguity(found):.2f}",
    }


def comparison(found: Trajectory) -> Html:
    """A table of the tokens and their context before and after the rounds."""
    latents = (found.anchors, found.latents)
    ranks = [f"{float(effective_rank(part, found.mask)[0]):.1f}" for part in latents]
    clusters = [str(int(num_clusters(part, found.mask)[0])) for part in latents]
    coherence = [f"{float(found.coherence[index, 0]):.2f}" for index in (0, -1)]
    order = [f"{float(order_parameter(found.context[index])[0]):.3f}" for index in (0, -1)]
    num = int(found.mask[0].sum())
    rows = (
        ("effective rank", ranks, f"independent directions among the {num} tokens"),
        ("clusters", clusters, f"groups linked by angles up to {CLUSTER_DEGREES:g} degrees"),
        ("phase coherence", coherence, "1: all tokens are in phase; 0: phases cancel out"),
        ("context |C|", order, "mean strength of the slots"),
    )
    heads = (element("th", {"scope": "col"}, head) for head in ("", "before", "after"))
    body = (
        element(
            "tr",
            {},
            element("th", {"scope": "row"}, name, element("small", {}, meaning)),
            *(element("td", {}, value) for value in values),
        )
        for name, values, meaning in rows
    )
    head = element("thead", {}, element("tr", {}, *heads))
    table = element("table", {"class": "measures"}, head, *body)
    return box("card scroll measures-card", table)


def sample_ambiguity(found: Trajectory) -> float:
    """Ambiguity of one sample, the mean over its heads."""
    return float(ambiguity(found.weights, found.mask)[0].mean())


def upward(value: float) -> str:
    """A number in decimals, rounded up to two digits: what is at most it stays so."""
    if value <= 0:
        return "0"
    place = math.floor(math.log10(value)) - 1
    digits = math.ceil(round(value / 10.0**place, 6))
    text = f"{digits * 10.0**place:.{max(0, -place)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain_name(modality: str) -> str:
    """What a modality is called on the page."""
    return MODALITIES.get(modality, modality)


def token_name(part: Part, index: int) -> str:
    """Where a token is: "top left", "1.3 s", "“frog”", or its number."""
    seconds, row, column = part.position[index].tolist()
    if part.modality == "image":
        return _corner(row, column)
    if part.modality == "audio":
        return f"{seconds:.1f} s"
    if part.modality == "text":
        piece = part.raw[index]
        return f"the {piece.text}" if piece.mark else f"“{piece.text}”"
    return f"token {index + 1}"


def _corner(row: float, column: float) -> str:
    vertical = ("top", "middle", "bottom")[min(int(3 * row), 2)]
    horizontal = ("left", "centre", "right")[min(int(3 * column), 2)]
    middle = (vertical, horizontal) == ("middle", "centre")
    return horizontal if middle else f"{vertical} {horizontal}"


def strongest_token(part: Part, makeup: Tensor) -> str:
    """Name of the token of a part that a slot holds most of; `makeup` (n,) is of that part."""
    return token_name(part, int(makeup.argmax()))
