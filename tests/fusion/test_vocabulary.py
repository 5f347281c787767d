import pytest
import torch

from fusion.vocabulary import END, PAD, START, Vocabulary

CAPTIONS = [f"A {colour} {thing}." for colour in ("red", "blue") for thing in ("ball", "boat")]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    learned = Vocabulary(300)
    learned.learn(CAPTIONS)
    return learned


@pytest.mark.parametrize("caption", [*CAPTIONS, "A zebra, 3 Ünïts & 猫?!"])
def test_captions_and_unseen_words_come_back(vocabulary, caption):
    pieces = vocabulary.encode(caption, 100)
    assert pieces[0] == START and pieces[-1] == END
    assert all(END < piece < 300 for piece in pieces[1:-1])
    assert vocabulary.decode(pieces) == caption[0] + caption[1:].lower()


def test_frequent_words_are_few_pieces(vocabulary):
    assert len(vocabulary.encode("red ball", 100)) < len(vocabulary.encode("der labl", 100))


def test_captions_are_cut(vocabulary):
    whole = vocabulary.encode("a red ball and a blue boat", 100)
    assert vocabulary.encode("a red ball and a blue boat", 6) == [*whole[:5], END]


def test_decoding_ends_at_the_first_end(vocabulary):
    red = vocabulary.encode("red", 9)[1:-1]
    blue = vocabulary.encode("blue", 9)[1:-1]
    assert vocabulary.decode([START, *red, PAD, END, *blue, END]) == "Red"
    assert vocabulary.decode([END]) == vocabulary.decode([]) == ""


def test_the_order_of_captions_does_not_matter(vocabulary):
    other = Vocabulary(300)
    other.learn(reversed(CAPTIONS))
    assert other.get_extra_state().equal(vocabulary.get_extra_state())


def test_the_state_dict_carries_it(vocabulary, tmp_path):
    torch.save(vocabulary.state_dict(), tmp_path / "state.pt")
    other = Vocabulary(300)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for caption in (*CAPTIONS, "zebra"):
        assert other.encode(caption, 50) == vocabulary.encode(caption, 50)
    other.load_state_dict(Vocabulary(300).state_dict())  # and an empty one empties it
    with pytest.raises(RuntimeError, match="empty"):
        other.encode("a", 5)


def test_an_empty_vocabulary():
    for use in (lambda v: v.encode("a", 5), lambda v: v.decode([3])):
        with pytest.raises(RuntimeError, match="let it learn from captions, or load"):
            use(Vocabulary())


def test_a_caption_may_name_a_special_piece(vocabulary):
    caption = "A <pad> and <end> sign"
    assert vocabulary.decode(vocabulary.encode(caption, 100)) == caption


def test_there_are_no_more_pieces_than_the_size():
    with pytest.raises(ValueError, match="size"):
        Vocabulary(100).learn(CAPTIONS)
