import pytest

from fusion.subsets import Direction, all_directions, parse_direction


def test_the_nine_directions_of_three_modalities():
    assert [str(d) for d in all_directions(("image", "text", "audio"))] == [
        "image->text",
        "image->audio",
        "text->image",
        "text->audio",
        "audio->image",
        "audio->text",
        "image+text->audio",
        "image+audio->text",
        "text+audio->image",
    ]


@pytest.mark.parametrize(("num", "expected"), [(1, 0), (2, 2), (3, 9), (4, 24)])
def test_number_of_directions(num, expected):
    directions = all_directions("abcd"[:num])
    assert len(directions) == len(set(directions)) == expected
    assert not any(set(d.query) & set(d.target) for d in directions)


def test_round_trip():
    for direction in all_directions(("image", "text", "audio", "depth")):
        assert parse_direction(str(direction)) == direction
    spaced = parse_direction(" image + audio -> text ")
    assert spaced == Direction(("image", "audio"), ("text",))


@pytest.mark.parametrize("text", ["image->image", "image+text->text", "image+image->text"])
def test_overlap_is_refused(text):
    with pytest.raises(ValueError, match="two disjoint sets"):
        parse_direction(text)


@pytest.mark.parametrize("text", ["", "image", "->text", "image->", "a+->b", "a->b->c", "a>b"])
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match="Got direction"):
        parse_direction(text)
