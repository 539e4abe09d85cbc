"""The language of rendered scenes: what a scene is, every caption that is true of it, and the way back.

    one object      a large striped red circle
    two             a large striped red circle left of a small blue star
    three           striped red circle then blue star then dotted green cross from left to right

Objects are kept in reading order (left to right, or top to bottom). A plain texture goes without saying. Of three
objects all are small and their sizes are not told, which keeps every caption within 16 words.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")

Axis = Literal["horizontal", "vertical"]
AXES: tuple[Axis, ...] = ("horizontal", "vertical")

# "A <forward> B" says that A comes before B in reading order, "B <backward> A" says the same.
_FORWARD: dict[Axis, tuple[str, ...]] = {"horizontal": ("left of", "to the left of"), "vertical": ("above", "over")}
_BACKWARD: dict[Axis, tuple[str, ...]] = {"horizontal": ("right of", "to the right of"), "vertical": ("below", "under")}
_ORDER: dict[Axis, str] = {"horizontal": "from left to right", "vertical": "from top to bottom"}
_REVERSED: dict[Axis, str] = {"horizontal": "from right to left", "vertical": "from bottom to top"}


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    colour: str
    shape: str
    size: str = "small"
    texture: str = "plain"

    def phrase(self, told: tuple[str, ...]) -> str:
        """Its words in English order, from those attributes that are told."""
        words = (getattr(self, name) for name in ("size", "texture", "colour", "shape") if name in told)
        return " ".join(word for word in words if word != "plain")


@dataclass(frozen=True)
class Scene:
    """One to three things in reading order along `axis`; a single thing has no axis."""

    things: tuple[Thing, ...]
    axis: Axis | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """The attributes of a thing that captions of this scene mention."""
        return ("colour", "shape", "texture") if len(self.things) == 3 else ("colour", "shape", "size", "texture")


def describe(scene: Scene) -> tuple[str, ...]:
    """Every valid caption of `scene`, the canonical one first, without duplicates."""
    phrases = [thing.phrase(scene.told) for thing in scene.things]
    if scene.axis is None:
        return tuple(f"{lead}a {phrases[0]}" for lead in ("", "there is ", "a picture of "))
    if len(phrases) == 2:
        first, second = (f"a {phrase}" for phrase in phrases)
        plain = [f"{first} {relation} {second}" for relation in _FORWARD[scene.axis]]
        plain += [f"{second} {relation} {first}" for relation in _BACKWARD[scene.axis]]
        return tuple(lead + caption for lead in ("", "there is ") for caption in plain)
    forward, backward = " then ".join(phrases), " then ".join(reversed(phrases))
    orders = ((forward, _ORDER[scene.axis]), (backward, _REVERSED[scene.axis]))
    return tuple(
        itertools.chain(
            (f"{listed} {order}" for listed, order in orders),
            (f"{order} {listed}" for listed, order in orders),
        )
    )


def parse(caption: str) -> Scene | None:
    """The scene that a caption speaks of, None where it is no sentence of the grammar.

    The inverse of `describe`: parse(c) == scene for every c in describe(scene).
    """
    words = caption.split()
    for lead in (["there", "is"], ["a", "picture", "of"]):
        if words[: len(lead)] == lead:
            words = words[len(lead) :]
    if "then" in words:
        return _parse_list(words)
    relation = _find_relation(words)
    if relation is None:
        thing = _parse_thing(words, article=True)
        return Scene((thing,)) if thing else None
    start, end, axis, forward = relation
    first, second = _parse_thing(words[:start], article=True), _parse_thing(words[end:], article=True)
    if first is None or second is None:
        return None
    return Scene((first, second) if forward else (second, first), axis)


def _find_relation(words: list[str]) -> tuple[int, int, Axis, bool] | None:
    """(start, end, axis, forward) of the relation between two objects; longer phrases are tried first."""
    phrases = [
        (phrase.split(), axis, table is _FORWARD)
        for table in (_FORWARD, _BACKWARD)
        for axis in AXES
        for phrase in table[axis]
    ]
    for phrase, axis, forward in sorted(phrases, key=lambda entry: -len(entry[0])):
        for start in range(len(words) - len(phrase) + 1):
            if words[start : start + len(phrase)] == phrase:
                return start, start + len(phrase), axis, forward
    return None


def _parse_list(words: list[str]) -> Scene | None:
    """Three things joined by "then", with their order told before or after them."""
    for table in (_ORDER, _REVERSED):
        for axis in AXES:
            order = table[axis].split()
            if words[: len(order)] == order:
                rest = words[len(order) :]
            elif words[-len(order) :] == order:
                rest = words[: -len(order)]
            else:
                continue
            parts = " ".join(rest).split(" then ")
            things = [_parse_thing(part.split(), article=False) for part in parts]
            if len(things) != 3 or None in things:
                return None
            found = tuple(thing for thing in things if thing is not None)
            return Scene(found if table is _ORDER else found[::-1], axis)
    return None


def _parse_thing(words: list[str], *, article: bool) -> Thing | None:
    """A noun phrase; with an article it tells a size, without one it does not."""
    if article:
        if words[:1] != ["a"] or len(words) < 2 or words[1] not in SIZES:
            return None
        size, words = words[1], words[2:]
    else:
        size = "small"
    texture = "plain"
    if words and words[0] in TEXTURES[1:]:
        texture, words = words[0], words[1:]
    if len(words) != 2 or words[0] not in COLOURS or words[1] not in SHAPES:
        return None
    return Thing(colour=words[0], shape=words[1], size=size, texture=texture)
