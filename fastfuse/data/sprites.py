"""Anti-aliased masks of the shapes and textures that scenes are made of, drawn once each and kept.

A picture is then a few `Image.paste` calls: about 0.05 ms instead of several milliseconds of supersampled drawing.
"""

from __future__ import annotations

import math
from functools import cache

from PIL import Image, ImageChops, ImageDraw

RADIUS = {"small": 9, "large": 14}  # pixels
ROTATIONS = (-12, -6, 0, 6, 12)  # degrees

_SUPERSAMPLING = 8
_STRIPE_PERIOD, _STRIPE_WIDTH = 0.54, 0.26  # in radii of the shape
_DOT_PERIOD, _DOT_RADIUS = 0.58, 0.2
_INKED = 0.84  # the ink stops short of the edge, so that a texture never eats into the outline


@cache
def shape_mask(shape: str, size: str, rotation: int) -> Image.Image:
    """Coverage of a shape: mode "L", (2 r + 2, 2 r + 2) pixels, 255 inside."""
    return _supersampled_shape(shape, size, rotation).reduce(_SUPERSAMPLING)


@cache
def ink_mask(shape: str, size: str, texture: str, rotation: int) -> Image.Image | None:
    """Coverage of the texture's white ink within the shape, as `shape_mask`; None for a plain texture."""
    if texture == "plain":
        return None
    inside = _supersampled_shape(shape, size, rotation, _INKED)
    draw_pattern = _stripes if texture == "striped" else _dots
    pattern = draw_pattern(inside.width, RADIUS[size] * _SUPERSAMPLING)
    return ImageChops.multiply(inside, pattern).reduce(_SUPERSAMPLING)


def _supersampled_shape(shape: str, size: str, rotation: int, scale: float = 1.0) -> Image.Image:
    side = (2 * RADIUS[size] + 2) * _SUPERSAMPLING
    centre = (side - 1) / 2  # pixel centres are whole numbers, and Pillow fills a polygon's border, too
    radius = (RADIUS[size] * _SUPERSAMPLING - 1) * scale
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    turn = math.radians(rotation)
    points = [
        (
            centre + radius * (x * math.cos(turn) - y * math.sin(turn)),
            centre + radius * (x * math.sin(turn) + y * math.cos(turn)),
        )
        for x, y in _OUTLINES[shape]
    ]
    draw.polygon(points, fill=255)
    return canvas


def _stripes(side: int, radius: float) -> Image.Image:
    """Horizontal bars, one of them through the middle."""
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    half = radius * _STRIPE_WIDTH / 2
    for k in range(-3, 4):
        y = side / 2 + k * radius * _STRIPE_PERIOD
        draw.rectangle((0, y - half, side, y + half), fill=255)
    return canvas


def _dots(side: int, radius: float) -> Image.Image:
    """Discs on a staggered lattice, one of them in the middle."""
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    dot = radius * _DOT_RADIUS
    for row in range(-3, 4):
        for column in range(-3, 4):
            x = side / 2 + (column + row % 2 / 2) * radius * _DOT_PERIOD
            y = side / 2 + row * radius * _DOT_PERIOD * 0.8
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=255)
    return canvas


def _regular(corners: int, radius: float = 1.0, start: float = -90.0) -> list[tuple[float, float]]:
    """A regular polygon's corners, the first at `start` degrees (-90 is up)."""
    angles = [math.radians(start + 360.0 * k / corners) for k in range(corners)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star() -> list[tuple[float, float]]:
    tips, notches = _regular(5), _regular(5, 0.46, start=-54.0)
    return [point for pair in zip(tips, notches, strict=True) for point in pair]


def _cross(reach: float = 0.94, arm: float = 0.33) -> list[tuple[float, float]]:
    quarter = [(arm, -reach), (arm, -arm), (reach, -arm)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


def _heart() -> list[tuple[float, float]]:
    """The classic curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, made to fit."""
    points = []
    for k in range(72):
        t = 2 * math.pi * k / 72
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.92 * math.sin(t) ** 3, -(y + 2.5) / 17))
    return points


# Corners, y pointing down; within -1 to 1 both ways at every rotation.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": _regular(72, 0.96),
    "square": _regular(4, 1.15, start=-45.0),
    "triangle": [(x, y + 0.1) for x, y in _regular(3)],
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}
