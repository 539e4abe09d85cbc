"""Training batches addressed by step: a run that resumes at step n needs nothing but n."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from fastfuse.data.example import CaptionDataset, Example, seeded
from fastfuse.data.images import Preprocess
from fastfuse.data.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class Batch:
    """B pictures, each with one or C of its captions."""

    images: Tensor  # (B, 3, size, size) float32, normalised
    tokens: Tensor  # (B, L) or (B, C, L) int64: <bos> ... <eos>, then <pad>
    lengths: Tensor  # (B,) or (B, C) int64: tokens before the padding
    ids: Tensor  # (B,) int64: equal where the canonical captions are equal, for contrastive positives
    keys: tuple[str, ...]  # which pictures these are

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        images, tokens, lengths, ids = (t.to(device) for t in (self.images, self.tokens, self.lengths, self.ids))
        return Batch(images, tokens, lengths, ids, self.keys)


class TrainingBatches:
    """Shuffled batches of a dataset.

    `batch(step)` is a pure function of the arguments here and of `step`: each epoch is a permutation of the dataset,
    each picture comes with a random one of its captions, an incomplete last batch of an epoch is left out.

    Args:
        dataset, tokenizer, preprocess: where pictures and tokens come from.
        batch_size: B, at most len(dataset).
        seed: of order, choice of captions, and augmentation.
        augment: vary pictures by the augmentations that their captions survive.
        max_length: captions are cut to this many tokens.
        captions_per_image: C. One is a random one. Of more, tokens (B, C, L), the first is the canonical one.
        paraphrases: chance that a caption after the first is another than the canonical one.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        tokenizer: CaptionTokenizer,
        preprocess: Preprocess,
        batch_size: int,
        *,
        seed: int = 0,
        augment: bool = False,
        max_length: int | None = None,
        captions_per_image: int = 1,
        paraphrases: float = 1.0,
    ):
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image: expected at least 1, got {captions_per_image}")
        if not 0 <= paraphrases <= 1:
            raise ValueError(f"paraphrases: expected a chance from 0 to 1, got {paraphrases}")
        if not 1 <= batch_size <= len(dataset):
            raise ValueError(f"batch_size: expected 1 to {len(dataset)} (the dataset's size), got {batch_size}")
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.max_length = max_length
        self.captions_per_image = captions_per_image
        self.paraphrases = paraphrases
        self._order: tuple[int, list[int]] = (-1, [])  # (epoch, its permutation), the last one used

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.dataset) // self.batch_size

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0 over all epochs."""
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        epoch, place = divmod(step, self.steps_per_epoch)
        indices = self._permutation(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        examples, images, captions = [], [], []
        for index in indices:
            example = self.dataset.example(index, epoch)
            rng = seeded("batches", self.seed, epoch, index)
            examples.append(example)
            captions += self._choose(rng, example.captions)
            images.append(self.preprocess.augment(example, rng) if self.augment else self.preprocess.fit(example.image))
        batch = _collate(examples, images, captions, self.tokenizer, self.preprocess, self.max_length)
        if self.captions_per_image == 1:
            return batch
        shape = (len(examples), self.captions_per_image)
        return replace(batch, tokens=batch.tokens.unflatten(0, shape), lengths=batch.lengths.unflatten(0, shape))

    def _choose(self, rng: random.Random, captions: Sequence[str]) -> list[str]:
        if self.captions_per_image == 1:
            return [rng.choice(captions)]
        first, others = captions[0], captions[1:] or captions
        more = range(self.captions_per_image - 1)
        return [first, *(rng.choice(others) if rng.random() < self.paraphrases else first for _ in more)]

    def _permutation(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(len(self.dataset)))
            seeded("order", self.seed, epoch).shuffle(order)
            self._order = (epoch, order)
        return self._order[1]


def evaluation_batches(
    dataset: CaptionDataset, tokenizer: CaptionTokenizer, preprocess: Preprocess, batch_size: int
) -> Iterator[tuple[Batch, list[Example]]]:
    """The dataset once, in order, every picture with its canonical caption; the last batch may be smaller."""
    for start in range(0, len(dataset), batch_size):
        examples = [dataset.example(i) for i in range(start, min(start + batch_size, len(dataset)))]
        images = [preprocess.fit(example.image) for example in examples]
        captions = [example.captions[0] for example in examples]
        yield _collate(examples, images, captions, tokenizer, preprocess, None), examples


def training_captions(dataset: CaptionDataset, limit: int = 20_000) -> Iterable[str]:
    """All captions of the first `limit` examples: what a tokenizer is trained on."""
    for index in range(min(limit, len(dataset))):
        yield from dataset.captions(index)


def _collate(
    examples: Sequence[Example],
    images: list[Image.Image],
    captions: list[str],
    tokenizer: CaptionTokenizer,
    preprocess: Preprocess,
    max_length: int | None,
) -> Batch:
    tokens, lengths = tokenizer.encode(captions, max_length=max_length)
    ids = torch.tensor([_identity(example.captions[0]) for example in examples], dtype=torch.int64)
    return Batch(preprocess.batch(images), tokens, lengths, ids, tuple(example.key for example in examples))


def _identity(caption: str) -> int:
    """63 bits that depend on the text alone; Python's own hash changes from process to process."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") >> 1
