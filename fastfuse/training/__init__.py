"""Training, decoding and grading of captioners."""

from fastfuse.training.checkpoint import Trained, load_captioner
from fastfuse.training.config import TrainingConfig
from fastfuse.training.decode import Generated, generate, word_maps
from fastfuse.training.evaluate import Evaluation, evaluate
from fastfuse.training.loop import Trainer, train

__all__ = [
    "Evaluation",
    "Generated",
    "Trained",
    "Trainer",
    "TrainingConfig",
    "evaluate",
    "generate",
    "load_captioner",
    "train",
    "word_maps",
]
