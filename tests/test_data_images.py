"""Image preprocessing: any mode and orientation to RGB, size, normalisation, augmentations that keep captions true."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from fastfuse.data import Example, Preprocess, load_image


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey16(value):
    return Image.fromarray(np.full((4, 4), value, np.uint16))


MODES = {
    "rgb": (Image.new("RGB", (4, 4), (10, 200, 30)), "PNG", (10, 200, 30)),
    "grey": (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
    "bilevel": (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
    "clear": (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
    "half clear": (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG", (255, 127, 127)),
    "grey with alpha": (Image.new("LA", (4, 4), (0, 0)), "PNG", (255, 255, 255)),
    "palette": (Image.new("RGB", (4, 4), (255, 0, 0)).convert("P"), "PNG", (255, 0, 0)),
    "gif": (Image.new("RGB", (4, 4), (255, 0, 0)).convert("P"), "GIF", (255, 0, 0)),
    "cmyk": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    "16 bit": (grey16(65535), "PNG", (255, 255, 255)),
    "16 bit tiff": (grey16(32896), "TIFF", (128, 128, 128)),
    "float": (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF", (128, 128, 128)),
    "webp": (Image.new("RGB", (4, 4), (10, 200, 30)), "WEBP", (10, 200, 30)),
}


@pytest.mark.parametrize(("image", "kind", "colour"), MODES.values(), ids=MODES)
def test_every_mode_becomes_rgb(image, kind, colour):
    loaded = load_image(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert loaded.mode == "RGB"
    assert np.abs(np.asarray(loaded)[1, 1].astype(int) - colour).max() <= 1


def test_a_palette_with_a_transparent_entry_is_laid_over_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0] * 256)
    assert load_image(encoded(image, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright = load_image(encoded(image, "PNG", exif=exif))
    assert upright.size == (4, 8)
    assert upright.getpixel((2, 1)) == (255, 255, 255)
    assert upright.getpixel((2, 6)) == (0, 0, 0)


def test_a_path_bytes_and_an_open_image_are_the_same(tmp_path):
    image = Image.effect_noise((20, 30), 50)
    (tmp_path / "a.png").write_bytes(encoded(image, "PNG"))
    preprocess = Preprocess(16)
    expected = preprocess(image)
    assert torch.equal(preprocess(tmp_path / "a.png"), expected)
    assert torch.equal(preprocess(str(tmp_path / "a.png")), expected)
    assert torch.equal(preprocess(encoded(image, "PNG")), expected)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image: .*none\.png"):
        load_image(tmp_path / "none.png")
    noise = encoded(Image.effect_noise((64, 64), 50), "PNG")
    for name, content in {"text.png": b"hello", "cut.png": noise[:900], "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_image(tmp_path / name)
    with pytest.raises(ValueError, match="the bytes given"):
        load_image(b"hello")


def test_the_middle_square_is_kept():
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    pixels = np.asarray(Preprocess(30).fit(image))
    assert pixels.shape == (30, 30, 3)
    assert (pixels == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (17, 300), (64, 64)])
def test_any_size_is_brought_to_one(size):
    assert Preprocess(32)(Image.new("RGB", size, "green")).shape == (3, 32, 32)


def test_shrinking_is_anti_aliased():
    board = np.indices((256, 256)).sum(0) % 2 * 255
    pixels = np.asarray(Preprocess(16).fit(Image.fromarray(board.astype(np.uint8)).convert("RGB")))
    assert np.abs(pixels.astype(int) - 128).max() <= 3


def test_normalisation_is_per_channel():
    image = Image.new("RGB", (2, 2), (0, 51, 255))
    result = Preprocess(2, mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))(image)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[:, 0, 0], torch.tensor([0.0, 0.0, 2.0]))


def picture(*augmentations):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    return Example(Image.fromarray(pixels), ("a picture",), "key", augmentations=frozenset(augmentations))


def test_augmentations_are_those_that_the_example_allows():
    preprocess = Preprocess(32)
    untouched = preprocess.fit(picture().image).tobytes()
    assert preprocess.augment(picture(), random.Random(0)).tobytes() == untouched
    for augmentation in ("crop", "flip", "brightness", "colour"):
        variants = {preprocess.augment(picture(augmentation), random.Random(i)).tobytes() for i in range(16)}
        assert len(variants) > 1
        assert all(preprocess.augment(picture(augmentation), random.Random(i)).size == (32, 32) for i in range(16))


def test_augmentation_follows_its_generator():
    everything = picture("crop", "flip", "brightness", "colour")
    first, again = (Preprocess(32).augment(everything, random.Random(5)).tobytes() for _ in range(2))
    assert first == again


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="size"):
        Preprocess(0)
    with pytest.raises(ValueError, match="std"):
        Preprocess(8, std=(0.0, 1.0, 1.0))
