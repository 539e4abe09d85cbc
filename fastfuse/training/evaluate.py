"""How good a captioner is on a dataset: graded captions, and retrieval in both directions."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

import fastfuse as ff
from fastfuse.data import CaptionDataset, CaptionTokenizer, Preprocess, evaluation_batches
from fastfuse.models import Captioner
from fastfuse.training.decode import generate


class Evaluation(NamedTuple):
    """Scores over N pictures, and what was said of each."""

    grades: dict[str, float]  # "exact" and the dataset's attributes, each a mean over the pictures that have it
    recall: dict[str, dict[int, float]]  # {"i2t": {1: ..}, "t2i": {1: ..}}
    captions: list[str]  # N
    exact: list[bool]  # N


@torch.inference_mode()
def evaluate(
    model: Captioner,
    tokenizer: CaptionTokenizer,
    dataset: CaptionDataset,
    *,
    beams: int = 1,
    batch_size: int = 100,
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Caption every picture of ``dataset`` and grade the captions; retrieve canonical captions by picture and back.

    Args:
        model, tokenizer: what to grade; the model is left in evaluation mode.
        dataset: pictures with their valid captions.
        beams: 1 is greedy.
        batch_size: pictures at a time.
        dtype: to autocast to, None for float32.
    """
    model.eval()
    device = model.logit_scale.device
    preprocess = Preprocess(model.config.image_size)
    grades: defaultdict[str, list[float]] = defaultdict(list)
    captions: list[str] = []
    exact: list[bool] = []
    features: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for batch, examples in evaluation_batches(dataset, tokenizer, preprocess, batch_size):
            batch = batch.to(device)
            said = tokenizer.decode_batch(generate(model, batch.images, beams=beams).tokens)
            for caption, example in zip(said, examples, strict=True):
                graded = dataset.grade(caption, example)
                for name, grade in graded.items():
                    grades[name].append(grade)
                exact.append(graded["exact"] == 1.0)
            captions += said
            image, text = model.encode_image(batch.images)[1], model.encode_text(batch.tokens)[1]
            features.append((image.float(), text.float(), batch.ids))
    image, text, ids = (torch.cat(parts) for parts in zip(*features, strict=True))
    recall = ff.recall_at_k(image, text, ks=(1, 5), image_ids=ids, text_ids=ids)
    means = {name: sum(values) / len(values) for name, values in grades.items()}
    return Evaluation(means, recall, captions, exact)


def summary(scores: Evaluation) -> str:
    """Two lines to print."""
    grades = "  ".join(f"{name} {value:.1%}" for name, value in scores.grades.items())
    recall = "  ".join(f"{way} R@{k} {value:.1%}" for way, at in scores.recall.items() for k, value in at.items())
    return f"{len(scores.captions)} pictures: {grades}\nretrieval: {recall}"
