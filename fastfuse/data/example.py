"""What a captioning dataset is: pictures with every caption that is true of them, addressed by (index, epoch)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

Split = Literal["train", "heldout", "all"]
SPLITS: tuple[Split, ...] = ("train", "heldout", "all")

Augmentation = Literal["crop", "flip", "brightness", "colour"]


@dataclass(frozen=True)
class Example:
    """One picture and what may truly be said of it."""

    image: Image.Image  # RGB
    captions: tuple[str, ...]  # every valid one, the canonical one first
    key: str  # names this picture within its dataset
    attributes: Mapping[str, object] = field(default_factory=dict)  # what the captions speak of, for display
    augmentations: frozenset[Augmentation] = frozenset()  # those that leave every caption true


class CaptionDataset(Protocol):
    """A sequence of examples.

    The same (index, epoch) is the same example, in every process and on every machine, so a run that was interrupted
    goes on with exactly the pictures it would have seen.
    """

    name: str
    split: Split

    def __len__(self) -> int:
        """Pictures an epoch."""
        ...

    def example(self, index: int, epoch: int = 0) -> Example:
        """The example at `index`, 0 <= index < len(self). Generated datasets make new pictures each epoch."""
        ...

    def captions(self, index: int, epoch: int = 0) -> tuple[str, ...]:
        """`example(index, epoch).captions`, without making or decoding the picture."""
        ...

    def grade(self, caption: str, example: Example) -> dict[str, float]:
        """How right `caption` is, each grade in 0 to 1.

        "exact" is 1 when it is one of the valid captions, else 0; then for each attribute that the example has, the
        fraction told correctly.
        """
        ...


def seeded(*parts: object) -> random.Random:
    """A generator that depends on the parts alone: `seeded("scenes", seed, epoch, index)`."""
    return random.Random("/".join(map(str, parts)))


def check_index(index: int, length: int) -> None:
    """Raise IndexError unless 0 <= index < length; it ends iteration over a dataset, too."""
    if not 0 <= index < length:
        raise IndexError(f"index: {index} is outside a dataset of {length} examples")


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
