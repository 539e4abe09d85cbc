"""Rendered scenes: one to three objects on a plain ground, captioned by a grammar, split by unseen combinations.

No picture of the training split contains an object with a (colour, shape, texture) of `HELDOUT_LOOKS`, one sixth of all
108; every picture of the held-out split contains at least one. Training shows every colour with every shape, every
shape with every texture and every texture with every colour, but "striped red heart" can be said only by putting
together what was learnt apart.
"""

from __future__ import annotations

import itertools
import random

from PIL import Image

from fastfuse.data.example import Example, Split, check_index, check_split, seeded
from fastfuse.data.grammar import AXES, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, describe, parse
from fastfuse.data.sprites import RADIUS, ROTATIONS, ink_mask, shape_mask

CANVAS = 64  # pixels, square
COUNT_WEIGHTS = (25, 60, 15)  # how often one, two and three objects are drawn

# (colour, shape, texture); the sum of the three places spreads what is held out evenly over all of them.
ALL_LOOKS = tuple(itertools.product(COLOURS, SHAPES, TEXTURES))
HELDOUT_LOOKS = tuple(
    (COLOURS[i], SHAPES[j], TEXTURES[k])
    for i, j, k in itertools.product(range(len(COLOURS)), range(len(SHAPES)), range(len(TEXTURES)))
    if (i + j + k) % 6 == 0
)
TRAIN_LOOKS = tuple(look for look in ALL_LOOKS if look not in HELDOUT_LOOKS)

_RGB = {
    "red": (214, 38, 38),
    "yellow": (245, 196, 0),
    "green": (30, 150, 50),
    "blue": (32, 84, 214),
    "purple": (150, 50, 180),
    "black": (24, 24, 28),
}
_INK = (255, 255, 255)


class Scenes:
    """Rendered scenes, 64 x 64, new ones every epoch; see the module's docstring for what the splits promise.

    Args:
        split: "train", "heldout", or "all" (any combination).
        seed: two datasets with the same seed and split hold the same pictures.
        size: pictures an epoch.
    """

    name = "scenes"

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
        """The scene at (index, epoch), rendered. Raises IndexError outside 0 <= index < len(self)."""
        rng, scene = self._draw(index, epoch)
        return Example(
            image=render(scene, rng),
            captions=describe(scene),
            key=f"scenes/{self.split}/{self.seed}/{epoch}/{index}",
            attributes={"axis": scene.axis, "things": tuple(thing.phrase(scene.told) for thing in scene.things)},
            augmentations=frozenset({"brightness"}),
        )

    def captions(self, index: int, epoch: int = 0) -> tuple[str, ...]:
        """Every valid caption at (index, epoch); nothing is rendered."""
        return describe(self._draw(index, epoch)[1])

    def grade(self, caption: str, example: Example) -> dict[str, float]:
        """Exact match, object count, and per attribute the share of the true scene's objects described rightly.

        Objects are compared in reading order. "size" is graded where captions tell it (up to two objects), "relation"
        where there are two objects or more. What is no sentence of the grammar gets 0 throughout.
        """
        truth, said = parse(example.captions[0]), parse(caption)
        assert truth is not None, "the canonical caption is a sentence of the grammar"
        told = said.things if said else ()
        grades = {
            "exact": float(caption in example.captions),
            "count": float(len(told) == len(truth.things)),
        }
        for name in truth.told:
            right = sum(getattr(a, name) == getattr(b, name) for a, b in zip(truth.things, told, strict=False))
            grades[name] = right / len(truth.things)
        if truth.axis is not None:
            grades["relation"] = float(said is not None and said.axis == truth.axis)
        return grades

    def _draw(self, index: int, epoch: int) -> tuple[random.Random, Scene]:
        """The scene at (index, epoch) and the generator that goes on to place and colour it."""
        check_index(index, self.size)
        rng = seeded("scenes", self.split, self.seed, epoch, index)
        return rng, sample_scene(rng, self.split)


def sample_scene(rng: random.Random, split: Split) -> Scene:
    """A scene that the split allows."""
    count = rng.choices((1, 2, 3), COUNT_WEIGHTS)[0]
    looks = [rng.choice(TRAIN_LOOKS if split == "train" else ALL_LOOKS) for _ in range(count)]
    if split == "heldout":
        looks[rng.randrange(count)] = rng.choice(HELDOUT_LOOKS)
    things = tuple(
        Thing(colour, shape, "small" if count == 3 else rng.choice(SIZES), texture) for colour, shape, texture in looks
    )
    return Scene(things, rng.choice(AXES) if count > 1 else None)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw a scene: RGB, CANVAS x CANVAS. `rng` chooses places, tilts, and slight shades of the colours."""
    ground = rng.randint(205, 240)
    image = Image.new("RGB", (CANVAS, CANVAS), _shade((ground, ground, ground), 8, rng))
    for thing, (x, y) in zip(scene.things, _places(scene, rng), strict=True):
        rotation = rng.choice(ROTATIONS)
        mask = shape_mask(thing.shape, thing.size, rotation)
        corner = (x - mask.width // 2, y - mask.height // 2)
        image.paste(_shade(_RGB[thing.colour], 14, rng), corner, mask)
        ink = ink_mask(thing.shape, thing.size, thing.texture, rotation)
        if ink is not None:
            image.paste(_INK, corner, ink)
    return image


def _places(scene: Scene, rng: random.Random) -> list[tuple[int, int]]:
    """Centres (x, y) in pixels.

    Each thing keeps to its own share of the axis and near a common line across it, so that objects neither touch nor
    leave the canvas, and their order along the axis is beyond doubt.
    """
    count = len(scene.things)
    if scene.axis is None:
        margin = RADIUS[scene.things[0].size] + 1
        return [(rng.randint(margin, CANVAS - margin), rng.randint(margin, CANVAS - margin))]
    line = CANVAS // 2 + rng.randint(-10, 10)
    places = []
    for i, thing in enumerate(scene.things):
        margin = RADIUS[thing.size] + 1
        along = rng.randint(i * CANVAS // count + margin, (i + 1) * CANVAS // count - margin)
        across = min(max(line + rng.randint(-4, 4), margin), CANVAS - margin)
        places.append((along, across) if scene.axis == "horizontal" else (across, along))
    return places


def _shade(colour: tuple[int, int, int], spread: int, rng: random.Random) -> tuple[int, int, int]:
    """The colour, each channel moved by up to `spread` of 255."""
    red, green, blue = (min(max(channel + rng.randint(-spread, spread), 0), 255) for channel in colour)
    return red, green, blue
