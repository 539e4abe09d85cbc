"""From any picture file to model input: decode, upright, RGB, resize, crop, augment, normalise."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastfuse.data.example import Augmentation, Example

_BICUBIC = Image.Resampling.BICUBIC


def load_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Any picture that Pillow reads, upright by its EXIF orientation, as RGB (see `to_rgb`).

    Args:
        source: a path, the file's bytes, or an image already open.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the content is no picture that Pillow knows, or it is truncated.
    """
    if isinstance(source, Image.Image):
        return to_rgb(ImageOps.exif_transpose(source))
    name = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image: {name} does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise ValueError(f"image: {name} can not be decoded ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: 16-bit and float greyscale are scaled to 8 bits, transparency is laid over white."""
    if image.mode.startswith(("I", "F")):
        return _grey_to_8_bit(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Modes "I;16" (0 to 65535), "I" (the same range, as PNG decoders give it) and "F" (0 to 1, or its own range)."""
    pixels = np.asarray(image, dtype=np.float64)
    top = 65535.0 if image.mode.startswith("I") else max(1.0, float(pixels.max(initial=0.0)))
    return Image.fromarray(np.clip(pixels * (255.0 / top), 0, 255).round().astype(np.uint8))


@dataclass(frozen=True)
class Preprocess:
    """Pictures to tensors of one size.

    Args:
        size: height and width of the result, in pixels.
        mean, std: per RGB channel, of values in 0 to 1.
    """

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected a positive number of pixels, got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected positive numbers, got {self.std}")

    def fit(self, image: Image.Image) -> Image.Image:
        """The shorter side resized to `size` (bicubic, anti-aliased), the middle square cut out: (size, size), RGB."""
        if image.size == (self.size, self.size):
            return image
        return ImageOps.fit(image, (self.size, self.size), _BICUBIC)

    def augment(self, example: Example, rng: random.Random) -> Image.Image:
        """A (size, size) variant of the example's picture by those augmentations that keep its captions true."""
        image = example.image
        if "crop" in example.augmentations:
            image = image.crop(_random_box(image.width, image.height, rng))
        image = self.fit(image)
        if "flip" in example.augmentations and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        for augmentation, enhancers in _ENHANCERS.items():
            if augmentation in example.augmentations:
                for enhancer in enhancers:
                    image = enhancer(image).enhance(rng.uniform(0.75, 1.25))
        return image

    def batch(self, images: list[Image.Image]) -> Tensor:
        """(B, 3, size, size) float32, normalised, from B RGB images of (size, size), as `fit` gives them."""
        pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
        mean, std = (np.array(t, np.float32).reshape(3, 1, 1) for t in (self.mean, self.std))
        result = np.empty(pixels.shape, np.float32)  # NumPy rather than torch: no thread pool to wake for so little
        np.multiply(pixels, 1 / (255 * std), out=result)
        result -= mean / std
        return torch.from_numpy(result)

    def __call__(self, source: str | Path | bytes | Image.Image) -> Tensor:
        """(3, size, size) float32, normalised, from one picture of any kind."""
        return self.batch([self.fit(load_image(source))])[0]


_ENHANCERS: dict[Augmentation, tuple[Callable[[Image.Image], Any], ...]] = {
    "brightness": (ImageEnhance.Brightness, ImageEnhance.Contrast),
    "colour": (ImageEnhance.Color,),
}


def _random_box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of half to all of the area, aspect ratio 3:4 to 4:3 of the picture's own."""
    area, stretch = rng.uniform(0.5, 1.0), rng.uniform(3 / 4, 4 / 3) ** 0.5
    w = max(1, round(width * min(1.0, area**0.5 * stretch)))
    h = max(1, round(height * min(1.0, area**0.5 / stretch)))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return left, top, left + w, top + h
