"""Captioning data: datasets, image preprocessing, tokenizers and batches."""

from fastfuse.data.batches import Batch, TrainingBatches, evaluation_batches, training_captions
from fastfuse.data.coco import CocoCaptions
from fastfuse.data.digits import Digits
from fastfuse.data.example import CaptionDataset, Example, Split
from fastfuse.data.images import Preprocess, load_image
from fastfuse.data.registry import open_dataset
from fastfuse.data.scenes import Scenes
from fastfuse.data.tokenizer import CaptionTokenizer

__all__ = [
    "Batch",
    "CaptionDataset",
    "CaptionTokenizer",
    "CocoCaptions",
    "Digits",
    "Example",
    "Preprocess",
    "Scenes",
    "Split",
    "TrainingBatches",
    "evaluation_batches",
    "load_image",
    "open_dataset",
    "training_captions",
]
