"""Which tokens share a slot: over each input, as a table, and for all slots of all heads."""

from collections.abc import Iterator, Sequence

from fusion.diagnostics import Trajectory
from fusion.explain import words
from fusion.explain.album import Album
from fusion.explain.content import Part
from fusion.explain.drawings import picture_drawing, sound_drawing, table_drawing
from fusion.explain.slots import ShownSlots, per_slot, shown_slots
from fusion.report.markup import Html, element, join
from fusion.report.parts import box, note


def sharing(parts: Sequence[Part], found: Trajectory, album: Album, prefix: str) -> Html:
    """The section on one sample; pictures are named with a prefix."""
    slots = shown_slots(found)
    drawings, chips = [], []
    for part, span in _spans(parts):
        drawing = _drawing(part, slots, span, album, prefix)
        if drawing:
            drawings.append(drawing)
        else:
            chips.append(_chips(part, slots, span))
    left_out = len(slots.indices) < slots.num_slots
    some = f", with {len(slots.indices)} of them" if left_out else ""
    explanation = (
        f"Every head of the model has {slots.num_slots} slots of its own. Shown is head "
        f"{slots.head + 1} of {slots.num_heads}, the one that tells tokens apart most{some}. A "
        "slot has the same colour and number everywhere."
    )
    beside = box("stack", *drawings[1:], _slot_table(parts, slots))
    return join(
        element("h3", {}, "Which tokens share a slot"),
        note(explanation),
        *chips,
        box("grid figures loose", *drawings[:1], beside),
    )


def _spans(parts: Sequence[Part]) -> Iterator[tuple[Part, slice]]:
    """Each part with its place among all tokens."""
    start = 0
    for part in parts:
        yield part, slice(start, start + len(part.position))
        start += len(part.position)


def _drawing(part: Part, slots: ShownSlots, span: slice, album: Album, prefix: str) -> Html | None:
    """The slots over what a part can be drawn as; None if it is shown token by token."""
    if part.modality == "image":
        caption = (
            "The picture in its cells, each with its strongest slot; then, for every slot, how "
            "much of it comes from each cell. In the titles: how much comes from this picture."
        )
        drawing = picture_drawing(part.raw, part.position, slots, span)
        return album.add(f"{prefix}picture.png", drawing, caption)
    if part.modality == "audio":
        waveform, rate = part.raw
        caption = (
            "The sound in the colours of the strongest slots; below, how much of every slot comes "
            "from each moment. What the model did not hear any more is grey."
        )
        drawing = sound_drawing(waveform, rate, part.position, slots, span)
        return album.add(f"{prefix}sound.png", drawing, caption)
    return None


def _chips(part: Part, slots: ShownSlots, span: slice) -> Html:
    """Tokens as words on the colour of their strongest slot, its number beside them."""
    chips = []
    certainty = slots.certainty[span].tolist()
    for index, place in enumerate(slots.owner[span]):
        piece = part.raw[index] if part.modality == "text" else None
        shown = piece.text if piece else f"token {index + 1}"
        kind = "chip" + (" joined" if piece and piece.joined else "")
        attributes = {
            "class": kind + (" mark-piece" if piece and piece.mark else ""),
            "style": f"--slot:{slots.color(place)}",
            "title": f"slot {slots.name(place)}: {100 * certainty[index]:.0f} % of this token",
        }
        chips.append(element("span", attributes, shown, element("sub", {}, slots.name(place))))
    caption = (
        f"The {words.plain_name(part.modality)}, token by token, each on the colour and with the "
        "number of its strongest slot."
    )
    return element(
        "figure",
        {"class": "card paper words"},
        element("p", {"class": "chips"}, *chips),
        element("figcaption", {}, caption),
    )


def _slot_table(parts: Sequence[Part], slots: ShownSlots) -> Html:
    """How much of each slot comes from each modality, and its strongest token there."""
    num_tokens = slots.makeup.shape[1]
    heads = [element("th", {"scope": "col"}, "slot")]
    for part in parts:
        even = element("small", {}, f"evenly {100 * len(part.position) / num_tokens:.0f} %")
        heads.append(element("th", {"scope": "col"}, words.plain_name(part.modality), even))
    rows = []
    for place, makeup in enumerate(slots.makeup):
        swatch = element("i", {"class": "swatch", "style": f"--slot:{slots.color(place)}"})
        cells = [element("th", {"scope": "row"}, swatch, slots.name(place))]
        for part, span in _spans(parts):
            most = element("small", {}, words.strongest_token(part, makeup[span]))
            cells.append(element("td", {}, f"{100 * float(makeup[span].sum()):.0f} %", most))
        rows.append(element("tr", {}, *cells))
    head = element("thead", {}, element("tr", {}, *heads))
    table = element("table", {}, head, *rows)
    caption = "What each slot is made of; in small, its strongest token of that input."
    return box("card scroll", table, element("p", {"class": "soft caption-line"}, caption))


def every_slot(parts: Sequence[Part], found: Trajectory, album: Album, prefix: str) -> Html:
    """All slots of all heads against all tokens, folded away."""
    names = [words.plain_name(part.modality) for part in parts]
    lengths = [len(part.position) for part in parts]
    drawing = table_drawing(per_slot(found.weights[0]), names, lengths)
    caption = "A row for each slot, a column for each token: the brighter, the more of the slot."
    card = album.add(f"{prefix}slots.png", drawing, caption)
    return element("details", {}, element("summary", {}, "All slots of all heads"), card)
