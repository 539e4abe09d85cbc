"""Real handwriting: scikit-learn's bundled 8 x 8 digits composed into numbers up to 999, captioned in words.

The splits share no handwriting: of every digit's originals (1797 in all) one fifth is kept for the held-out pictures.
Data: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository, 1998.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from PIL import Image

from fastfuse.data.example import Example, Split, check_index, check_split, seeded

CANVAS = 64  # pixels, square
_HELDOUT_SHARE = 5  # one original of this many

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


class Digits:
    """Handwritten numbers, 64 x 64, dark on light, new ones every epoch.

    Args:
        split: "train", "heldout" or "all": whose originals the pictures are made of.
        seed: two datasets with the same seed and split hold the same pictures.
        size: pictures an epoch.
    """

    name = "digits"

    def __init__(self, split: Split = "train", seed: int = 0, size: int = 10_000):
        check_split(split)
        if size < 1:
            raise ValueError(f"size: expected at least one picture an epoch, got {size}")
        self.split = split
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return self.size

    def example(self, index: int, epoch: int = 0) -> Example:
        """The number at (index, epoch), written. Raises IndexError outside 0 <= index < len(self)."""
        rng, number = self._draw(index, epoch)
        return Example(
            image=_write(number, originals(self.split), rng),
            captions=describe_number(number),
            key=f"digits/{self.split}/{self.seed}/{epoch}/{index}",
            attributes={"number": number},
            augmentations=frozenset({"brightness", "colour"}),
        )

    def captions(self, index: int, epoch: int = 0) -> tuple[str, ...]:
        """Every valid caption at (index, epoch); nothing is drawn."""
        return describe_number(self._draw(index, epoch)[1])

    def grade(self, caption: str, example: Example) -> dict[str, float]:
        """Exact match, the number's length, and whether its ones, tens and hundreds (where it has them) are right."""
        truth = str(example.attributes["number"])
        number = parse_number(caption)
        said = "" if number is None else str(number)
        grades = {"exact": float(caption in example.captions), "length": float(len(said) == len(truth))}
        places = ("ones", "tens", "hundreds")
        for place, digit, told in zip(places, reversed(truth), said[::-1].ljust(3), strict=False):
            grades[place] = float(digit == told)
        return grades

    def _draw(self, index: int, epoch: int) -> tuple[random.Random, int]:
        """The number at (index, epoch), of one to three digits alike, and the generator that goes on to write it."""
        check_index(index, self.size)
        rng = seeded("digits", self.split, self.seed, epoch, index)
        low, high = rng.choice(((0, 9), (10, 99), (100, 999)))
        return rng, rng.randint(low, high)


@cache
def originals(split: Split) -> tuple[tuple[Image.Image, ...], ...]:
    """For each digit 0 to 9 its originals in `split`: mode "L", 8 x 8, 255 where the pen was."""
    from sklearn.datasets import load_digits  # imported here: it takes a second, and only this dataset needs it

    data = load_digits()
    pixels = np.clip(data.images * 16, 0, 255).astype(np.uint8)
    by_digit = []
    for digit in range(10):
        found = [Image.fromarray(pixels[i]) for i in np.flatnonzero(data.target == digit)]
        seeded("digits", "originals", digit).shuffle(found)
        cut = len(found) // _HELDOUT_SHARE
        by_digit.append(tuple({"heldout": found[:cut], "train": found[cut:], "all": found}[split]))
    return tuple(by_digit)


def describe_number(number: int) -> tuple[str, ...]:
    """A number from 0 to 999 in English words: British, then American where they differ.

    >>> describe_number(307)
    ('three hundred and seven', 'three hundred seven')
    """
    if not 0 <= number <= 999:
        raise ValueError(f"number: expected 0 to 999, got {number}")
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return (_below_hundred(rest),)
    head = f"{_ONES[hundreds]} hundred"
    return (f"{head} and {_below_hundred(rest)}", f"{head} {_below_hundred(rest)}") if rest else (head,)


def parse_number(caption: str) -> int | None:
    """The number that the words tell, None where they tell none: the inverse of `describe_number`."""
    return _numbers().get(caption)


def _below_hundred(number: int) -> str:
    tens, ones = divmod(number, 10)
    if tens < 2:
        return (_ONES, _TEENS)[tens][ones]
    return f"{_TENS[tens]} {_ONES[ones]}" if ones else _TENS[tens]


@cache
def _numbers() -> dict[str, int]:
    return {caption: number for number in range(1000) for caption in describe_number(number)}


def _write(number: int, samples: tuple[tuple[Image.Image, ...], ...], rng: random.Random) -> Image.Image:
    """The digits from left to right, each in its own hand, size and height, near the middle of the canvas."""
    digits = [int(digit) for digit in str(number)]
    ink = Image.new("L", (CANVAS, CANVAS), 0)
    sides = [rng.randint(18, 21) for _ in digits]
    x = (CANVAS - sum(sides)) // 2
    x += rng.randint(-min(x, 10), min(x, 10))
    y = (CANVAS - max(sides)) // 2 + rng.randint(-10, 10)
    for digit, side in zip(digits, sides, strict=True):
        glyph = rng.choice(samples[digit]).resize((side, side), Image.Resampling.BICUBIC)
        ink.paste(glyph, (x, y + rng.randint(-2, 2)))
        x += side
    paper, pen = rng.randint(215, 255), rng.randint(0, 60)
    image = Image.new("RGB", (CANVAS, CANVAS), (paper, paper, paper))
    image.paste((pen, pen, pen + rng.randint(0, 60)), (0, 0), ink)
    return image
