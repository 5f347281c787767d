"""The page and its pictures."""

from collections.abc import Mapping, Sequence

from fusion.diagnostics import Trajectory, order_parameter, strongest_channel
from fusion.explain import words
from fusion.explain.album import Album
from fusion.explain.content import Exhibit
from fusion.explain.sharing import every_slot, sharing
from fusion.explain.slots import shown_slots
from fusion.plots import (
    ambiguity_figure,
    certainty_figure,
    energy_figure,
    order_figure,
    portrait_figure,
)
from fusion.report.frame import frame
from fusion.report.markup import Html, element, join
from fusion.report.parts import box, headline_figures, note

MOST_DRAWN = 12
"""Samples that get a section of their own; all are in the last figure."""
_INTRODUCTION = (
    "Each input was cut into tokens: cells of the picture, moments of the sound, pieces of words. "
    "Round by round, the tokens of all inputs flow into a few slots, small shared memories, and "
    "every token is drawn towards what it reads from them, until nothing moves any more. Tokens "
    "that share a slot were put together by the model."
)


def render(exhibits: Sequence[Exhibit]) -> tuple[str, Mapping[str, bytes]]:
    """The page of some samples, which asks for nothing, and its PNG pictures by name."""
    album = Album()
    drawn = exhibits[:MOST_DRAWN]
    several = len(exhibits) > 1
    sections = [
        _sample(exhibit, album, index if several else 0)
        for index, exhibit in enumerate(drawn, start=1)
    ]
    if several:
        sections.append(_comparison(exhibits, album))
    title = "How the inputs were fused"
    links = [(f"#s{index}", f"{index}. {e.title}") for index, e in enumerate(drawn, start=1)]
    links.append(("#all", "Iterations against ambiguity"))
    nav = (element("a", {"href": address}, name) for address, name in links)
    header = join(
        element("h1", {}, title),
        note(_INTRODUCTION),
        element("nav", {"aria-label": "Samples"}, *nav) if several else "",
    )
    return frame(title, header, join(*sections)), album.files


def _sample(exhibit: Exhibit, album: Album, number: int) -> Html:
    heading = f"{number}. {exhibit.title}" if number else exhibit.title
    blocks = []
    for index, found in enumerate(exhibit.blocks, start=1):
        prefix = f"sample{number}-" if number else ""
        if len(exhibit.blocks) > 1:
            prefix += f"block{index}-"
            blocks.append(element("h3", {}, f"Block {index} of {len(exhibit.blocks)}"))
        blocks.append(element("p", {"class": "outcome"}, words.outcome(found)))
        if found.mask.any() and len(found.residual):
            blocks.append(sharing(exhibit.parts, found, album, prefix))
            blocks.append(_iteration(found, album, prefix))
            blocks.append(every_slot(exhibit.parts, found, album, prefix))
    return element("section", {"id": f"s{number or 1}"}, element("h2", {}, heading), *blocks)


def _iteration(found: Trajectory, album: Album, prefix: str) -> Html:
    residual, bound = found.residual[:, 0].tolist(), found.error_bound[:, 0].tolist()
    order = order_parameter(found.context)[:, 0].tolist()
    cards = [
        album.add(
            f"{prefix}residual.png",
            certainty_figure(residual, bound, found.tol),
            "How much still moves in each plain round, and how far the result may be from the "
            "final one. It stops below the tolerance; the model's closing rounds, which are not "
            "shown, come closer still.",
        ),
        _portrait(found, album, prefix),
        album.add(
            f"{prefix}order.png",
            order_figure([order], [found.coherence[:, 0].tolist()]),
            "Strength of the shared context, and how far all tokens are in phase.",
        ),
    ]
    if found.energy is not None:
        energy = energy_figure(found.energy[:, 0].tolist())
        caption = "Energy: no round of this map can raise it."
        cards.append(album.add(f"{prefix}energy.png", energy, caption))
    return join(
        element("h3", {}, "The iteration"),
        headline_figures(words.figures(found)),
        words.comparison(found),
        box("grid figures three", *cards),
    )


def _portrait(found: Trajectory, album: Album, prefix: str) -> Html:
    """The way of each shown slot through the complex plane."""
    slots = shown_slots(found)
    paths = strongest_channel(found.context)[:, 0, slots.head].transpose(0, 1)[slots.indices]
    places = range(len(slots.indices))
    drawing = portrait_figure(
        [[(real, imaginary) for real, imaginary in path] for path in paths.tolist()],
        [slots.name(place) for place in places],
        [slots.color(place) for place in places],
    )
    caption = (
        "Phase portrait: each slot's strongest complex channel, from its start (hollow) round "
        "by round to its rest (filled). The angle is the phase, the distance from 0 the strength."
    )
    return album.add(f"{prefix}portrait.png", drawing, caption)


def _comparison(exhibits: Sequence[Exhibit], album: Album) -> Html:
    """Rounds of all samples against the ambiguity of their slots, first blocks."""
    founds = [exhibit.blocks[0] for exhibit in exhibits]
    ambiguity = [words.sample_ambiguity(found) for found in founds]
    rounds = [int(found.num_iters[0]) for found in founds]
    numbers = [str(index) for index in range(1, len(founds) + 1)]
    figure = album.add(
        "ambiguity.png",
        ambiguity_figure(ambiguity, rounds, numbers if len(founds) <= MOST_DRAWN else ()),
        "Rounds of each sample against how undecided its tokens are between slots (entropy, 1: "
        "spread evenly).",
    )
    heads = ("sample", "rounds", "ambiguity", "error at most")
    rows = [
        element(
            "tr",
            {},
            element("th", {"scope": "row"}, f"{number}. {exhibit.title}"),
            *(element("td", {}, value) for value in (str(num), f"{value:.3f}", _bound(found))),
        )
        for number, exhibit, num, value, found in zip(
            numbers, exhibits, rounds, ambiguity, founds, strict=True
        )
    ]
    head = element("tr", {}, *(element("th", {"scope": "col"}, name) for name in heads))
    table = element("table", {}, element("thead", {}, head), *rows)
    left_out = (
        f"Of {len(exhibits)} samples the first {MOST_DRAWN} are drawn one by one."
        if len(exhibits) > MOST_DRAWN
        else ""
    )
    return element(
        "section",
        {"id": "all"},
        element("h2", {}, "Iterations against ambiguity"),
        note(left_out) if left_out else "",
        box("grid figures", figure, box("card scroll", table)),
    )


def _bound(found: Trajectory) -> str:
    return words.figures(found)["largest error of the result"]
