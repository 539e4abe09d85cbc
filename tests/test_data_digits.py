"""Handwritten numbers: number words both ways, and no handwriting shared between the splits."""

import numpy as np
import pytest

from fastfuse.data import Digits
from fastfuse.data.digits import describe_number, originals, parse_number


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (45, "forty five"),
        (100, "one hundred"),
        (307, "three hundred and seven"),
        (999, "nine hundred and ninety nine"),
    ],
)
def test_numbers_in_words(number, words):
    assert describe_number(number)[0] == words


def test_words_tell_each_number_apart():
    captions = [caption for number in range(1000) for caption in describe_number(number)]
    assert len(set(captions)) == len(captions)
    assert all(parse_number(c) == n for n in range(1000) for c in describe_number(n))
    assert parse_number("hundred") is None
    with pytest.raises(ValueError, match="number"):
        describe_number(1000)


def test_splits_share_no_original():
    train, heldout, everything = (originals(split) for split in ("train", "heldout", "all"))
    assert sum(map(len, everything)) == 1797
    for digit in range(10):
        assert not set(map(id, train[digit])) & set(map(id, heldout[digit]))
        assert len(train[digit]) + len(heldout[digit]) == len(everything[digit])
        kept = sorted(image.tobytes() for image in (*train[digit], *heldout[digit]))
        assert kept == sorted(image.tobytes() for image in everything[digit])
        assert 0.15 < len(heldout[digit]) / len(everything[digit]) < 0.25


def test_an_index_and_epoch_name_one_picture():
    first, again, later = Digits().example(4), Digits().example(4), Digits().example(4, epoch=1)
    assert first.image.tobytes() == again.image.tobytes() != later.image.tobytes()
    assert first.captions == Digits().captions(4)


def test_pictures_are_written_dark_on_light_within_the_canvas():
    data = Digits("all", size=60)
    lengths = set()
    for i in range(len(data)):
        example = data.example(i)
        pixels = np.asarray(example.image)
        assert pixels.shape == (64, 64, 3)
        assert pixels[0, 0].min() >= 215
        assert pixels.min() < 120
        lengths.add(len(str(example.attributes["number"])))
    assert lengths == {1, 2, 3}


def test_grades_by_place():
    data = Digits(size=200)
    example = next(e for e in map(data.example, range(200)) if e.attributes["number"] >= 100)
    for caption in example.captions:
        assert data.grade(caption, example) == dict.fromkeys(("exact", "length", "ones", "tens", "hundreds"), 1.0)
    number = example.attributes["number"]
    wrong_ones = number - 1 if number % 10 else number + 1
    grades = data.grade(describe_number(wrong_ones)[0], example)
    assert grades == {"exact": 0.0, "length": 1.0, "ones": 0.0, "tens": 1.0, "hundreds": 1.0}
    assert set(data.grade("nonsense", example).values()) == {0.0}
