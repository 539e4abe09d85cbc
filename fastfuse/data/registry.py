"""Datasets by name, as the command line writes them."""

from __future__ import annotations

from fastfuse.data.coco import CocoCaptions
from fastfuse.data.digits import Digits
from fastfuse.data.example import CaptionDataset, Split
from fastfuse.data.scenes import Scenes

_GENERATED: dict[str, type[Scenes] | type[Digits]] = {Scenes.name: Scenes, Digits.name: Digits}


def open_dataset(spec: str, split: Split = "train", seed: int = 0, size: int | None = None) -> CaptionDataset:
    """A dataset by its name.

    Args:
        spec: "scenes", "digits", or "coco:captions.json:images/".
        split: "train", "heldout" or "all".
        seed: which pictures are generated, or which are chosen where `size` leaves some out.
        size: pictures an epoch; None takes the dataset's default (10000 generated ones, all of a folder's).

    Raises:
        ValueError: the spec names no dataset, or the dataset's content is malformed.
        FileNotFoundError: a file or folder of the spec is not there.
    """
    if spec in _GENERATED:
        dataset = _GENERATED[spec]
        return dataset(split, seed) if size is None else dataset(split, seed, size)
    kind, _, rest = spec.partition(":")
    annotations, _, images = rest.rpartition(":")
    if kind == CocoCaptions.name and annotations and images:
        return CocoCaptions(annotations, images, split, seed, size)
    raise ValueError(f'spec: expected "scenes", "digits" or "coco:captions.json:images/", got {spec!r}')
