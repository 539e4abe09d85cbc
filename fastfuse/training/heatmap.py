"""Pictures of where the model looked: the image, darkened but for the places that a word attended to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastfuse.data.tokenizer import SPECIAL_TOKENS

_LABEL = 18  # pixels under each picture


def overlay(picture: Image.Image, where: Tensor, side: int = 128) -> Image.Image:
    """One word's map over its picture.

    Args:
        picture: square, RGB.
        where: (grid, grid) probabilities; the brightest place is shown at full strength.
        side: of the result, pixels.
    """
    strength = where.float() / where.max().clamp(min=1e-12)
    smooth = Image.fromarray((strength.numpy() * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    heat = np.asarray(smooth, np.float32)[..., None] / 255
    grey = np.asarray(picture.convert("L").convert("RGB").resize((side, side), Image.Resampling.BICUBIC), np.float32)
    colour = colormaps["inferno"](heat[..., 0])[..., :3] * 255
    mixed = 0.6 * grey * (1 - heat) + heat * (0.35 * grey + 0.65 * colour)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def draw_word_maps(picture: Image.Image, words: Sequence[str], maps: Tensor, side: int = 128) -> Image.Image:
    """The picture and then every word's map in a row, the words beneath.

    Args:
        picture: square, RGB.
        words: S tokens as text; special ones are left out.
        maps: (S, grid, grid), as ``word_maps`` gives them for one picture.
        side: of each, pixels.
    """
    tiles = [("", picture.resize((side, side), Image.Resampling.BICUBIC))]
    for word, where in zip(words, maps, strict=True):
        if word not in SPECIAL_TOKENS:
            tiles.append((word, overlay(picture, where, side)))
    sheet = Image.new("RGB", (len(tiles) * (side + 4) - 4, side + _LABEL), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for i, (word, tile) in enumerate(tiles):
        sheet.paste(tile, (i * (side + 4), 0))
        draw.text((i * (side + 4) + side // 2, side + _LABEL // 2), word, fill="black", font=font, anchor="mm")
    return sheet
