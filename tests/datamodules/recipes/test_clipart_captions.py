import pytest

from datamodules.recipes.clipart import read_metadata
from datamodules.recipes.clipart_captions import Metadata, keywords_of, name_of


@pytest.mark.parametrize(
    ("stem", "title", "num_sharing", "name"),
    [
        ("x", "Brown Dog (sitting) 02", 1, "brown dog"),
        ("red_car_ann_bee_01", "Various clip art", 1, "red car"),
        ("red_car_annb", "Cars", 7, "red car"),
        ("redCar", "", 9, "red car"),
        ("gnome-printer", "GNOME icon", 1, "printer"),
        ("ann", "", 1, "ann"),
        ("_01", "12", 1, ""),
    ],
)
def test_names_come_from_titles_that_name_the_thing(stem, title, num_sharing, name):
    assert name_of(Metadata(stem, title, (), "Ann Bee"), num_sharing) == name


def test_keywords_add_to_the_name():
    words = ("dog", "animal", "ann", "unsorted", "hash(0x1)", "Animal", *"abcdefgh")
    long = (*words, *(f"word{letter}" for letter in "abcdefgh"))
    meta = Metadata("x", "Dog", long, "Ann Bee")
    assert keywords_of(meta, "dog") == ["animal", *(f"word{letter}" for letter in "abcde")]


def test_metadata_reads_nothing_outside_the_file(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    entity = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]>'
    title = '<svg xmlns="http://www.w3.org/2000/svg"><title>Cherry &x;</title></svg>'
    (tmp_path / "a.svg").write_text(entity + title)
    meta = read_metadata(tmp_path / "a.svg")
    assert meta.title.startswith("Cherry") and "secret" not in meta.title
    (tmp_path / "b.svg").write_text("")
    assert read_metadata(tmp_path / "b.svg") == Metadata("b", "", (), "")
