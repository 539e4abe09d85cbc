"""COCO caption folders: one JSON file of images and captions, and the folder that holds the pictures.

Format: https://cocodataset.org/#format-data, "Image Captioning". Used of it:

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}, ...],
     "annotations": [{"image_id": 9, "caption": "A plate of food."}, ...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from fastfuse.data.example import Augmentation, Example, Split, check_index, check_split, seeded
from fastfuse.data.images import load_image

_HELDOUT_SHARE = 20  # one image of this many
_T = TypeVar("_T", int, str)
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class CocoCaptions:
    """Pictures with human captions. Pictures are decoded when asked for; the same ones come every epoch.

    Args:
        annotations: path of the JSON file.
        images: folder of the pictures.
        split: "all", or a fixed "train" / "heldout" division by image id (about 19 to 1).
        size: use no more than this many pictures, in the order of a shuffle by `seed`; None uses all in file order.
        seed: of that shuffle.

    Raises:
        FileNotFoundError: the JSON file or the folder is not there.
        ValueError: the JSON is malformed, an entry lacks a field, ids clash, or no captioned picture is left.
    """

    name = "coco"

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        split: Split = "train",
        seed: int = 0,
        size: int | None = None,
    ):
        check_split(split)
        self.split = split
        self.folder = Path(images)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"images: {self.folder} is not a folder")
        files, captions = _read(Path(annotations))
        self._entries = [(i, files[i], tuple(captions[i])) for i in files if i in captions and _belongs(i, split)]
        if not self._entries:
            raise ValueError(f"annotations: {annotations} has no image with a caption in split {split!r}")
        if size is not None:
            if size < 1:
                raise ValueError(f"size: expected at least one picture, got {size}")
            seeded("coco", seed).shuffle(self._entries)
            del self._entries[size:]

    def __len__(self) -> int:
        return len(self._entries)

    def example(self, index: int, epoch: int = 0) -> Example:
        """The picture at `index`, decoded.

        Raises:
            IndexError: outside 0 <= index < len(self).
            FileNotFoundError: the picture is not in the folder.
            ValueError: Pillow can not read it.
        """
        check_index(index, len(self))
        image_id, file_name, captions = self._entries[index]
        kept: set[Augmentation] = {"crop", "brightness"}
        if not any(_SIDES.search(caption) for caption in captions):
            kept.add("flip")
        return Example(
            image=load_image(self.folder / file_name),
            captions=captions,
            key=f"coco/{image_id}",
            augmentations=frozenset(kept),
        )

    def captions(self, index: int, epoch: int = 0) -> tuple[str, ...]:
        """The captions of the picture at `index`."""
        check_index(index, len(self))
        return self._entries[index][2]

    def grade(self, caption: str, example: Example) -> dict[str, float]:
        """Exact match with any of the captions, up to case, outer blanks and a full stop at the end."""
        return {"exact": float(_plain(caption) in map(_plain, example.captions))}


def _belongs(image_id: int, split: Split) -> bool:
    heldout = seeded("coco", image_id).randrange(_HELDOUT_SHARE) == 0
    return split == "all" or heldout == (split == "heldout")


def _plain(caption: str) -> str:
    return " ".join(caption.lower().split()).removesuffix(".").rstrip()


def _read(path: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """File names by image id, captions by image id."""
    if not path.is_file():
        raise FileNotFoundError(f"annotations: {path} is not a file")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise ValueError(f"annotations: {path} is not valid JSON ({error})") from error
    files: dict[int, str] = {}
    for place, entry in _entries(document, "images", path):
        image_id = _field(entry, "id", int, place)
        if image_id in files:
            raise ValueError(f"{place}: a second image with id {image_id}")
        files[image_id] = _field(entry, "file_name", str, place)
    captions: dict[int, list[str]] = {}
    for place, entry in _entries(document, "annotations", path):
        image_id = _field(entry, "image_id", int, place)
        if image_id not in files:
            raise ValueError(f"{place}: image_id {image_id} is not among the images")
        captions.setdefault(image_id, []).append(" ".join(_field(entry, "caption", str, place).split()))
    return files, captions


def _entries(document: object, section: str, path: Path) -> list[tuple[str, Mapping[str, object]]]:
    """The objects of a section, each with its place for error messages."""
    entries = document.get(section) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f'annotations: {path} has no list "{section}"')
    located: list[tuple[str, Mapping[str, object]]] = []
    for i, entry in enumerate(entries):
        place = f"annotations: {path}: {section}[{i}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{place}: expected an object, got {type(entry).__name__}")
        located.append((place, entry))
    return located


def _field(entry: Mapping[str, object], name: str, kind: type[_T], place: str) -> _T:
    value = entry.get(name)
    if not isinstance(value, kind):
        raise ValueError(f'{place}: expected "{name}" to be {kind.__name__}, got {value!r}')
    return value
